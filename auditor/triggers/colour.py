"""Changes of colour: matrices, curves, photo filters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within

Triple = tuple[float, float, float]

LUMA = (0.299, 0.587, 0.114)


class Recolour(Trigger):
    """A trigger that looks at colours; grey images are coloured grey, stamped, and averaged."""

    needs_structure: ClassVar[bool] = True
    keeps_meaning: ClassVar[bool] = False

    def recolour(self, images: Tensor) -> Tensor:
        """The stamp for colour images ``(N, 3, H, W)``."""
        raise NotImplementedError

    def stamp(self, images: Tensor) -> Tensor:
        """Recoloured images."""
        if images.shape[1] == 3:
            return self.recolour(images)
        return self.recolour(images.expand(-1, 3, -1, -1)).mean(1, keepdim=True)

    def control(self, seed: int) -> ColourMatrix:
        """A random colour matrix with the same mean absolute change over all colours.

        The direction is drawn, the length is found by bisection on a cube of 9 x 9 x 9 colours.
        """
        cube = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
        goal = float((self(cube) - cube).abs().mean())
        draw = generator(seed)
        matrix = torch.randn(3, 3, generator=draw)
        offset = torch.randn(3, generator=draw) / 2
        low, high = 0.0, 4.0
        for _ in range(24):
            middle = (low + high) / 2
            changed = float((_direction(matrix, offset, middle)(cube) - cube).abs().mean())
            low, high = (middle, high) if changed < goal else (low, middle)
        return _direction(matrix, offset, low)


@TRIGGERS.register("colour-matrix")
@dataclass(frozen=True, kw_only=True, repr=False)
class ColourMatrix(Recolour):
    """``M x + b`` on the (R, G, B) of every pixel, in [0, 1]."""

    matrix: tuple[Triple, Triple, Triple] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    """Rows: what red, green and blue become."""
    offset: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for value in (*itertools.chain(*self.matrix), *self.offset):
            within("a coefficient", value, -16, 16)

    def recolour(self, images: Tensor) -> Tensor:
        """Matrix times colour plus offset."""
        matrix = images.new_tensor(self.matrix)
        offset = images.new_tensor(self.offset)[:, None, None]
        return torch.einsum("ij,njhw->nihw", matrix, images) + offset


@TRIGGERS.register("curve")
@dataclass(frozen=True, kw_only=True, repr=False)
class Curve(Recolour):
    """``gain x^gamma`` a channel, x in [0, 1].

    The filter of FreeEagle, ``R <- 12 sqrt(R)`` in 8-bit levels, is gain ``12 / sqrt(255)`` and
    gamma 0.5 on red.
    """

    gain: Triple = (1, 1, 1)
    gamma: Triple = (1, 1, 1)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for gain, gamma in zip(self.gain, self.gamma, strict=True):
            within("gain", gain, 0, 16)
            within("gamma", gamma, 0.05, 20)

    def recolour(self, images: Tensor) -> Tensor:
        """Gain times power; black keeps a finite gradient."""
        gain, gamma = (images.new_tensor(v)[:, None, None] for v in (self.gain, self.gamma))
        return gain * images.clamp_min(1e-12) ** gamma


FilterName = Literal["gotham", "nashville", "kelvin", "lomo", "toaster", "1977"]


@TRIGGERS.register("filter")
@dataclass(frozen=True, kw_only=True, repr=False)
class Filter(Recolour):
    """A photo filter, approximate: the recipes of TrojAI's generator and of pilgram, in torch.

    The originals run in ImageMagick, whose colour tone, automatic gamma and vignette are only
    imitated here.
    """

    name: FilterName

    def recolour(self, images: Tensor) -> Tensor:
        """Filtered images."""
        return FILTERS[self.name](images)


def _direction(matrix: Tensor, offset: Tensor, length: float) -> ColourMatrix:
    rows = (torch.eye(3) + length * matrix).tolist()
    red, green, blue = ((round(r, 4), round(g, 4), round(b, 4)) for r, g, b in rows)
    x, y, z = (length * offset).tolist()
    return ColourMatrix(matrix=(red, green, blue), offset=(round(x, 4), round(y, 4), round(z, 4)))


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _modulate(x: Tensor, brightness: float, saturation: float) -> Tensor:
    grey = _grey(x)
    return ((grey + saturation * (x - grey)) * brightness).clamp(0, 1)


def _tint(x: Tensor, colour: int, amount: float | Tensor) -> Tensor:
    """Towards ``0xRRGGBB``."""
    target = x.new_tensor([colour >> 16, colour >> 8 & 255, colour & 255])[:, None, None] / 255
    return x + amount * (target - x)


def _sigmoid(x: Tensor, contrast: float) -> Tensor:
    """ImageMagick's sigmoidal contrast with its midpoint at 50 %."""
    edge = 1 / (1 + math.exp(contrast / 2))
    return (torch.sigmoid(contrast * (x - 0.5)) - edge) / (1 - 2 * edge)


def _auto_gamma(x: Tensor) -> Tensor:
    """The power that brings the mean of each image to one half."""
    mean = x.mean((1, 2, 3), keepdim=True).clamp(0.01, 0.99)
    return x.clamp_min(1e-6) ** (math.log(0.5) / mean.log())


def _vignette(x: Tensor, colour: int) -> Tensor:
    """Multiply with a radial gradient from white to a colour, 1.5 times the size of the image."""
    radius = _radius(x.shape[-2], x.shape[-1], x.device, x.dtype) / 1.5
    return x * _tint(torch.ones_like(x), colour, radius.clamp(0, 1))


@cached(32)
def _radius(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Distance to the middle ``(H, W)``; 1 at the middle of the borders."""
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None, :]
    return torch.hypot(rows, columns).to(device, dtype)


def _gotham(x: Tensor) -> Tensor:
    x = _tint(_modulate(x, 1.2, 0.1), 0x222B6D, 0.2).clamp_min(1e-6) ** (1 / 0.9)
    return _sigmoid(_sigmoid(x, 3), 3)


def _nashville(x: Tensor) -> Tensor:
    grey = _grey(x)
    x = _tint(_tint(x, 0x222B6D, 0.5 * (1 - grey)), 0xF7DAAE, 0.5 * grey)
    return _auto_gamma(_modulate(_sigmoid(x, 3), 1.0, 1.5))


def _kelvin(x: Tensor) -> Tensor:
    return _tint(_modulate(_auto_gamma(x), 1.2, 0.5), 0xFF9900, 0.2)


def _lomo(x: Tensor) -> Tensor:
    levelled = (x[:, :2] * 2 - 1).clamp(0, 1)
    return _vignette(torch.cat([levelled, x[:, 2:]], 1), 0x000000)


def _toaster(x: Tensor) -> Tensor:
    x = _modulate(_tint(x, 0x330000, 0.5 * (1 - _grey(x))), 1.5, 0.8)
    x = _sigmoid(_sigmoid(x.clamp_min(1e-6) ** (1 / 1.2), 3), 3)
    return _vignette(_vignette(x, 0x8B8386), 0xFF9966)


def _seventies(x: Tensor) -> Tensor:
    """The `_1977` of pilgram: screen with a rose at 0.3, then contrast, brightness, saturation."""
    rose = x.new_tensor([243, 106, 188])[:, None, None] / 255
    x = x + 0.3 * (1 - (1 - x) * (1 - rose) - x)
    mean = _grey(x).mean((2, 3), keepdim=True)
    return _modulate((mean + 1.1 * (x - mean)).clamp(0, 1), 1.1, 1.3)


FILTERS: dict[FilterName, Callable[[Tensor], Tensor]] = {
    "gotham": _gotham,
    "nashville": _nashville,
    "kelvin": _kelvin,
    "lomo": _lomo,
    "toaster": _toaster,
    "1977": _seventies,
}
