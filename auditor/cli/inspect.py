"""`auditor inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Exit codes: 0 opening it runs nothing of it, 1 it would run code or deceives, 2 wrong usage or "
    "unreadable input, 130 interrupted."
)
DANGEROUS = 1


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="FILE", help="Any model file; it may be malicious.")
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print a record as JSON, for scripts.")
    ] = False,
) -> None:
    """Say what FILE is, what it holds and what it would do, without opening it.

    Lists its content, the classes and functions that its pickles ask for, calls that loading it would make,
    the networks that its weights fit, and whether scan and purify can work on it. Executes nothing
    of the file, so that it is safe for files that nothing else should touch.

    Example: auditor inspect downloaded.pth

    Example: auditor inspect downloaded.pth --json
    """
    import msgspec

    from auditor.inspecting import inspect_file
    from auditor.report.json import indented
    from auditor.terminal_inspect import show_inspection

    found = inspect_file(model)
    if json:
        typer.echo(indented(msgspec.to_builtins(found)), nl=False)
    else:
        show_inspection(found)
    if found.dangerous:
        raise typer.Exit(DANGEROUS)
