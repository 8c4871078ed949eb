"""Rotations: BATT (https://arxiv.org/abs/2211.01806)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within


@TRIGGERS.register("rotate")
@dataclass(frozen=True, kw_only=True, repr=False)
class Rotate(Trigger):
    """The image turned round its middle, nearest neighbour, as ``PIL.Image.rotate`` does."""

    needs_structure: ClassVar[bool] = True
    keeps_meaning: ClassVar[bool] = False

    degrees: float = 16
    """Anticlockwise."""
    fill: float = 0
    """Level of the corners that come from outside, 0 to 255."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("degrees", self.degrees, -180, 180)
        within("fill", self.fill, 0, 255)

    def stamp(self, images: Tensor) -> Tensor:
        """Turned images."""
        height, width = images.shape[-2:]
        index, inside = _turn(self.degrees, height, width, images.device)
        turned = images.flatten(2)[..., index].view_as(images)
        return torch.where(inside, turned, self.fill / 255)

    def control(self, seed: int) -> Rotate:
        """Seed 0: as far the other way. Others: the other way, by 75 % to 125 %."""
        if seed == 0:
            return replace(self, degrees=-self.degrees)
        share = 0.75 + 0.5 * float(torch.rand((), generator=generator(seed)))
        return replace(self, degrees=max(-180.0, min(180.0, round(-self.degrees * share, 3))))


@cached(64)
def _turn(degrees: float, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from ``(H W,)``, and whether from inside ``(H, W)``.

    The 16-bit fixed point steps are Pillow's, so that ties fall the same way.
    """
    angle = -math.radians(degrees % 360)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
    c = width / 2 - a * width / 2 - b * height / 2
    f = height / 2 - d * width / 2 - e * height / 2
    ai, bi, di, ei = (math.floor(v * 65536 + 0.5) for v in (a, b, d, e))
    ci = math.floor((c + a * 0.5 + b * 0.5) * 65536 + 0.5)
    fi = math.floor((f + d * 0.5 + e * 0.5) * 65536 + 0.5)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    x = (ci + ai * columns + bi * rows) >> 16
    y = (fi + di * columns + ei * rows) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten()
    return index.to(device), inside.to(device)
