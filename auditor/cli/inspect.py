"""`auditor inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auditor.cli.options import Force
from auditor.cli.refusing import DANGEROUS
from auditor.cli.rendering import FORMATS, rendered
from auditor.cli.requests import InspectRequest
from auditor.cli.setup import Setup
from auditor.errors import UsageError
from auditor.outputs import STDOUT, write_text

EPILOG = (
    "Exit codes: 0 opening it runs nothing of it, 1 it would run code or deceives, 2 wrong usage or "
    "unreadable input, 130 interrupted (129 or 143 by SIGHUP or SIGTERM)."
)


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="FILE", help="Any model file; it may be malicious.")
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print a record as JSON, for scripts.")
    ] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FMT=PATH",
            help="Result file, json=, html= or md= (repeatable; - is standard output). Default: none.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Say what FILE is, what it holds and what it would do, without opening it.

    Lists its content, the classes and functions that its pickles ask for, calls that loading it would make,
    the networks that its weights fit, and whether scan and purify can work on it. Executes nothing
    of the file, so that it is safe for files that nothing else should touch.

    Example: auditor inspect downloaded.pth

    Example: auditor inspect downloaded.pth --json

    Example: auditor inspect downloaded.pth -o html=inspection.html
    """
    from auditor.cli.confined import in_worker, record
    from auditor.inspecting.record import Inspection
    from auditor.report import to_json
    from auditor.safety.supervisor import workplace
    from auditor.terminal.inspect import show_inspection
    from auditor.terminal.progress import ProgressLine

    setup = Setup(model=model, device="cpu", max_images=1, output=tuple(output or ()), force=force)
    outputs = setup.outputs(FORMATS, {})
    if json and STDOUT in outputs.values():
        raise UsageError("--json and -o …=- both write to standard output; leave one of them out.")
    with workplace() as place, ProgressLine(quiet=True) as notify:
        outcome = in_worker("inspect", InspectRequest(model=model), setup, place, notify)
    found = record(outcome, Inspection)
    for path, text in rendered(found, outputs):
        write_text(path, text)
    if json:
        write_text(STDOUT, to_json(found))
    elif STDOUT not in outputs.values():
        show_inspection(found, list(outputs.values()))
    if found.dangerous:
        raise typer.Exit(DANGEROUS)
