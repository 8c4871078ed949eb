"""Bounds and outlier tests against other implementations and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from auditor.statistics import (
    at_least,
    difference_bound,
    grubbs_p,
    looks_normal,
    lower_bound,
    upper_bound,
    upper_outliers,
)


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (1, 20), (95, 100), (441, 450), (20, 20)])
def test_bounds_are_those_of_scipy(hits: int, trials: int) -> None:
    test = stats.binomtest(hits, trials)
    low = test.proportion_ci(0.98, method="exact").low
    high = test.proportion_ci(0.98, method="exact").high
    assert lower_bound(hits, trials, 0.01) == pytest.approx(low)
    assert upper_bound(hits, trials, 0.01) == pytest.approx(high)


@given(st.integers(1, 300), st.data(), st.floats(1e-9, 0.2))
def test_bounds_enclose_the_rate_and_tighten(
    trials: int, data: st.DataObject, alpha: float
) -> None:
    hits = data.draw(st.integers(0, trials))
    low, high = lower_bound(hits, trials, alpha), upper_bound(hits, trials, alpha)
    assert 0 <= low <= hits / trials <= high <= 1
    assert lower_bound(hits, trials, alpha / 10) <= low
    assert difference_bound(hits, 0, trials, alpha) <= low


def most_errors(trials: int, bound: Callable[[int, int], float]) -> float:
    """Highest probability that a bound exceeds the true difference, over all true probabilities."""
    results = np.array(
        [(gained, lost) for gained in range(trials + 1) for lost in range(trials + 1 - gained)]
    )
    bounds = np.array([bound(int(gained), int(lost)) for gained, lost in results])
    gained, lost = results.T
    ways = special.gammaln([trials + 1]) - special.gammaln(
        [gained + 1, lost + 1, trials - gained - lost + 1]
    ).sum(0)
    worst = 0.0
    for difference in np.unique(bounds[bounds > -1]):  # errors are most common just below a bound
        losses = np.linspace(max(0, -difference), (1 - difference) / 2, 101)[:, None]
        gains, neither = losses + difference, np.maximum(0, 1 - difference - 2 * losses)
        logs = special.xlogy(gained, gains) + special.xlogy(lost, losses)
        chances = np.exp(ways + logs + special.xlogy(trials - gained - lost, neither))
        worst = max(worst, float(chances[:, bounds >= difference].sum(axis=1).max()))
    return worst


@pytest.mark.parametrize("trials", [12, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_bound_of_a_difference_keeps_its_level_and_uses_it(trials: int, alpha: float) -> None:
    errors = most_errors(trials, lambda gained, lost: difference_bound(gained, lost, trials, alpha))
    assert 0.9 * alpha < errors <= alpha


@pytest.mark.parametrize(("trials", "alpha"), [(12, 0.05), (20, 1e-4)])
def test_bound_of_a_difference_rises_with_gains_and_falls_with_losses(
    trials: int, alpha: float
) -> None:
    for lost in range(trials):
        for gained in range(trials - lost):
            bound = difference_bound(gained, lost, trials, alpha)
            assert bound <= difference_bound(gained + 1, lost, trials, alpha)
            assert bound >= difference_bound(gained, lost + 1, trials, alpha)


@pytest.mark.parametrize(
    ("gained", "lost", "trials", "alpha", "sharper"),
    [
        (34, 1, 45, 5e-4, 0.10),
        (20, 0, 30, 1e-2, 0.14),
        (60, 0, 64, 1e-5, 0.08),
        (45, 10, 64, 1e-3, 0.06),
        (150, 5, 200, 5e-4, 0.04),
        (400, 20, 512, 1e-5, 0.02),
    ],
)
def test_bound_of_a_difference_is_sharper_than_a_difference_of_bounds(
    gained: int, lost: int, trials: int, alpha: float, sharper: float
) -> None:
    apart = lower_bound(gained, trials, alpha / 2) - upper_bound(lost, trials, alpha / 2)
    bound = difference_bound(gained, lost, trials, alpha)
    assert apart + sharper <= bound <= lower_bound(gained, trials, alpha)


def test_bound_of_a_difference_at_the_edges() -> None:
    assert difference_bound(0, 0, 0, 0.01) == -1
    assert difference_bound(0, 20, 20, 0.01) == -1
    assert -1 < difference_bound(0, 5, 20, 0.01) < difference_bound(0, 0, 20, 0.01) < 0
    # nothing but gains: the chance of that is p**n, and all that is no gain may be a loss
    rate = 0.01 ** (1 / 20)
    assert difference_bound(20, 0, 20, 0.01) == pytest.approx(2 * rate - 1, abs=1e-3)
    assert difference_bound(20, 0, 20, 0.01) <= 2 * rate - 1


def test_required_rates_of_the_design() -> None:
    """detection.md 6.1: the observed rate needed for a bound of 0.5 at alpha 0.01 over m tests."""
    for n, m, needed in ((64, 1, 0.656), (64, 600, 0.766), (128, 2580, 0.703), (512, 600, 0.594)):
        hits = round(needed * n)
        assert lower_bound(hits, n, 0.01 / m) >= 0.5
        assert lower_bound(hits - 1, n, 0.01 / m) < 0.5


def test_at_least_is_a_binomial_tail() -> None:
    assert at_least(3, 10, 0.2) == pytest.approx(stats.binom.sf(2, 10, 0.2))
    assert at_least(0, 10, 0.2) == 1.0
    assert at_least(11, 10, 0.2) == 0.0
    assert at_least(10, 10, 1.0) == 1.0


def test_grubbs_keeps_its_level() -> None:
    generator = np.random.default_rng(0)
    for count in (10, 43):
        false_alarms = sum(
            grubbs_p(generator.normal(size=count).tolist()) <= 0.05 for _ in range(2000)
        )
        assert false_alarms / 2000 == pytest.approx(0.05, abs=0.015)


def test_two_outliers_do_not_hide_each_other() -> None:
    generator = np.random.default_rng(1)
    values = [*generator.normal(size=8).tolist(), 15.0, 15.1, 15.2]
    indices, p = upper_outliers(values, 0.01)
    assert indices == [10, 9, 8]
    assert p <= 0.01 < grubbs_p(values)  # the first step alone is masked
    assert upper_outliers(values[:8], 0.01) == ([], grubbs_p(values[:8]))
    assert upper_outliers([-15.0, *values[:8]], 0.01)[0] == []


def test_equal_values_have_no_outlier() -> None:
    assert grubbs_p([1.0] * 10) == 1.0
    assert upper_outliers([1.0] * 10, 0.01) == ([], 1.0)


def test_normality_is_checked() -> None:
    generator = np.random.default_rng(2)
    assert looks_normal(generator.normal(size=30).tolist())
    assert not looks_normal([math.exp(4 * v) for v in generator.normal(size=30)])
