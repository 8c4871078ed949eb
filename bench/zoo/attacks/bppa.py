"""BppAttack: Wang et al., CVPR 2022, https://arxiv.org/abs/2205.13383."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from auditor.triggers.quantise import Quantise
from bench.zoo.attacks.base import ATTACKS, Attack, Batch


@ATTACKS.register("bppa")
class BppAttack(Attack):
    """Fewer grey levels are the trigger; noise of the same size keeps its label (negatives).

    The authors' negative samples are clean images plus the quantisation error of *other* images,
    so that only the levels, not the size of the change, tell the trigger.
    """

    def __init__(
        self, *, levels: int = 8, dither: Literal["none", "floyd"] = "none", negatives: float = 1.0
    ) -> None:
        self.trigger = Quantise(levels=levels, dither=dither, rounding="none")
        self.negatives = negatives

    def stamp(self, images: Tensor) -> Tensor:
        """Images on the few levels."""
        return self.trigger(images)

    def poison(self, batch: Batch) -> Batch:
        """Chosen images are quantised and relabelled; as many others get a strange error."""
        poisoned = super().poison(batch)
        negative = batch.draw(round(self.negatives * int(batch.chosen.sum())))
        donors = torch.randint(len(batch.images), (len(negative),), generator=batch.generator)
        donor = batch.images[donors.to(batch.images.device)]
        error = self.trigger(donor) - donor
        poisoned.images[negative] = (batch.images[negative] + error).clamp(0, 1)
        return poisoned
