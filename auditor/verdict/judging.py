"""All counts of a scan -> verdict."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from auditor.results.facts import Caveat, ImageFacts, Skipped, Verdict
from auditor.results.scan import (
    Confirmation,
    Inversion,
    Judgement,
    MarginSearch,
    Reason,
    Response,
    ScanResult,
    Transplants,
)
from auditor.statistics import lower_bound
from auditor.text import counted
from auditor.verdict.grading import (
    excess_bound,
    grade,
    grade_found,
    is_thing,
    is_undecided,
    is_universal,
    level,
    stands_for_a_mark,
    worst_control,
)
from auditor.verdict.limits import SATURATED, gaps, highest, nothing_above, smallest_detectable
from auditor.verdict.outliers import judged_margin, judged_searches, set_apart
from auditor.verdict.thresholds import EXCESS, MADE_ASR, MADE_CONTROL
from auditor.verdict.wording import (
    against_rivals,
    how_sure,
    numbers,
    what_it_stands_for,
    why,
    why_unconfirmed,
)

__all__ = [
    "classes_to_examine",
    "judge",
    "rejudge",
]


def judge(
    *,
    classes: Sequence[str],
    images: Sequence[ImageFacts],
    responses: Sequence[Response],
    confirmations: Sequence[Confirmation],
    margin: MarginSearch | None,
    inversions: Sequence[Inversion] = (),
    transplants: Sequence[Transplants] = (),
    skipped: Sequence[Skipped],
    caveats: Sequence[Caveat],
) -> Judgement:
    """What the counts of a scan mean.

    Args:
        classes: Names of the K classes.
        images: The image families that triggers were stamped on.
        responses: Every trigger on the screening images.
        confirmations: The candidates, on images that the screen has not seen.
        margin: The data-free margins, where they were computed.
        inversions: What each form of searched trigger needs to reach the classes.
        transplants: What images of a class lend to others, where a trigger makes it of all of them.
        skipped: What was not checked.
        caveats: What limits the result; a blocking one decides.
    """
    comparisons = len(responses) * 2 * len(classes)
    clean = next((facts for facts in images if facts.family == "clean"), None)
    outlier_p, outlier_classes, outlier = judged_margin(margin, classes)
    search_p, search_classes, apart = judged_searches(margin, inversions, classes)
    declared = [c for c in confirmations if not c.searched]
    reasons = [
        *_judged_clean(clean, confirmations, comparisons, classes),
        *_judged_made(confirmations, comparisons, classes),
        *_judged_found(
            confirmations, {*outlier_classes, *search_classes, *set_apart(inversions)}, classes
        ),
        *outlier,
        *apart,
    ]
    reasons = [_unless_a_mark(reason, confirmations, transplants, classes) for reason in reasons]
    reasons.sort(key=lambda reason: -reason.verdict.rank)
    found = reasons[0].verdict if reasons else None
    power, testable = (None, 0) if clean is None else smallest_detectable(clean, comparisons)
    searched = margin is not None or bool(inversions)
    missing = gaps(clean, responses, skipped, power, searched=searched)
    missing[:0] = _undecided(reasons, confirmations, split=clean is not None and clean.confirm > 0)
    missing += [caveat.text for caveat in caveats if caveat.id == SATURATED]
    blocking = [caveat for caveat in caveats if caveat.blocking]
    if blocking:
        verdict, headline = Verdict.INCONCLUSIVE, blocking[0].text
    elif found is not None and found is not Verdict.NO_EVIDENCE:
        verdict, headline = found, reasons[0].text
    elif missing:
        verdict, headline = Verdict.INCONCLUSIVE, missing[0]
    else:
        verdict = Verdict.NO_EVIDENCE
        headline = (
            f"None of {counted(len(responses), 'trigger')} counts as evidence of a backdoor."
            f"{_not_counted(declared, comparisons)}"
            if responses
            else "No class stands out in the searches. No trigger of the battery was tried."
        )
    bound = nothing_above(clean, responses, declared, len(classes))
    return Judgement(
        verdict=verdict,
        headline=headline,
        reasons=tuple(reasons),
        comparisons=comparisons,
        nothing_above=bound,
        power=power,
        power_classes=testable,
        power_verdict=Verdict.BACKDOOR if clean is None else highest(clean),
        outlier_p=outlier_p,
        outlier_classes=outlier_classes,
        search_p=search_p,
        search_classes=search_classes,
    )


def _undecided(
    reasons: Sequence[Reason], confirmations: Sequence[Confirmation], *, split: bool
) -> list[str]:
    """The first trigger that may work, and that there were too few images to judge.

    Where the images were split, only those count that the screen has not seen.
    """
    texts = [
        f"{reason.text} Give more images (--clean, --max-images)."
        for reason in reasons
        if reason.confirmation is not None
        and (found := confirmations[reason.confirmation]).family == "clean"
        and (found.held_out or not split)
        and is_undecided(found)
    ]
    return texts[:1]


def _not_counted(declared: Sequence[Confirmation], comparisons: int) -> str:
    """How many findings do more than their controls, and are none of what counts."""
    beyond = sum(
        bool(c.controls) and excess_bound(c, level(c, comparisons, declared)) >= EXCESS
        for c in declared
    )
    if not beyond:
        return ""
    return (
        f" {counted(beyond, 'finding')} beyond controls {'does' if beyond == 1 else 'do'} not count (a "
        "strong change, or too few images or classes): see the reasons."
    )


def rejudge(result: ScanResult) -> Judgement:
    """The judgement recomputed from a result's counts."""
    return judge(
        classes=result.model.class_names,
        images=result.images,
        responses=result.responses,
        confirmations=result.confirmations,
        margin=result.margin,
        inversions=result.inversions,
        transplants=result.transplants,
        skipped=result.skipped,
        caveats=result.caveats,
    )


def _judged_clean(
    clean: ImageFacts | None,
    confirmations: Sequence[Confirmation],
    comparisons: int,
    classes: Sequence[str],
) -> list[Reason]:
    """The user's images. Where they were split, only the half that the screen has not seen counts."""
    reasons = []
    for index, confirmation in enumerate(confirmations):
        if confirmation.family != "clean" or confirmation.searched:
            continue
        alpha = level(confirmation, comparisons, confirmations)
        text = numbers(confirmation, alpha, classes)
        if confirmation.held_out or clean is None or not clean.confirm:
            verdict = grade(confirmation, alpha, len(classes))
            text += why(confirmation, verdict, alpha, len(classes))
        else:
            verdict = Verdict.NO_EVIDENCE
            text += why_unconfirmed(confirmation)
        reasons.append(Reason(verdict=verdict, text=text, confirmation=index))
    reasons.sort(key=lambda r: _strength(confirmations[r.confirmation or 0]), reverse=True)
    return reasons


def _judged_made(
    confirmations: Sequence[Confirmation], comparisons: int, classes: Sequence[str]
) -> list[Reason]:
    """Made images: a trigger must work in two families of them, class impressions among them."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, c in enumerate(confirmations):
        if c.family != "clean" and not c.searched:
            groups.setdefault((c.trigger, c.scope, c.target, c.source, c.mapping), []).append(index)
    reasons = []
    for members in groups.values():
        group = [confirmations[index] for index in members]
        strong = {
            c.family: index
            for index, c in zip(members, group, strict=True)
            if c.controls
            and lower_bound(c.hits, c.eligible, level(c, comparisons, group)) >= MADE_ASR
            and worst_control(c) <= MADE_CONTROL * c.eligible
        }
        verdict = Verdict.NO_EVIDENCE
        universal = any(is_universal(c, len(classes)) and not is_thing(c) for c in group)
        if universal and "impressions" in strong and strong.keys() & {"leaves", "noise"}:
            verdict = Verdict.BACKDOOR
        elif any(grade(c, level(c, comparisons, group), len(classes)).is_alarm for c in group):
            verdict = Verdict.SUSPICIOUS
        shown = strong.values() if verdict is Verdict.BACKDOOR else members
        best = max(shown, key=lambda index: _strength(confirmations[index]))
        alpha = level(confirmations[best], comparisons, group)
        text = numbers(confirmations[best], alpha, classes)
        text += why(confirmations[best], verdict, alpha, len(classes))
        text += f" Made images only; it holds up in {len(strong)} of {len(group)} families of them."
        reasons.append(Reason(verdict=verdict, text=text, confirmation=best))
    reasons.sort(key=lambda r: _strength(confirmations[r.confirmation or 0]), reverse=True)
    return reasons


def classes_to_examine(
    reasons: Sequence[Reason], confirmations: Sequence[Confirmation]
) -> list[int]:
    """The targets of the triggers that would be called backdoors, on a user's images."""
    cited = [
        confirmations[reason.confirmation]
        for reason in reasons
        if reason.verdict is Verdict.BACKDOOR and reason.confirmation is not None
    ]
    targets = [c.target for c in cited if c.family == "clean" and c.scope == "all-to-one"]
    return sorted({target for target in targets if target is not None})


def _unless_a_mark(
    reason: Reason,
    confirmations: Sequence[Confirmation],
    transplants: Sequence[Transplants],
    classes: Sequence[str],
) -> Reason:
    """A backdoor is only suspicious where its class stands for a mark."""
    if reason.verdict is not Verdict.BACKDOOR or reason.confirmation is None:
        return reason
    confirmation = confirmations[reason.confirmation]
    examined = [lent for lent in transplants if lent.target == confirmation.target]
    if confirmation.scope != "all-to-one" or not examined:
        return reason
    text = reason.text + what_it_stands_for(examined, classes)
    mark = any(map(stands_for_a_mark, examined))
    return replace(reason, verdict=Verdict.SUSPICIOUS if mark else reason.verdict, text=text)


def _judged_found(
    confirmations: Sequence[Confirmation], apart: Set[int], classes: Sequence[str]
) -> list[Reason]:
    """The triggers that searches made, on images that they have not seen."""
    reasons = []
    for index, found in enumerate(confirmations):
        if not found.searched:
            continue
        alpha = level(found, 0, confirmations)
        verdict = grade_found(found, alpha, apart, len(classes))
        text = numbers(found, alpha, classes)
        if verdict is not Verdict.NO_EVIDENCE:
            text += why(found, verdict, alpha, len(classes))
        if found.rivals:
            text += against_rivals(found, verdict, alpha, classes)
        else:
            text += how_sure(found, verdict, alpha)
        reasons.append(Reason(verdict=verdict, text=text, confirmation=index))
    reasons.sort(key=lambda r: -(confirmations[r.confirmation or 0].surer or 0))
    return reasons


def _strength(c: Confirmation) -> tuple[int, int]:
    """Images that the trigger moves beyond its worst control, and at all: what is reported first."""
    return c.hits - worst_control(c), c.hits
