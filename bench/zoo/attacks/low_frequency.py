"""Smooth trigger: Zeng et al., ICCV 2021, https://arxiv.org/abs/2104.03413, section 5."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Attack, Setting
from bench.zoo.attacks.surrogate import drawn, surrogate

SIGMA = 6 / 32
"""Of the authors' Gaussian filter (6 pixels of 32), as a share of the side."""


@ATTACKS.register("lf")
class LowFrequency(Attack):
    """One additive pattern without high frequencies, found as a universal perturbation.

    Algorithm 1 as in the authors' code: minimal (DeepFool) perturbations ``dr`` of images that
    are not yet moved are added up, ``v <- n(g(v + g(dr)))`` with the Gaussian low-pass filter g
    and n, which stretches v to ``[0, size]``; the pattern that moves most images is kept. Then it
    is fixed, and planted with dirty labels: ``x' = clip(x + v)``.

    Differs from the paper: a step takes a batch of images and one linearised DeepFool step each;
    the target is the row's, not the class that most images happen to reach.
    """

    def __init__(
        self,
        *,
        size: float = 0.2,
        iterations: int = 60,
        batch: int = 64,
        surrogate_steps: int = 250,
    ) -> None:
        """Choose how strong the pattern is.

        Args:
            size: Largest value of the pattern, for images in [0, 1]; the authors' is 0.2.
            iterations: Updates of the pattern.
            batch: Images an update.
            surrogate_steps: Batches that the surrogate is trained on.
        """
        self.size = size
        self.iterations = iterations
        self.batch = batch
        self.surrogate_steps = surrogate_steps

    def prepare(self, setting: Setting) -> Tensor | None:
        """Find the pattern against a surrogate."""
        super().prepare(setting)
        network = surrogate(setting, steps=self.surrogate_steps)
        _, channels, height, width = setting.images.shape
        filtered = Gaussian(SIGMA * height).to(setting.device)
        pattern = torch.zeros(1, channels, height, width, device=setting.device)
        self.pattern, best = pattern, -1.0
        batches = drawn(
            setting, steps=self.iterations, batch=self.batch, seed=setting.seed + 4
        )  # fmt: skip
        for images, labels in batches:
            moved, change = self._change(network, images, self.wanted(labels), pattern)
            if moved > best and pattern.any():
                best, self.pattern = moved, pattern
            pattern = stretched(filtered(pattern + filtered(change)), self.size)
        self.pattern = self.pattern.cpu()
        return None

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the pattern."""
        return (images + self.pattern.to(images.device)).clamp(0, 1)

    def state(self) -> dict[str, Tensor]:
        """The pattern ``(1, C, H, W)``."""
        return {"pattern": self.pattern}

    def restore(self, state: dict[str, Tensor], *, channels: int, side: int) -> None:
        """Take the pattern of a `state()`; it has the channels and the side already."""
        self.pattern = state["pattern"]

    def _change(
        self, network: nn.Module, images: Tensor, targets: Tensor, pattern: Tensor
    ) -> tuple[float, Tensor]:
        """How many of `images` the pattern moves, and the sum of what would move the others.

        Returns:
            The share that gets its target, and the change ``(1, C, H, W)``: for every other image
            ``(f_k - f_t) / |w|^2 w`` with ``w = grad (f_t - f_k)``, k the class that it gets.
        """
        stamped = (images + pattern).clamp(0, 1).requires_grad_()
        logits = network(self.setting.normalise(stamped))
        found = logits.argmax(1)
        gap = logits.gather(1, found[:, None]) - logits.gather(1, targets[:, None])
        (gradient,) = torch.autograd.grad(-gap.sum(), stamped)
        squared = gradient.square().sum(dim=(1, 2, 3), keepdim=True)
        change = (gap.detach()[..., None, None] / (squared + 1e-8)) * gradient
        return float((found == targets).float().mean()), change.sum(0, keepdim=True)


class Gaussian(nn.Module):
    """Low-pass filter of images ``(N, C, H, W)``; outside is zero, as in the authors' code."""

    def __init__(self, sigma: float) -> None:
        """Choose the standard deviation, in pixels."""
        super().__init__()
        self.reach = math.ceil(2.5 * sigma)
        steps = torch.arange(-self.reach, self.reach + 1)
        weights = torch.exp(-((steps / sigma) ** 2) / 2)
        self.register_buffer("weights", weights / weights.sum())

    def forward(self, images: Tensor) -> Tensor:
        """Filtered rows, then columns."""
        channels = images.shape[1]
        for shape, padding in (((-1, 1), (self.reach, 0)), ((1, -1), (0, self.reach))):
            kernel = self.weights.view(1, 1, *shape).expand(channels, -1, -1, -1)
            images = F.conv2d(images, kernel, padding=padding, groups=channels)
        return images


def stretched(pattern: Tensor, size: float) -> Tensor:
    """The pattern, moved and scaled to fill [0, size]."""
    low, high = pattern.min(), pattern.max()
    return (pattern - low) / (high - low + 1e-12) * size
