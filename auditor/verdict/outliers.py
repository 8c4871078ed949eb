"""Classes that searches set apart from the others: at most a suspicion."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditor.results.facts import Verdict
from auditor.results.scan import Inversion, MarginSearch, Reason
from auditor.statistics import MIN_CLASSES_FOR_OUTLIERS, looks_normal, upper_outliers
from auditor.verdict.thresholds import FEWEST_SEARCHES, OUTLIER_ALPHA
from auditor.verdict.wording import named

__all__ = [
    "search_scores",
]


def judged_margin(
    margin: MarginSearch | None, classes: Sequence[str]
) -> tuple[float | None, tuple[int, ...], list[Reason]]:
    """Outliers among the data-free margins of the classes, on logs: at most a suspicion."""
    if margin is None or len(margin.margins) < MIN_CLASSES_FOR_OUTLIERS:
        return None, (), []
    if min(margin.margins) <= 0 or not all(map(math.isfinite, margin.margins)):
        return None, (), []
    logs = [math.log(value) for value in margin.margins]
    outliers, p = _outliers(logs, OUTLIER_ALPHA)
    if not outliers:
        return p, (), []
    apart = tuple(margin.classes[i] for i in outliers)
    others = sorted(value for i, value in enumerate(margin.margins) if i not in outliers)
    text = (
        f"Without any image, the model can be driven unusually far towards {named(apart, classes)}: margin "
        f"{margin.margins[outliers[0]]:.3g} against {others[0]:.3g} to {others[-1]:.3g} for the other "
        f"{len(others)} classes (p = {p:.2g}). Backdoored classes look like this; it is no proof, "
        "since no trigger was exhibited."
    )
    return p, apart, [Reason(verdict=Verdict.SUSPICIOUS, text=text)]


def _outliers(scores: Sequence[float], alpha: float) -> tuple[list[int], float]:
    """High outliers by index, largest first, and the p-value; none where the others look odd, too."""
    outliers, p = upper_outliers(scores, alpha)
    if outliers and looks_normal([v for i, v in enumerate(scores) if i not in outliers]):
        return list(outliers), p
    return [], p


def search_scores(
    margin: MarginSearch | None, inversions: Sequence[Inversion]
) -> tuple[tuple[int, ...], list[float]]:
    """How conspicuous each class is to all searches together.

    Every search scores the classes by the log of a margin or of minus a size, standardised over the
    classes; the mean of the searches counts. A class that is easy to reach for one reason (its
    pictures differ from the others by a detail) seldom is for the others'; a backdoor is.

    Returns:
        The classes that every search scored, and their scores; both empty where too few searches
        scored enough of them.
    """
    scored: list[dict[int, float]] = []
    if margin is not None and all(math.isfinite(v) and v > 0 for v in margin.margins):
        scored.append({k: math.log(v) for k, v in zip(margin.classes, margin.margins, strict=True)})
    for search in inversions:
        reached = [size for size in search.sizes if size]
        if len(reached) < MIN_CLASSES_FOR_OUTLIERS:
            continue
        # what was not reached needs at least as much as the hardest that was
        sizes = [size or max(reached) for size in search.sizes]
        scored.append({k: -math.log(v) for k, v in zip(search.classes, sizes, strict=True)})
    common = sorted(set.intersection(*map(set, scored))) if scored else []
    if len(scored) < FEWEST_SEARCHES or len(common) < MIN_CLASSES_FOR_OUTLIERS:
        return (), []
    columns = [_standardised([scores[k] for k in common]) for scores in scored]
    return tuple(common), [sum(row) / len(row) for row in zip(*columns, strict=True)]


def set_apart(inversions: Sequence[Inversion]) -> set[int]:
    """The classes that one search alone sets apart; the level is shared among the searches."""
    apart: set[int] = set()
    for search in inversions:
        reached = [(k, size) for k, size in zip(search.classes, search.sizes, strict=True) if size]
        if len(reached) < MIN_CLASSES_FOR_OUTLIERS:
            continue
        scores = [-math.log(size) for _, size in reached]
        outliers, _ = _outliers(scores, OUTLIER_ALPHA / len(inversions))
        apart |= {reached[i][0] for i in outliers}
    return apart


def _standardised(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return [(v - mean) / deviation if deviation else 0.0 for v in values]


def judged_searches(
    margin: MarginSearch | None, inversions: Sequence[Inversion], classes: Sequence[str]
) -> tuple[float | None, tuple[int, ...], list[Reason]]:
    """Outliers among the classes for all searches together: at most a suspicion."""
    common, scores = search_scores(margin, inversions)
    if not common:
        return None, (), []
    outliers, p = _outliers(scores, OUTLIER_ALPHA)
    if not outliers:
        return p, (), []
    apart = tuple(common[i] for i in outliers)
    needed = "; ".join(
        _needed(search, apart) for search in inversions if search.classes and any(search.sizes)
    )
    text = (
        f"The searches set {named(apart, classes)} apart from the other {len(common) - len(apart)} classes "
        f"(p = {p:.2g}): {needed}. Backdoored classes look like this; by itself it is no proof."
    )
    return p, apart, [Reason(verdict=Verdict.SUSPICIOUS, text=text)]


def _needed(search: Inversion, apart: Sequence[int]) -> str:
    """One search in words: what it needs for the classes that are set apart, and for the others."""
    sizes = dict(zip(search.classes, search.sizes, strict=True))
    mine = ", ".join(f"{sizes[k]:.2%}" if sizes.get(k) else "not reached" for k in apart)
    others = sorted(size for k, size in sizes.items() if size and k not in apart)
    spread = f"{others[0]:.2%} to {others[-1]:.2%}" if others else "not reached"
    return f"the smallest {search.what} needs {mine} ({search.measure}), for the others {spread}"
