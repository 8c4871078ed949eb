"""Sinusoidal stripes: SIG (https://arxiv.org/abs/1902.11237)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within

DETUNINGS = (3, -3, 5, -5, 2, -2)
"""How many cycles a control has more or fewer."""


@TRIGGERS.register("sinusoid")
@dataclass(frozen=True, kw_only=True, repr=False)
class Sinusoid(Trigger):
    """``x + delta sin(2 pi f j / W + phase)``, j the column, the same in all rows and channels.

    With a `weight` w it is ``(1 - w) x + w delta sin(…)``.
    """

    delta: float = 40
    """Amplitude in 8-bit levels."""
    frequency: int = 6
    """Cycles an image, f."""
    axis: Literal["column", "row"] = "column"
    """What the wave runs along: `column` gives vertical stripes."""
    phase: float = 0.0
    """Radians."""
    weight: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        within("delta", self.delta, 0, 255)
        within("frequency", self.frequency, 1, 4096)
        within("phase", self.phase, -7, 7)
        if self.weight is not None:
            within("weight", self.weight, 0, 1)

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the wave."""
        size = images.shape[-1 if self.axis == "column" else -2]
        wave = _wave(self, size, images.device, images.dtype)
        if self.weight is None:
            return images + wave
        return (1 - self.weight) * images + self.weight * wave

    def control(self, seed: int) -> Sinusoid:
        """Even seeds: another frequency. Odd ones: stripes across. Both with another phase."""
        others = [self.frequency + d for d in DETUNINGS if self.frequency + d >= 1]
        phase = round(2 * math.pi * float(torch.rand((), generator=generator(seed))), 4)
        if seed % 2 == 0:
            return replace(self, frequency=others[seed // 2 % len(others)], phase=phase)
        return replace(self, axis="row" if self.axis == "column" else "column", phase=phase)


@cached(64)
def _wave(trigger: Sinusoid, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``(1, W)`` or ``(H, 1)``, in [0, 1] units."""
    turns = torch.arange(size, dtype=torch.float64) * trigger.frequency / size
    wave = trigger.delta / 255 * torch.sin(2 * math.pi * turns + trigger.phase)
    return wave.to(device, dtype).view((1, -1) if trigger.axis == "column" else (-1, 1))
