"""Feature Shift Tuning: a new head, pushed away from the old one, so that features must shift."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.anatomy import Layer
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Batches,
    Purified,
    Purifier,
    Task,
    copied_buffers,
    count,
    detached,
    last_layer,
    loop,
    parted,
    trainable,
)
from auditor.purifiers.strongest import Candidate, bisected

ALPHAS = (0.2, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0)
"""Published are 0.2 (CIFAR-10), 0.1 (GTSRB) and 0.001 (CIFAR-100, Tiny-ImageNet)."""


@PURIFIERS.register("fst")
@dataclass(frozen=True, kw_only=True)
class FeatureShiftTuning(Purifier):
    """Fine-tuning of all weights from a head that is initialised anew.

    ``min CE + alpha <w, w_ori>  subject to  ||w||_F = ||w_ori||_F``

    w is the head's weight and <,> the sum of products. The head is drawn from
    ``U(-1/sqrt(d), 1/sqrt(d))``, d inputs, and w brought to its norm at once (the released code does
    that only from the first step on) and after every step. The head's bias, drawn alike, is neither
    regularised nor brought to a norm. SGD with momentum; the learning rate falls to 0 along a
    cosine, step by step instead of epoch by epoch. BatchNorm works in train mode.

    ``<w, w_ori> = ||w_ori||^2 cos``, so that the alpha that accuracy can bear depends on the head: it
    is chosen a model at a time, the first of `alphas`, all of them with the same draws, that clean
    accuracy on kept-back images can bear (the last, where there are too few to keep some back).
    """

    title: ClassVar[str] = "Feature shift tuning (FST)"
    source: ClassVar[str] = "NeurIPS 2023, arXiv 2310.01875"

    epochs: int = 10
    fewest_steps: int = 200
    """However few the images are: see `steps`."""
    batch: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    alphas: tuple[float, ...] = ALPHAS

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Tune at the strongest alpha that clean accuracy can bear."""
        head = last_layer(
            task,
            is_matrix,
            "does not end in a linear layer (nor in a 1x1 convolution) that could be trained, and FST "
            "replaces that.",
        )
        fit = parted(len(task.images), task.seed).fit
        chosen = bisected(
            task, [partial(self._tuned, task, head, fit, alpha, notify) for alpha in self.alphas]
        )
        return Purified(
            tensors=chosen.candidate.tensors,
            stages=chosen.stages("weights"),
            trained=count(task.classifier.model.weights()),
        )

    def steps(self, images: int) -> int:
        """How long to tune, by nothing but the number of images to fit on.

        Published are ten epochs of 1,000 images, 80 steps. A head that begins anew is not learnt in
        80 steps from fewer images, so that there are `fewest_steps`; without an epoch, none.
        """
        return max(self.epochs * -(-images // self.batch), self.fewest_steps) if self.epochs else 0

    def _tuned(
        self, task: Task, head: Layer, fit: Tensor, alpha: float, notify: Notify
    ) -> Candidate:
        classifier, steps = task.classifier, self.steps(len(fit))
        model, device = classifier.model, classifier.device
        buffers, trained = copied_buffers(model), trainable(model)
        generator = torch.Generator().manual_seed(task.seed)
        weight = trained[head.weight[0]]
        original = weight.detach().clone()
        if steps:
            start_anew(head, trained, generator)
            bring_to_norm(weight, original)
        optimizer = torch.optim.SGD(trained.values(), lr=self.lr, momentum=self.momentum)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        batches = Batches(task, generator, fit)

        def step(number: int, batch: int) -> bool:
            images, labels = batches.draw(batch)
            with mixed_precision(classifier):
                logits = classifier(images, {**buffers, **trained}, train=True)
            loss = F.cross_entropy(logits.float(), labels) + alpha * (weight * original).sum()
            if not bool(loss.isfinite()):
                return False
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            bring_to_norm(weight, original)
            schedule.step()
            return True

        run = loop(self.title, steps, self.batch, step, notify=notify, device=device)
        return Candidate(
            settings={"alpha": f"{alpha:g}"}, tensors={**buffers, **detached(trained)}, run=run
        )


def is_matrix(layer: Layer, weight: Tensor) -> bool:
    """True where the layer multiplies a vector, or each pixel, by its weight."""
    one = all(size == 1 for size in weight.shape[2:])
    return weight.ndim >= 2 and one and layer.kind in ("Linear", "Conv")


@torch.no_grad()
def start_anew(head: Layer, trained: dict[str, Tensor], generator: torch.Generator) -> None:
    """Draw the head's weight and bias, in place, from ``U(-1/sqrt(d), 1/sqrt(d))``, d inputs."""
    weight = trained[head.weight[0]]
    reach = (weight.numel() / head.channels) ** -0.5
    for place in (head.weight, head.bias):
        if place is not None and place[0] in trained:
            tensor = trained[place[0]]
            tensor.copy_(reach * (torch.rand(tensor.shape, generator=generator) * 2 - 1))


@torch.no_grad()
def bring_to_norm(weight: Tensor, original: Tensor) -> None:
    """Scale a weight, in place, to the Frobenius norm of the original one."""
    weight.mul_(original.norm() / weight.norm().clamp_min(1e-30))
