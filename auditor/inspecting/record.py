"""What a model file is and holds, as a record; made by `file`, shown by `terminal.inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SCHEMA = "auditor.inspection/1"
MOST_NUMBERS = 2**63 - 1
"""That a record can count; files may claim more."""
WAYS_OUT: Mapping[str, tuple[str, ...]] = {
    "ONNX": (
        "Export the network again with standard operators only.",
        "Copy files of numbers beside the model; links and paths elsewhere are refused.",
    ),
    "deceptive archive": (
        "Ask for the file as torch.save wrote it. Do not repack or repair this one: nobody knows what it "
        "was made to do.",
    ),
}
"""Kind of a file -> what its owner can do; other kinds have `OTHER_WAYS`."""
OTHER_WAYS = (
    "In the environment it came from, save torch.save(model.state_dict(), ...), and pass --arch where the "
    "network is not found.",
    "Or export it to ONNX there (torch.onnx.export).",
)

QUANTISED = "torch.ao.nn."
"""What the names of PyTorch's quantised layers begin with."""
SCRIPTABLE = frozenset(
    (
        "torch.ao.nn.quantized.dynamic.modules.linear.Linear",
        "torch.ao.nn.quantized.modules.linear.LinearPackedParams",
    )
)
"""Those whose TorchScript runs no code while it is loaded: linear layers, quantised dynamically."""
QUANTISED_WAY = (
    "Some layers are quantised by PyTorch, which pickles packed numbers as code. If that is all: scan the "
    "network before quantisation{script}."
)
SCRIPT_WAY = ", or save it as TorchScript there (torch.jit.script(model.eval()).save(...))"


class Safety(StrEnum):
    """What to do with a file."""

    UNSAFE = "UNSAFE FILE"
    """Whoever opens it naively runs what the file says, or is deceived."""
    INERT = "OPENING IT RUNS NOTHING OF IT"


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
    """Numbers an image; where it is one, that tells two classes apart."""
    carries_network: bool = False
    wanted: tuple[Wanted, ...] = ()
    findings: tuple[str, ...] = ()
    """What the file would do to whoever opens it naively, and what is deceptive about it."""
    fits: tuple[Fit, ...] = ()
    input_size: tuple[int | None, int | None, int | None] = (None, None, None)
    """Channels, height and width, as far as the file says."""
    side: int | None = None
    """Of the square images that such a network is made for."""
    obstacle: str = ""
    """Why it cannot be tested though it carries its network, in a sentence; empty where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that can be said of a file without running it."""

    schema: str = SCHEMA
    auditor: str
    """Version that wrote the record."""
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

    @property
    def safety(self) -> Safety:
        """The finding in a word."""
        return Safety.UNSAFE if self.dangerous else Safety.INERT

    @property
    def ways_out(self) -> tuple[str, ...]:
        """How to get a file that can be opened."""
        ways = WAYS_OUT.get(self.kind, OTHER_WAYS)
        wanted = {one.name for one in self.content.wanted if one.name.startswith(QUANTISED)}
        if not wanted:
            return ways
        return (QUANTISED_WAY.format(script=SCRIPT_WAY if wanted <= SCRIPTABLE else ""), *ways)
