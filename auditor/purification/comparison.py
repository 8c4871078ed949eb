"""Several methods on the same images, side by side, and the best of them.

The order among methods is that of fit images which none of them was fitted on, where there are
enough; the judge images only say which of them meet the user's goals, and judge triggers have no say
at all. With many methods, one that meets the goals by a narrow margin may do so by chance, so the
report tells how many were tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auditor.errors import ModelError
from auditor.progress import Notify
from auditor.purifiers import Purifier
from auditor.purifiers.base import Known, Purified
from auditor.purifiers.cost import ASR_AIM
from auditor.purifiers.strongest import ACC_SHARE
from auditor.results.purify import Check, Contender, MethodFacts, NotCompared

SMALLEST_GOAL = 0.01
"""Goals count as at least this where the distance to them is measured in goals."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method made of the suspect."""

    purified: Purified
    facts: MethodFacts
    known: tuple[Known, ...]
    """What the scan found, and what searches of its results found; the last ones it was not told."""
    seconds: float
    """From the beginning to the end, searches included."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The outcome of a comparison."""

    best: Made
    contenders: tuple[Contender, ...]
    """Best first."""
    not_compared: tuple[NotCompared, ...]


class OverBudget(Exception):
    """The time budget is spent."""


Failure = (RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What a method may raise that no other should suffer from: a matrix without decomposition, memory."""


def compare(
    methods: Sequence[Purifier],
    attempt: Callable[[Purifier, tuple[Known, ...] | None, Notify], Made],
    weigh: Callable[[Made], tuple[tuple[float, ...], Contender]],
    *,
    budget: float,
    notify: Notify,
) -> Compared:
    """Run methods one after the other, and keep the best.

    The ones that use what the scan found come first: they may learn of more triggers on the way,
    and all methods are then held against those as well.

    Args:
        methods: In the order that decides between equals, after the rule above.
        attempt: Runs a method; told what is known by now, None at first.
        weigh: Measures what it made; the method of the lowest rank is the best.
        budget: Seconds for all methods together. Those that are not done by then are not compared.
        notify: Progress.

    Raises:
        ModelError: No method got to its end.
    """
    deadline = time.monotonic() + budget
    missing: list[NotCompared] = []
    known: tuple[Known, ...] | None = None
    number = 0

    def run(method: Purifier) -> Made | None:
        nonlocal known, number
        number += 1
        place = f"method {number} of {len(methods)}"

        def watching(what: str, done: int, total: int) -> None:
            if time.monotonic() > deadline:
                raise OverBudget
            notify(f"{place}: {what}", done, total)

        try:
            watching(method.title, 0, 1)
            made = attempt(method, known, watching)
        except OverBudget:
            missing.append(_missing(method, f"the budget of {budget:g} s was spent"))
            return None
        except ModelError as error:
            missing.append(_missing(method, str(error)))
            return None
        except Failure as error:
            missing.append(_missing(method, f"it failed: {type(error).__name__}: {error}"))
            return None
        known = made.known
        return made

    best: Made | None = None
    ranked: list[tuple[tuple[float, ...], Contender]] = []

    def enter(made: Made) -> None:
        nonlocal best
        rank, contender = weigh(made)
        if all(rank < other for other, _ in ranked):
            best = made
        ranked.append((rank, contender))

    told = [method for method in methods if method.informed]
    for made in [made for method in told if (made := run(method)) is not None]:
        enter(made)
    for method in methods:
        if not method.informed and (made := run(method)) is not None:
            enter(made)
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
    check: Check, before: Check, *, met: bool, known: bool, max_asr: float, max_acc_drop: float
) -> tuple[float, ...]:
    """First those that meet the goals on the judge images, then by the images for choosing.

    There, by how far a method is beyond what is aimed at (a share of each goal, since other images
    judge), each in units of its goal; among those that are not beyond it, by ACC, then by ASR.
    Without a known trigger, a method that does nothing would win: then the order of the methods is
    kept among those that meet the goals.

    Args:
        check: The method on the images for choosing.
        before: The suspect there.
        met: It meets the goals on the judge images, by ACC and by the triggers that it could know:
            judge triggers do not choose.
        known: There are such triggers.
        max_asr: Goal.
        max_acc_drop: Goal.
    """
    if not known:
        return (not met,)
    lost = before.acc - check.acc
    beyond = max(0.0, check.asr - ASR_AIM * max_asr) / max(max_asr, SMALLEST_GOAL)
    beyond += max(0.0, lost - ACC_SHARE * max_acc_drop) / max(max_acc_drop, SMALLEST_GOAL)
    return (not met, beyond, -check.acc, check.asr)


def _missing(method: Purifier, why: str) -> NotCompared:
    return NotCompared(name=method.name, title=method.title, why=why)
