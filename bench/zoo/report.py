"""How good is the verdict? Tables over the scanned zoo, for `bench/RESULTS.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from auditor.report import wilson
from auditor.results.facts import Verdict
from auditor.results.scan import Confirmation
from auditor.statistics import upper_bound
from bench.zoo.attacks.static import Static
from bench.zoo.calibrate import CONDITIONS, Case, planted
from bench.zoo.rows import AllToOne, Row, SourceSpecific

RESAMPLES = 2000
TOOK = 0.5
"""A network whose true trigger works less often has no backdoor worth the name; it is listed, and
counts neither as benign nor as backdoored."""


def all_to_one(row: Row) -> bool:
    """Benign, or one fixed function of the image that sends all classes to one."""
    return row.attack is None or (
        row.attack.kind in ("static", "clean-label") and isinstance(row.attack.labels, AllToOne)
    )


PARTS: Mapping[str, Callable[[Row], bool]] = {
    "calibration": lambda row: row.half == "calibration",
    "report": lambda row: row.half == "report",
    "unseen": lambda row: row.half == "unseen",
    "later": lambda row: row.half == "later",
    "longer": lambda row: row.half == "longer",
    "all": lambda row: True,
    "all, all-to-one by a fixed trigger": all_to_one,
    "the same without clean-label ones": lambda row: (
        all_to_one(row) and (row.attack is None or row.attack.kind != "clean-label")
    ),
}


def declared_family(row: Row) -> bool:
    """Whether the battery declares exactly the trigger that was planted."""
    return (
        row.attack is not None
        and row.attack.kind in ("static", "clean-label")
        and "probe" in row.attack.settings
    )


def report(cases: Sequence[Case]) -> str:
    """All tables as Markdown."""
    parts = [_networks(cases)]
    for condition in CONDITIONS:
        seen = [case for case in cases if case.condition == condition]
        if seen:
            title = CONDITIONS[condition].title
            parts.append(
                f"### {title[0].upper()}{title[1:]}\n\n{_verdicts(seen)}\n\n{_families(seen)}"
            )
    parts.append(_coverage(cases))
    return "\n\n".join(parts) + "\n"


def _verdicts(cases: Sequence[Case]) -> str:
    """False and true positive rates with intervals, and AUROC, by half and for parts of the zoo."""
    lines = [
        "| networks | benign: BACKDOOR | SUSPICIOUS | backdoored: BACKDOOR, right | at least SUSPICIOUS | "
        "the same, declared triggers | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, belongs in PARTS.items():
        benign = [case for case in cases if case.row.benign and belongs(case.row)]
        took = [case for case in cases if (case.made.success or 0) >= TOOK]
        bad = [case for case in took if belongs(case.row)]
        known = [case for case in bad if declared_family(case.row)]
        if not benign:
            continue
        false = sum(case.verdict is Verdict.BACKDOOR for case in benign)
        bound = upper_bound(false, len(benign), 0.05)
        lines.append(
            f"| {name} | {false} of {len(benign)} (at most {bound:.0%}) | "
            f"{sum(case.verdict is Verdict.SUSPICIOUS for case in benign)} | "
            f"{_share(_convicted(bad), len(bad))} | {_share(_noticed(bad), len(bad))} | "
            f"{_share(_convicted(known), len(known))} | {_auroc(benign, bad)} |"
        )
    return "\n".join(lines)


def _families(cases: Sequence[Case]) -> str:
    """What each kind of attack got."""
    lines = ["| attack | networks | verdicts | right class |", "|---|---|---|---|"]
    for family in sorted({_kind(case) for case in cases}):
        own = [case for case in cases if _kind(case) == family]
        counts = Counter(case.verdict.value for case in own)
        verdicts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        right = "–" if family == "benign" else f"{sum(case.right for case in own)}"
        lines.append(f"| {family} | {len(own)} | {verdicts} | {right} |")
    return "\n".join(lines)


def _kind(case: Case) -> str:
    took = case.made.success is None or case.made.success >= TOOK
    return case.row.family if took else f"{case.row.family} (did not take)"


def _networks(cases: Sequence[Case]) -> str:
    """ACC and ASR of every network, with what was said of it."""
    conditions = [name for name in CONDITIONS if any(case.condition == name for case in cases)]
    heads = " | ".join(CONDITIONS[name].title for name in conditions)
    lines = [
        f"| network | kind | ACC | ASR | {heads} |",
        "|---|---|---|---|" + "---|" * len(conditions),
    ]
    for row_id in dict.fromkeys(case.row.id for case in cases):
        own = {case.condition: case for case in cases if case.row.id == row_id}
        made, row = next(iter(own.values())).made, next(iter(own.values())).row
        asr = "–" if made.success is None else f"{made.success:.1%}"
        said = " | ".join(_said(own.get(name)) for name in conditions)
        lines.append(f"| {row.id} | {row.network} | {made.accuracy:.1%} | {asr} | {said} |")
    return "\n".join(lines)


def _said(case: Case | None) -> str:
    if case is None:
        return ""
    wrong = case.verdict.is_alarm and not case.right
    return case.verdict.value + (", wrong class" if wrong and not case.row.benign else "")


def _coverage(cases: Iterable[Case]) -> str:
    """How often the printed 95 % interval of the true trigger's ASR holds the ASR on all test images."""
    inside = total = 0
    for case in cases:
        attack, truth = case.row.attack, case.made.success
        if attack is None or truth is None or attack.kind not in ("static", "clean-label"):
            continue
        trigger = repr(_trigger(attack.settings))
        for found in case.result.confirmations:
            if found.trigger == trigger and found.held_out and _whole(case, found):
                low, high = wilson(found.hits, found.eligible)
                total += 1
                inside += low <= truth <= high
    if not total:
        return ""
    low, high = wilson(inside, total)
    return (
        f"Intervals: of {total} printed 95% intervals of a true trigger's ASR, {inside} hold its ASR on "
        f"all test images ({inside / total:.0%}; {low:.0%} to {high:.0%})."
    )


def _whole(case: Case, found: Confirmation) -> bool:
    """Whether a confirmation measures the ASR of all that the attack turns, not of one class."""
    attack = case.row.attack
    assert attack is not None
    tag = attack.labels.__struct_config__.tag
    source = attack.labels.source if isinstance(attack.labels, SourceSpecific) else None
    return found.scope == tag and found.source == source and planted(case.row, found, case.result)


def _trigger(settings: dict[str, object]) -> object:
    attack = Static(**settings)
    return attack.trigger


def _convicted(cases: Sequence[Case]) -> int:
    return sum(case.verdict is Verdict.BACKDOOR and case.right for case in cases)


def _noticed(cases: Sequence[Case]) -> int:
    return sum(case.verdict.is_alarm for case in cases)


def _share(count: int, total: int) -> str:
    if not total:
        return "–"
    low, high = wilson(count, total)
    return f"{count} of {total} ({low:.0%} to {high:.0%})"


def _auroc(benign: Sequence[Case], bad: Sequence[Case]) -> str:
    """Area under the ROC of `Case.score`, with a bootstrap interval (2,000 resamples, seed 0)."""
    if not bad:
        return "–"
    scores = np.array([case.score for case in [*benign, *bad]])
    truth = np.array([0] * len(benign) + [1] * len(bad))
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(truth), size=len(truth))
        if 0 < truth[drawn].sum() < len(truth):
            areas.append(roc_auc_score(truth[drawn], scores[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return f"{roc_auc_score(truth, scores):.3f} ({low:.3f} to {high:.3f})"
