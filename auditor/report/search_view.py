"""What a report shows of the searches: numbers a class as bars, and the triggers that they made."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from auditor.report.scan_view import Checked
from auditor.results.scan import Inversion, ScanResult

LOG_RANGE = 20.0
"""Numbers that differ by more are drawn on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One class in a chart."""

    number: int
    value: float | None
    """None where a search did not reach the class."""
    length: float
    """Share of the longest bar."""
    outlier: bool


@dataclass(frozen=True, kw_only=True)
class SearchedForm:
    """One search, with its sizes as bars: the smallest first, what was not reached last."""

    search: Inversion
    bars: tuple[Bar, ...]
    logarithmic: bool

    @property
    def missed(self) -> tuple[int, ...]:
        """Classes that were not reached."""
        return tuple(bar.number for bar in self.bars if bar.value is None)


@dataclass(frozen=True, kw_only=True)
class SearchedTrigger:
    """A trigger that a search made, as it was confirmed."""

    row: Checked
    search: Inversion | None
    """None where the result holds no such search."""
    size: float | None
    """Of the smallest change that the trigger was made from; None where it is not recorded."""


def margin_bars(result: ScanResult) -> tuple[list[Bar], bool]:
    """Bars of the margin chart, largest first, and whether their lengths are logarithmic."""
    if result.margin is None:
        return [], False
    values = [
        (number, value if math.isfinite(value) else 0.0)
        for value, number in zip(result.margin.margins, result.margin.classes, strict=False)
    ]
    values.sort(key=lambda entry: (-entry[1], entry[0]))
    return _bars(values, result.judgement.outlier_classes)


def searched_forms(result: ScanResult) -> list[SearchedForm]:
    """Every search for smallest triggers."""
    return [_searched_form(search, result.judgement.search_classes) for search in result.inversions]


def _searched_form(search: Inversion, outliers: Collection[int]) -> SearchedForm:
    reached = [(k, size) for k, size in zip(search.classes, search.sizes, strict=False) if size]
    reached.sort(key=lambda entry: (entry[1], entry[0]))
    bars, logarithmic = _bars(reached, outliers)
    sized = {number for number, _ in reached}
    missed = [
        Bar(number=k, value=None, length=0.0, outlier=k in outliers)
        for k in search.classes
        if k not in sized
    ]
    return SearchedForm(search=search, bars=(*bars, *missed), logarithmic=logarithmic)


def _bars(values: Sequence[tuple[int, float]], outliers: Collection[int]) -> tuple[list[Bar], bool]:
    """A bar a class in the order given, and whether their lengths are logarithmic."""
    low = min((value for _, value in values), default=0.0)
    high = max((value for _, value in values), default=0.0)
    logarithmic = low > 0 and high / low > LOG_RANGE

    def length(value: float) -> float:
        if high <= 0 or value <= 0:
            return 0.0
        if logarithmic:
            start, end = math.log(low), math.log(high)
            return 0.04 + 0.96 * (math.log(value) - start) / (end - start)
        return value / high

    return [
        Bar(number=k, value=v, length=length(v), outlier=k in outliers) for k, v in values
    ], logarithmic


def searched_triggers(result: ScanResult, checked: Sequence[Checked]) -> list[SearchedTrigger]:
    """The confirmations of searched triggers, in the order of `checked`."""
    searches = {search.search: search for search in result.inversions}
    sizes: dict[tuple[str, str, int | None], float] = {
        (search.search, found.trigger, found.target): found.size
        for search in result.inversions
        for found in search.found
    }
    return [
        SearchedTrigger(
            row=row,
            search=searches.get(row.found.probe),
            size=sizes.get((row.found.probe, row.found.trigger, row.found.target)),
        )
        for row in checked
        if row.found.searched
    ]
