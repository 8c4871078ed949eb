"""The process that opens the suspect: it confines itself, does one task and says what came of it.

Started by `supervisor`, never by hand. torch is imported after the sandbox has closed.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from auditor.errors import AuditorError, ModelError
from auditor.safety import orders, sandbox
from auditor.safety.messages import Done, Failure, Message, Progress, Ready, send
from auditor.safety.orders import Orders
from auditor.text import clean_text

LINES = 40
CHARACTERS = 1000
"""Of a message for a person: as many lines, of that length, as `terminal.progress.show_error` shows."""
TRACEBACK_LINES = 30
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_cpu")
"""How torch says it, in errors without a type of their own; see `memory`, which imports torch."""
PROGRESS_SECONDS = 0.1
"""Between two words about one stage."""


def serve() -> NoReturn:
    """Read the orders from standard input, obey, answer on what was standard output, and end."""
    # Whatever else prints must not garble the answers.
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    told = orders.read(sys.stdin.buffer.read().decode("ascii"), Orders)
    sandbox.die_with_parent(told.parent)
    send(channel, _answer(told, channel))
    # A suspect may have left threads behind, and taking torch down takes time.
    os._exit(0)


def _answer(told: Orders, channel: int) -> Message:
    try:
        confinement = None
        if told.confined:
            confinement = sandbox.confine(
                told.readable,
                [told.site.place],
                memory=told.memory,
                file_bytes=told.file_bytes,
                gpu=told.gpu,
            )
        send(channel, Ready(confinement))
        task = importlib.import_module(told.tasks).TASKS[told.task]
        return Done(task(told.request, told.site, _Teller(channel)))
    except AuditorError as error:
        return Failure(type(error).__name__, cleaned(str(error)))
    except MemoryError:
        return _out_of_memory(told.memory)
    except OSError as error:
        return Failure("OSError", cleaned(str(error)))
    except BaseException as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            return _out_of_memory(told.memory)
        lines = traceback.format_exc().splitlines()[-TRACEBACK_LINES:]
        return Failure("", cleaned("\n".join(lines)))


def _out_of_memory(limit: int | None) -> Failure:
    bound = "" if limit is None else f" than the {limit / 2**30:.1f} GiB of this machine"
    return Failure(
        ModelError.__name__,
        f"It needs more memory{bound}. Give a smaller --batch-size or fewer images with --max-images; a "
        "file made to fill the memory would do this, too.",
    )


def cleaned(message: str) -> str:
    """A message of several lines, fit to be shown: each line cleaned, not too many of them."""
    return "\n".join(clean_text(line, CHARACTERS) for line in message.splitlines()[:LINES])


class _Teller:
    """A `Notify` that tells who started the worker, not too often."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._told = ("", 0.0)

    def __call__(self, what: str, done: int, total: int) -> None:
        said, at = self._told
        now = time.monotonic()
        if what == said and done < total and now - at < PROGRESS_SECONDS:
            return
        self._told = (what, now)
        send(self._channel, Progress(clean_text(what), int(done), int(total)))


def own_code() -> Path:
    """The folder that the package `auditor` is imported from."""
    return Path(__file__).resolve().parents[2]
