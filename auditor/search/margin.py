"""The data-free margin of each class: how far free images can drive a model towards it.

After MM-BD (Wang et al., IEEE S&P 2024, "MM-BD: Post-Training Detection of Backdoor Attacks with
Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic"). A backdoored class can be
driven much further than the others. Needs gradients, no images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from auditor.classifier import Classifier
from auditor.measure import margins_of
from auditor.progress import Notify, silent
from auditor.results.scan import MarginSearch
from auditor.search.pace import USUAL, Effort, NoGradient, NoNumber, Pace
from auditor.synthesis import TYPICAL_SPREAD, smooth_noise, spread

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
    budget: float = math.inf,
    effort: Effort = USUAL,
) -> MarginSearch:
    """Maximise ``z_k - max_{j != k} z_j`` over images in [0, 1], a class at a time.

    Every class gets the same starts, so that the numbering of classes does not matter.

    Args:
        classifier: The suspect; must be differentiable.
        classes: K. Of more than 100, an even sample is searched.
        seed: Of the starting images.
        notify: Progress.
        budget: Seconds that it may take; estimated after a few steps.
        effort: Less than usual, for a slow machine.

    Raises:
        OverBudget: It would take longer.
        NoNumber: A margin is infinite, or NaN for all images that are made for a class.
    """
    spec = classifier.spec
    chosen = torch.linspace(0, classes - 1, min(classes, MAX_CLASSES)).round().long().tolist()
    count, steps = effort.of_images(STARTS), effort.of_steps(STEPS)
    shape = (count, spec.channels, spec.height, spec.width)
    starts = smooth_noise(shape, torch.Generator().manual_seed(seed)).to(classifier.device)
    # with gradients, a batch takes several times the memory that it was tuned for
    group = max(1, classifier.batch_size // count // 2)
    # Adam does not care about the scale of the loss, but its epsilon does
    scale = TYPICAL_SPREAD / spread(classifier, starts)
    margins: list[float] = []
    pace = Pace(steps * -(-len(chosen) // group), budget, classifier.device)
    for first in range(0, len(chosen), group):
        targets = torch.tensor(chosen[first : first + group], device=classifier.device)
        search = _climb(classifier, starts, targets, scale, steps)
        for step in range(1, steps + 1):
            best = next(search)
            pace.step()
            share = (first + len(targets) * step / steps) / len(chosen)
            notify("data-free margins", round(share * 1000), 1000)
        largest = best.view(len(targets), count).amax(1)
        if not bool(largest.isfinite().all()):
            raise NoNumber
        margins += largest.tolist()
    return MarginSearch(margins=tuple(margins), classes=tuple(chosen), steps=steps, starts=count)


def images_needed(classes: int, effort: Effort) -> int:
    """How many images go through the network."""
    return min(classes, MAX_CLASSES) * effort.of_images(STARTS) * effort.of_steps(STEPS)


def _climb(
    classifier: Classifier, starts: Tensor, targets: Tensor, scale: float, steps: int
) -> Iterator[Tensor]:
    """Gradient ascent from every start to every target; yields the largest margins so far.

    Only those of the last steps count, ``(targets * starts,)``; minus infinity before.
    """
    target = targets.repeat_interleave(len(starts))
    images = starts.repeat(len(targets), 1, 1, 1).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, LEARNING_RATE / 10)
    best = torch.full((len(images),), -torch.inf, device=images.device)
    for step in range(steps):
        optimiser.zero_grad()
        margin = margins_of(classifier(images), target)
        if not margin.requires_grad:
            raise NoGradient
        (-margin.sum() * scale).backward()  # type: ignore[no-untyped-call]
        if step >= steps - KEEP_LAST:
            best = torch.fmax(best, margin.detach())
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        yield best
