"""Input-aware dynamic attack: Nguyen and Tran, NeurIPS 2020, https://arxiv.org/abs/2010.08138."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Batch, Setting
from bench.zoo.attacks.generators import Generated, Hourglass
from bench.zoo.attacks.surrogate import consulted, drawn

BETAS = (0.5, 0.9)
SLOWER = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""Shares of the training after which the pattern generator learns at a tenth of its rate: epochs
200, 300, 400 and 500 of the authors' 600."""


@ATTACKS.register("input-aware")
class InputAware(Generated):
    """Every image has its own trigger, and another image's trigger does nothing.

    ``B(x, g(x)) = x (1 - m) + p m`` with the mask m and the pattern p made of x by two networks
    (section 3.2). Masks are trained first: ``100 mean relu(m - density) + L_div``, with
    ``L_div = |x - x'| / |g(x) - g(x')|`` (eq. 4). Then the pattern generator is trained beside the
    classifier on cross-entropy (poisoned images to their target, crossed ones to their class) and
    `diversity` times L_div. As many images as are poisoned get the trigger of another image and
    keep their label (cross-trigger mode).

    Differs from the paper: the smaller generators, group normalisation (`Hourglass`), and steps of
    classifier and generator in turn, where the paper adds up both gradients in one step: the
    generator is trained against the classifier in eval mode. The authors train for 600 epochs;
    on the drawn signs the backdoor takes half: ASR 0.49 after 6 epochs, when two in three crossed
    images keep their class, 0.55 after 15, and 0.23 after 120 with another seed (the paper on
    CIFAR-10: 0.99 and 88 %).
    """

    def __init__(
        self,
        *,
        density: float = 0.032,
        norm: float = 100.0,
        diversity: float = 1.0,
        rate: float = 0.01,
        mask_steps: int = 200,
        mask_batch: int = 16,
    ) -> None:
        """Choose the settings; the defaults are the authors'.

        Args:
            density: Mask values up to here cost nothing.
            norm: Weight of mask values above (lambda_norm).
            diversity: Weight of the diversity loss (lambda_div).
            rate: First learning rate of Adam, for both generators.
            mask_steps: Batches that the mask generator is trained on.
            mask_batch: Pairs of images a batch of these.
        """
        self.density = density
        self.norm = norm
        self.diversity = diversity
        self.rate = rate
        self.mask_steps = mask_steps
        self.mask_batch = mask_batch

    def networks(self, channels: int, side: int) -> dict[str, nn.Module]:
        """The two generators."""
        return {"pattern": Hourglass(channels, channels), "mask": Hourglass(channels, 1)}

    def prepare(self, setting: Setting) -> Tensor | None:
        """Make the generators; train that of the masks."""
        super().prepare(setting)
        self._train_masks()
        self.parts["mask"].requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            self.parts["pattern"].parameters(), lr=self.rate, betas=BETAS
        )
        return None

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Images, each with its own trigger."""
        here = images.to(self.device)
        return masked(here, self._patterns(here), self._masks(here)).to(images.device)

    def poison(self, batch: Batch) -> Batch:
        """Train the pattern generator one step, then stamp; crossed images keep their label."""
        own = batch.chosen.nonzero().flatten()
        crossed = batch.draw(len(own))
        away = torch.randint(1, len(batch.images), (len(crossed),), generator=batch.generator)
        donors = (crossed + away.to(crossed.device)) % len(batch.images)
        images, labels = batch.images.clone(), batch.labels.clone()
        if len(own):
            images[own], images[crossed] = self._train_patterns(batch, own, crossed, donors)
        labels[own] = self.wanted(batch.labels[own])
        return replace(batch, images=images, labels=labels)

    def _patterns(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [0, 1]."""
        return self.parts["pattern"](self._seen(images)).tanh() / 2 + 0.5

    def _masks(self, images: Tensor) -> Tensor:
        """``(N, 1, H, W)`` in [0, 1], nearly binary: the authors' soft threshold at a half."""
        return (10 * self.parts["mask"](self._seen(images)).tanh()).tanh() / 2 + 0.5

    def _seen(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.5

    def _train_masks(self) -> None:
        """Few pixels, and other pixels for other images."""
        setting = self.setting
        optimizer = torch.optim.Adam(self.parts["mask"].parameters(), lr=self.rate, betas=BETAS)
        batches = drawn(
            setting, steps=self.mask_steps, batch=2 * self.mask_batch, seed=setting.seed + 6
        )
        for images, _ in batches:
            first, second = images.chunk(2)
            masks, others = self._masks(images).chunk(2)
            excess = F.relu(masks - self.density).mean()
            loss = self.norm * excess + self.diversity * diverse(first, second, masks, others)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _train_patterns(
        self, batch: Batch, own: Tensor, crossed: Tensor, donors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of the pattern generator against the classifier as it is now.

        Returns:
            The images `own` with their triggers and the images `crossed` with those of `donors`,
            as they were before the step.
        """
        chosen, giving = batch.images[own], batch.images[donors]
        patterns, foreign = self._patterns(torch.cat([chosen, giving])).split(
            [len(own), len(donors)]
        )
        stamped = masked(chosen, patterns, self._masks(chosen))
        mixed = masked(batch.images[crossed], foreign, self._masks(giving))
        targets = torch.cat([self.wanted(batch.labels[own]), batch.labels[crossed]])
        with consulted(self.setting.network) as network:
            logits = network(self.setting.normalise(torch.cat([stamped, mixed])))
        fit = F.cross_entropy(logits, targets, reduction="sum") / len(batch.images)
        pairs = min(len(own), len(donors))
        spread = diverse(chosen[:pairs], giving[:pairs], patterns[:pairs], foreign[:pairs])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * 0.1 ** sum(batch.progress >= late for late in SLOWER)
        self.optimizer.zero_grad(set_to_none=True)
        (fit + self.diversity * spread).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return stamped.detach(), mixed.detach()


def masked(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """Images with patterns ``(N, C, H, W)`` where masks ``(N, 1, H, W)`` are one."""
    return images + (patterns - images) * masks


def diverse(first: Tensor, second: Tensor, made: Tensor, other: Tensor) -> Tensor:
    """L_div, eq. 4: how far two images are apart for how far what was made of them is.

    All four are ``(N, ...)``; distances are root mean squares.
    """
    apart = (first - second).square().flatten(1).mean(1).sqrt()
    gap = ((made - other).square().flatten(1).mean(1) + 1e-8).sqrt()
    return (apart / (gap + 1e-7)).mean() if len(first) else first.sum()
