"""A result as JSON and back, as one self-contained HTML page, as Markdown.

A report is a pure function of the result: the same result gives the same bytes. Everything in a
result may be hostile (class names, file names, the result itself when it is read from a file), so
every text passes `clean_text` and the escaping of its format, and nothing in a page runs or loads.
"""

from __future__ import annotations

from auditor.inspecting.record import Inspection
from auditor.report.inspection_markdown import inspection_markdown
from auditor.report.inspection_page import inspection_html
from auditor.report.json import from_json, to_json
from auditor.report.markdown import MARKDOWN_CHARACTERS
from auditor.report.numbers import Rate, percent, wilson
from auditor.report.page import SYMBOLS
from auditor.report.purify_markdown import purify_markdown
from auditor.report.purify_page import purify_html
from auditor.report.scan_markdown import scan_markdown
from auditor.report.scan_page import scan_html
from auditor.report.scan_view import bound_text, power_text, screened_probes
from auditor.results.purify import PurifyResult
from auditor.results.scan import ScanResult

__all__ = [
    "MARKDOWN_CHARACTERS",
    "SYMBOLS",
    "Rate",
    "bound_text",
    "from_json",
    "percent",
    "power_text",
    "screened_probes",
    "to_html",
    "to_json",
    "to_markdown",
    "wilson",
]


def to_html(result: ScanResult | PurifyResult | Inspection) -> str:
    """The result as one page: no script, no request, readable without styles, printable."""
    if isinstance(result, Inspection):
        return inspection_html(result)
    return scan_html(result) if isinstance(result, ScanResult) else purify_html(result)


def to_markdown(result: ScanResult | PurifyResult | Inspection) -> str:
    """A summary for a pull request or a ticket, at most 65,536 characters."""
    if isinstance(result, Inspection):
        return inspection_markdown(result)
    return scan_markdown(result) if isinstance(result, ScanResult) else purify_markdown(result)
