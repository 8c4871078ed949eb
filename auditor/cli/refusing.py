"""A suspect that would run code or deceives is a finding: it ends a command with reports and exit code 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from auditor.cli.rendering import rendered
from auditor.cli.setup import Setup
from auditor.outputs import STDOUT, write_text

if TYPE_CHECKING:
    from auditor.inspecting.record import Inspection

DANGEROUS = 1


class Refused(Exception):
    """The suspect was not opened; the record says why."""

    def __init__(self, found: Inspection) -> None:
        super().__init__(found.safety)
        self.found = found


@contextmanager
def refusals(setup: Setup, outputs: Mapping[str, Path]) -> Iterator[None]:
    """Where the suspect is refused: write the reports that were asked for, no model, and end.

    Args:
        setup: Of the command.
        outputs: Where its results would go.

    Raises:
        typer.Exit: With code 1, after that.
    """
    try:
        yield
    except Refused as refused:
        from auditor.terminal.inspect import refusal_line, show_refusal

        texts = rendered(refused.found, outputs)
        for path, text in texts:
            write_text(path, text)
        written = [path for path, _ in texts]
        if setup.quiet:
            typer.echo(refusal_line(refused.found))
        elif STDOUT not in written:
            show_refusal(refused.found, written)
        raise typer.Exit(DANGEROUS) from None
