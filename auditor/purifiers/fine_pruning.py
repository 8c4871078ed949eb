"""Fine-pruning (RAID 2018, arXiv 1805.12185): prune what clean images do not use, then fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from auditor.anatomy import Layer
from auditor.classifier import as_float
from auditor.models.base import ModelHandle
from auditor.models.changed import ChangedHandle
from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Purified,
    Purifier,
    Task,
    checked,
    last_layer,
    loop,
    parted,
)
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.strongest import Candidate, strongest

FRACTIONS = (0.99, 0.98, 0.97, 0.96, *(step / 20 for step in range(19, -1, -1)))
"""Of the inputs: 99 %, 98, 97, 96, 95, 90, 85 ... 5, 0."""


@PURIFIERS.register("fine-pruning")
@dataclass(frozen=True, kw_only=True)
class FinePruning(Purifier):
    """Prune the inputs of the last layer that clean images activate least, then fine-tune the rest.

    ``a_j = |mean over the clean images of h_j|``, h the inputs of the layer that gives the classes (a
    convolution's averaged over positions); the columns of its weight with the smallest a_j become
    zero, as many as clean accuracy bears, and stay zero while all weights are fine-tuned: their
    gradients are masked.

    No format has to let one look inside: with ``S = sum over images of <c, scores>`` the gradient of S
    with respect to the weight is ``c_k sum h_j``. c sums to zero, so that this also holds where the
    network ends in a softmax: differences of log probabilities are those of scores, down to `LOG_FLOOR`.
    (The gradient of one class's log probability would weigh each image by 1 - p.)

    Not as published: what counts is the size of the mean and not its sign (after ReLU it is the same).
    The paper prunes the last convolution's channels one by one; here it is the inputs of the last
    layer, as in BackdoorBench, by a row of fractions. Where to stop is told by the accuracy on
    kept-back images, before fine-tuning (BackdoorBench looks at test images). Fine-tuning is that
    of `FineTuning`, on the images that are not kept back, and chooses nothing.
    """

    title: ClassVar[str] = "Fine-pruning"
    source: ClassVar[str] = "RAID 2018, arXiv 1805.12185"

    fractions: tuple[float, ...] = FRACTIONS
    """Falling; of the inputs, so many are pruned."""
    epochs: int = 10
    """Of fine-tuning."""
    batch: int = 64
    lr: float = 0.01

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Rank, prune, fine-tune."""
        classifier = task.classifier
        head = last_layer(
            task,
            has_inputs,
            "does not end in a linear layer or a convolution that could be trained, and fine-pruning "
            "prunes that layer's inputs.",
        )
        name, axis = head.weight
        weight = classifier.model.weights()[name]
        fit = parted(len(task.images), task.seed).fit
        order = self._activations(task, head, fit, notify).argsort(stable=True)

        def kept(fraction: float) -> Tensor:
            """1 for inputs that stay, 0 for those that go, to be multiplied with the weight."""
            stays = torch.ones(len(order), device=order.device)
            stays[order[: int(fraction * len(order))]] = 0
            shape = [1] * weight.ndim
            shape[1 - axis] = len(order)
            return stays.view(shape)

        def candidates() -> Iterator[Candidate]:
            for fraction in self.fractions:
                keep = kept(fraction)
                yield Candidate(
                    settings={
                        "fraction": f"{fraction:g}",
                        "inputs pruned": f"{int((keep == 0).sum()):,} of {len(order):,}",
                    },
                    tensors={name: weight * keep},
                )

        chosen = strongest(task, candidates())
        keep = kept(self.fractions[chosen.place])
        start = classifier.of(PrunedHandle(classifier.model, name, keep))
        tuning = FineTuning(epochs=self.epochs, batch=self.batch, lr=self.lr)
        images = task.images[fit.to(task.images.device)]
        rest = replace(task, classifier=start, images=images, labels=task.labels[fit])
        tuned = tuning.purify(rest, notify)
        tensors = {**tuned.tensors, name: tuned.tensors[name] * keep}

        (after,) = tuned.stages
        check = checked(task, tensors, len(chosen.trials) + 1)
        stage = chosen.stage("pruning", (after.steps, after.images, after.seconds))
        stage = replace(
            stage,
            checks=(*stage.checks, check),
            outcome=f"{stage.outcome} Then fine-tuned: ACC {check.acc:.1%}.",
        )
        return Purified(tensors=tensors, stages=(stage,), trained=tuned.trained)

    def _activations(self, task: Task, head: Layer, fit: Tensor, notify: Notify) -> Tensor:
        """``(inputs,)``, the size of each input's mean; up to a factor that all inputs share."""
        classifier = task.classifier
        name, axis = head.weight
        weight = classifier.model.weights()[name].detach().clone().requires_grad_()
        total = torch.zeros_like(weight)
        seen = 0

        def step(number: int, batch: int) -> bool:
            nonlocal seen
            part = fit[seen : seen + batch].to(task.images.device)
            scores = classifier(as_float(task.images[part]), {name: weight})
            weights = torch.linspace(-1, 1, scores.shape[1], device=scores.device)
            (slope,) = torch.autograd.grad((scores @ weights).sum(), weight)
            total.add_(slope)
            seen += len(part)
            return seen < len(fit)

        loop("ranking", len(fit), self.batch, step, notify=notify, device=classifier.device)
        each: Tensor = total.movedim(1 - axis, 0).flatten(1).square().sum(1).sqrt()
        return each


class PrunedHandle(ChangedHandle):
    """A model in which numbers of one weight are zero, whatever the weight."""

    def __init__(self, model: ModelHandle, name: str, keep: Tensor) -> None:
        """Multiply the weight `name` by `keep`, 0 or 1, before every call."""
        super().__init__(model, {name: model.tensors()[name] * keep})
        self._name, self._keep = name, keep

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        """As `ModelHandle.call`."""
        given = {**self._changed, **(overrides or {})}
        given[self._name] = given[self._name] * self._keep
        return super().call(inputs, given, train=train)


def has_inputs(layer: Layer, weight: Tensor) -> bool:
    """True where a layer multiplies its inputs by a weight of two axes or more."""
    return weight.ndim >= 2 and layer.weight[1] in (0, 1)
