"""How long work tells what it does."""

from __future__ import annotations

from collections.abc import Callable

Notify = Callable[[str, int, int], None]
"""What is going on, how much is done, of how much."""


def silent(what: str, done: int, total: int) -> None:
    """The default listener: nobody."""
