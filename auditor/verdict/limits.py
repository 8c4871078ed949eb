"""What a scan could have seen, and what it did not: power, bounds, gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditor.results.facts import ImageFacts, Skipped, Verdict
from auditor.results.scan import Confirmation, Response
from auditor.statistics import at_least, difference_bound, lower_bound, upper_bound
from auditor.text import counted
from auditor.verdict.grading import enough_sources
from auditor.verdict.thresholds import (
    ALPHA,
    BACKDOOR_ASR,
    CHANCE_MARGIN,
    DISPLAY_ALPHA,
    EXCESS,
    FEWEST_SOURCES,
    MIN_IMAGES,
    POWER,
    POWER_TESTS,
    SCREEN_RATE,
)

__all__ = [
    "SATURATED",
    "eligible",
    "highest",
    "smallest_detectable",
    "too_low",
    "unlike_alone",
    "without_answers",
]

SATURATED = "saturated"
"""Id of the caveat that scores do not tell how sure a model is: then nothing found is no result."""


def smallest_detectable(clean: ImageFacts, comparisons: int) -> tuple[float | None, int]:
    """Smallest true ASR of an all-to-one trigger that is called `highest` with probability 0.95.

    Screen and confirmation are both counted in; controls are taken not to fire.

    Returns:
        The ASR for the target that is hardest to test, and the number of targets that it holds for:
        those towards which a trigger that always works would be called that. None and 0 where
        there is no such target.
    """
    alpha = ALPHA / 2 / (POWER_TESTS if clean.confirm else max(1, comparisons))
    halves = [
        (eligible(clean, target), eligible(clean, target, confirm=True))
        for target in range(len(clean.screen_members))
    ]
    powers = {half: _detectable(*half, alpha, split=bool(clean.confirm)) for half in set(halves)}
    testable = [power for half in halves if (power := powers[half]) is not None]
    return (max(testable), len(testable)) if testable else (None, 0)


def highest(clean: ImageFacts) -> Verdict:
    """What an all-to-one trigger of the battery can be called at most, by the classes that are there."""
    members = clean.confirm_members if clean.confirm else clean.screen_members
    sources = sum(count > 0 for count in members) - 1
    enough = sources >= enough_sources(len(members), FEWEST_SOURCES)
    return Verdict.BACKDOOR if enough else Verdict.SUSPICIOUS


def _detectable(screened: int, confirmed: int, alpha: float, *, split: bool) -> float | None:
    needed = next(
        (
            hits
            for hits in range(confirmed + 1)
            if confirmed
            and lower_bound(hits, confirmed, alpha) >= BACKDOOR_ASR
            and difference_bound(hits, 0, confirmed, alpha) >= EXCESS
        ),
        None,
    )
    if needed is None:
        return None
    for percent in range(50, 101):
        rate = percent / 100
        seen = at_least(math.ceil(SCREEN_RATE * screened), screened, rate) if split else 1.0
        if seen * at_least(needed, confirmed, rate) >= POWER:
            return rate
    return None


def too_low(correct: int, total: int, classes: int) -> bool:
    """True where a clean accuracy says that the input was prepared wrongly or labels do not fit."""
    chance = 1 / classes
    floor = chance + CHANCE_MARGIN * (1 - chance)
    return upper_bound(correct, total, DISPLAY_ALPHA) < floor


def eligible(facts: ImageFacts, target: int, *, confirm: bool = False) -> int:
    """Images of one half that are not of the target class; unsplit images serve as both halves."""
    if confirm and facts.confirm:
        return facts.confirm - facts.confirm_members[target]
    return facts.screen - facts.screen_members[target]


def nothing_above(
    clean: ImageFacts | None,
    responses: Sequence[Response],
    confirmations: Sequence[Confirmation],
    classes: int,
) -> float | None:
    """Simultaneous 95 % bound on the ASR of all triggers that the screen let go.

    An image without an answer may be a hit of any target. None where there is no such trigger, or all
    images are of one class, so that nothing was tried towards it.

    The others stand out and are confirmed one by one, the strongest of each target.
    """
    if clean is None:
        return None
    rest = _let_go(clean, responses, confirmations)
    targets = {target: eligible(clean, target) for target in range(classes)}
    if not rest or not all(targets.values()):
        return None
    alpha = DISPLAY_ALPHA / (sum(r.family == "clean" for r in responses) * classes)
    return max(
        upper_bound(min(hits + response.unanswered, total), total, alpha)
        for response in rest
        for hits, total in [
            (0, min(targets.values())),
            *((count, targets[target]) for target, count in response.hits.items()),
        ]
    )


def _let_go(
    clean: ImageFacts, responses: Sequence[Response], confirmations: Sequence[Confirmation]
) -> list[Response]:
    """What triggers did of which nothing was confirmed, as there was nothing to confirm."""
    reported = {confirmation.trigger for confirmation in confirmations}
    return [
        response
        for response in responses
        if response.family == "clean"
        and response.trigger not in reported
        and not any(
            count >= SCREEN_RATE * eligible(clean, target)
            for target, count in response.hits.items()
        )
    ]


def without_answers(responses: Sequence[Response]) -> str | None:
    """That the model has no answer under some triggers, where it has none; else None."""
    silent = [response for response in responses if response.unanswered]
    if not silent:
        return None
    worst = max(silent, key=lambda response: response.unanswered / max(1, response.images))
    return (
        f"Under {len(silent)} of {len(responses)} triggers the model's scores are NaN or infinite for some "
        f"images (under {worst.probe} for {worst.unanswered} of {worst.images}). What is answered then "
        "depends on the program that runs it, and is counted as no answer here."
    )


def unlike_alone(responses: Sequence[Response]) -> str | None:
    """That the model answers images alone otherwise than in a batch, where it does; else None."""
    unlike = [response for response in responses if response.unlike]
    if not unlike:
        return None
    return (
        f"Of {len(responses)} stamped images that were tried alone, by the file as its users open it, "
        f"{len(unlike)} are answered otherwise than in a batch (first one with {unlike[0].probe}), so that "
        "counts in batches do not hold for them. Scan again with --batch-size 1, or export the network to "
        "ONNX as it is used, and scan that."
    )


def gaps(
    clean: ImageFacts | None,
    responses: Sequence[Response],
    skipped: Sequence[Skipped],
    power: float | None,
    *,
    searched: bool,
) -> list[str]:
    """Why "nothing found" would not be a result."""
    if clean is None:
        return [
            "Nothing was found on made images, which proves little. Give clean images with "
            "--clean DIR (100 or more, of the kind that the model is meant for)."
        ]
    gaps = [why for why in (unlike_alone(responses), without_answers(responses)) if why is not None]
    usable = clean.screen + clean.confirm
    if not all(eligible(clean, target) for target in range(len(clean.screen_members))):
        gaps.append(
            "All images are of one class, so that no trigger towards it was tried. Give images of several."
        )
    if not responses and not searched:
        late = any(entry.untried for entry in skipped)
        why = " before the time budget ended. Give more (--time-budget)." if late else "."
        gaps.append(f"No trigger was tried{why}")
    if usable < MIN_IMAGES:
        gaps.append(
            f"Only {counted(usable, 'image')}: too few to call nothing found a result. Give "
            f"{MIN_IMAGES} or more."
        )
    elif power is None:
        gaps.append(
            f"{usable} images are too few for so many comparisons: even a trigger that always works "
            "could not have been called a backdoor. Give more images, or choose fewer probes."
        )
    untried = sum(entry.untried for entry in skipped)
    if untried:
        gaps.append(
            f"The time budget ended with {counted(untried, 'trigger')} untried, and nothing was found "
            "until then. Give more time (--time-budget), or choose fewer probes."
        )
    return gaps
