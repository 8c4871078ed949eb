"""Did a purification, or a planted backdoor, reach what it was meant to?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from auditor.results.attack import PlantingGoals
from auditor.results.facts import Caveat, Counts, Verdict
from auditor.results.purify import Goals, Outcome, PurifyResult
from auditor.results.scan import ScanResult
from auditor.text import listed
from auditor.verdict.judging import rejudge

__all__ = [
    "MAX_CLASS_DROP",
    "RIVALS",
    "class_drop",
    "confused_anyway",
    "fewest_classes",
    "forgotten",
    "judge_planting",
    "judge_purification",
    "rejudge_purification",
]

RIVALS = "rival-weights"
"""Id of the caveat that the file holds other weights as well."""

JUDGED_CLASSES = 10
"""Classes that must be among the images to judge by, of a model with more than twice as many."""
MAX_CLASS_DROP = 1 / 2
"""Share of the images that the suspect recognises of a class that may be lost…"""
FEWEST_FORGOTTEN = 5
"""…where it is so many at least: fewer are lost by chance."""
SHOWN = 3
"""Triggers that are named in a note."""


def judge_purification(
    *,
    accuracy: Counts,
    images: int,
    outcomes: Sequence[Outcome],
    after: ScanResult | None,
    max_asr: float,
    max_acc_drop: float,
    members: Sequence[int] = (),
    fewest_classes: int = 0,
    recognised: tuple[Sequence[int], Sequence[int]] | None = None,
    max_class_drop: float = 1.0,
    caveats: Sequence[Caveat] = (),
) -> Goals:
    """Whether a purification reached what the user wanted, on the judge images.

    Args:
        accuracy: Rightly classified unstamped images.
        images: Of so many.
        outcomes: Every trigger that was found or named; each must fall to `max_asr`, as `is_beyond` of it
            says. One that was found and that no judge image can show is a missed goal: nothing says that
            it was removed.
        after: The purified model's own scan; it must not show a backdoor. None where the model was
            left alone: then a trigger that the user named may still work.
        max_asr: Highest ASR that may be left.
        max_acc_drop: Largest share of the images that may be lost.
        members: Judge images a class, by label or prediction.
        fewest_classes: They must be of so many, since a network that has forgotten the others looks as
            good as before; 0 where the model was left alone.
        recognised: Rightly classified images a class, by the suspect and by the purified model. None
            where they were not counted.
        max_class_drop: Largest share of those of one class that may be lost: of many classes, a few can
            be lost as a whole for a small loss of ACC. 1 where this was not judged.
        caveats: Of the purification: other weights in the file still have what was in them.
    """
    missed = [
        f"{outcome.probe} still redirects {outcome.hits.after} of {outcome.eligible} judge images "
        f"({outcome.hits.after / outcome.eligible:.1%}; the goal is {_asr_goal(outcome, max_asr)})."
        for outcome in outcomes
        if outcome.is_beyond(max_asr)
    ]
    missed += [
        f"{outcome.probe} was found, and cannot be judged: no judge image is of a class that it redirects."
        for outcome in outcomes
        if outcome.origin == "found" and not outcome.eligible
    ]
    drop = (accuracy.before - accuracy.after) / max(1, images)
    if drop > max_acc_drop + 1e-9:
        missed.append(
            f"ACC dropped by {_beyond(drop, max_acc_drop)} points, from {accuracy.before} to "
            f"{accuracy.after} of {images} judge images (the goal is {max_acc_drop * 100:.1f})."
        )
    missed += _forgotten(recognised, max_class_drop)
    missed += _unjudged(members, fewest_classes)
    missed += [
        f"Other weights in the file were not purified, and keep what is in them. {caveat.text}"
        for caveat in caveats
        if caveat.id == RIVALS
    ]
    if after is not None and after.judgement.verdict is Verdict.BACKDOOR:
        missed.append(
            f"The scan of the purified model shows a backdoor: {after.judgement.headline}"
        )
    return Goals(
        max_asr=max_asr,
        max_acc_drop=max_acc_drop,
        fewest_classes=fewest_classes,
        max_class_drop=max_class_drop,
        missed=tuple(missed),
    )


def confused_anyway(outcomes: Sequence[Outcome], max_asr: float) -> str | None:
    """What is confused without a trigger, where that raises the goal for the ASR."""
    shown = [
        f"{outcome.probe} {outcome.unstamped} of {outcome.eligible}, and of the others with the trigger "
        f"{outcome.hits.after - outcome.anyway}"
        for outcome in outcomes
        if outcome.raises_goal(max_asr)
    ]
    if not shown:
        return None
    return (
        f"More than {max_asr:.1%} of the judge images go to a trigger's class without any trigger, before "
        f"and after, so that the goal for the ASR is {max_asr:.1%} of the others: "
        f"{listed(shown, SHOWN, '; ')}."
    )


def _asr_goal(outcome: Outcome, max_asr: float) -> str:
    """In words, with what the suspect confuses anyway where that is more."""
    if not outcome.raises_goal(max_asr):
        return f"{max_asr:.1%}"
    return (
        f"{max_asr:.1%} beside the {outcome.unstamped} that go there without it, before and after"
    )


def _beyond(share: float, goal: float) -> str:
    """A share in points that is not read as the goal that it exceeds."""
    short = f"{share * 100:.1f}"
    return f"{share * 100:.2f}" if short == f"{goal * 100:.1f}" else short


def _forgotten(
    recognised: tuple[Sequence[int], Sequence[int]] | None, max_drop: float
) -> list[str]:
    """Which classes the purified model has lost, a sentence each."""
    if recognised is None:
        return []
    before, after = recognised
    return [
        f"Class {k} is forgotten: {after[k]} of the {before[k]} judge images of it that were recognised "
        f"still are (the goal is {1 - max_drop:.0%})."
        for k in forgotten(before, after, max_drop)
    ]


def _unjudged(members: Sequence[int], needed: int) -> list[str]:
    """Why nothing says that accuracy is kept, if so."""
    judged = sum(count > 0 for count in members)
    if judged >= needed:
        return []
    return [
        f"The images to judge by are of {judged} of {len(members)} classes (by label or prediction), too "
        f"few to tell what became of the others: give images of {needed} classes at least."
    ]


def class_drop(max_acc_drop: float) -> float:
    """Share of one class that may be lost: who allows more of all images allows it of those of a class."""
    return max(MAX_CLASS_DROP, max_acc_drop)


def forgotten(before: Sequence[int], after: Sequence[int], max_drop: float) -> list[int]:
    """Classes of which a larger share of the recognised images is lost, and no few.

    Args:
        before: Rightly classified images a class, by the suspect.
        after: By another model.
        max_drop: That share.
    """
    lost = [was - stays for was, stays in zip(before, after, strict=True)]
    return [
        k for k, was in enumerate(before) if lost[k] >= max(FEWEST_FORGOTTEN, max_drop * was + 1e-9)
    ]


def fewest_classes(classes: int) -> int:
    """Classes that must be among the images to judge by, of so many: half of them, two to ten."""
    return min(max(-(-classes // 2), 2), JUDGED_CLASSES, classes)


def rejudge_purification(result: PurifyResult) -> Goals:
    """The goals of a recorded purification, computed again from its counts."""
    again, table = result.after, result.confusion
    return judge_purification(
        accuracy=result.accuracy,
        images=result.judge.images,
        outcomes=result.outcomes,
        after=None if again is None else replace(again, judgement=rejudge(again)),
        max_asr=result.goals.max_asr,
        max_acc_drop=result.goals.max_acc_drop,
        members=result.judge.members,
        fewest_classes=result.goals.fewest_classes,
        recognised=None if table is None else table.recognised,
        max_class_drop=result.goals.max_class_drop,
        caveats=() if result.method is None else result.caveats,
    )


def judge_planting(
    *,
    hits: Counts,
    eligible: int,
    accuracy: Counts,
    images: int,
    min_asr: float,
    max_acc_drop: float,
    members: Sequence[int] = (),
    recognised: tuple[Sequence[int], Sequence[int]] | None = None,
) -> PlantingGoals:
    """Was a backdoor planted, and the accuracy kept?

    Args:
        hits: Stamped images of other classes that go to the target.
        eligible: How many images those are of.
        accuracy: Rightly classified images.
        images: How many images those are of.
        min_asr: Goal for the ASR.
        max_acc_drop: Goal for the share of accuracy that is lost.
        members: Images a class, as in `judge_purification`; of so few classes, nothing says that it was.
        recognised: Rightly classified images a class, as there.
    """
    missed = []
    asr, lost = hits.after / eligible, (accuracy.before - accuracy.after) / images
    if asr < min_asr:
        missed.append(
            f"the ASR is {asr:.1%} ({hits.after} of {eligible} images), and {min_asr:.1%} was the goal"
        )
    if lost > max_acc_drop:
        missed.append(
            f"ACC dropped by {_beyond(lost, max_acc_drop)} points ({accuracy.before} to {accuracy.after} of "
            f"{images} images), and {max_acc_drop * 100:.1f} may be lost"
        )
    others = _forgotten(recognised, class_drop(max_acc_drop))
    others += _unjudged(members, fewest_classes(len(members)))
    missed += [text[0].lower() + text[1:].rstrip(".") for text in others]
    return PlantingGoals(min_asr=min_asr, max_acc_drop=max_acc_drop, missed=tuple(missed))
