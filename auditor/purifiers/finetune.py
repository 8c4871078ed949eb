"""Plain fine-tuning: what everybody would try first, and the yardstick for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

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
    loop,
    trainable,
    whole_stage,
)


@PURIFIERS.register("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTuning(Purifier):
    """Cross-entropy on the clean images, all weights, SGD with momentum and a cosine schedule.

    BatchNorm works in train mode. Settings as in BackdoorBench, fewer epochs.
    """

    title: ClassVar[str] = "Plain fine-tuning"
    chooses: ClassVar[bool] = False
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
        buffers, trained = copied_buffers(model), trainable(model)
        optimizer = torch.optim.SGD(
            trained.values(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        steps = self.epochs * max(1, -(-len(task.images) // self.batch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = Batches(task, torch.Generator().manual_seed(task.seed))

        def step(number: int, batch: int) -> bool:
            images, labels = batches.draw(batch)
            with mixed_precision(classifier):
                logits = classifier(images, {**buffers, **trained}, train=True)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            optimizer.step()
            schedule.step()
            return True

        run = loop("plain fine-tuning", steps, self.batch, step, notify=notify, device=device)
        tensors = {**buffers, **detached(trained)}
        return Purified(
            tensors=tensors,
            stages=(whole_stage("weights", task, tensors, run),),
            trained=count(trained),
        )
