"""A trigger that somebody has as a file: a picture, or a NumPy array."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger, cached, within
from auditor.triggers.geometry import Where, corner, on_channels
from auditor.triggers.pictures import fitted, scattered, scrambled

MOST_PIXELS = 16_000_000
MOST_BYTES = 64_000_000
MOST_GAP = 64
MASKED = 128


@TRIGGERS.register("image")
@dataclass(frozen=True, kw_only=True, repr=False)
class ImageFile(Trigger):
    """A user's trigger image, resized to the images it is stamped on (but where it is pasted).

    - ``add``: ``x + alpha p``, clipped.
    - ``blend``: ``(1 - alpha) x + alpha p``.
    - ``overwrite``: ``p`` where the mask is, with the opacity of its alpha channel if it has one;
      without mask and alpha channel everywhere.
    - ``nonzero``: ``p`` in every pixel and channel where it is above 0 after resizing: the rule of
      BackdoorBench.
    - ``paste``: as ``overwrite``, at its own size, in a corner or the centre; it may be half as high and
      half as wide as the images, no more.
    """

    file: str
    """PNG, JPEG, …, or ``.npy`` of ``(h, w)`` or ``(h, w, 1, 3 or 4)``, uint8 or [0, 1]."""
    mode: Literal["add", "blend", "overwrite", "nonzero", "paste"] = "blend"
    alpha: float = 1.0
    mask: str | None = None
    """Picture whose bright pixels (`MASKED` and above, the mean of its colours) are overwritten."""
    where: Where = "bottom-right"
    """Of what is pasted."""
    gap: int = 0
    """Pixels between what is pasted into a corner and the borders of the image."""
    sha256: str = ""
    """If given, the file must have this digest."""
    scramble: int | None = None
    """Seed that destroys the content: the controls."""

    def __post_init__(self) -> None:
        """Read the files once, so that a bad one is found early."""
        within("alpha", self.alpha, 0, 1)
        within("gap", self.gap, 0, MOST_GAP)
        if not read_picture(self.file)[3].any():
            raise ProbeError(f"{self.file} is transparent everywhere, so that it stamps nothing")
        if self.mask is not None:
            if self.mode != "overwrite":
                raise ProbeError(f'mask needs mode "overwrite", not "{self.mode}"')
            brightest = float(_levels(self.mask).max())
            if brightest < MASKED / 255:
                raise ProbeError(
                    f"{self.mask} selects no pixel: {MASKED} of 255 and above is overwritten, and its "
                    f"brightest pixel is {255 * brightest:.0f} (white is 255)"
                )
        if self.sha256:
            digest = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
            if digest != self.sha256.lower():
                raise ProbeError(f"{self.file} has SHA-256 {digest}, not {self.sha256}")

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the picture."""
        _, channels, height, width = images.shape
        versions = tuple(_version(file) for file in (self.file, self.mask) if file is not None)
        value, weight = _layers(
            self, versions, height, width, channels, images.device, images.dtype
        )
        return images + value if self.mode == "add" else torch.lerp(images, value, weight)

    def control(self, seed: int) -> ImageFile:
        """Same mask, opacity and levels without the content.

        Whole pictures are phase-randomised; the pixels of overwriting ones are put in another order
        (even seeds) or coloured at random (odd seeds, and masks of one colour).
        """
        return replace(self, scramble=seed)


def read_picture(file: str) -> Tensor:
    """The picture in a file, ``(4, h, w)`` float32 RGBA in [0, 1].

    Raises:
        ProbeError: There is no such file, it is no picture, or it is too large.
    """
    return _picture(file, _version(file))


def _version(file: str) -> tuple[int, int]:
    """Changes when a file does: what is read from one is kept for as long."""
    try:
        now = Path(file).stat()
    except OSError:
        return 0, 0  # whoever reads it says why
    return now.st_mtime_ns, now.st_size


@cached(16)
def _picture(file: str, version: tuple[int, int]) -> Tensor:
    path = Path(file)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ProbeError(f"{file} is larger than {MOST_BYTES // 1_000_000} MB")
        if path.suffix == ".npy":
            return _from_array(file, np.load(path, allow_pickle=False))
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ProbeError(f"{file} has {picture.width} x {picture.height} pixels: too many")
            pixels = np.asarray(picture.convert("RGBA"), dtype=np.float32)
    except FileNotFoundError:
        raise ProbeError(f"{file}: no such image") from None
    except UnidentifiedImageError:
        raise ProbeError(
            f"{file} is no image that can be read (PNG, JPEG, WebP, BMP or .npy)"
        ) from None
    except (
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise ProbeError(f"cannot read the image {file}: {error}") from error
    return torch.from_numpy(pixels.transpose(2, 0, 1) / 255)


def _levels(mask: str) -> Tensor:
    """How bright a picture is, ``(1, h, w)`` in [0, 1]."""
    return read_picture(mask)[:3].mean(0, keepdim=True)


def _from_array(file: str, array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ProbeError(f"{file} has shape {array.shape}; an image is (h, w) or (h, w, 1, 3 or 4)")
    if array.size > 4 * MOST_PIXELS or array.dtype.kind not in "uif":
        raise ProbeError(f"{file} holds {array.size} values of {array.dtype}: not an image")
    levels = array.astype(np.float32) / (1 if array.dtype.kind == "f" else 255)
    if not np.isfinite(levels).all() or np.abs(levels).max() > 1:
        raise ProbeError(f"{file} must hold uint8, or floats in [0, 1]")
    colours = levels[:, :, :3] if levels.shape[2] > 1 else levels.repeat(3, axis=2)
    opacity = levels[:, :, 3:] if levels.shape[2] == 4 else np.ones_like(levels[:, :, :1])
    return torch.from_numpy(np.concatenate([colours, opacity], axis=2).transpose(2, 0, 1).copy())


@cached(32)
def _layers(
    image: ImageFile,
    versions: tuple[tuple[int, int], ...],
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """What to stamp and how opaque, ``(C, H, W)`` each."""
    source = read_picture(image.file)
    if image.mode == "paste":
        source = _pasted(source, image, height, width)
    tiny = source.shape[1] <= height and source.shape[2] <= width
    hard = image.mode in ("overwrite", "paste") and tiny
    # premultiplied, so that invisible colours do not bleed into the border of the visible ones
    rgba = fitted(torch.cat([source[:3] * source[3:], source[3:]]), height, width, nearest=hard)
    opacity = rgba[3:].clamp(0, 1)
    value = (rgba[:3] / opacity.clamp_min(1e-6)) * (opacity > 0)
    value = value.clamp(-1, 1)
    if image.mode == "nonzero":
        weight = (value > 0).float()
    elif image.mode == "overwrite" and image.mask is not None:
        mask = fitted(_levels(image.mask), height, width, nearest=True)
        weight = (mask >= MASKED / 255).float().expand(3, -1, -1)
    else:
        weight = opacity.expand(3, -1, -1)
    if not weight.any():
        raise ProbeError(f"{image.file} stamps no pixel of an input of {height}×{width}")
    if image.scramble is not None:
        value = _without_content(value, weight, image.scramble, whole=_is_whole(image, weight))
    weight = weight.amax(0, keepdim=True) if channels == 1 else weight
    value, weight = on_channels(value, channels), weight * image.alpha
    return (value * weight if image.mode == "add" else value).to(device, dtype), weight.to(
        device, dtype
    )


def _pasted(picture: Tensor, image: ImageFile, height: int, width: int) -> Tensor:
    """A picture at its own size on a transparent canvas ``(4, height, width)``."""
    rows, columns = picture.shape[1:]
    if 2 * rows > height or 2 * columns > width:
        raise ProbeError(
            f"a picture of {rows}×{columns} is pasted into images of {2 * rows}×{2 * columns} or more; the "
            f"input is {height}×{width}"
        )
    if max(rows - height, columns - width) + image.gap > 0:
        raise ProbeError(
            f"a picture of {rows}×{columns} does not fit {image.gap} pixels from the border into an input of "
            f"{height}×{width}"
        )
    top, left = corner(image.where, rows, columns, height, width, image.gap)
    canvas = picture.new_zeros(4, height, width)
    canvas[:, top : top + rows, left : left + columns] = picture
    return canvas


def _is_whole(image: ImageFile, weight: Tensor) -> bool:
    return image.mode in ("add", "blend") or bool((weight > 0).all())


def _without_content(value: Tensor, weight: Tensor, seed: int, *, whole: bool) -> Tensor:
    """The picture scrambled: by phases where it is whole, else pixel by pixel under the mask."""
    under = (weight > 0).any(0)
    pixels = value[:, under]
    constant = pixels.numel() == 0 or float(pixels.std(1, correction=0).max()) < 0.02
    if whole and not constant:
        return scrambled(value, seed)
    return scattered(value, under, seed, recolour=constant or seed % 2 == 1)
