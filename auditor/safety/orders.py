"""What the worker is told: one JSON text, from the process that started it.

JSON by Python's own module: unlike others it carries file names that are no valid Unicode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task works, and what it may."""

    place: Path
    """The one folder that it may write to; taken away afterwards."""
    unguarded: str | None = None
    """There is no sandbox, and nobody said that the suspect can be trusted: why there is none."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker is told."""

    tasks: str
    """Module with a table `TASKS`, name -> function of request, site and notify."""
    task: str
    request: Any
    """Builtins; the task knows the type."""
    site: Site
    readable: tuple[Path, ...]
    memory: int | None
    file_bytes: int
    gpu: bool
    confined: bool
    parent: int
    """Its process id."""


def written(record: object) -> str:
    """A record, such as `Orders` or a dataclass of options, as JSON."""
    return json.dumps(plain(record))


def read(text: str, kind: type[T]) -> T:
    """The record that `written` wrote."""
    return built(json.loads(text), kind)


def plain(record: object) -> Any:
    """A record as builtins."""
    return msgspec.to_builtins(record, enc_hook=_text_of)


def built(builtins: object, kind: type[T]) -> T:
    """The record that builtins stand for."""
    return msgspec.convert(builtins, kind, dec_hook=_path_of)


def _text_of(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} in orders")


def _path_of(kind: type, value: object) -> Path:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} in orders")
