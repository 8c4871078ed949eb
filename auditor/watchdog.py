"""Ctrl-C that works even while the suspect computes for ever.

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

PATIENCE = 5.0
"""Seconds that the main thread is given to stop by itself."""
INTERRUPTED = 130


@contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, an interrupt ends the process at the latest after `PATIENCE` seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakes, woken = socket.socketpair()
    wakes.setblocking(False)
    previous = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    finished = threading.Event()
    threading.Thread(target=_watch, args=(woken, finished), daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(previous)
        wakes.close()


def _watch(woken: socket.socket, finished: threading.Event) -> None:
    while numbers := woken.recv(16):
        if signal.SIGINT in numbers and not finished.wait(PATIENCE):
            print(
                "Stopped. The model did not answer; nothing was written.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(INTERRUPTED)
    woken.close()
