"""A result as the files that the user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.inspecting.record import Inspection
    from auditor.results.purify import PurifyResult
    from auditor.results.scan import ScanResult

FORMATS = ("json", "html", "md")


def rendered(
    result: ScanResult | PurifyResult | Inspection, outputs: Mapping[str, Path]
) -> list[tuple[Path, str]]:
    """Where each report goes, and its text; all are made before one is written."""
    from auditor import report

    renderers = {"json": report.to_json, "html": report.to_html, "md": report.to_markdown}
    return [(path, renderers[name](result)) for name, path in outputs.items() if name in renderers]
