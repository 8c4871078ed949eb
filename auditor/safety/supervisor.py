"""Have a task done by a confined worker, and believe nothing that it says without checking.

The process that a person started parses options, shows progress and writes reports; it never opens
the suspect, and it does not import torch. All that touches the suspect is done by `worker`, which
may crash, hang or be taken over; then this process says so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from auditor import errors
from auditor.errors import AuditorError, ModelError, OutputError
from auditor.safety import orders, sandbox
from auditor.safety.messages import Done, Failure, Garbled, Message, Progress, Ready, receive
from auditor.safety.needed import is_private
from auditor.safety.orders import Orders, Site
from auditor.safety.sandbox import Confinement
from auditor.safety.worker import cleaned, own_code
from auditor.text import clean_text

Notify = Callable[[str, int, int], None]

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from auditor.safety.worker import serve; serve()"
)
PASSED_ON = (
    "LD_LIBRARY_PATH", "TZ", "SYSTEMROOT",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
"""Of the environment; the rest may hold secrets, and is none of the worker's business."""
LATEST_WORDS = 4
"""Lines of the worker's own words that are repeated when it crashes."""
WAITING = 64
"""Messages that may wait to be read; then the worker waits."""
LOOK_SECONDS = 0.5
MOST_STEPS = 1 << 31
"""That progress can be counted in."""


class WorkerFault(Exception):
    """The worker failed in a way that nobody foresaw: a bug of ours, with its traceback."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the worker may use."""

    memory: int | None = None
    """Bytes; None for as much as the machine has."""
    file_bytes: int = sandbox.FILE_BYTES
    """Of the largest file that it may write."""
    seconds: float | None = None
    """After which it is taken for hanging."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task."""

    result: str
    """JSON, as the worker sent it: to be checked."""
    confinement: Confinement | None
    """What held; None without a sandbox."""
    unguarded: str | None
    """Why there was no sandbox although nobody asked for that."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task, and what the worker needs for it."""

    tasks: str
    """Module with a table `TASKS`; see `Orders`."""
    task: str
    request: object
    """A record that `orders.written` can write."""
    place: Path
    """The one folder that it may write to."""
    readable: Sequence[Path] = ()
    gpu: bool = False
    trusted: bool = False
    """Do without the sandbox: the user trusts whoever made the suspect."""
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of this process; a few entries are passed on."""


def run_confined(assignment: Assignment, notify: Notify) -> Outcome:
    """Have a task done in a process of its own, in the sandbox where there is one.

    Args:
        assignment: What to do.
        notify: Progress, as the worker tells it.

    Raises:
        AuditorError: What the task raised; or the worker crashed, hung or talked nonsense
            (`ModelError`).
        OSError: As the task raised it.
        WorkerFault: The task raised something else.
    """
    why = None if assignment.trusted else sandbox.unavailable()
    if _in_process:
        return _done_here(assignment, why, notify)
    told = Orders(
        tasks=assignment.tasks,
        task=assignment.task,
        request=assignment.request,
        site=Site(place=assignment.place.resolve(), unguarded=why),
        readable=(*_runtime(assignment.environment), *assignment.readable),
        memory=assignment.limits.memory or _installed_memory(),
        file_bytes=assignment.limits.file_bytes,
        gpu=assignment.gpu,
        confined=why is None and not assignment.trusted,
        parent=os.getpid(),
    )
    with _Worker(told, assignment.environment) as worker:
        confinement, result = worker.conversation(told, assignment.limits.seconds, notify)
    return Outcome(result=result, confinement=confinement, unguarded=why)


# ---- the folder that it writes to


@contextlib.contextmanager
def workplace(folder: Path | None = None) -> Iterator[Path]:
    """A folder for a worker, taken away afterwards whatever it left there.

    Args:
        folder: Where to make it: beside a file that shall be moved out of it; None for anywhere.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        place = Path(tempfile.mkdtemp(prefix=".auditor-", dir=folder))
    except OSError as error:
        shown = clean_text(str(folder or tempfile.gettempdir()))
        raise OutputError(f"{shown} is not writable ({error.strerror}).") from None
    try:
        yield place
    finally:
        # folders in folders without end are the worst that can be in it
        with contextlib.suppress(RecursionError):
            shutil.rmtree(place, ignore_errors=True)


# ---- the worker, seen from outside


class _Worker:
    """The process, and all that it says."""

    def __init__(self, told: Orders, environment: Mapping[str, str]) -> None:
        text = orders.written(told).encode("ascii")
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-I", "-X", "utf8", "-c", BOOT, orders.written(_search_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(environment, told.site.place),
            start_new_session=True,
        )
        self._inbox: queue.Queue[Message | Garbled | None] = queue.Queue(WAITING)
        self._words: deque[bytes] = deque(maxlen=LATEST_WORDS)
        self._ended = threading.Event()
        for work in (self._listen, self._overhear, lambda: self._tell(text)):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self) -> _Worker:
        """Nothing more is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it at once, with all that it started: it has nothing to tidy up."""
        self._ended.set()
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def conversation(
        self, told: Orders, seconds: float | None, notify: Notify
    ) -> tuple[Confinement | None, str]:
        """Listen until the result comes."""
        first = self._next(_deadline(seconds), seconds)
        if isinstance(first, Failure):
            raise _error(first)
        if not isinstance(first, Ready) or (first.confinement is None) is told.confined:
            raise self._nonsense("its first words")
        deadline = _deadline(seconds)
        while True:
            match self._next(deadline, seconds):
                case Progress(what, done, total):
                    if not (0 <= done < MOST_STEPS and 0 <= total < MOST_STEPS):
                        raise self._nonsense("its progress")
                    notify(clean_text(what), done, total)
                case Failure() as failure:
                    raise _error(failure)
                case Done(result):
                    return first.confinement, result
                case Ready():
                    raise self._nonsense("ready twice")

    def _next(self, deadline: float, seconds: float | None) -> Message:
        while time.monotonic() < deadline:
            # a short wait, so that Ctrl-C is heard on every system
            with contextlib.suppress(queue.Empty):
                message = self._inbox.get(timeout=LOOK_SECONDS)
                if message is None:
                    raise self._crash()
                if isinstance(message, Garbled):
                    raise self._nonsense(str(message))
                return message
        raise ModelError(
            f"The model did not come to an end within {seconds:.0f} seconds, long after its time was up, and "
            "was stopped. It may have been made to hang."
        )

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        message: Message | Garbled | None
        while not self._ended.is_set():
            try:
                message = receive(self._process.stdout)
            except Garbled as error:
                message = error
            except (OSError, ValueError):
                message = None
            while not self._ended.is_set():
                with contextlib.suppress(queue.Full):
                    self._inbox.put(message, timeout=LOOK_SECONDS)
                    break
            if not isinstance(message, Ready | Progress):
                return

    def _overhear(self) -> None:
        """Read what libraries print, so that nothing blocks; the latest lines may say why it ended."""
        assert self._process.stderr is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError, ValueError):
            for line in _lines(self._process.stderr):
                self._words.append(line)

    def _tell(self, text: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            stdin.write(text)

    def _nonsense(self, what: str) -> ModelError:
        return ModelError(
            f"The process that opened the model talked nonsense ({clean_text(what, limit=80)}) and was "
            "stopped. The file may be an attack on auditor; do not open it elsewhere."
        )

    def _crash(self) -> ModelError:
        code = self._process.wait()
        said = [clean_text(line.decode("utf-8", "replace").strip()) for line in self._words]
        words = " ".join(filter(None, said))
        last = f" Its last words: {words}" if words else ""
        if code == -9:
            return ModelError(
                "The process that opened the model was killed, most likely because the memory ran out. Give "
                "a smaller --batch-size or fewer images; a file made to fill the memory would do this, too."
            )
        if code < 0:
            return ModelError(
                f"The model crashed the process that opened it ({_signal_name(code)}). It is damaged, made "
                f"to crash, or hits a bug of a library.{last}"
            )
        return ModelError(
            f"The process that opened the model ended without an answer (exit code {code}).{last}"
        )


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(1024):
        yield line


def _signal_name(code: int) -> str:
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _deadline(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.monotonic() + seconds


KINDS: Mapping[str, type[AuditorError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, AuditorError)
}


def _error(failure: Failure) -> Exception:
    """What the worker raised, as far as we know such errors."""
    message = cleaned(failure.message)
    if failure.kind in KINDS:
        return KINDS[failure.kind](message)
    if failure.kind == "OSError":
        return OSError(message)
    return WorkerFault(f"in the worker:\n{message}")


# ---- what it runs on


def _search_path() -> list[str]:
    """Where this process finds modules; the worker finds the same ones."""
    entries = [entry for entry in sys.path if entry and Path(entry).is_absolute()]
    own = str(own_code())
    return entries if own in entries else [*entries, own]


def _runtime(environment: Mapping[str, str]) -> list[Path]:
    """Python, its packages and the libraries that the user points to.

    A folder that holds somebody's home is left out, even if modules are searched for there.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    libraries = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    named = [*prefixes, *_search_path(), *libraries]
    folders = dict.fromkeys(Path(entry).resolve() for entry in named if entry)
    code = [own_code() / name for name in ("auditor", "probes", "templates")]
    return [*(folder for folder in folders if not is_private(folder)), *code]


def _installed_memory() -> int | None:
    """Bytes of memory that this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _environment(given: Mapping[str, str], place: Path) -> dict[str, str]:
    kept = {name: given[name] for name in PASSED_ON if name in given}
    own = {"HOME": str(place), "TMPDIR": str(place), "LC_ALL": "C.UTF-8", "USER": "auditor"}
    return {**kept, **own, "PATH": os.defpath}


# ---- for tests

_in_process = False


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """For tests: while this lasts, tasks are done here and now, without process and sandbox."""
    global _in_process
    before, _in_process = _in_process, True
    try:
        yield
    finally:
        _in_process = before


def _done_here(assignment: Assignment, why: str | None, notify: Notify) -> Outcome:
    site = Site(place=assignment.place, unguarded=why)
    task = importlib.import_module(assignment.tasks).TASKS[assignment.task]
    result = task(orders.plain(assignment.request), site, notify)
    return Outcome(result=result, confinement=None, unguarded=why)
