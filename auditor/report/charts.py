"""The figures of a report: Altair says what to draw, `drawing.draw` makes SVG of it.

A figure is a function of its numbers. Names of classes are hostile: they are cleaned, and reach
Vega as values of data only, never as part of an expression. Altair is imported when a figure is
drawn, not before.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from auditor.report.drawing import (
    AFTER,
    BEFORE,
    CATEGORIES,
    INK,
    LOW,
    OTHER,
    PAPER,
    QUIET,
    TRACK,
    TUNED,
    draw,
)
from auditor.results.purify import Check, MaskLayer, Point
from auditor.text import clean_text

if TYPE_CHECKING:
    import altair as alt

NEAR_ZERO = 0.1
MAP_WIDTH, MAP_HEIGHT = 448, 360
NAME_AWAY, HALF_LETTER = 12, 3.7
"""Of a name in a map, in the map's pixels: its distance from the images, and half a letter's width."""
MATRIX_CLASSES = 20
"""A confusion matrix of more classes is too fine to be read."""

Series = Literal["attack", "before", "after", "tuned"]
SERIES: dict[Series, str] = {"attack": BEFORE, "before": QUIET, "after": AFTER, "tuned": OTHER}


VALIDATE = False
"""Altair may hold every part of a figure against its schema, which takes longer than all the rest;
the tests have that done."""

P = ParamSpec("P")


def figure(make: Callable[P, str]) -> Callable[P, str]:
    """A function that makes a figure, without Altair's validation unless it is wanted."""

    @functools.wraps(make)
    def made(*arguments: P.args, **options: P.kwargs) -> str:
        from altair.utils import schemapi

        with schemapi.debug_mode(VALIDATE):
            return make(*arguments, **options)

    return made


@dataclass(frozen=True, kw_only=True)
class RateBar:
    """A share with its interval, as one row of a figure."""

    series: Series
    name: str
    share: float
    low: float
    high: float
    text: str
    """The number in words, such as "95.1%  214/225"."""


@figure
def rate_bars(rows: Sequence[RateBar], *, title: str, prefix: str) -> str:
    """A share a model as horizontal bars with their 95% intervals, 0 to 1."""
    import altair as alt

    values = [
        {
            "y": -number,
            "name": row.name,
            "zero": 0.0,
            "one": 1.0,
            "share": _unit(row.share),
            "low": _unit(row.low),
            "high": max(_unit(row.high), _unit(row.low) + 0.006),
            "colour": SERIES[row.series],
            "text": row.text,
        }
        for number, row in enumerate(rows)
    ]
    base = alt.Chart(_data(values)).encode(
        y=alt.Y("y:Q", scale=_scale([0.5 - len(rows), 0.5]), axis=None)
    )
    unit = _scale([0, 1])
    ends = alt.X("zero:Q", scale=unit, axis=None)
    chart = alt.layer(
        base.mark_bar(height=9, color=TRACK, aria=False).encode(x=ends, x2="one:Q"),
        base.mark_bar(height=9, aria=False).encode(
            x=ends, x2="share:Q", color=alt.Color("colour:N", scale=None)
        ),
        base.mark_rule(color=INK, strokeWidth=1.4, aria=False).encode(
            x=alt.X("low:Q", scale=unit, axis=None), x2="high:Q"
        ),
        base.mark_text(align="right", color=QUIET, fontSize=12, aria=False).encode(
            x=alt.value(-8), text="name:N"
        ),
        base.mark_text(align="left", color=INK, fontSize=12, aria=False).encode(
            x=alt.value(128), text="text:N"
        ),
    )
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    return draw(
        chart, width=120, height=24 * len(rows), sides=(74, 2, 122, 2),
        title=title, description=f"Bars with 95% intervals. {said}", prefix=prefix,
    )  # fmt: skip


@figure
def mask_histogram(layer: MaskLayer, *, prefix: str) -> str:
    """How many masks of a layer lie in each bin from 0 to 1; heights by square root."""
    import altair as alt

    bins, tallest = len(layer.histogram), max(*layer.histogram, 1)
    values = [
        {
            "from": (number + 0.04) / bins,
            "to": (number + 0.96) / bins,
            "count": count,
            "zero": 0,
            "colour": LOW if (number + 1) / bins <= NEAR_ZERO + 1e-9 else TUNED,
        }
        for number, count in enumerate(layer.histogram)
        if count
    ]
    across = _scale([0, 1])
    upwards = _scale([0, tallest], type="sqrt")
    bars = (
        alt.Chart(_data(values))
        .mark_bar(aria=False)
        .encode(
            x=alt.X("from:Q", scale=across, axis=_axis(values=[0, 0.5, 1], format="~g")),
            x2="to:Q",
            y=alt.Y("count:Q", scale=upwards, axis=_axis(values=[0, tallest], format="d")),
            y2="zero:Q",
            color=alt.Color("colour:N", scale=None),
        )
    )
    bound = alt.Chart(_data([{"x": layer.lower_bound}] if 0 < layer.lower_bound < 1 else []))
    chart = alt.layer(
        bars,
        bound.mark_rule(color=QUIET, strokeDash=[3, 3], aria=False).encode(
            x=alt.X("x:Q", scale=across)
        ),
    )
    return draw(
        chart, width=172, height=64, sides=(40, 8, 12, 20),
        title=f"Masks of {layer.layer}",
        description=f"Histogram of {layer.channels} masks from 0 to 1 in {bins} bins: "
        f"{layer.near_zero} below 0.1, {layer.near_one} above 0.9, smallest {layer.smallest:.2f}.",
        prefix=prefix,
    )  # fmt: skip


@figure
def training_curve(checks: Sequence[Check], *, title: str, prefix: str) -> str:
    """ASR and ACC over the steps of one stage."""
    import altair as alt

    values = [
        {"step": check.step, "share": _unit(share), "series": name}
        for check in checks
        for name, share in (("ASR", check.asr), ("ACC", check.acc))
    ]
    lines = alt.Chart(_data(values)).encode(
        x=alt.X(
            "step:Q",
            scale=_scale([0, max(1, *(check.step for check in checks))]),
            axis=_axis(tickCount=5, format="d", grid=False),
        ),
        y=alt.Y(
            "share:Q",
            scale=_scale([0, 1]),
            axis=_axis(values=[0, 0.5, 1], format=".0%"),
        ),
        color=alt.Color(
            "series:N",
            scale=alt.Scale(domain=["ASR", "ACC"], range=[BEFORE, AFTER]),
            legend=None,
        ),
    )
    last = checks[-1]
    apart = 0.09 if abs(last.asr - last.acc) < 0.09 else 0.0
    ends = [
        {"name": "ASR", "share": _unit(last.asr) + (apart if last.asr > last.acc else -apart) / 2},
        {"name": "ACC", "share": _unit(last.acc) + (apart if last.acc >= last.asr else -apart) / 2},
    ]
    names = (
        alt.Chart(_data(ends))
        .mark_text(align="left", fontSize=12, fontWeight="bold", aria=False)
        .encode(
            x=alt.value(388),
            y=alt.Y("share:Q"),
            text="name:N",
            color=alt.Color(
                "name:N", scale=alt.Scale(domain=["ASR", "ACC"], range=[BEFORE, AFTER]), legend=None
            ),
        )
    )
    chart = alt.layer(
        lines.mark_line(strokeWidth=2, aria=False),
        lines.mark_point(filled=True, opacity=1, size=24, aria=False).encode(
            shape=alt.Shape(
                "series:N",
                scale=alt.Scale(domain=["ASR", "ACC"], range=["square", "circle"]),
                legend=None,
            )
        ),
        names,
    )
    return draw(
        chart, width=380, height=150, sides=(46, 12, 46, 24), title=title,
        description=f"{len(checks)} checks from step {checks[0].step} to {last.step}; the values "
        "are in the table below.",
        prefix=prefix,
    )  # fmt: skip


def coloured_classes(points: Sequence[Point], first: Sequence[int] = ()) -> tuple[int, ...]:
    """The classes that have a colour of their own, `first` ones first, then those of most points."""
    counts = Counter(point.label for point in points)
    order = sorted(counts, key=lambda label: (label not in first, -counts[label], label))
    return tuple(sorted(order[: len(CATEGORIES)]))


@figure
def feature_map(
    points: Sequence[Point],
    names: Sequence[str],
    coloured: Sequence[int],
    *,
    which: Literal["before", "after"],
    title: str,
    prefix: str,
) -> str:
    """The t-SNE map of one model, in a frame that is the same before and after.

    Colour is the class, a triangle is a stamped image, and every point tells what it is when the
    pointer rests on it.
    """
    import altair as alt

    colours = dict(zip(coloured, CATEGORIES, strict=False))
    values = [
        _dot(point, which, names, colours.get(point.label, OTHER)) for point in _paint_order(points)
    ]
    frame = _frame(points)
    x = alt.X("x:Q", scale=_scale(frame[0]), axis=None)
    y = alt.Y("y:Q", scale=_scale(frame[1]), axis=None)
    dots = (
        alt.Chart(_data(values))
        .mark_point(filled=True, opacity=0.85, strokeWidth=0.7)
        .encode(
            x=x,
            y=y,
            color=alt.Color("colour:N", scale=None),
            stroke=alt.Stroke("edge:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            size=alt.Size("size:Q", scale=None),
            description="said:N",
        )
    )
    labels = alt.Chart(_data(_beside(points, which, names, coloured, frame))).encode(
        x=x, y=y, text="name:N"
    )
    chart = alt.layer(
        dots,
        labels.mark_text(
            fontSize=12, fontWeight="bold", stroke=PAPER, strokeWidth=3.5, fill=PAPER, aria=False
        ),
        labels.mark_text(fontSize=12, fontWeight="bold", color=INK, aria=False),
    )
    stamped = sum(point.stamped for point in points)
    return draw(
        chart, width=MAP_WIDTH, height=MAP_HEIGHT, sides=(1, 1, 1, 1), title=title,
        description=f"{len(points) - stamped} images as they are (circles) and {stamped} stamped "
        "ones (triangles), coloured by class.",
        prefix=prefix,
    )  # fmt: skip


@figure
def confusion_matrix(
    rows: Sequence[Sequence[int]], names: Sequence[str], *, title: str, prefix: str
) -> str:
    """True classes downwards, predicted ones across; a cell is darker the more of its row it has."""
    import altair as alt

    classes = len(rows)
    side = 360 / max(classes, 1)
    values = [
        {
            "x": column + 0.5,
            "y": -row - 0.5,
            "count": str(count) if classes <= 12 else "",
            "share": 0.08 + 0.92 * count / max(1, sum(counts)),
            "colour": AFTER if row == column else BEFORE,
            "ink": PAPER if count / max(1, sum(counts)) > 0.45 else INK,
            "said": f"{_name(row, names)} predicted as {_name(column, names)}: {count}",
        }
        for row, counts in enumerate(rows)
        for column, count in enumerate(counts)
        if count
    ]
    across = alt.X("x:Q", scale=_scale([0, classes]), axis=None)
    down = alt.Y("y:Q", scale=_scale([-classes, 0]), axis=None)
    cells = alt.Chart(_data(values)).encode(x=across, y=down)
    # the longest name has to fit beside the matrix
    downwards = [
        {
            "y": -row - 0.5,
            "name": f"{_name(row, names, 11)} {row}" if _named(row, names) else str(row),
        }
        for row in range(classes)
    ]
    labels = [{"x": column + 0.5, "name": str(column)} for column in range(classes)]
    chart = alt.layer(
        cells.mark_rect(width=side - 1, height=side - 1).encode(
            fill=alt.Fill("colour:N", scale=None),
            fillOpacity=alt.FillOpacity("share:Q", scale=None),
            description="said:N",
        ),
        cells.mark_text(fontSize=11, aria=False).encode(
            text="count:N", color=alt.Color("ink:N", scale=None)
        ),
        alt.Chart(_data(downwards))
        .mark_text(align="right", fontSize=11, color=QUIET, aria=False)
        .encode(x=alt.value(-6), y=down, text="name:N"),
        alt.Chart(_data(labels))
        .mark_text(fontSize=11, color=QUIET, aria=False)
        .encode(x=across, y=alt.value(370), text="name:N"),
    )
    total, right = sum(map(sum, rows)), sum(rows[k][k] for k in range(classes))
    return draw(
        chart, width=360, height=360, sides=(96, 2, 4, 18), title=title,
        description=f"Of {total} images, {right} are on the diagonal, which is right. Numbers "
        "below: predicted class; names on the left: true class.",
        prefix=prefix,
    )  # fmt: skip


# ---- what goes into a figure


def _data(values: list[dict[str, Any]]) -> alt.InlineData:
    import altair as alt

    return alt.InlineData(values=values)


def _scale(domain: list[float], **options: Any) -> alt.Scale:
    """Exactly this domain, so that figures can be compared."""
    import altair as alt

    return alt.Scale(domain=domain, nice=False, zero=False, padding=0, **options)


def _axis(**options: Any) -> alt.Axis:
    import altair as alt

    return alt.Axis(title=None, labelOverlap=False, labelLimit=0, aria=False, **options)


def _unit(share: float) -> float:
    return min(1.0, max(0.0, share))


def _named(number: int, names: Sequence[str]) -> bool:
    return 0 <= number < len(names) and names[number] != str(number)


def _name(number: int, names: Sequence[str], limit: int = 40) -> str:
    return clean_text(names[number], limit=limit) if _named(number, names) else f"class {number}"


def _paint_order(points: Sequence[Point]) -> list[Point]:
    """Stamped ones last, so that they lie on top."""
    return sorted(points, key=lambda point: point.stamped)


def _dot(
    point: Point, which: Literal["before", "after"], names: Sequence[str], colour: str
) -> dict[str, Any]:
    x, y = point.before if which == "before" else point.after
    return {
        "x": round(x, 3),
        "y": round(y, 3),
        "colour": colour,
        "edge": INK if point.stamped else None,
        "shape": "triangle-up" if point.stamped else "circle",
        "size": 44 if point.stamped else 22,
        "said": f"{_name(point.label, names)}{', stamped' if point.stamped else ''}: predicted "
        f"{_name(point.predicted_before, names)} before, "
        f"{_name(point.predicted_after, names)} after",
    }


def _frame(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Both maps' extent, with a margin that has room for a name."""
    sides = []
    for axis in (0, 1):
        values = [place[axis] for point in points for place in (point.before, point.after)]
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.08 * (high - low) or 1.0
        sides.append([round(low - margin, 3), round(high + margin, 3)])
    return sides[0], sides[1]


def _beside(
    points: Sequence[Point],
    which: Literal["before", "after"],
    names: Sequence[str],
    coloured: Sequence[int],
    frame: tuple[list[float], list[float]],
) -> list[dict[str, Any]]:
    """The name of each coloured class above or below its unstamped images, where it covers less."""
    (left, right), (bottom, top) = frame
    pixel = ((right - left) / MAP_WIDTH, (top - bottom) / MAP_HEIGHT)
    places = [(point, point.before if which == "before" else point.after) for point in points]
    labels = []
    for label in coloured:
        own = [at for point, at in places if point.label == label and not point.stamped]
        if not own:
            continue
        name = _name(label, names, 12)
        half = HALF_LETTER * (len(name) + 1) * pixel[0]
        x = min(max(median(at[0] for at in own), left + half), right - half)
        heights = sorted(at[1] for at in own)
        edge = len(heights) // 10  # a name belongs to most of the class, not to a stray image
        away = NAME_AWAY * pixel[1]

        def covered(y: float, x: float = x, half: float = half, away: float = away) -> int:
            if not bottom + away < y < top - away:
                return len(places)
            return sum(abs(at[0] - x) < half and abs(at[1] - y) < away * 0.8 for _, at in places)

        y = min(heights[-1 - edge] + away, heights[edge] - away, key=covered)
        labels.append({"x": round(x, 3), "y": round(y, 3), "name": name})
    return labels
