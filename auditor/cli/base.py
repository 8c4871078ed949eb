"""The program: its name, its exit codes, and how it says what went wrong."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer

import auditor
from auditor.cli.watchdog import exit_code, interruptible
from auditor.errors import AuditorError

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2

EPILOG = (
    "Exit codes: 0 no evidence found, 1 BACKDOOR, SUSPICIOUS or UNSAFE FILE, 2 wrong usage or unreadable "
    "input, 3 inconclusive, 130 interrupted (129 or 143 by SIGHUP or SIGTERM)."
)

app = typer.Typer(
    name="auditor",
    no_args_is_help=False,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="Scan an image model that somebody else trained for backdoors, and show the evidence.",
)


def reporting(
    command: Callable[P, R], *, stopped: str = "Stopped. Nothing was written."
) -> Callable[P, R]:
    """Turn an `AuditorError` into one message and exit code 2, Ctrl-C into `stopped` and 130.

    So do SIGTERM and SIGHUP, with 128 and their number.

    What nobody foresaw keeps its traceback, with exit code 2, too: 1 would be a finding.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with interruptible(stopped):
                return command(*args, **kwargs)
        except AuditorError as error:
            from auditor.terminal.progress import show_error

            show_error(str(error))
            raise typer.Exit(USAGE_ERROR) from None
        except OSError as error:
            typer.echo(f"error: cannot write the result: {error}.", err=True)
            raise typer.Exit(USAGE_ERROR) from None
        except KeyboardInterrupt as signalled:
            typer.echo(stopped, err=True)
            raise typer.Exit(exit_code(signalled)) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception:  # a bug of ours, which must not look like a verdict
            traceback.print_exc()
            typer.echo(
                "This is a bug of auditor. Do not rely on anything that was written.", err=True
            )
            raise typer.Exit(USAGE_ERROR) from None

    return wrapped


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"auditor {auditor.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_show_version, is_eager=True, help="Show version."
        ),
    ] = False,
) -> None:
    """Scan an image model that somebody else trained for backdoors, and show the evidence."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
