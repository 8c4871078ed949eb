"""Several methods on the same images, side by side, and the best of them.

The order among methods is that of fit images which none of them was fitted on; the judge images
only say whether the user's goals are met. With many methods, one that meets them by a narrow margin
may do so by chance, so the report tells how many were tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auditor.errors import ModelError
from auditor.images import Notify
from auditor.purifiers import Purifier
from auditor.purifiers.base import Known, Purified
from auditor.purifiers.informed import ACC_AIM, ASR_AIM
from auditor.results import Check, Contender, MethodFacts, NotCompared

SMALLEST_GOAL = 0.01
"""Goals count as at least this where the distance to them is measured in goals."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method made of the suspect."""

    purified: Purified
    facts: MethodFacts
    known: tuple[Known, ...]
    """What it was told in the end: what the scan found, and what searches of its results found."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The outcome of a comparison."""

    best: Made
    contenders: tuple[Contender, ...]
    """Best first."""
    not_compared: tuple[NotCompared, ...]


class _Over(Exception):
    """The time budget is spent."""


def compare(
    methods: Sequence[Purifier],
    attempt: Callable[[Purifier, tuple[Known, ...] | None, Notify], Made],
    weigh: Callable[[Made], Contender],
    rank: Callable[[Contender], tuple[float, ...]],
    *,
    budget: float,
    notify: Notify,
) -> Compared:
    """Run methods one after the other, and keep the best.

    The ones that use what the scan found come first: they may learn of more triggers on the way,
    and all methods are then held against those as well.

    Args:
        methods: In the order that decides between equals.
        attempt: Runs a method; told what is known by now, None at first.
        weigh: Measures what it made.
        rank: The lowest is the best.
        budget: Seconds for all methods together. Those that are not done by then are not compared.
        notify: Progress.

    Raises:
        ModelError: No method got to its end.
    """
    deadline = time.monotonic() + budget
    best: Made | None = None
    ranked: list[tuple[tuple[float, ...], Contender]] = []
    missing: list[NotCompared] = []
    known: tuple[Known, ...] | None = None

    def watching(what: str, done: int, total: int) -> None:
        if time.monotonic() > deadline:
            raise _Over
        notify(what, done, total)

    for method in sorted(methods, key=lambda method: not method.informed):
        try:
            watching(f"comparing: {method.title}", 0, 1)
            made = attempt(method, known, watching)
        except _Over:
            missing.append(_missing(method, f"the budget of {budget:g} s was spent"))
            continue
        except ModelError as error:
            missing.append(_missing(method, str(error)))
            continue
        known = made.known
        contender = weigh(made)
        order = rank(contender)
        if not ranked or order < min(known_rank for known_rank, _ in ranked):
            best = made
        ranked.append((order, contender))
    if best is None:
        raise ModelError(
            "No method got to its end. "
            + " ".join(f"{entry.name}: {entry.why.rstrip('.')}." for entry in missing)
        )
    ranked.sort(key=lambda entry: entry[0])
    return Compared(
        best=best,
        contenders=tuple(contender for _, contender in ranked),
        not_compared=tuple(missing),
    )


def ranked_by_goals(
    contender: Contender, before: Check, *, max_asr: float, max_acc_drop: float
) -> tuple[float, ...]:
    """First those that meet the goals on the judge images, then by the images for choosing.

    There, by how far a method is beyond what is aimed at (a share of each goal, since other images
    judge), each in units of its goal; among those that are not beyond it, by ACC, then by ASR.

    Args:
        contender: The method.
        before: The suspect on the images for choosing.
        max_asr: Goal.
        max_acc_drop: Goal.
    """
    check = contender.choosing
    lost = before.acc - check.acc
    beyond = max(0.0, check.asr - ASR_AIM * max_asr) / max(max_asr, SMALLEST_GOAL)
    beyond += max(0.0, lost - ACC_AIM * max_acc_drop) / max(max_acc_drop, SMALLEST_GOAL)
    return (bool(contender.missed), beyond, -check.acc, check.asr)


def _missing(method: Purifier, why: str) -> NotCompared:
    return NotCompared(name=method.name, title=method.title, why=why)
