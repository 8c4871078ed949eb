"""How a command has its work done by a worker, and what it makes of the answer."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import typer

from auditor.cli.refusing import Refused
from auditor.cli.setup import Setup
from auditor.errors import ModelError, OutputError, UsageError
from auditor.inspecting.record import SCHEMA as INSPECTION_SCHEMA
from auditor.inspecting.record import Inspection
from auditor.outputs import check_outputs, default_mode, side_names
from auditor.results.attack import AttackResult
from auditor.results.purify import PurifyResult, SideFile, Written
from auditor.results.scan import ScanResult
from auditor.safety import sandbox
from auditor.safety.structure import identify
from auditor.safety.supervisor import Assignment, Limits, Notify, Outcome, run_confined
from auditor.text import clean_text

T = TypeVar("T", ScanResult, PurifyResult, AttackResult, Inspection)

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

    It says which sandbox it was made in; the worker itself is not asked.

    Raises:
        Refused: It is the record of a suspect that was not opened.
        ModelError: It is none, or contradicts itself.
    """
    from auditor.report import from_json

    result: object
    try:
        if kind is AttackResult and not _is_inspection(outcome.result):
            result = msgspec.json.decode(outcome.result.encode(), type=kind)
        else:
            result = from_json(outcome.result)
    except (UsageError, msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise _nonsense(str(error)) from None
    if isinstance(result, Inspection) and kind is not Inspection and result.dangerous:
        raise Refused(result)
    if not isinstance(result, kind):
        raise _nonsense("the result of another command")
    if isinstance(result, Inspection):
        return result
    options = {**result.provenance.options, "sandbox": _sandbox(outcome)}
    return replace(result, provenance=replace(result.provenance, options=options))


def _is_inspection(text: str) -> bool:
    raw = msgspec.json.decode(text.encode())
    return isinstance(raw, dict) and raw.get("schema") == INSPECTION_SCHEMA


def _sandbox(outcome: Outcome) -> str:
    if outcome.confinement is not None:
        return str(outcome.confinement)
    return "off" if outcome.unguarded is None else f"none ({outcome.unguarded})"


def put_in_place(source: Path, target: Path, written: Written, *, force: bool) -> None:
    """Move a model file that the worker left, and what belongs to it, to where it belongs.

    Args:
        source: The model file.
        target: Where it goes; what is there is replaced.
        written: What the result says of it.
        force: Whether files beside it may be replaced as well.

    Raises:
        ModelError: There is no such file, or it is not what the result says.
        OutputError: It cannot be moved.
    """
    beside = [file.name for file in written.beside]
    possible = side_names(target.name, 2 * len(beside))
    if written.name != target.name or len({*beside, *possible}) > len(possible):
        raise _nonsense("a result without its file")
    if not force:
        check_outputs({name: target.with_name(name) for name in beside}, force=False, inputs=())
    files: list[SideFile | Written] = [
        *written.beside,
        written,
    ]  # the model last: it is never there without its numbers
    try:
        for file in files:
            _check_file(source.with_name(file.name), file)
        for file in files:
            left = source.with_name(file.name)
            left.chmod(default_mode())
            left.replace(target.with_name(file.name))
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(target))} cannot be written ({error.strerror})."
        ) from None


def _check_file(path: Path, said: Written | SideFile) -> None:
    """A regular file of one name, with the content that the result tells of.

    Raises:
        ModelError: It is not.
        OSError: It is not there.
    """
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        raise _nonsense("a result without its file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (said.bytes, said.sha256) != (state.st_size, digest):
        raise _nonsense("another file than its result says")


def _nonsense(what: str) -> ModelError:
    return ModelError(
        f"The process that opened the model sent no sound result ({clean_text(what, limit=160)}). The file "
        "may be an attack on auditor; do not open it elsewhere."
    )
