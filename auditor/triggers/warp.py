"""Smooth warps of the image: WaNet (https://arxiv.org/abs/2102.10369)."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within


@TRIGGERS.register("warp")
@dataclass(frozen=True, kw_only=True, repr=False)
class Warp(Trigger):
    """A drawn WaNet warp: control points ``u ~ U(-1, 1)``, divided by ``mean |u|``, upsampled.

    ``x' = grid_sample(x, clamp((identity + s F / H) rescale, -1, 1))`` with F the bicubic
    upsampling of u (section 3.2 of the paper and its code).
    """

    needs_structure: ClassVar[bool] = True

    seed: int = 0
    points: int = 4
    """Control points a side, k."""
    strength: float = 0.5
    """s: mean displacement in half pixels."""
    rescale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("points", self.points, 2, 64)
        within("strength", self.strength, 0, 64)
        within("rescale", self.rescale, 0.5, 1)

    def stamp(self, images: Tensor) -> Tensor:
        """Warped images; what is sampled from outside is black."""
        return _sampled(images, self.grid(images))

    def grid(self, images: Tensor) -> Tensor:
        """Where each pixel is taken from: ``(1, H, W, 2)``, (x, y) in [-1, 1]."""
        height, width = images.shape[-2:]
        return _drawn(self, height, width, images.device, images.dtype)

    def control(self, seed: int) -> Warp:
        """Other control points of the same number and strength."""
        return replace(self, seed=1_000_003 * (self.seed + 1) + seed)


@TRIGGERS.register("grid-warp")
@dataclass(frozen=True, kw_only=True, repr=False)
class GridWarp(Trigger):
    """A WaNet warp whose displacements are known, for example from the attacker's checkpoint."""

    needs_structure: ClassVar[bool] = True

    shape: tuple[int, int, int, int]
    """``(1, H, W, 2)``, or ``(1, 2, k, k)`` for control points."""
    noise: str
    """The displacements before the scaling by s / H: little-endian float32, base64."""
    strength: float = 0.5
    rescale: float = 1.0

    def __post_init__(self) -> None:
        """Check that the numbers fill the shape."""
        within("strength", self.strength, 0, 64)
        within("rescale", self.rescale, 0.5, 1)
        if self.shape[0] != 1 or 2 not in (self.shape[1], self.shape[3]) or not all(self.shape):
            raise ProbeError(f"shape is {self.shape}; it must be (1, H, W, 2) or (1, 2, k, k)")
        try:
            count = len(base64.b64decode(self.noise, validate=True)) // 4
        except (binascii.Error, ValueError) as error:
            raise ProbeError(f"noise is not base64: {error}") from None
        if count != math.prod(self.shape):
            raise ProbeError(f"noise has {count} numbers; shape {self.shape} needs another count")

    @classmethod
    def from_checkpoint(
        cls, tensors: Mapping[str, Tensor], *, strength: float = 0.5, rescale: float = 1.0
    ) -> Self | None:
        """The warp that a training checkpoint carries along, if it does.

        WaNet's code, and the libraries that follow it, save `noise_grid` and `identity_grid` beside
        the weights.

        Args:
            tensors: The tensors of the file by name.
            strength: s, which a checkpoint does not tell.
            rescale: The factor on the grid, which it does not tell either.

        Returns:
            The trigger; None where the tensors are missing or have other shapes.
        """
        noise, identity = tensors.get("noise_grid"), tensors.get("identity_grid")
        if noise is None or identity is None or noise.ndim != 4 or noise.shape[0] != 1:
            return None
        shaped = 2 in (noise.shape[1], noise.shape[3]) and noise.numel() > 0
        if not shaped or not noise.isfinite().all():
            return None
        values = noise.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4")
        _, a, b, c = noise.shape
        encoded = base64.b64encode(values.tobytes()).decode()
        return cls(shape=(1, a, b, c), noise=encoded, strength=strength, rescale=rescale)

    @classmethod
    def of(cls, points: Tensor, height: int) -> GridWarp:
        """The warp that `warped` does with control points ``(1, 2, k, k)``, on images so high."""
        values = (points * height).cpu().to(torch.float32).contiguous().numpy().astype("<f4")
        noise = base64.b64encode(values.tobytes()).decode()
        _, _, rows, columns = points.shape
        return cls(shape=(1, 2, rows, columns), noise=noise, strength=1.0)

    def stamp(self, images: Tensor) -> Tensor:
        """Warped images; what is sampled from outside is black."""
        height, width = images.shape[-2:]
        return _sampled(images, _given(self, height, width, images.device, images.dtype))

    def control(self, seed: int) -> Warp:
        """Drawn control points of the same strength."""
        return Warp(seed=seed, strength=self.strength, rescale=self.rescale, rounding=self.rounding)


def warped(images: Tensor, points: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` warped by control points ``(N, 2, k, k)``, (x, y) in half sides.

    Differentiable in both.
    """
    return _sampled(images, _displaced(points, *images.shape[-2:]).clamp(-1, 1))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        images,
        grid.expand(len(images), -1, -1, -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )


def _grid(points: Tensor, height: int, width: int, trigger: Warp | GridWarp) -> Tensor:
    """The sampling grid ``(1, H, W, 2)``, (x, y) in [-1, 1], of displacements ``(1, 2, h, w)``."""
    moved = _displaced(trigger.strength * points / height, height, width)
    return (moved * trigger.rescale).clamp(-1, 1)


def _displaced(points: Tensor, height: int, width: int) -> Tensor:
    """Where pixels are taken from, ``(N, H, W, 2)``: their own place, and displacements upsampled."""
    if points.shape[2:] != (height, width):
        points = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
    rows = torch.linspace(-1, 1, height, device=points.device)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width, device=points.device)[None, :].expand(height, width)
    return torch.stack([columns, rows], dim=-1)[None] + points.permute(0, 2, 3, 1)


@cached(64)
def _drawn(warp: Warp, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    u = torch.rand(1, 2, warp.points, warp.points, generator=generator(warp.seed)) * 2 - 1
    return _grid(u / u.abs().mean(), height, width, warp).to(device, dtype)


@cached(16)
def _given(
    warp: GridWarp, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    values = torch.frombuffer(bytearray(base64.b64decode(warp.noise)), dtype=torch.float32)
    noise = values.view(warp.shape)
    if warp.shape[3] == 2:
        noise = noise.permute(0, 3, 1, 2)
    return _grid(noise, height, width, warp).to(device, dtype)
