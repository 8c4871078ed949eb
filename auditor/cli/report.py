"""`auditor report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from auditor.cli.options import Force
from auditor.cli.rendering import FORMATS, rendered
from auditor.errors import UsageError
from auditor.outputs import STDOUT, check_outputs, parse_outputs, write_text
from auditor.text import clean_text

if TYPE_CHECKING:
    from auditor.results.purify import Goals
    from auditor.results.scan import Judgement


EPILOG = (
    "Exit codes: 0 the counts say what the file says, 1 they say something else, 2 wrong usage or unreadable "
    "input, 130 interrupted (129 or 143 by SIGHUP or SIGTERM)."
)

Rendered = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FMT=PATH",
        help="Result file, json=, html= or md= (repeatable; - is standard output). Default: none, the result "
        "is only shown.",
    ),
]


def report(
    result: Annotated[
        Path,
        typer.Argument(metavar="RESULT", help="A .json file that scan, purify or inspect wrote."),
    ],
    output: Rendered = None,
    force: Force = False,
) -> None:
    """Render a result again, without the model: json -> html, md.

    Verdicts and goals are recomputed from the counts in the file; if one differs from that in the
    file, this is said, and the exit code is 1.

    Example: auditor report model.scan.json -o html=review.html -o md=summary.md
    """
    from auditor import report as rendering
    from auditor.inspecting.record import Inspection
    from auditor.results.purify import PurifyResult
    from auditor.terminal.inspect import show_inspection
    from auditor.terminal.progress import show_error
    from auditor.terminal.purify import show_purify
    from auditor.terminal.scan import show_scan
    from auditor.verdict import rejudge, rejudge_purification

    try:
        text = result.read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{clean_text(str(result))}: no such file.") from None
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"{clean_text(str(result))}: cannot be read as text, and a result is JSON."
        ) from None
    try:
        record = rendering.from_json(text)
    except UsageError as error:
        raise UsageError(f"{clean_text(str(result))}: {error}") from None
    outputs = parse_outputs(output or [], FORMATS, {})
    check_outputs(outputs, force=force, inputs=[result])
    for path, text in rendered(record, outputs):
        write_text(path, text)
    silent = STDOUT in outputs.values()
    if isinstance(record, Inspection):
        if not silent:
            show_inspection(record, list(outputs.values()))
        return
    if isinstance(record, PurifyResult):
        if not silent:
            show_purify(record, list(outputs.values()))
        scans = [scan for scan in (record.evidence, record.before, record.after) if scan]
        says = _purified(record.goals, [scan.judgement for scan in scans])
        counts = _purified(rejudge_purification(record), [rejudge(scan) for scan in scans])
    else:
        if not silent:
            show_scan(record, list(outputs.values()))
        says, counts = str(record.judgement.verdict), str(rejudge(record).verdict)
    if says != counts:
        show_error(
            f"the file says {says}, but its own counts say {counts}: it was edited, or written by another "
            "version."
        )
        raise typer.Exit(1)


def _purified(goals: Goals, scans: Sequence[Judgement]) -> str:
    """What is claimed of a purification."""
    verdicts = ", ".join(str(judgement.verdict) for judgement in scans)
    return f"goals {'met' if goals.met else 'missed'}, scans {verdicts}"
