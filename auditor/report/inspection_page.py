"""The page of an inspection: of a file that was not opened, or need not have been."""

from __future__ import annotations

import hashlib

from auditor.inspecting.record import Inspection
from auditor.report.inspection_view import ability_words, fact_rows, finding_lines, headline
from auditor.report.json import to_json
from auditor.report.page import RAW_CHARACTERS, preformatted, render


def inspection_html(found: Inspection) -> str:
    """The record as one page: no script, no request, readable without styles, printable."""
    text = to_json(found)
    raw = text if len(text) <= RAW_CHARACTERS else f"{text[:RAW_CHARACTERS]}\n(cut here)\n"
    return render(
        "inspection.html.j2",
        ("report.css",),
        (),
        found=found,
        version=found.auditor,
        content=found.content,
        headline=headline(found),
        findings=finding_lines(found.content),
        facts=list(fact_rows(found.content)),
        wanted=sorted(found.content.wanted, key=lambda entry: (entry.allowed, entry.name)),
        ability_words=ability_words,
        raw=preformatted(raw),
        json_digest=hashlib.sha256(text.encode()).hexdigest(),
    )
