"""Exact binomial bounds and outlier tests; plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

MIN_CLASSES_FOR_OUTLIERS = 8
"""With fewer values, the spread of the others says nothing."""

STEPS = 2**14
"""The bound of a difference is rounded down to a multiple of one over this."""
CELLS = 2**15
"""Cells times trials; the bound of a difference is at most one cell and one step too low."""
MIN_CELLS = 256
ROUNDING = 1e-6
"""Far above the rounding errors of probabilities (relative) and of log-likelihoods, and taken off
on the safe side."""

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


def lower_bound(hits: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound of a proportion, with confidence ``1 - alpha``."""
    return 0.0 if hits == 0 else float(special.betaincinv(hits, trials - hits + 1, alpha))


def upper_bound(hits: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson upper bound of a proportion, with confidence ``1 - alpha``."""
    return 1.0 if hits >= trials else float(special.betaincinv(hits + 1, trials - hits, 1 - alpha))


@lru_cache(maxsize=4096)
def difference_bound(gained: int, lost: int, trials: int, alpha: float) -> float:
    """Lower bound of a difference of two paired proportions, with confidence ``1 - alpha``.

    Exact and unconditional: up to this difference, results that speak for a gain as much as these
    have a probability of at most `alpha`, whatever the share of losses. All results are put in one
    order, so the sets of such results are nested, and the bound exceeds the true difference with a
    probability of at most `alpha`. Buehler, J. Am. Stat. Assoc. 52 (1957) 482,
    doi:10.1080/01621459.1957.10501404.

    Args:
        gained: Images that the trigger hits and the control does not.
        lost: Images that the control hits and the trigger does not.
        trials: Images that were given both.
        alpha: Highest probability that the bound exceeds the true difference.
    """
    if trials == 0:
        return -1.0
    alpha *= 1 - ROUNDING
    needed = _as_much(gained, lost, trials, alpha)
    lowest, highest = _cells(trials, lower_bound(int(needed[0]), trials, alpha))
    steps = STEPS
    for stride in (16, 1):  # few cells come near to the result, then all bear it out
        tails = _tails(needed, trials, highest[::stride])
        steps = _improbable(steps, lowest[::stride], tails, trials, alpha)
    return steps / STEPS


def _improbable(steps: int, lowest: Numbers, tails: Numbers, trials: int, alpha: float) -> int:
    """Highest difference, from `steps` down, up to which no cell has a probability above `alpha`.

    Args:
        steps: The result is known not to be higher.
        lowest: Lowest rate of each cell.
        tails: See `_tails`, for the highest rate of each cell.
        trials: See `difference_bound`.
        alpha: See `difference_bound`.
    """
    sure, reach = -STEPS, 0
    while sure < steps:
        middle = max((sure + steps + 1) // 2, steps - reach)
        fewest_losses = np.maximum(0, (lowest - middle / STEPS) / (1 + lowest))
        chances = np.sum(_binomial(fewest_losses, trials, tails.shape[1]) * tails, axis=1)
        likely = chances > alpha
        if likely.any():
            steps, reach = middle - 1, 8 * reach + 1
            lowest, tails = lowest[likely], tails[likely]
        else:
            sure = middle
    return steps


def _as_much(gained: int, lost: int, trials: int, alpha: float) -> Counts:
    """Gains needed beside 0, 1, ... losses to speak for a gain as much as these results do.

    That is, for an approximate lower bound as high as theirs. Any order that rises with gains and
    falls with losses would be valid; this one is sharp.

    Returns:
        One count for each number of losses beside which there are enough trials; never falling.
    """
    limit = _likelihood_limit(gained, lost, trials, alpha)
    enough = _evidence(gained, lost, trials, limit) - ROUNDING
    losses = np.arange(trials + 1)
    losses = losses[: np.count_nonzero(_evidence(trials - losses, losses, trials, limit) >= enough)]
    low, high = np.zeros_like(losses), trials - losses
    while np.any(low < high):
        middle = (low + high) // 2
        reached = _evidence(middle, losses, trials, limit) >= enough
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return np.asarray(np.minimum.accumulate(high[::-1])[::-1])


def _likelihood_limit(gained: int, lost: int, trials: int, alpha: float) -> float:
    """Approximate lower bound of the difference, by the likelihood ratio."""
    z = -float(special.ndtri(alpha))
    limit, above = -1.0, 1.0
    for _ in range(54):  # to the last digit: equal results must stay equal
        middle = (limit + above) / 2
        if _evidence(gained, lost, trials, middle) > z * abs(z) / 2:
            limit = middle
        else:
            above = middle
    return limit


def _evidence(gained: int | Counts, lost: int | Counts, trials: int, difference: float) -> Numbers:
    """Log-likelihood ratio of the observed shares to the likeliest that have this difference.

    Negative where the observed difference is lower. It rises with gains, falls with losses and with
    the difference. The likeliest share of losses is from Tango, Stat. Med. 17 (1998) 891.
    """
    half = gained + lost - (2 * trials - gained + lost) * difference
    square = half**2 + 8 * trials * lost * difference * (1 - difference)
    losses = (half + np.sqrt(np.maximum(0, square))) / (4 * trials)
    losses = np.minimum(np.maximum(losses, max(0.0, -difference)), (1 - difference) / 2)
    neither = np.maximum(0, 1 - difference - 2 * losses)
    divergence = (
        special.rel_entr(gained / trials, losses + difference)
        + special.rel_entr(lost / trials, losses)
        + special.rel_entr((trials - gained - lost) / trials, neither)
    )
    return np.asarray(trials * np.copysign(divergence, (gained - lost) / trials - difference))


def _cells(trials: int, start: float) -> tuple[Numbers, Numbers]:
    """Lowest and highest rates of the cells from `start` to 1.

    The rate r is that of gains among the trials that are no losses; with a share b of losses, the
    difference is ``r * (1 - b) - b``. The probability of `_as_much` rises with r and falls with b.
    So within a cell and up to a difference, it is at most that of the highest r and of the b that
    the lowest r needs: a maximum over all shares, not over the points of a grid.
    """
    edges = np.linspace(0, 1, max(MIN_CELLS, CELLS // trials) + 1)
    first = max(0, int(np.searchsorted(edges, start)) - 1)
    return edges[first:-1], edges[first + 1 :]


def _tails(needed: Counts, trials: int, rates: Numbers) -> Numbers:
    """Probability of the needed gains or more beside 0, 1, ... losses, for each rate."""
    hits = np.maximum(needed, 1)
    misses = trials - np.arange(len(needed)) - hits
    return np.where(needed == 0, 1.0, special.betainc(hits, misses + 1, rates[:, None]))


def _binomial(rates: Numbers, trials: int, count: int) -> Numbers:
    """Probability of 0, 1, ... ``count - 1`` hits, for each rate below 1."""
    hits = np.arange(count)
    ways = -special.betaln(hits + 1, trials - hits + 1) - math.log(trials + 1)
    misses = np.log1p(-rates)
    odds = np.log(np.maximum(rates, np.finfo(float).tiny)) - misses
    return np.asarray(np.exp(ways + np.outer(odds, hits) + trials * misses[:, None]))


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
