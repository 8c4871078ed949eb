"""How much work a search is on this machine, how much of it fits, and when it gives up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.classifier import Classifier, as_float, synchronize

TIMED = 16
"""Images that are timed."""
PLANNED = 0.8
"""Share of its time that a search is planned for."""

ESTIMATED_AFTER = 5
"""Steps after which the time of all of them is known well enough; the first one, in which much is
set up, is left out."""

HOPELESS = 4
"""What would take so many times longer than it may is given up before."""


class NoGradient(Exception):
    """The scores do not depend on the image, or not differentiably."""


class NoNumber(Exception):
    """The scores are NaN or infinite on the images that the search makes."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Shares of the usual work: of the images (or starts) of a step, and of the steps."""

    images: float = 1.0
    steps: float = 1.0

    def of_images(self, count: int) -> int:
        """So many of the usual number."""
        return max(1, round(count * self.images))

    def of_steps(self, count: int) -> int:
        """The same of steps; none of none."""
        return max(min(1, count), round(count * self.steps))

    @property
    def share(self) -> float:
        """Of the usual work."""
        return self.images * self.steps


USUAL = Effort()
EFFORTS = (USUAL, Effort(images=1 / 2), Effort(images=1 / 2, steps=1 / 2))
"""From the usual one to the least that is worth its name. What they find is in `bench/RESULTS.md`."""


def seconds_per_image(classifier: Classifier, images: Tensor) -> float:
    """What an image costs, with its gradient; 0 where there is none, which the search will tell.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8; some of them are used.
    """
    rows = as_float(images[torch.arange(TIMED) % len(images)]).to(classifier.device)
    seconds = 0.0
    for _ in range(2):  # in the first run much is set up
        leaf = rows.clone().requires_grad_()
        synchronize(classifier.device)
        begin = time.monotonic()
        scores = classifier(leaf)
        if not scores.requires_grad:
            return 0.0
        torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
        synchronize(classifier.device)
        seconds = time.monotonic() - begin
    return seconds / len(rows)


def planned(images: Callable[[Effort], int], each: float, budget: float) -> Effort:
    """The largest effort that fits; the least one where none does.

    Args:
        images: How many images go through the network with an effort.
        each: Seconds of one.
        budget: Seconds in all.
    """
    fitting = (effort for effort in EFFORTS if images(effort) * each <= PLANNED * budget)
    return next(fitting, EFFORTS[-1])


class Pace:
    """How long a search will take, by its first steps."""

    def __init__(self, steps: int, budget: float, device: torch.device) -> None:
        """Time `steps` steps, which may take `budget` seconds."""
        self.steps, self.budget, self.device = steps, budget, device
        self.done, self.begin = 0, math.inf

    def step(self) -> None:
        """Count one.

        Raises:
            OverBudget: All of them would take longer than they may.
        """
        synchronize(self.device)
        self.done += 1
        now = time.monotonic()
        if self.done == 1:
            self.begin = now
            return
        seconds = (now - self.begin) * self.steps / (self.done - 1)
        sure = self.done >= min(ESTIMATED_AFTER, self.steps)
        if seconds > self.budget * (1 if sure else HOPELESS):
            raise OverBudget(seconds)


class OverBudget(Exception):
    """The search would take longer than it may; `seconds` says how long, by its first steps."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"about {seconds:.0f} s")
        self.seconds = seconds
