"""Names of plug-ins: one file and one `register` line add a trigger, a search, a model format."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Generic, TypeVar

from auditor.errors import UnknownName

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence: proposes the most similar of `names`, if one is similar.

    Example:
        >>> nearest("pach", ["patch", "warp"])
        '; did you mean "patch"?'
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else "."


class Registry(Generic[T]):
    """Maps the names that users write to classes or functions."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a name can be taken once."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two {self.what}s are named {name!r}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise UnknownName(
                f'no {self.what} is named "{name}"{nearest(name, self._entries)} Known: {known}'
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def name_of(self, entry: T) -> str:
        """The name under which `entry` was registered."""
        return next(name for name, known in self._entries.items() if known is entry)


def import_siblings(package: ModuleType) -> None:
    """Import every module of a package, so that their `register` lines run."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
