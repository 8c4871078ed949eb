"""Ctrl-C, SIGTERM and SIGHUP that work, and clean up, even while the suspect computes for ever.

Python runs its signal handlers in the main thread between two of its instructions; a network that
loops without end never comes back to one. A thread that the operating system wakes does not depend
on it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 5.0
"""Seconds that the main thread is given to stop by itself."""
ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that end the process; Windows has no SIGHUP."""


class Signalled(KeyboardInterrupt):
    """Another signal than Ctrl-C's ends the process: it unwinds in the same way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (interrupt.number if isinstance(interrupt, Signalled) else signal.SIGINT)


def _unwind(number: int, frame: FrameType | None) -> None:
    for other in ENDING:
        if other != signal.SIGINT:  # the clean-up is not cut off, but by a second Ctrl-C
            signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Signalled(number)


@contextmanager
def interruptible(stopped: str) -> Iterator[None]:
    """While this lasts, such a signal is raised as `KeyboardInterrupt`.

    It ends the process at the latest after `PATIENCE` seconds. Signals that are ignored, or that
    somebody else handles, are left alone.

    Args:
        stopped: What to say where it had to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakes, woken = socket.socketpair()
    wakes.setblocking(False)
    usual = {
        number: handler
        for number in ENDING
        if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in usual:
        signal.signal(number, _unwind)
    previous = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    finished = threading.Event()
    threading.Thread(target=_watch, args=(woken, finished, stopped), daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(previous)
        for number, handler in usual.items():
            signal.signal(number, handler)
        wakes.close()


def _watch(woken: socket.socket, finished: threading.Event, stopped: str) -> None:
    while numbers := woken.recv(16):
        ending = [number for number in numbers if number in ENDING]
        if ending and not finished.wait(PATIENCE):
            print(f"{stopped} The model did not answer.", file=sys.stderr, flush=True)
            os._exit(128 + ending[0])
    woken.close()
