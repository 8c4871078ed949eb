"""The page of a purification."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from markupsafe import Markup

from auditor.report import charts
from auditor.report import purify_view as view
from auditor.report.json import indented, to_json
from auditor.report.numbers import Rate, percent
from auditor.report.page import RAW_CHARACTERS, preformatted, render
from auditor.report.pictures import PICTURE_CHARACTERS, Image, read_image
from auditor.results.purify import Case, CaseExhibit, Embedding, MaskLayer, PurifyResult

# What a page shows at most; the rest is counted, and is in the JSON.
MASK_PANELS = 24
RATE_PANELS = 11
CURVES = 6
MAP_POINTS = 1200
"""More make the page large and the map a blot; the first ones are as good as any."""


@dataclass(frozen=True, kw_only=True)
class ShownExhibit:
    """An exhibit with the pictures that the page may carry."""

    exhibit: CaseExhibit
    difference: Image | None
    cases: tuple[tuple[Case, Image, Image], ...]


def purify_html(result: PurifyResult) -> str:
    """The result as one page: no script, no request, readable without styles, printable."""
    seen = view.outcomes(result)
    exhibits, left_out = _exhibits(result)
    return render(
        "purify.html.j2",
        ("report.css", "purify.css"),
        result.model.class_names,
        result=result,
        version=result.provenance.auditor,
        view=view,
        ending=view.ending(result),
        seen=seen,
        highest_before=view.highest(seen, "before"),
        highest_after=view.highest(seen, "after"),
        highest_baseline=view.highest(seen, "baseline"),
        accuracy=view.accuracy(result),
        touched=view.is_touched(result),
        cautions=view.cautions(result),
        exhibits=exhibits,
        left_out=left_out,
        rate_panels=list(_rate_panels(result, seen)),
        probe_changes=view.probe_changes(result),
        scan_lines=view.scan_lines(result),
        totals=view.mask_totals(result.masks),
        mask_panels=list(_mask_panels(result)),
        curves=list(_curves(result)),
        compared=view.compared_methods(result),
        rounds=[] if result.method is None else view.round_sentences(result.method),
        maps=_maps(result),
        map_rows=view.map_rows(result.embedding) if result.embedding else [],
        map_points=MAP_POINTS,
        matrices=_matrices(result),
        moved=view.moved_most(result),
        rate=Rate,
        raw=_raw(result),
        json_digest=hashlib.sha256(to_json(result).encode()).hexdigest(),
    )


def _exhibits(result: PurifyResult) -> tuple[list[ShownExhibit], int]:
    """The pictures that fit, the first cases of every exhibit first; how many do not."""
    room = PICTURE_CHARACTERS
    kept: dict[tuple[int, int], tuple[Case, Image, Image]] = {}
    differences: dict[int, Image] = {}
    left_out = 0
    for index, exhibit in enumerate(result.exhibits):
        size = len(exhibit.difference_png)
        if size <= room and (image := read_image(exhibit.difference_png)) is not None:
            differences[index] = image
            room -= size
    order = sorted(
        (place, index)
        for index, exhibit in enumerate(result.exhibits)
        for place in range(len(exhibit.cases))
    )
    for place, index in order:
        case = result.exhibits[index].cases[place]
        size = len(case.clean_png) + len(case.stamped_png)
        clean = read_image(case.clean_png) if size <= room else None
        stamped = read_image(case.stamped_png) if size <= room else None
        if clean is None or stamped is None:
            left_out += 1
            continue
        kept[index, place] = (case, clean, stamped)
        room -= size
    shown = [
        ShownExhibit(
            exhibit=exhibit,
            difference=differences.get(index),
            cases=tuple(kept[key] for key in sorted(kept) if key[0] == index),
        )
        for index, exhibit in enumerate(result.exhibits)
    ]
    return shown, left_out


def _rate_panels(
    result: PurifyResult, seen: list[view.SeenOutcome]
) -> Iterator[tuple[view.SeenOutcome | None, Markup]]:
    """Accuracy, then each trigger: before, purified and fine-tuned, with intervals."""
    word = view.accuracy_word(result).capitalize()
    yield None, _bars(view.accuracy(result), "before", word, "rate-0")
    for entry in seen[:RATE_PANELS]:
        title = f"ASR of {entry.outcome.probe}"
        yield entry, _bars(entry.rates, "attack", title, f"rate-{entry.number}")


def _bars(rates: view.Rates, first: charts.Series, title: str, prefix: str) -> Markup:
    rows = [_bar(first, "before", rates.before), _bar("after", "purified", rates.after)]
    if rates.baseline is not None:
        rows.append(_bar("tuned", "fine-tuned", rates.baseline))
    return _figure(charts.rate_bars(rows, title=title, prefix=prefix))


def _bar(series: charts.Series, name: str, rate: Rate) -> charts.RateBar:
    return charts.RateBar(
        series=series,
        name=name,
        share=rate.share,
        low=rate.low,
        high=rate.high,
        text=f"{percent(rate.share)}  {rate.hits}/{rate.total}",
    )


def _mask_panels(result: PurifyResult) -> Iterator[tuple[MaskLayer, Markup]]:
    for index, layer in view.most_changed(result.masks, MASK_PANELS):
        yield layer, _figure(charts.mask_histogram(layer, prefix=f"mask-{index}"))


def _curves(result: PurifyResult) -> Iterator[tuple[int, Markup]]:
    """The curve of each stage that was looked at while it ran, by the stage's number."""
    stages = result.method.stages if result.method is not None else ()
    watched = [(number, stage) for number, stage in enumerate(stages, 1) if stage.checks]
    for number, stage in watched[:CURVES]:
        title = f"ASR and accuracy over the steps of stage {number}"
        prefix = f"curve-{number}"
        yield number, _figure(charts.training_curve(stage.checks, title=title, prefix=prefix))


def _maps(result: PurifyResult) -> tuple[Markup, ...]:
    """The map before and after; nothing where there is none."""
    embedding = result.embedding
    if embedding is None or not embedding.points:
        return ()
    points, names = embedding.points[:MAP_POINTS], result.model.class_names
    coloured = charts.coloured_classes(points, _targets(result, embedding))
    before = charts.feature_map(
        points, names, coloured, which="before", title="Features before", prefix="map-before"
    )
    after = charts.feature_map(
        points, names, coloured, which="after", title="Features after", prefix="map-after"
    )
    return _figure(before), _figure(after)


def _targets(result: PurifyResult, embedding: Embedding) -> list[int]:
    """The target of the trigger that the map shows, which must have a colour."""
    same = [o for o in result.outcomes if o.trigger == embedding.trigger]
    return [outcome.target for outcome in same if outcome.target is not None]


def _matrices(result: PurifyResult) -> tuple[Markup, ...]:
    if result.confusion is None or result.model.classes > charts.MATRIX_CLASSES:
        return ()
    names = result.model.class_names
    return tuple(
        _figure(charts.confusion_matrix(rows, names, title=f"Confusions {which}", prefix=prefix))
        for rows, which, prefix in (
            (result.confusion.before, "before", "confusion-before"),
            (result.confusion.after, "after", "confusion-after"),
        )
    )


def _figure(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - every text in it was escaped when it was drawn


def _raw(result: PurifyResult) -> Markup | None:
    """The JSON without pictures, points and the scans inside; None where it fills the page."""
    bare: dict[str, Any] = msgspec.to_builtins(result)
    for name in ("evidence", "before", "after"):
        scan = bare[name]
        if scan is not None:
            bare[name] = {"judgement": scan["judgement"], "the rest": "(left out)"}
    for exhibit in bare["exhibits"]:
        exhibit["difference_png"] = "(left out)"
        for case in exhibit["cases"]:
            case["clean_png"] = case["stamped_png"] = "(left out)"
    if bare["embedding"] is not None:
        bare["embedding"]["points"] = "(left out)"
    if bare["confusion"] is not None and result.model.classes > charts.MATRIX_CLASSES:
        bare["confusion"] = "(left out)"
    text = indented(bare)
    return preformatted(text) if len(text) <= RAW_CHARACTERS else None
