"""When a search gives up: it cannot work, or would take too long."""

from __future__ import annotations

import math
import time

import torch

from auditor.classifier import synchronize

ESTIMATED_AFTER = 5
"""Steps after which the time of all of them is known well enough; the first one, in which much is
set up, is left out."""

HOPELESS = 4
"""What would take so many times longer than it may is given up before."""


class NoGradient(Exception):
    """The scores do not depend on the image, or not differentiably."""


class NoNumber(Exception):
    """The scores are NaN or infinite on the images that the search makes."""


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
