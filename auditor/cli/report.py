"""`auditor report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auditor.cli.options import Force, Output
from auditor.cli.rendering import FORMATS, rendered
from auditor.errors import UsageError
from auditor.outputs import STDOUT, check_outputs, parse_outputs, write_text


def report(
    result: Annotated[
        Path,
        typer.Argument(metavar="RESULT", help="A .json file that scan, purify or inspect wrote."),
    ],
    output: Output = None,
    force: Force = False,
) -> None:
    """Render a result again, without the model: json -> html, md.

    The verdict is recomputed from the counts in the file; if it differs from the one in the file,
    that is said, and the exit code is 1.

    Example: auditor report model.scan.json -o html=review.html -o md=summary.md
    """
    from auditor import report as rendering
    from auditor.inspection import Inspection
    from auditor.results import PurifyResult
    from auditor.terminal import show_error, show_scan
    from auditor.terminal_inspect import show_inspection
    from auditor.terminal_purify import show_purify
    from auditor.verdict import rejudge, rejudge_purification

    try:
        text = result.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{result}: there is no such result file, or it is no text.") from None
    record = rendering.from_json(text)
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
        says, counts = (
            "met" if goals.met else "missed"
            for goals in (record.goals, rejudge_purification(record))
        )
        says, counts = f"goals {says}", f"goals {counts}"
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
