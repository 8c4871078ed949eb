"""Plain fine-tuning: what everybody would try first, and the yardstick for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from auditor.classifier import as_float
from auditor.images import Notify
from auditor.purifiers.augment import shifted
from auditor.purifiers.base import (
    PURIFIERS,
    Purified,
    Purifier,
    Task,
    changed_classifier,
    loop,
    measured,
    mixed_precision,
)
from auditor.results import Check, Stage


@PURIFIERS.register("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTuning(Purifier):
    """Cross-entropy on the clean images, all weights, SGD with momentum and a cosine schedule.

    BatchNorm works in train mode. Settings as in BackdoorBench, fewer epochs.
    """

    title: ClassVar[str] = "Plain fine-tuning"
    source: ClassVar[str] = "the yardstick of BackdoorBench (NeurIPS 2022)"

    epochs: int = 10
    batch: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Fine-tune all weights."""
        classifier = task.classifier
        model, device = classifier.model, classifier.device
        weights = model.weights()
        buffers = {n: t.clone() for n, t in model.tensors().items() if n not in weights}
        trained = {
            name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()
        }
        optimizer = torch.optim.SGD(
            trained.values(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        steps = self.epochs * max(1, -(-len(task.images) // self.batch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(task.seed)
        labels = task.labels.to(device)

        def step(number: int, batch: int) -> bool:
            chosen = torch.randint(len(task.images), (batch,), generator=generator).to(device)
            images = shifted(as_float(task.images[chosen]), generator, flip=True)
            with mixed_precision(device):
                logits = classifier(images, {**buffers, **trained}, train=True)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits.float(), labels[chosen]))
            optimizer.step()
            schedule.step()
            return True

        done, seen, seconds = loop(
            "plain fine-tuning", steps, self.batch, step, notify=notify, device=device
        )
        tensors = {**buffers, **{name: tensor.detach() for name, tensor in trained.items()}}
        after = changed_classifier(classifier, tensors)
        accuracy, rates = measured(after, task.images, task.labels, task.known)
        check = Check(step=done, asr=max(rates, default=0.0), acc=accuracy, loss=0.0)
        stage = Stage(
            what="weights", settings={}, steps=done, images=seen, seconds=seconds, checks=(check,),
            outcome=f"ACC {accuracy:.1%} on the fit images themselves; the recipe does not choose.",
            kept=True,
        )  # fmt: skip
        return Purified(tensors=tensors, stages=(stage,))
