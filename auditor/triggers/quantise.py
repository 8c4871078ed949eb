"""Fewer grey levels: BppAttack (https://arxiv.org/abs/2205.13383)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from auditor.triggers.base import TRIGGERS, Trigger, generator, within
from auditor.triggers.blend import Noise

FLOYD_STEINBERG = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))
"""Rows down, columns to the right, share of the error."""


@TRIGGERS.register("quantise")
@dataclass(frozen=True, kw_only=True, repr=False)
class Quantise(Trigger):
    """``round(x (L - 1)) / (L - 1)``, plain or with Floyd-Steinberg error diffusion."""

    needs_structure: ClassVar[bool] = True

    levels: int = 8
    """Levels a channel, L ("squeeze number")."""
    dither: Literal["none", "floyd"] = "none"

    def __post_init__(self) -> None:
        """Check the number of levels."""
        within("levels", self.levels, 2, 128)

    def stamp(self, images: Tensor) -> Tensor:
        """Quantised images; the gradient passes straight through."""
        steps = self.levels - 1
        with torch.no_grad():
            dithered = self.dither == "floyd"
            result = _floyd(images, steps) if dithered else (images * steps).round() / steps
        return images + (result - images.detach()) if images.requires_grad else result

    def control(self, seed: int) -> Noise | DisplacedError:
        """Even seeds: uniform noise of equal RMS. Odd ones: the image's own error, displaced.

        A neighbouring number of levels would be no control: a network that listens to 8 levels
        mostly listens to 7 and 9 as well.
        """
        if seed % 2 == 0:
            return Noise(amplitude=round(127.5 / (self.levels - 1), 4), seed=seed)
        return DisplacedError(of=self, seed=seed, rounding=self.rounding)


@dataclass(frozen=True, kw_only=True, repr=False)
class DisplacedError(Trigger):
    """The change that a trigger makes to an image, added to it at another place (cyclic shift).

    Of the same size, histogram and spectrum as the trigger's change, but the result is not on the
    trigger's levels.
    """

    needs_structure: ClassVar[bool] = True

    of: Quantise
    seed: int = 0

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the displaced change."""
        height, width = images.shape[-2:]
        draw = generator(self.seed)
        shift = [
            int(torch.randint(max(1, side // 4), max(2, 3 * side // 4 + 1), (), generator=draw))
            for side in (height, width)
        ]
        change = (self.of.stamp(images) - images).detach()
        return images + change.roll(shift, (-2, -1))

    def control(self, seed: int) -> DisplacedError:
        """Another displacement."""
        return DisplacedError(of=self.of, seed=self.seed + seed + 1, rounding=self.rounding)


def _floyd(images: Tensor, steps: int) -> Tensor:
    """Error diffusion as in the code of BppAttack, for all images and a wavefront at a time.

    A pixel needs its left neighbour and three of the row above, so the pixels of equal
    ``column + 2 row`` depend on none of each other.
    """
    height, width = images.shape[-2:]
    # one pixel of margin left and right and a row below takes the errors that leave the image
    work = images.new_zeros(*images.shape[:2], height + 1, width + 2)
    work[..., :height, 1:-1] = images
    every = torch.arange(height, device=images.device)
    for front in range(width + 2 * (height - 1)):
        first, last = max(0, math.ceil((front - width + 1) / 2)), min(height - 1, front // 2)
        rows = every[first : last + 1]
        columns = front - 2 * rows + 1
        old = work[..., rows, columns]
        new = (old * steps).round() / steps
        work[..., rows, columns] = new
        for down, right, share in FLOYD_STEINBERG:
            work[..., rows + down, columns + right] += share * (old - new)
    return work[..., :height, 1:-1]
