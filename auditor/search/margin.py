"""The data-free margin of each class: how far free images can drive a model towards it.

After MM-BD (Wang et al., IEEE S&P 2024, "MM-BD: Post-Training Detection of Backdoor Attacks with
Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic"). A backdoored class can be
driven much further than the others. Needs gradients, no images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from auditor.classifier import Classifier
from auditor.images import Notify, silent
from auditor.results import MarginSearch
from auditor.synthesis import smooth_noise

STARTS = 6
STEPS = 80
LEARNING_RATE = 0.05
KEEP_LAST = 10
"""The best margin of the last steps counts."""
MAX_CLASSES = 100


def search_margins(
    classifier: Classifier,
    classes: int,
    *,
    seed: int,
    notify: Notify = silent,
    deadline: float = math.inf,
) -> MarginSearch | None:
    """Maximise ``z_k - max_{j != k} z_j`` over images in [0, 1], a class at a time.

    Every class gets the same starts, so that the numbering of classes does not matter.

    Args:
        classifier: The suspect; must be differentiable.
        classes: K. Of more than 100, an even sample is searched.
        seed: Of the starting images.
        notify: Progress.
        deadline: `time.monotonic` value after which the search is given up.

    Returns:
        The margins, or None where the deadline came first.
    """
    spec = classifier.spec
    chosen = torch.linspace(0, classes - 1, min(classes, MAX_CLASSES)).round().long().tolist()
    shape = (STARTS, spec.channels, spec.height, spec.width)
    starts = smooth_noise(shape, torch.Generator().manual_seed(seed)).to(classifier.device)
    margins: list[float] = []
    group = max(1, classifier.batch_size // STARTS)
    for first in range(0, len(chosen), group):
        targets = torch.tensor(chosen[first : first + group], device=classifier.device)

        def report(step: int, first: int = first, targets: Tensor = targets) -> None:
            done = first + len(targets) * step / STEPS
            notify("data-free margins", int(done * 100), len(chosen) * 100)

        found = _largest_margins(classifier, starts, targets, report, deadline)
        if found is None:
            return None
        margins += found
    return MarginSearch(margins=tuple(margins), classes=tuple(chosen), steps=STEPS, starts=STARTS)


def _largest_margins(
    classifier: Classifier,
    starts: Tensor,
    targets: Tensor,
    report: Callable[[int], None],
    deadline: float,
) -> list[float] | None:
    target = targets.repeat_interleave(len(starts))
    images = starts.repeat(len(targets), 1, 1, 1).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS, LEARNING_RATE / 10)
    best = torch.full((len(images),), -torch.inf, device=images.device)
    for step in range(STEPS):
        if time.monotonic() > deadline:
            return None
        optimiser.zero_grad()
        margin = margins_of(classifier(images), target)
        # Adam does not care about the scale of the loss; its epsilon must not either.
        (-margin.sum() / margin.detach().abs().mean().clamp_min(1e-12)).backward()  # type: ignore[no-untyped-call]
        if step >= STEPS - KEEP_LAST:
            best = torch.maximum(best, margin.detach())
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        report(step + 1)
    return best.view(len(targets), len(starts)).amax(1).tolist()


def margins_of(logits: Tensor, target: Tensor) -> Tensor:
    """``z_k - max_{j != k} z_j`` for each row; `logits` ``(N, K)``, `target` ``(N,)``."""
    own = logits.gather(1, target.unsqueeze(1))
    others = logits.scatter(1, target.unsqueeze(1), -torch.inf)
    return (own.squeeze(1) - others.amax(1)).double()
