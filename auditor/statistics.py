"""Exact binomial bounds and outlier tests; plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

MIN_CLASSES_FOR_OUTLIERS = 8
"""With fewer values, the spread of the others says nothing."""


def lower_bound(hits: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound of a proportion, with confidence ``1 - alpha``."""
    return 0.0 if hits == 0 else float(special.betaincinv(hits, trials - hits + 1, alpha))


def upper_bound(hits: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper bound of a proportion, with confidence ``1 - alpha``."""
    return 1.0 if hits >= trials else float(special.betaincinv(hits + 1, trials - hits, 1 - alpha))


def difference_bound(gained: int, lost: int, trials: int, alpha: float) -> float:
    """Lower bound of a difference of two paired proportions, with confidence ``1 - alpha``.

    Args:
        gained: Images that the trigger hits and the control does not.
        lost: Images that the control hits and the trigger does not.
        trials: Images that were given both.
        alpha: Split evenly over the two exact bounds that are subtracted.
    """
    return lower_bound(gained, trials, alpha / 2) - upper_bound(lost, trials, alpha / 2)


def at_least(hits: int, trials: int, rate: float) -> float:
    """Probability of `hits` or more in `trials`, each with probability `rate`."""
    if hits <= 0:
        return 1.0
    if hits > trials:
        return 0.0
    return float(special.bdtrc(hits - 1, trials, rate))


def grubbs_p(values: Sequence[float]) -> float:
    """p-value of the largest of some normal values being one of them (one-sided Grubbs test).

    Grubbs, Ann. Math. Statist. 21 (1950); the Bonferroni form by Student's t.
    """
    count = len(values)
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    if deviation == 0:
        return 1.0
    g = (max(values) - mean) / deviation
    denominator = (count - 1) ** 2 - count * g * g
    if denominator <= 0:
        return 0.0
    t = math.sqrt((count - 2) * count) * g / math.sqrt(denominator)
    return min(1.0, count * float(special.stdtr(count - 2, -t)))


def upper_outliers(values: Sequence[float], alpha: float) -> tuple[list[int], float]:
    """Values too large to belong to the rest: one-sided generalised ESD test.

    Rosner, Technometrics 25 (1983), with at most a third of the values. Several outliers do not
    hide one another.

    Returns:
        Their indices, largest first, and the p-value of the step that decided (without outliers,
        of the largest value).
    """
    left = list(range(len(values)))
    removed: list[int] = []
    outliers, decisive = 0, grubbs_p(values)
    for _ in range(min(len(values) // 3, 10)):
        largest = max(left, key=lambda index: values[index])
        p = grubbs_p([values[index] for index in left])
        if p <= alpha:
            outliers, decisive = len(removed) + 1, p
        removed.append(largest)
        left.remove(largest)
    return removed[:outliers], decisive


def looks_normal(values: Sequence[float], alpha: float = 0.01) -> bool:
    """False where the Shapiro-Wilk test rejects a normal distribution."""
    from scipy import stats

    if len(values) < 3 or max(values) == min(values):
        return False
    return float(stats.shapiro(values).pvalue) >= alpha
