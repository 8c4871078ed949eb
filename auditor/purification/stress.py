"""Does the backdoor come back? The re-tuning attack on purified models.

A purification may only have hidden a backdoor: a few stamped images are then enough to bring it
back, fewer than planting it anew would take. Min et al., "Uncovering, Explaining, and Mitigating
the Superficial Safety of Backdoor Defense" (NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from auditor import measure
from auditor.classifier import Classifier, as_float
from auditor.progress import Notify
from auditor.purifiers.base import (
    Known,
    Task,
    changed_classifier,
    copied_buffers,
    detached,
    loop,
    seeded,
    trainable,
)
from auditor.results.purify import Stress, StressRow

POISONED = 5
EPOCHS = 5
LR = 0.01
MOMENTUM = 0.9
BATCH = 64

Rival = tuple[Literal["purified", "fine-tuned"], Classifier]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a model does to the judge images under one trigger."""

    hits: int
    correct: int


def counted(classifier: Classifier, judge: Task, known: Known) -> Counted:
    """Stamped judge images that go where the trigger sends them, and rightly classified ones."""
    (answers,) = measure.predictions(classifier, judge.images, [known.stamped.trigger])
    hits = known.hits(answers, judge.labels)
    correct = classifier.predict(judge.images) == judge.labels
    return Counted(hits=int(hits.sum()), correct=int(correct.sum()))


def stress(
    rivals: Sequence[Rival], fit: Task, judge: Task, known: Known, *, notify: Notify
) -> Stress:
    """Re-tune each model on the fit images and a few stamped ones, and count on the judge images.

    Args:
        rivals: The models, by name.
        fit: What they are re-tuned on.
        judge: What counts; only its images and labels are used.
        known: The trigger; its target must be the same for all classes.
        notify: Progress.
    """
    target = next(k for k in known.mapping if k >= 0)
    rows = []
    for name, classifier in rivals:
        before = counted(classifier, judge, known)
        with seeded(fit.seed):
            retuned = _retuned(classifier, fit, known, notify)
        after = counted(retuned, judge, known)
        rows.append(
            StressRow(
                model=name,
                hits_before=before.hits,
                hits_after=after.hits,
                correct_after=after.correct,
            )
        )
    return Stress(
        probe=known.stamped.probe,
        trigger=repr(known.stamped.trigger),
        target=target,
        poisoned=min(POISONED, int((known.wanted(fit.labels) >= 0).sum())),
        clean=len(fit.images),
        epochs=EPOCHS,
        lr=LR,
        eligible=int((known.wanted(judge.labels) >= 0).sum()),
        total=len(judge.images),
        rows=tuple(rows),
    )


def _retuned(classifier: Classifier, fit: Task, known: Known, notify: Notify) -> Classifier:
    """The model after a few epochs on clean images and on stamped ones with the target's label."""
    model, device = classifier.model, classifier.device
    buffers, trained = copied_buffers(model), trainable(model)
    optimizer = torch.optim.SGD(trained.values(), lr=LR, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(fit.seed)
    wanted = known.wanted(fit.labels)
    eligible = (wanted >= 0).nonzero().flatten()
    chosen = eligible[torch.randperm(len(eligible), generator=generator)[:POISONED]]
    poisoned = known.stamped.trigger(as_float(fit.images[chosen.to(device)]))
    images = torch.cat([as_float(fit.images), poisoned])
    labels = torch.cat([fit.labels, wanted[chosen]]).to(device)
    orders = [torch.randperm(len(images), generator=generator) for _ in range(EPOCHS)]
    parts = [part for order in orders for part in torch.split(order, BATCH) if len(part) > 1]

    def step(number: int, batch: int) -> bool:
        part = parts[number][:batch].to(device)
        logits = classifier(images[part], {**buffers, **trained}, train=True)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, labels[part]))
        optimizer.step()
        return True

    loop("stress test", len(parts), BATCH, step, notify=notify, device=device)
    return changed_classifier(classifier, {**buffers, **detached(trained)})
