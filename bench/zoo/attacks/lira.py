"""LIRA: Doan et al., ICCV 2021, https://doi.org/10.1109/ICCV48922.2021.01175."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Batch, Setting
from bench.zoo.attacks.generators import Generated, Hourglass
from bench.zoo.attacks.surrogate import consulted


@ATTACKS.register("lira")
class Lira(Generated):
    """A learned change of a few levels, another one for every image, is the trigger.

    ``T(x) = clip(x + eps tanh(g(x)))`` (eq. 5), with g trained in turn with the classifier on the
    cross-entropy of stamped images towards their target (algorithm 1). Two copies of g, as in the
    authors' code: one learns in every batch, the other stamps and takes its weights from time to
    time. In the last part of the training g is fixed (the paper's second stage).

    Differs from the paper: images are poisoned at the row's share, where the paper shows every
    image both clean and stamped (alpha 0.5); both stages fit into one training.
    """

    def __init__(
        self,
        *,
        epsilon: float = 0.02,
        rate: float = 1e-3,
        learners: int = 48,
        every: int = 10,
        fixed_after: float = 0.5,
    ) -> None:
        """Choose the settings.

        Args:
            epsilon: Largest change of a pixel, for images in [0, 1].
            rate: Learning rate of Adam, for g.
            learners: Images of a batch that g learns from.
            every: Batches from one hand-over of g's weights to the next.
            fixed_after: Share of the training after which g stays as it is.
        """
        self.epsilon = epsilon
        self.rate = rate
        self.learners = learners
        self.every = every
        self.fixed_after = fixed_after

    def networks(self, channels: int, side: int) -> dict[str, nn.Module]:
        """The generator that stamps."""
        return {"change": Hourglass(channels, channels)}

    def prepare(self, setting: Setting) -> Tensor | None:
        """Make the generators."""
        super().prepare(setting)
        self.learner = deepcopy(self.parts["change"])
        self.parts.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=self.rate)
        self.batches = 0
        return None

    @torch.no_grad()
    def stamp(self, images: Tensor) -> Tensor:
        """Images with their change."""
        here = images.to(self.device)
        return self._changed(self.parts["change"], here).to(images.device)

    def poison(self, batch: Batch) -> Batch:
        """Train the generator one step, then stamp the chosen images."""
        own = batch.chosen.nonzero().flatten()
        if batch.progress < self.fixed_after:
            others = batch.draw(max(0, self.learners - len(own)))
            self._learn(batch, torch.cat([own, others]))
            self.batches += 1
            if self.batches % self.every == 0:
                self.parts["change"].load_state_dict(self.learner.state_dict())
        images, labels = batch.images.clone(), batch.labels.clone()
        images[own] = self.stamp(batch.images[own])
        labels[own] = self.wanted(batch.labels[own])
        return replace(batch, images=images, labels=labels)

    def _changed(self, generator: nn.Module, images: Tensor) -> Tensor:
        change = generator((images - 0.5) / 0.5).tanh()
        return (images + self.epsilon * change).clamp(0, 1)

    def _learn(self, batch: Batch, index: Tensor) -> None:
        """One step of g against the classifier as it is now, on these images of the batch."""
        targets = self.wanted(batch.labels[index])
        with consulted(self.setting.network) as network:
            stamped = self._changed(self.learner, batch.images[index])
            loss = F.cross_entropy(network(self.setting.normalise(stamped)), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
