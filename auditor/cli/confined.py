"""How a command has its work done by a worker, and what it makes of the answer."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import typer

from auditor.cli.setup import Setup
from auditor.errors import ModelError, OutputError, UsageError
from auditor.outputs import default_mode
from auditor.results import AttackResult, PurifyResult, ScanResult, Written
from auditor.safety import sandbox
from auditor.safety.structure import identify
from auditor.safety.supervisor import Assignment, Limits, Notify, Outcome, run_confined
from auditor.text import clean_text

T = TypeVar("T", ScanResult, PurifyResult, AttackResult)

OVERTIME, LEEWAY = 4, 900
"""A worker that takes so many times its time budget, and so many seconds more, hangs."""


def in_worker(
    task: str,
    request: object,
    setup: Setup,
    place: Path,
    notify: Notify,
    *,
    readable: Sequence[Path] = (),
    budget: float = math.inf,
) -> Outcome:
    """Have the worker do one of `tasks.TASKS`.

    Args:
        task: Its name.
        request: What it is told, of `requests`.
        setup: What of it says which files are needed.
        place: The folder that it may write to.
        notify: Progress.
        readable: More files and folders that are needed.
        budget: Seconds that it was told to take.
    """
    if not setup.model.is_file():
        identify(setup.model)  # says what is wrong; the worker could not look around for it
    notify("loading", 0, 1)
    outcome = run_confined(
        Assignment(
            tasks="auditor.cli.tasks",
            task=task,
            request=request,
            place=place,
            readable=[*setup.readable(), *readable],
            gpu=setup.device != "cpu" and bool(sandbox.gpu_devices()),
            trusted=setup.trust,
            limits=Limits(
                file_bytes=sandbox.FILE_BYTES + 2 * setup.model.stat().st_size,
                seconds=None if math.isinf(budget) else OVERTIME * budget + LEEWAY,
            ),
            environment=os.environ,
        ),
        notify,
    )
    if outcome.unguarded is not None and not setup.quiet:
        typer.echo(f"note: opened without a sandbox ({outcome.unguarded}).", err=True)
    return outcome


def record(outcome: Outcome, kind: type[T]) -> T:
    """The result that a worker sent, checked as one that is read from a file.

    Raises:
        ModelError: It is none, or contradicts itself.
    """
    from auditor.report import from_json

    try:
        if kind is AttackResult:
            return msgspec.json.decode(outcome.result.encode(), type=kind)
        result = from_json(outcome.result)
    except (UsageError, msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise _nonsense(str(error)) from None
    if not isinstance(result, kind):
        raise _nonsense("the result of another command")
    return result


def put_in_place(source: Path, target: Path, written: Written) -> None:
    """Move a file that the worker left to where it belongs, replacing what is there.

    Raises:
        ModelError: There is no such file, or it is not what the result says.
        OutputError: It cannot be moved.
    """
    try:
        state = source.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1 or written.name != target.name:
            raise _nonsense("a result without its file")
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if (written.bytes, written.sha256) != (state.st_size, digest):
            raise _nonsense("another file than its result says")
        source.chmod(default_mode())
        source.replace(target)
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(target))} cannot be written ({error.strerror})."
        ) from None


def _nonsense(what: str) -> ModelError:
    return ModelError(
        f"The process that opened the model sent no sound result ({clean_text(what, limit=160)}). The file "
        "may be an attack on auditor; do not open it elsewhere."
    )
