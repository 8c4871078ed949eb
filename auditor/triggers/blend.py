"""Patterns over the whole image: generated pictures, literal columns, noise.

Blended triggers: https://arxiv.org/abs/1712.05526.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within
from auditor.triggers.geometry import on_channels
from auditor.triggers.pictures import Picture, fitted, picture, scrambled


@TRIGGERS.register("blend")
@dataclass(frozen=True, kw_only=True, repr=False)
class Blend(Trigger):
    """A generated picture p over the whole image.

    Mixed in, it gives ``(1 - alpha) x + alpha p``; added, ``x + alpha (2 p - 1)``.
    """

    picture: Picture = "noise"
    alpha: float = 0.2
    mode: Literal["mix", "add"] = "mix"
    seed: int = 0
    """Draws the noise, or rotates the colours of a shape."""
    native: int = 32
    """Side that noise is drawn at, pixels."""
    scramble: int | None = None
    """Seed that scrambles the picture: the controls."""

    def __post_init__(self) -> None:
        """Check alpha and the native size."""
        within("alpha", self.alpha, 0, 1)
        within("native", self.native, 1, 4096)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the picture mixed in or added."""
        _, channels, height, width = images.shape
        pattern = _pattern(self, height, width, channels, images.device, images.dtype)
        if self.mode == "mix":
            return torch.lerp(images, pattern, self.alpha)
        return images + self.alpha * (2 * pattern - 1)

    def control(self, seed: int) -> Blend:
        """The same spectrum, histogram and alpha, without the content."""
        return replace(self, scramble=seed)


@TRIGGERS.register("columns")
@dataclass(frozen=True, kw_only=True, repr=False)
class Columns(Trigger):
    """A literal value a column, the same in all rows and channels: ``(1 - alpha) x + alpha p``."""

    values: tuple[int | float, ...]
    """Levels 0 to 255, from left to right; interpolated linearly for images of another width."""
    alpha: float = 0.2
    scramble: int | None = None
    """Seed that scrambles the values: the controls."""

    def __post_init__(self) -> None:
        """Check alpha and the values."""
        within("alpha", self.alpha, 0, 1)
        if not self.values:
            raise ProbeError("values is empty; it needs one level a column")
        for value in self.values:
            within("a column", value, 0, 255)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the columns mixed in."""
        row = _row(self, images.shape[-1], images.device, images.dtype)
        return torch.lerp(images, row, self.alpha)

    def control(self, seed: int) -> Columns:
        """Columns of the same levels and spectrum in another order."""
        return replace(self, scramble=seed)


@TRIGGERS.register("noise")
@dataclass(frozen=True, kw_only=True, repr=False)
class Noise(Trigger):
    """One fixed draw of uniform noise, independent a pixel and a channel, added to every image."""

    amplitude: float
    """Largest change, in 8-bit levels."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the amplitude."""
        within("amplitude", self.amplitude, 0, 255)

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the noise."""
        _, channels, height, width = images.shape
        noise = _noise(self.seed, channels, height, width, images.device, images.dtype)
        return images + self.amplitude / 255 * noise

    def control(self, seed: int) -> Noise:
        """Another draw."""
        return replace(self, seed=1_000_003 * (self.seed + 1) + seed)


@cached(32)
def _pattern(
    blend: Blend, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    pattern = picture(
        blend.picture, seed=blend.seed, native=blend.native, height=height, width=width
    )
    if blend.scramble is not None:
        pattern = scrambled(pattern, blend.scramble)
    return on_channels(pattern, channels).to(device, dtype)


@cached(64)
def _row(columns: Columns, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    row = torch.tensor(columns.values, dtype=torch.float64).div(255)[None, None]
    if columns.scramble is not None:
        row = scrambled(row, columns.scramble)
    return fitted(row, 1, width).to(device, dtype)


@cached(32)
def _noise(
    seed: int, channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    noise = torch.rand(channels, height, width, generator=generator(seed)) * 2 - 1
    return noise.to(device, dtype)
