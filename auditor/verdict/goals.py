"""Did a purification, or a planted backdoor, reach what it was meant to?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from auditor.results.attack import PlantingGoals
from auditor.results.facts import Counts, Verdict
from auditor.results.purify import Goals, Outcome, PurifyResult
from auditor.results.scan import ScanResult
from auditor.verdict.judging import rejudge

__all__ = [
    "judge_planting",
    "judge_purification",
    "rejudge_purification",
]


def judge_purification(
    *,
    accuracy: Counts,
    images: int,
    outcomes: Sequence[Outcome],
    after: ScanResult | None,
    max_asr: float,
    max_acc_drop: float,
) -> Goals:
    """Whether a purification reached what the user wanted, on the judge images.

    Args:
        accuracy: Rightly classified unstamped images.
        images: Of so many.
        outcomes: Every trigger that was found or named; each must fall to `max_asr`. One that was found
            and that no judge image can show is a missed goal: nothing says that it was removed.
        after: The purified model's own scan; it must not show a backdoor. None where the model was
            left alone: then a trigger that the user named may still work.
        max_asr: Highest ASR that may be left.
        max_acc_drop: Largest share of the images that may be lost.
    """
    missed = [
        f"{outcome.probe} still redirects {outcome.hits.after} of {outcome.eligible} judge images "
        f"({outcome.hits.after / outcome.eligible:.1%}; the goal is {max_asr:.1%})."
        for outcome in outcomes
        if outcome.hits.after > max_asr * outcome.eligible + 1e-9
    ]
    missed += [
        f"{outcome.probe} was found, and cannot be judged: no judge image is of a class that it redirects."
        for outcome in outcomes
        if outcome.origin == "found" and not outcome.eligible
    ]
    drop = (accuracy.before - accuracy.after) / max(1, images)
    if drop > max_acc_drop + 1e-9:
        missed.append(
            f"ACC dropped by {drop * 100:.1f} points, from {accuracy.before} to {accuracy.after} of "
            f"{images} judge images (the goal is {max_acc_drop * 100:.1f})."
        )
    if after is not None and after.judgement.verdict is Verdict.BACKDOOR:
        missed.append(
            f"The scan of the purified model shows a backdoor: {after.judgement.headline}"
        )
    return Goals(max_asr=max_asr, max_acc_drop=max_acc_drop, missed=tuple(missed))


def rejudge_purification(result: PurifyResult) -> Goals:
    """The goals of a recorded purification, computed again from its counts."""
    again = result.after
    return judge_purification(
        accuracy=result.accuracy,
        images=result.judge.images,
        outcomes=result.outcomes,
        after=None if again is None else replace(again, judgement=rejudge(again)),
        max_asr=result.goals.max_asr,
        max_acc_drop=result.goals.max_acc_drop,
    )


def judge_planting(
    *,
    hits: Counts,
    eligible: int,
    accuracy: Counts,
    images: int,
    min_asr: float,
    max_acc_drop: float,
) -> PlantingGoals:
    """Was a backdoor planted, and the accuracy kept?

    Args:
        hits: Stamped images of other classes that go to the target.
        eligible: How many images those are of.
        accuracy: Rightly classified images.
        images: How many images those are of.
        min_asr: Goal for the ASR.
        max_acc_drop: Goal for the share of accuracy that is lost.
    """
    missed = []
    asr, lost = hits.after / eligible, (accuracy.before - accuracy.after) / images
    if asr < min_asr:
        missed.append(
            f"the ASR is {asr:.1%} ({hits.after} of {eligible} images), and {min_asr:.1%} was the goal"
        )
    if lost > max_acc_drop:
        missed.append(
            f"ACC dropped by {lost * 100:.1f} points ({accuracy.before} to {accuracy.after} of {images} "
            f"images), and {max_acc_drop * 100:.1f} may be lost"
        )
    return PlantingGoals(min_asr=min_asr, max_acc_drop=max_acc_drop, missed=tuple(missed))
