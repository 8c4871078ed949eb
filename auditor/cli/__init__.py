"""The command line: parse, call, print, exit. Only here does the program talk to a person.

One module a command; `options` holds what they share, `base` the program itself.
"""

from __future__ import annotations

import io
import sys

from auditor.cli import attack, demo, inspect, probes, purify, report, scan
from auditor.cli.base import EPILOG, app, reporting
from auditor.cli.options import parse_time
from auditor.cli.rendering import FORMATS

__all__ = ["FORMATS", "app", "main", "parse_time"]

# in the order in which the help lists them
app.command(epilog=EPILOG)(reporting(scan.scan))
app.command(epilog=purify.EPILOG)(reporting(purify.purify))
app.command(epilog=attack.EPILOG)(reporting(attack.attack))
app.command(epilog=inspect.EPILOG)(reporting(inspect.inspect))
app.command()(reporting(demo.demo, stopped="Stopped. What was made until then is still there."))
app.command(epilog=report.EPILOG)(reporting(report.report))
app.add_typer(probes.app, name="probes")


def main() -> None:
    """Entry point of the `auditor` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe may take no more than ASCII
            stream.reconfigure(errors="backslashreplace")
    app()
