"""What a model file is and holds, as a record; made by `inspecting`, shown by `terminal_inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA = "auditor.inspection/1"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A class or function that a pickle of the file asks for by name."""

    name: str
    allowed: bool
    """It can do nothing but hold numbers and layers."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network that the weights may belong to."""

    arch: str
    """As `--arch` takes it."""
    title: str
    score: float
    """Share of names and shapes that fit."""
    exact: bool
    differences: tuple[str, ...] = ()
    """The first ones, in words."""


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Can a command work on the file?"""

    works: bool
    why: str
    """What it needs, what it cannot do, or why it refuses; empty where there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file holds, as far as it was read."""

    what: str = ""
    """In a line: bare weights, a pickled network, a graph of so many nodes …"""
    entries: tuple[str, ...] = ()
    """Containers and what is beside the weights, a line each."""
    tensors: int | None = None
    parameters: int | None = None
    """Numbers in all tensors."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Type of numbers -> tensors that have it."""
    classes: int | None = None
    carries_network: bool = False
    wanted: tuple[Wanted, ...] = ()
    findings: tuple[str, ...] = ()
    """What the file would do to whoever opens it naively, and what is deceptive about it."""
    fits: tuple[Fit, ...] = ()
    input_size: tuple[int | None, int | None, int | None] = (None, None, None)
    """Channels, height and width, as far as the file says."""
    side: int | None = None
    """Of the square images that such a network is made for."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that can be said of a file without running it."""

    schema: str = SCHEMA
    name: str
    kind: str
    bytes: int
    sha256: str
    content: Content
    scan: Ability
    purify: Ability

    @property
    def dangerous(self) -> bool:
        """Whoever opens it naively runs what the file says, or is deceived."""
        return bool(self.content.findings)
