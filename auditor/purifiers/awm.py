"""Adversarial weight masking (AWM, NeurIPS 2022, arXiv 2207.04497)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import Classifier
from auditor.errors import UnsuitableModel
from auditor.models.base import ModelHandle
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Batches,
    Purified,
    Purifier,
    Task,
    count,
    detached,
    loop,
    parted,
)
from auditor.purifiers.prune import descend
from auditor.purifiers.strongest import Candidate, Run, strongest
from auditor.purifiers.universal import l1_radius, no_change, within_l1
from auditor.text import clean_text

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the way from no masks to the trained ones."""


@PURIFIERS.register("awm")
@dataclass(frozen=True, kw_only=True)
class AdversarialWeightMasking(Purifier):
    """A mask in [0, 1] on every number of the convolutions, against one perturbation of all images.

    A round first finds the perturbation: SGD on ``-CE(f_m(x + delta), argmax f_m(x))`` over one pass,
    delta from zero and within an l1 ball. Then the masks m, ones at first, follow by Adam
    ``alpha CE(f_m(x), y) + (1 - alpha) CE(f_m(x + delta), y) + gamma ||m||_1`` for some epochs and
    are clipped after every step. Eval mode; ``x + delta`` is clamped to [0, 1] everywhere, as images
    are (without that, the steps of 10 make a few numbers of delta a hundred and more).

    Masked is every convolution. Where a network has none, or only one (a transformer's patches),
    every weight of two or more axes is masked, except those of the layer that gives the classes.

    Not as published: 5 rounds, not 20, in batches of 64: 500 images make 150 steps of the masks, a
    minute or two on a CPU. Delta is projected to the ball after every step, not scaled at the end,
    and the learning rate stays. The strength that clean accuracy chooses is ours: the trained
    masks are soft, and the result is the share s of the way to them, ``1 + s (m - 1)``.
    """

    title: ClassVar[str] = "Adversarial weight masking"
    source: ClassVar[str] = "AWM, NeurIPS 2022, arXiv 2207.04497"

    rounds: int = 5
    epochs: int = 5
    """Of the masks, a round."""
    batch: int = 64
    lr: float = 0.01
    """Of Adam on the masks."""
    alpha: float = 0.9
    gamma: float = 1e-8
    inner_lr: float = 10.0
    radius: float = 1000.0
    """l1 norm that the perturbation of a CIFAR image may have; the same a number for others."""

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Train the masks, and choose how much of them."""
        own = masked_weights(task.classifier.model)
        masks, run = self._masks(task, own, notify)

        def candidates() -> Iterator[Candidate]:
            for share in SHARES:
                soft = {name: 1 + share * (mask - 1) for name, mask in masks.items()}
                yield Candidate(settings={"share": f"{share:g}"}, tensors=_times(own, soft))

        chosen = strongest(task, candidates())
        return Purified(
            tensors=chosen.candidate.tensors,
            stages=(chosen.stage("masks", run),),
            trained=count(masks),
        )

    def _masks(
        self, task: Task, own: Mapping[str, Tensor], notify: Notify
    ) -> tuple[dict[str, Tensor], Run]:
        classifier = task.classifier
        masks = {name: torch.ones_like(w).requires_grad_() for name, w in own.items()}
        optimizer = torch.optim.Adam(masks.values(), lr=self.lr)
        fit = parted(len(task.images), task.seed).fit
        size = min(self.batch, len(fit))
        inward = -(-len(fit) // size)
        each = inward * (1 + self.epochs)
        batches = Batches(task, torch.Generator().manual_seed(task.seed), fit)
        change = no_change(task.images)

        def step(number: int, batch: int) -> bool:
            place = number % each
            if place == 0:
                change.zero_()
            images, labels = batches.draw(batch)
            if place < inward:
                after = self.climbed(classifier, _times(own, detached(masks)), change, images)
                change.copy_(after)
                return bool(after.isfinite().all())
            loss = self.loss(classifier, own, masks, images, labels, change)
            return descend(loss, masks, optimizer)

        run = loop(
            "adversarial weight masking",
            self.rounds * each,
            size,
            step,
            notify=notify,
            device=classifier.device,
        )
        return detached(masks), run

    def climbed(
        self, classifier: Classifier, weights: Mapping[str, Tensor], change: Tensor, images: Tensor
    ) -> Tensor:
        """The perturbation after one step away from what the network says of the clean images.

        Args:
            classifier: The suspect.
            weights: Its masked tensors.
            change: ``(1, C, H, W)``, the perturbation.
            images: ``(N, C, H, W)`` float in [0, 1].
        """
        here = change.clone().requires_grad_()
        with mixed_precision(classifier):
            with torch.no_grad():
                said = classifier(images, weights).argmax(1)
            logits = classifier((images + here).clamp(0, 1), weights)
        (uphill,) = torch.autograd.grad(F.cross_entropy(logits.float(), said), here)
        return within_l1(change + self.inner_lr * uphill, l1_radius(change, self.radius))

    def loss(
        self,
        classifier: Classifier,
        own: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        change: Tensor,
    ) -> Tensor:
        """What masks minimise: alpha CE(clean) + (1 - alpha) CE(perturbed) + gamma ||m||_1."""
        weights = _times(own, masks)
        with mixed_precision(classifier):
            both = torch.cat([images, (images + change).clamp(0, 1)])
            clean, stamped = classifier(both, weights).chunk(2)
        loss = self.alpha * F.cross_entropy(clean.float(), labels)
        loss = loss + (1 - self.alpha) * F.cross_entropy(stamped.float(), labels)
        return loss + self.gamma * torch.stack([m.abs().sum() for m in masks.values()]).sum()


def masked_weights(model: ModelHandle) -> dict[str, Tensor]:
    """The tensors that masks act on, by name.

    Raises:
        UnsuitableModel: There are none.
    """
    weights, layers = model.weights(), model.anatomy()
    names = [layer.weight[0] for layer in layers if layer.kind == "Conv"]
    if len(names) <= 1:
        last = {layer.weight[0] for layer in layers if layer.is_last}
        names = [name for name, w in weights.items() if w.ndim >= 2 and name not in last]
    found = {name: weights[name] for name in names if name in weights}
    if not found:
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)} has no convolution, and no weight of two or more "
            "axes before the last layer, that masks could act on. Choose another method."
        )
    return found


def _times(own: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * masks[name] for name, tensor in own.items()}
