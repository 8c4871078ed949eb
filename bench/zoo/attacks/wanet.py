"""WaNet: Nguyen and Tran, ICLR 2021, https://arxiv.org/abs/2102.10369."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.triggers.warp import Warp
from bench.zoo.attacks.base import ATTACKS, Attack, Batch


@ATTACKS.register("wanet")
class WaNet(Attack):
    """One smooth warp is the trigger; other warps are shown with true labels ("noise mode").

    In every batch, twice as many images as are poisoned carry the warp plus a uniform jitter of
    one pixel at most (`cross_ratio` 2 in the authors' code), and keep their label. Without them
    networks learn to react to any warp.
    """

    def __init__(
        self, *, points: int = 4, strength: float = 0.5, seed: int = 0, cross_ratio: float = 2.0
    ) -> None:
        self.warp = Warp(points=points, strength=strength, seed=seed)
        self.cross_ratio = cross_ratio

    def stamp(self, images: Tensor) -> Tensor:
        """Warped images."""
        return self.warp(images)

    def poison(self, batch: Batch) -> Batch:
        """Chosen images are warped and relabelled; twice as many others are warped otherwise."""
        poisoned = super().poison(batch)
        noisy = batch.draw(round(self.cross_ratio * int(batch.chosen.sum())))
        poisoned.images[noisy] = self._jittered(batch.images[noisy], batch.generator)
        return poisoned

    def _jittered(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The warp with another uniform displacement a pixel and an image, up to one pixel."""
        count, _, height, width = images.shape
        jitter = torch.rand(count, height, width, 2, generator=generator) * 2 - 1
        grid = (self.warp.grid(images) + jitter.to(images.device) / height).clamp(-1, 1)
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=True)
