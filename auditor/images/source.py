"""Where clean images come from: how many, their labels and sizes, and how they are read."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from auditor.errors import ImageError
from auditor.progress import Notify, silent
from auditor.results.facts import InputSpec
from auditor.text import clean_text, counted, listed

MAX_LISTED = 5
DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, struct.error,
    zlib.error, zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
"""What reading a damaged picture or archive raises."""


@dataclass(frozen=True, kw_only=True)
class CleanSet:
    """Images at the model's size, 8 bits a channel."""

    images: Tensor
    """``(N, C, H, W)`` uint8 on the CPU."""
    labels: Tensor | None
    """``(N,)`` int64, or None."""
    class_names: tuple[str, ...] = ()
    """Names of the class folders, in the order of their class numbers."""
    found: int = 0
    """Images in the folder or file, of which these were drawn."""
    unreadable: tuple[str, ...] = field(default=())
    """Files that were left out, with the reason."""
    remarks: tuple[str, ...] = ()
    """As of the source."""
    copies: int = 0
    """Images that were left out, as they are the same as an earlier one, pixel by pixel."""
    conflicts: int = 0
    """Pictures that were left out, as they are there under several labels."""
    indices: tuple[int, ...] = ()
    """Which of the source these are."""

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """SHA-256 over pixels and labels."""
        sha = hashlib.sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()


def digests(images: Tensor) -> list[bytes]:
    """SHA-256 of the pixels of each image ``(N, C, H, W)`` uint8."""
    return [hashlib.sha256(image.numpy()).digest() for image in images.cpu().contiguous()]


class ImageSource:
    """Where clean images come from; knows how many, their labels and sizes before reading all."""

    def __init__(
        self,
        name: str,
        count: int,
        labels: list[int] | None,
        class_names: tuple[str, ...],
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.count = count
        self.labels = labels
        self.class_names = class_names
        self.remarks = remarks
        """What is odd about it, though it can be used, in sentences."""

    def draw(self, limit: int, seed: int) -> list[int]:
        """Indices of at most `limit` images, as evenly over the classes as they come."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed)).tolist()
        if self.labels is None:
            return order[:limit]
        by_class: dict[int, list[int]] = {}
        for index in order:
            by_class.setdefault(self.labels[index], []).append(index)
        rank = {i: place for members in by_class.values() for place, i in enumerate(members)}
        return sorted(order, key=lambda index: rank[index])[:limit]

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        """Heights and widths of some images."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        """One image. Raises one of `DAMAGED` where it cannot be read."""
        raise NotImplementedError

    def contents(self, indices: Sequence[int]) -> list[bytes | None]:
        """What tells stored images apart without decoding them; None of one that is like no other."""
        raise NotImplementedError

    def label_of(self, index: int) -> int | None:
        """The label of an image, where there are labels."""
        return None if self.labels is None else self.labels[index]

    def title(self, index: int) -> str:
        """How to name an image in a message."""
        return f"image {index}"

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        """Read images and bring them to the model's size.

        Of copies, only the first one counts; with several labels, none does.

        Raises:
            ImageError: None of them can be read.
        """
        images: dict[bytes, np.ndarray] = {}
        first: dict[bytes, int] = {}
        torn: set[bytes] = set()
        unreadable = []
        for done, index in enumerate(indices):
            try:
                image = resized(self.read(index), spec)
            except DAMAGED as error:
                unreadable.append(f"{self.title(index)} ({_why(error)})")
                continue
            content = hashlib.sha256(image.tobytes()).digest()
            if self.label_of(first.setdefault(content, index)) != self.label_of(index):
                torn.add(content)
            images.setdefault(content, image)
            if done % 64 == 63:
                notify("reading images", done + 1, len(indices))
        read = len(indices) - len(unreadable)
        if not read:
            raise ImageError(
                f"{self.name}: none of the {len(indices)} images can be read: "
                f"{'; '.join(unreadable[:MAX_LISTED])}."
            )
        kept = [content for content in images if content not in torn]
        if not kept:
            raise ImageError(f"{self.name}: every picture is there under several labels.")
        labels = [self.label_of(first[content]) for content in kept]
        return CleanSet(
            images=torch.from_numpy(np.stack([images[content] for content in kept]))
            .permute(0, 3, 1, 2)
            .contiguous(),
            labels=None if self.labels is None else torch.tensor(labels),
            class_names=self.class_names,
            found=self.count,
            unreadable=tuple(unreadable),
            remarks=self.remarks,
            copies=read - len(images),
            conflicts=len(torn),
            indices=tuple(first[content] for content in kept),
        )


class PartSource(ImageSource):
    """Some images of a source, as a source of its own: the halves of a split."""

    def __init__(
        self, whole: ImageSource, indices: Sequence[int], remarks: tuple[str, ...] = ()
    ) -> None:
        labels = None if whole.labels is None else [whole.labels[index] for index in indices]
        remarks = (*whole.remarks, *remarks)
        super().__init__(whole.name, len(indices), labels, whole.class_names, remarks)
        self._whole, self._indices = whole, list(indices)

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        return self._whole.sizes([self._indices[index] for index in indices])

    def contents(self, indices: Sequence[int]) -> list[bytes | None]:
        return self._whole.contents([self._indices[index] for index in indices])

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        clean = self._whole.load([self._indices[index] for index in indices], spec, notify)
        place = {whole: index for index, whole in enumerate(self._indices)}
        places = tuple(place[whole] for whole in clean.indices)
        return replace(clean, indices=places, remarks=self.remarks)


class Without(PartSource):
    """The images of a source that are none of some others, as they come to the model's size."""

    def __init__(self, whole: ImageSource, others: Set[bytes]) -> None:
        super().__init__(whole, range(whole.count))
        self._others = others

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        clean = super().load(indices, spec, notify)
        kept = [k for k, own in enumerate(digests(clean.images)) if own not in self._others]
        return replace(
            clean,
            images=clean.images[kept],
            labels=None if clean.labels is None else clean.labels[kept],
            indices=tuple(clean.indices[k] for k in kept),
        )


def split(
    source: ImageSource, holdout: float, *, limit: int, seed: int
) -> tuple[PartSource, PartSource]:
    """Draw images and part them once: some to work on, the others to judge by.

    The share is taken of every class, where there are labels. A class with one image gives it to
    the first part. Both parts keep the order of the draw, in which classes take turns.

    Args:
        source: Where the images come from.
        holdout: Share of the images that goes to the second part, in (0, 1).
        limit: Draw at most so many, evenly over the classes.
        seed: Of the draw.
    """
    every = source.draw(limit, seed)
    drawn = _distinct(source, every)
    copies = len(every) - len(drawn)
    remarks = (f"{counted(copies, 'image')} of {len(every)} left out: copies.",) if copies else ()
    by_class: dict[int | None, list[int]] = {}
    for index in drawn:
        by_class.setdefault(source.label_of(index), []).append(index)
    held_out: set[int] = set()
    owed = 0.0
    for members in by_class.values():
        owed += holdout * len(members)  # what is rounded off in one class is made up in the next
        count = min(round(owed), len(members) - 1)
        owed -= count
        held_out.update(members[:count])
    return (
        PartSource(source, [index for index in drawn if index not in held_out], remarks),
        PartSource(source, [index for index in drawn if index in held_out]),
    )


def _distinct(source: ImageSource, indices: Sequence[int]) -> list[int]:
    """The first of those that are stored alike under one label, so that no split parts copies."""
    seen: set[tuple[bytes, int | None]] = set()
    kept = []
    for index, content in zip(indices, source.contents(indices), strict=True):
        key = None if content is None else (content, source.label_of(index))
        if key is None or key not in seen:
            kept.append(index)
        if key is not None:
            seen.add(key)
    return kept


def upright(image: Image.Image) -> Image.Image:
    """A picture as a camera meant it: rotated by its EXIF tag, 8 bits, RGB or grey.

    An opacity is left out, and not laid on a ground, as the loaders do that networks are trained with
    (torchvision's ImageFolder, OpenCV, TensorFlow).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        top = 65535 if pixels.max() > 255 else 255
        image = Image.fromarray((pixels / top * 255).round().clip(0, 255).astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def resized(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """A picture at the model's size: ``(H, W, C)`` uint8.

    The shorter side is scaled to fit and the middle is cut out; nothing is squeezed.
    """
    image = image.convert("L" if spec.channels == 1 else "RGB")
    if image.size != (spec.width, spec.height):
        image = ImageOps.fit(image, (spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)


def remark(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """What is odd about a folder, with the names of the first few; nothing where there are none."""
    shown = [clean_text(name, limit=60) for name in names]
    return (f"{what}: {listed(shown, MAX_LISTED)}.",) if shown else ()


def _why(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture"
    return clean_text(str(error), limit=80) or type(error).__name__
