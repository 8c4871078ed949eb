"""Triggers that a search found: their pixels, kept as numbers.

They are what a search hands to the battery, to the purifier and to a probe file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger, cached
from auditor.triggers.geometry import on_channels
from auditor.triggers.pictures import fitted, scattered, scrambled

MOST_NUMBERS = 4 * 1024 * 1024
DIGEST = 12


@dataclass(frozen=True, kw_only=True, repr=False)
class Found(Trigger):
    """Numbers of one trigger, packed. Its repr names them by a digest, which tells it from others."""

    shape: tuple[int, int, int]
    """``(channels, height, width)`` that it was found at; fitted to images of another size."""
    content: str = field(repr=False)
    """Little-endian 16-bit levels, compressed by zlib, in base64."""
    digest: str = ""
    """The first digits of the SHA-256 of `content`; filled in."""
    scramble: int | None = None
    """Seed that destroys the content: the controls."""

    def __post_init__(self) -> None:
        """Check that the numbers are there and fill the shape."""
        self.levels()
        digest = hashlib.sha256(self.content.encode()).hexdigest()[:DIGEST]
        if self.digest not in ("", digest):
            raise ProbeError(f"content has the digest {digest}, not {self.digest}")
        object.__setattr__(self, "digest", digest)

    @property
    def planes(self) -> int:
        """Numbers a pixel."""
        raise NotImplementedError

    def levels(self) -> np.ndarray:
        """``(planes, height, width)`` int16."""
        channels, height, width = self.shape
        count = self.planes * height * width
        if min(self.shape) < 1 or channels not in (1, 3) or count > MOST_NUMBERS:
            raise ProbeError(f"shape is {self.shape}; it must be (1 or 3, height, width)")
        try:
            packed = base64.b64decode(self.content, validate=True)
            unpacked = zlib.decompressobj().decompress(packed, 2 * count + 1)
        except (binascii.Error, ValueError, zlib.error) as error:
            raise ProbeError(f"content is not compressed base64: {error}") from None
        if len(unpacked) != 2 * count:
            raise ProbeError(f"content does not hold the {count} numbers that {self.shape} needs")
        return np.frombuffer(unpacked, dtype="<i2").reshape(self.planes, height, width)

    def control(self, seed: int) -> Self:
        """Same place, area and strength, without the content."""
        return replace(self, scramble=seed)


def packed(levels: Tensor) -> str:
    """The content of a found trigger, of numbers ``(planes, H, W)`` in 8-bit levels."""
    rounded = levels.detach().cpu().round().to(torch.int16).contiguous().numpy()
    return base64.b64encode(zlib.compress(rounded.astype("<i2").tobytes(), 9)).decode()


@TRIGGERS.register("overlay")
@dataclass(frozen=True, kw_only=True, repr=False)
class Overlay(Found):
    """A pattern p under a mask m: ``(1 - m) x + m p``, as Neural Cleanse writes a trigger.

    https://doi.org/10.1109/SP.2019.00031, section IV.
    """

    @classmethod
    def of(cls, pattern: Tensor, mask: Tensor) -> Overlay:
        """The trigger of a pattern ``(C, H, W)`` and a mask ``(1, H, W)``, both in [0, 1]."""
        channels, height, width = pattern.shape
        opacity = (mask * 255).round()
        levels = torch.cat([pattern * 255 * (opacity > 0), opacity])
        return cls(shape=(channels, height, width), content=packed(levels))

    @property
    def planes(self) -> int:
        """Channels and mask."""
        return self.shape[0] + 1

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the pattern."""
        _, channels, height, width = images.shape
        pattern, mask = _overlay(self, channels, height, width, images.device, images.dtype)
        return torch.lerp(images, pattern, mask)


@TRIGGERS.register("addition")
@dataclass(frozen=True, kw_only=True, repr=False)
class Addition(Found):
    """The same change added to every image: ``x + d``, clipped."""

    @classmethod
    def of(cls, change: Tensor) -> Addition:
        """The trigger of a change ``(C, H, W)`` in [-1, 1]."""
        channels, height, width = change.shape
        return cls(shape=(channels, height, width), content=packed(change.clamp(-1, 1) * 255))

    @property
    def planes(self) -> int:
        """Channels."""
        return self.shape[0]

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the change."""
        _, channels, height, width = images.shape
        return images + _addition(self, channels, height, width, images.device, images.dtype)


@cached(64)
def _overlay(
    found: Overlay, channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    levels = torch.from_numpy(found.levels().astype(np.float32)) / 255
    pattern, mask = levels[:-1].clamp(0, 1), levels[-1:].clamp(0, 1)
    if found.scramble is not None:
        if mask.amin() == mask.amax():  # a blended picture, not a patch
            pattern = scrambled(pattern, found.scramble)
        else:
            pattern = scattered(
                pattern, (mask > 0)[0], found.scramble, recolour=found.scramble % 2 == 1
            )
    resized = fitted(torch.cat([pattern * mask, mask]), height, width)
    mask = resized[-1:].clamp(0, 1)
    pattern = (resized[:-1] / mask.clamp_min(1e-6)).clamp(0, 1)
    return on_channels(pattern, channels).to(device, dtype), mask.to(device, dtype)


@cached(64)
def _addition(
    found: Addition,
    channels: int,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    change = torch.from_numpy(found.levels().astype(np.float32)) / 255
    if found.scramble is not None:
        change = scrambled(change, found.scramble)
    return on_channels(fitted(change, height, width), channels).to(device, dtype)
