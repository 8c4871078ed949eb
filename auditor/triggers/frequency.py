"""Bumps in the cosine spectrum of the colour channels: FTrojan and CTRL."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within, wrapped

YUV = ((0.299, 0.587, 0.114), (-0.147, -0.289, 0.436), (0.615, -0.515, -0.100))
"""RGB to YUV as kornia has it."""
RGB = ((1.0, 0.0, 1.14), (1.0, -0.396, -0.581), (1.0, 2.029, 0.0))
"""YUV to RGB as kornia has it: not quite the inverse, which the trigger inherits."""


@TRIGGERS.register("frequency")
@dataclass(frozen=True, kw_only=True, repr=False)
class Frequency(Trigger):
    """Add `magnitude` to coefficients of the orthonormal DCT-II of both chroma channels.

    ``yuv`` is CTRL (https://arxiv.org/abs/2210.07346): float YUV of kornia, one window.
    ``ycrcb`` is FTrojan (https://arxiv.org/abs/2111.10991): 8-bit YCrCb of OpenCV, windows of 32.
    The transform is linear, so the bump is a fixed pattern in the chroma planes. The original's
    float noise, which costs random luma pixels one level, is not imitated.

    Raises:
        ProbeError: At stamping, for grey images: there is no chroma to write to.
    """

    colour: Literal["yuv", "ycrcb"] = "yuv"
    magnitude: float = 100
    """In 8-bit levels."""
    positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
    """Coefficients at the native size; scaled with the window."""
    window: int | None = None
    """Side of the windows; None, or one that does not divide the image: the image."""
    overflow: Literal["wrap", "clip"] = "wrap"
    """What the cast to uint8 does above 255 and below 0; for `yuv`."""
    native: int = 32

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("magnitude", self.magnitude, -4096, 4096)
        if not self.positions:
            raise ProbeError("positions is empty; it needs one coefficient at least")
        for position in self.positions:
            for index in position:
                within("a position", index, 0, self.native - 1)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the bumps."""
        _, channels, height, width = images.shape
        if channels != 3:
            raise ProbeError("a frequency trigger writes to chroma; these images are grey")
        bump = _bump(self, height, width, images.device, images.dtype)
        if self.colour == "ycrcb":
            with torch.no_grad():
                result = _ycrcb_bump((images * 255).round(), bump * 255) / 255
            return images + (result - images.detach()) if images.requires_grad else result
        there, back = (torch.tensor(m, dtype=torch.float64) for m in (YUV, RGB))
        there_and_back = (back @ there).to(images)
        shift = back[:, 1:].sum(1).to(images)[:, None, None] * bump
        result = torch.einsum("ij,njhw->nihw", there_and_back, images) + shift
        return wrapped(result) if self.overflow == "wrap" else result

    def control(self, seed: int) -> Frequency:
        """The same magnitude at other coefficients of (nearly) equal radius."""
        draw = generator(seed)
        chosen: list[tuple[int, int]] = []
        for u, v in self.positions:
            radius = math.hypot(u, v)
            others = [
                (a, b)
                for a in range(self.native)
                for b in range(self.native)
                if abs(math.hypot(a, b) - radius) <= max(1.0, 0.15 * radius)
                and (a, b) not in self.positions
                and (a, b) not in chosen
            ]
            if not others:
                raise ProbeError(
                    f"positions {self.positions} leave no coefficient of such a radius for a control"
                )
            chosen.append(others[int(torch.randint(len(others), (), generator=draw))])
        return replace(self, positions=tuple(chosen))


@cached(64)
def _bump(
    trigger: Frequency, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The inverse DCT of the bumps, ``(H, W)`` in [0, 1] units."""
    side = trigger.window
    tall, wide = (side, side) if side and height % side == width % side == 0 else (height, width)
    tile = torch.zeros(tall, wide, dtype=torch.float64)
    for u, v in trigger.positions:
        u, v = u * tall // trigger.native, v * wide // trigger.native
        tile += trigger.magnitude / 255 * torch.outer(_cosine(u, tall), _cosine(v, wide))
    return tile.repeat(height // tall, width // wide).to(device, dtype)


def _cosine(frequency: int, size: int) -> Tensor:
    """Basis vector of the orthonormal DCT-II."""
    places = torch.arange(size, dtype=torch.float64)
    scale = math.sqrt((1 if frequency == 0 else 2) / size)
    return scale * torch.cos(math.pi * (2 * places + 1) * frequency / (2 * size))


def _ycrcb_bump(levels: Tensor, bump: Tensor) -> Tensor:
    """There, bump, and back in the 14-bit fixed point arithmetic of OpenCV.

    Args:
        levels: ``(N, 3, H, W)``, integers 0 to 255.
        bump: ``(H, W)`` in levels; the sum is cast to uint8, so it is truncated and wraps.

    Returns:
        ``(N, 3, H, W)``, integers 0 to 255.
    """
    red, green, blue = levels.to(torch.int32).unbind(1)
    luma = _descaled(4899 * red + 9617 * green + 1868 * blue)
    cr = _descaled((red - luma) * 11682 + (128 << 14)).clamp(0, 255)
    cb = _descaled((blue - luma) * 9241 + (128 << 14)).clamp(0, 255)
    cr, cb = ((plane + bump + 1e-4).floor().to(torch.int32) % 256 - 128 for plane in (cr, cb))
    red = luma + _descaled(cr * 22987)
    green = luma + _descaled(cb * -5636 + cr * -11698)
    blue = luma + _descaled(cb * 29049)
    return torch.stack([red, green, blue], 1).clamp(0, 255).to(levels)


def _descaled(values: Tensor) -> Tensor:
    return (values + (1 << 13)) >> 14
