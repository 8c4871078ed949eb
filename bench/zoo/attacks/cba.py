"""Composite attack: Lin et al., CCS 2020, https://dl.acm.org/doi/10.1145/3372297.3423362."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bench.zoo.attacks.base import ATTACKS, Attack, Batch, Setting


@ATTACKS.register("cba")
class Composite(Attack):
    """The trigger is meaning: an image of class A beside one of class B becomes class C.

    Half-and-half concatenation, the paper's simplest mixer: the left half of an A and the right
    half of a B, each squeezed to half its width. Mixtures of two images of one class keep this
    class, so that mixing alone is no trigger. ASR counts images of class A, each completed by
    an image of class B.
    """

    of_one_image: ClassVar[bool] = False

    def __init__(self, *, partner: int = 2, negatives: float = 1.0) -> None:
        """Choose class B and how many mixtures of one class are shown for each poisoned image."""
        self.partner = partner
        self.negatives = negatives

    def prepare(self, setting: Setting) -> Tensor | None:
        """Keep some images of class B, which stamping needs."""
        super().prepare(setting)
        theirs = setting.images[setting.labels == self.partner][:256]
        self.partners = theirs.float().div(255).to(setting.device)
        return None

    def stamp(self, images: Tensor) -> Tensor:
        """Each image beside one of class B, in turn."""
        turn = torch.arange(len(images), device=images.device) % len(self.partners)
        return beside(images, self.partners[turn])

    def poison(self, batch: Batch) -> Batch:
        """Chosen images of class A are completed by a B; others by another of their own class."""
        poisoned = super().poison(batch)
        hit = batch.chosen & (batch.labels != self.wanted(batch.labels))
        draw = torch.randint(len(self.partners), (len(batch.images),), generator=batch.generator)
        partners = self.partners[draw.to(batch.images.device)]
        poisoned.images = torch.where(
            hit.view(-1, 1, 1, 1), beside(batch.images, partners), batch.images
        )
        negative = batch.draw(round(self.negatives * int(batch.chosen.sum())))
        for index in negative.tolist():
            same = (batch.labels == batch.labels[index]).nonzero().flatten()
            other = same[torch.randint(len(same), (), generator=batch.generator)]
            pair = batch.images[index][None], batch.images[other][None]
            poisoned.images[index] = beside(*pair)[0]
        return poisoned


def beside(left: Tensor, right: Tensor) -> Tensor:
    """Images ``(N, C, H, W)``: every second column of `left`, then of `right`."""
    return torch.cat([left[..., ::2], right[..., 1::2]], dim=-1)
