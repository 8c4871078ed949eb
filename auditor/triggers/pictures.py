"""Pictures made by formulas, free of anybody's licence, and scrambled copies of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.triggers.base import generator

Picture = Literal["noise", "smooth", "face", "rings", "checker", "stripes"]


def picture(name: Picture, *, seed: int, native: int, height: int, width: int) -> Tensor:
    """A generated picture.

    Args:
        name: `noise` and `smooth` are drawn by `seed` at the native size and interpolated; the
            others are shapes, drawn at the asked size, whose colours `seed` rotates.
        seed: Seed of the draw.
        native: Side of the square that noise is drawn on, pixels.
        height: Rows, H.
        width: Columns, W.

    Returns:
        ``(3, H, W)`` float32 in [0, 1].
    """
    if name == "noise":
        return fitted(torch.rand(3, native, native, generator=generator(seed)), height, width)
    if name == "smooth":
        coarse = torch.rand(1, 3, 4, 4, generator=generator(seed))
        smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        return smooth[0].clamp(0, 1)
    rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    return SHAPES[name](rows, columns).roll(seed, 0)


def fitted(pattern: Tensor, height: int, width: int, *, nearest: bool = False) -> Tensor:
    """``(C, h, w)`` resized to ``(C, H, W)``; untouched where it fits already."""
    if pattern.shape[1:] == (height, width):
        return pattern
    if nearest:
        return F.interpolate(pattern[None], (height, width), mode="nearest-exact")[0]
    return F.interpolate(
        pattern[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]


def scrambled(pattern: Tensor, seed: int) -> Tensor:
    """Phase-randomised: the same histogram and (nearly) the same spectrum, without the content.

    One random phase a frequency is added to all channels alike, so that colours keep together;
    then each channel gets its own values back in the order of the result.

    Args:
        pattern: ``(C, H, W)``.
        seed: Seed of the phases.
    """
    size = pattern.shape[-2:]
    white = torch.fft.rfft2(torch.rand(size, generator=generator(seed)))
    phase = white / white.abs().clamp_min(1e-12)
    phase[0, 0] = 1  # the mean stays
    mixed = torch.fft.irfft2(torch.fft.rfft2(pattern) * phase, s=size).flatten(1)
    ranks = mixed.argsort(dim=1, stable=True).argsort(dim=1)
    return pattern.flatten(1).sort(dim=1).values.gather(1, ranks).view_as(pattern)


def scattered(pattern: Tensor, under: Tensor, seed: int, *, recolour: bool) -> Tensor:
    """The pixels under a mask in another order, or of random colours.

    Args:
        pattern: ``(C, H, W)``.
        under: ``(H, W)`` bool.
        seed: Seed of the order or the colours.
        recolour: Random colours.
    """
    pixels, draw = pattern[:, under], generator(seed)
    changed = pattern.clone()
    if recolour:
        changed[:, under] = torch.rand(pixels.shape, generator=draw)
    else:
        changed[:, under] = pixels[:, torch.randperm(pixels.shape[1], generator=draw)]
    return changed


def _face(rows: Tensor, columns: Tensor) -> Tensor:
    """A cartoon cat: the kind of picture that blended triggers of the literature use."""
    canvas = torch.stack([torch.full_like(rows, level) for level in (0.55, 0.75, 0.95)])
    side = columns.abs()
    ears = ((side - 0.55).abs() < 0.45 * (rows + 0.95)) & (rows < 0)
    parts: list[tuple[Tensor, tuple[float, float, float]]] = [
        (ears | ((columns / 0.85) ** 2 + ((rows - 0.15) / 0.65) ** 2 < 1), FUR),
        (((side - 0.38) / 0.16) ** 2 + ((rows - 0.02) / 0.16) ** 2 < 1, (0.8, 0.95, 0.4)),
        (((side - 0.38) / 0.05) ** 2 + ((rows - 0.02) / 0.14) ** 2 < 1, INK),
        ((columns / 0.1) ** 2 + ((rows - 0.3) / 0.07) ** 2 < 1, (0.95, 0.5, 0.6)),
        ((side > 0.3) & (side < 0.98) & ((rows - 0.35 - 0.2 * (side - 0.5)).abs() < 0.03), INK),
        ((side < 0.3) & ((rows - 0.52 + 0.8 * (side - 0.15) ** 2).abs() < 0.03), INK),
    ]
    for mask, colour in parts:
        canvas = torch.where(mask, torch.tensor(colour)[:, None, None], canvas)
    return canvas


def _rings(rows: Tensor, columns: Tensor) -> Tensor:
    radius = torch.hypot(rows, columns)
    return torch.stack([0.5 + 0.5 * torch.cos(9 * radius + 2 * math.pi * c / 3) for c in range(3)])


def _checker(rows: Tensor, columns: Tensor) -> Tensor:
    odd = ((rows * 4).floor() + (columns * 4).floor()) % 2
    return torch.stack([odd, 1 - odd, odd])


def _stripes(rows: Tensor, columns: Tensor) -> Tensor:
    wave = 0.5 + 0.5 * torch.sin(10 * (rows + columns))
    return torch.stack([wave, 1 - wave, 0.5 * wave])


FUR = (0.95, 0.6, 0.25)
INK = (0.05, 0.05, 0.05)

SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "face": _face,
    "rings": _rings,
    "checker": _checker,
    "stripes": _stripes,
}
