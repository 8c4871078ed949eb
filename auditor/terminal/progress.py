"""What is said while the work goes on, or when it cannot: on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from auditor.text import clean_text

PLAIN_SECONDS = 10.0
"""Off a terminal, a line of progress that often."""


class ProgressLine:
    """A `Notify` with a bar on a terminal, and a line now and then elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._done, self._total = 0, 0
        self._printed = 0.0

    def __enter__(self) -> ProgressLine:
        """Show the bar, on a terminal."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """What is going on, how much is done, of how much."""
        if self._quiet:
            return
        if not self._live:
            self._print(what, done, total)
            return
        if self._task is None or total != self._total or done < self._done:
            # another stage: its time left is estimated afresh
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(clean_text(what), total=total)
        self._done, self._total = done, total
        self._progress.update(self._task, completed=done, description=clean_text(what))

    def _print(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._printed < PLAIN_SECONDS:
            return
        self._printed = time.monotonic()
        print(f"  {done}/{total} {clean_text(what)}", file=sys.stderr, flush=True)


def show_error(message: str) -> None:
    """One error message on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    lines = [clean_text(line, limit=1000) for line in message.splitlines()[:40]]
    console.print(Text.assemble(("error: ", "bold red"), "\n".join(lines)))
