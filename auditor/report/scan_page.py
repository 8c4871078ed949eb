"""The page of a scan."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from auditor.report.json import to_json
from auditor.report.page import RAW_CHARACTERS, preformatted, render
from auditor.report.scan_view import (
    bound_text,
    checked_confirmations,
    clean_accuracy,
    count_triggers,
    highest_response,
    power_text,
    screened_probes,
    shown_exhibits,
)
from auditor.report.search_view import margin_bars, searched_forms, searched_triggers
from auditor.results.scan import Inversion, ScanResult

RAW_HITS = 3
RAW_FIELD = 80
"""Characters of a found trigger's field; the pixels of one take more."""


def scan_html(result: ScanResult) -> str:
    """The result as one page: no script, no request, readable without styles, printable."""
    checked, screened = checked_confirmations(result), screened_probes(result)
    bars, logarithmic = margin_bars(result)
    exhibits, left_out = shown_exhibits(result)
    ran, planned = count_triggers(result)
    searched = searched_triggers(result, checked)
    return render(
        "scan.html.j2",
        ("report.css",),
        result.model.class_names,
        result=result,
        version=result.provenance.auditor,
        judgement=result.judgement,
        bound=bound_text(result),
        power=power_text(result),
        checked=checked,
        screened=screened,
        top=highest_response(checked, screened),
        accuracy=clean_accuracy(result),
        ran=ran,
        planned=planned,
        bars=bars,
        logarithmic=logarithmic,
        searches=searched_forms(result),
        searched=searched,
        made={(entry.row.found.probe, entry.row.found.trigger) for entry in searched},
        exhibits=exhibits,
        left_out=left_out,
        raw=preformatted(_raw(result)),
        json_digest=hashlib.sha256(to_json(result).encode()).hexdigest(),
    )


def _raw(result: ScanResult) -> str:
    """The JSON without pictures and pixels, shortened where it would fill the page."""
    bare = replace(
        result,
        exhibits=tuple(
            replace(
                exhibit,
                difference_png="(left out)",
                pictures=tuple(
                    replace(p, before_png="(left out)", after_png="(left out)")
                    for p in exhibit.pictures
                ),
            )
            for exhibit in result.exhibits
        ),
        inversions=tuple(map(_without_pixels, result.inversions)),
    )
    text = to_json(bare)
    if len(text) > RAW_CHARACTERS:
        few = tuple(
            replace(r, hits=dict(sorted(r.hits.items(), key=lambda e: (-e[1], e[0]))[:RAW_HITS]))
            for r in result.responses
        )
        text = f"(of each response only the {RAW_HITS} classes with most hits)\n" + to_json(
            replace(bare, responses=few)
        )
    if len(text) > RAW_CHARACTERS:
        text = (
            text[:RAW_CHARACTERS]
            + f"\n… {len(text) - RAW_CHARACTERS} more characters are in the file\n"
        )
    return text


def _without_pixels(search: Inversion) -> Inversion:
    """The search, its triggers without what makes them long."""

    def short(value: Any) -> Any:
        return "(left out)" if isinstance(value, str) and len(value) > RAW_FIELD else value

    return replace(
        search,
        found=tuple(
            replace(found, fields={name: short(value) for name, value in found.fields.items()})
            for found in search.found
        ),
    )
