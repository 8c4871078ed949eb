"""Reconstructive neuron pruning (RNP, ICML 2023, arXiv 2305.14876)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.masks import MaskSite, effective, ones
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Batches,
    Purified,
    Purifier,
    Task,
    all_finite,
    detached,
    loop,
    parted,
    trainable,
)
from auditor.purifiers.prune import THRESHOLDS, chosen_by_threshold, descend, sites_of
from auditor.purifiers.strongest import Run

UNLEARNED = 0.2
"""Accuracy at which ten classes count as unlearned…"""
ABOVE_CHANCE = 0.1
"""…which is this much above chance, and that is what counts where there are fewer classes."""


@PURIFIERS.register("rnp")
@dataclass(frozen=True, kw_only=True)
class ReconstructiveNeuronPruning(Purifier):
    """Unlearn the clean task, let masks recover it, and prune the channels that these turn down.

    1. Unlearn: ``max_theta CE(theta)`` on clean images, by SGD with momentum and weight decay, until
       accuracy over an epoch is at most ``max(0.2, 1 / K + 0.1)``.
    2. Recover: ``min_m alpha CE(m theta_unlearned)``, m in [0, 1], ones at first, on the scales of
       normalisations (else on the channels of convolutions and linear layers).
    3. Prune the channels of the original network where m is at or below a threshold.

    BatchNorm works in train mode in 1 and 2, but its running statistics are thrown away, since the
    result is the original network but for the pruned channels.

    Not as published: the threshold, to which the result is very sensitive, is chosen by clean
    accuracy on kept-back images, the first of 0.95, 0.9 ... 0 and none. The paper stops at 20 %,
    which with two classes would be the opposite of what was learned. The official code
    clips gradients before there are any, which does nothing and is left out; instead ascent ends,
    and its last step is undone, when numbers are not finite any more.
    """

    title: ClassVar[str] = "Reconstructive neuron pruning"
    source: ClassVar[str] = "RNP, ICML 2023, arXiv 2305.14876"

    unlearning_epochs: int = 20
    """At most."""
    unlearning_lr: float = 0.01
    weight_decay: float = 5e-4
    """Of the weights, while they unlearn."""
    recovering_epochs: int = 20
    recovering_lr: float = 0.2
    alpha: float = 0.2
    batch: int = 128
    momentum: float = 0.9
    thresholds: tuple[float, ...] = THRESHOLDS

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Unlearn, recover, prune."""
        sites = sites_of(task.classifier.model)
        fit = parted(len(task.images), task.seed).fit
        batches = Batches(task, torch.Generator().manual_seed(task.seed), fit)
        unlearned, first = self._unlearned(task, batches, notify)
        masks, second = self._recovered(task, batches, unlearned, sites, notify)
        run = (first[0] + second[0], first[1] + second[1], first[2] + second[2])
        return chosen_by_threshold(task, sites, masks, self.thresholds, run)

    def _unlearned(
        self, task: Task, batches: Batches, notify: Notify
    ) -> tuple[dict[str, Tensor], Run]:
        """The suspect's weights after gradient ascent."""
        classifier = task.classifier
        trained = trainable(classifier.model)
        optimizer = torch.optim.SGD(
            trained.values(),
            lr=self.unlearning_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        size, epoch = self._epoch(batches)
        enough = unlearned_at(task.classes)
        before = copies(trained)
        right = seen = 0

        def step(number: int, batch: int) -> bool:
            nonlocal before, right, seen
            images, labels = batches.draw(batch)
            with mixed_precision(classifier):
                logits = classifier(images, trained, train=True)
            ascent = -F.cross_entropy(logits.float(), labels)
            gradients = torch.autograd.grad(ascent, tuple(trained.values()), allow_unused=True)
            if not bool(ascent.isfinite()) or not all_finite(gradients):
                put(before, trained)
                return False
            before = copies(trained)
            for weight, gradient in zip(trained.values(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            if number % epoch == 0:
                right = seen = 0
            right, seen = right + int((logits.argmax(1) == labels).sum()), seen + batch
            return number % epoch != epoch - 1 or right / seen > enough

        run = loop(
            "unlearning",
            self.unlearning_epochs * epoch,
            size,
            step,
            notify=notify,
            device=classifier.device,
        )
        if not all_finite(trained.values()):
            put(before, trained)
        return detached(trained), run

    def _recovered(
        self,
        task: Task,
        batches: Batches,
        unlearned: Mapping[str, Tensor],
        sites: list[MaskSite],
        notify: Notify,
    ) -> tuple[dict[str, Tensor], Run]:
        """Masks with which the unlearned network does again what it can."""
        classifier = task.classifier
        own = {**classifier.model.tensors(), **unlearned}
        masks = {
            layer: mask.requires_grad_() for layer, mask in ones(sites, classifier.device).items()
        }
        optimizer = torch.optim.SGD(masks.values(), lr=self.recovering_lr, momentum=self.momentum)
        size, epoch = self._epoch(batches)

        def step(number: int, batch: int) -> bool:
            images, labels = batches.draw(batch)
            with mixed_precision(classifier):
                tensors = {**unlearned, **effective(own, sites, masks)}
                logits = classifier(images, tensors, train=True)
            loss = self.alpha * F.cross_entropy(logits.float(), labels)
            return descend(loss, masks, optimizer)

        run = loop(
            "recovering",
            self.recovering_epochs * epoch,
            size,
            step,
            notify=notify,
            device=classifier.device,
        )
        return detached(masks), run

    def _epoch(self, batches: Batches) -> tuple[int, int]:
        """Images a batch, and batches an epoch."""
        size = min(self.batch, batches.count)
        return size, -(-batches.count // size)


def unlearned_at(classes: int) -> float:
    """The accuracy at or below which a network of so many classes has unlearned them."""
    return max(UNLEARNED, 1 / classes + ABOVE_CHANCE)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers, in other memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put(numbers: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give tensors, in place, other numbers."""
    for name, tensor in tensors.items():
        tensor.copy_(numbers[name])
