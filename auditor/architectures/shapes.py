"""The names and shapes of weights, read as the layers that they belong to.

Every layer takes its sizes from its own tensors, so that a network built in this way needs no more
memory than its weights, whatever a hostile file claims.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from auditor.architectures.architecture import State
from auditor.errors import UnsafeModel, UnsuitableModel
from auditor.text import clean_text

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.", "1.")
"""What wrappers put before every key: DataParallel, torch.compile, Lightning, and BackdoorBench's
`Sequential(Resize, network)`."""
COUNTER = "num_batches_tracked"
"""Of BatchNorm layers; files of before PyTorch 0.4.1 do not have it, and nothing depends on it."""
STATISTICS = "running_mean"
"""What it counts for."""
MAX_CLASSES = 100_000
MAX_TENSORS = 10_000
"""The largest networks of torchvision and timm have 3,000."""
MAX_NAME = 400
MAX_KERNEL = 16
MAX_MISSING = 64 << 20
"""Bytes that tensors may claim beyond what the file holds: some share numbers, and need few."""


Value = TypeVar("Value")


def is_counter(name: str, size: Sequence[int], names: Container[str]) -> bool:
    """Whether a tensor of that name and size, among others, is such a count, and no weights in disguise."""
    beside = f"{name.removesuffix(COUNTER)}{STATISTICS}"
    return name.endswith(COUNTER) and math.prod(size) == 1 and beside in names


class Misfit(ValueError):
    """The weights are not those of the network that is being built."""


@contextmanager
def fitting(text: str) -> Iterator[None]:
    """Say of a `Misfit` inside that the weights are not those of `--arch text`.

    Raises:
        UnsuitableModel: There was one.
    """
    try:
        yield
    except Misfit as error:
        raise UnsuitableModel(
            f"--arch {clean_text(text)} does not fit the weights: {error}."
        ) from None


def unwrapped(state: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    """The state dict as it is, then with one prefix of wrappers after the other taken off."""
    state = dict(state)
    yield state
    while prefix := next(
        (p for p in PREFIXES if state and all(k.startswith(p) for k in state)), ""
    ):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        yield state


def stripped(state: Mapping[str, Value]) -> dict[str, Value]:
    """The state dict without any prefix of wrappers; no network known here begins its names so."""
    *_, last = unwrapped(state)
    return last


def class_count(state: State) -> int | None:
    """Rows of the last matrix in a state dict: the number of classes of most classifiers.

    Where there is no matrix, those of the last 1×1 convolution (SqueezeNet).

    Raises:
        UnsuitableModel: There are more rows than any classifier has classes.
    """
    last = None
    for tensor in state.values():
        if tensor.ndim == 2 or (tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1)):
            last = tensor if last is None or tensor.ndim <= last.ndim else last
    if last is None:
        return None
    if last.shape[0] > MAX_CLASSES:
        raise UnsuitableModel(
            f"The last matrix in the file has {last.shape[0]:,} rows; no classifier has so many "
            f"classes (auditor takes {MAX_CLASSES:,})."
        )
    return last.shape[0]


class Shapes:
    """Names and shapes of a state dict, as a tree.

    Raises:
        Misfit: There are too many names, or odd ones; no network looks like that.
    """

    def __init__(self, state: State) -> None:
        if len(state) > MAX_TENSORS:
            raise Misfit(f"{len(state):,} tensors are more than any network here has")
        self.sizes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._children: dict[str, dict[str, None]] = {}
        for name in state:
            if len(name) > MAX_NAME:
                raise Misfit(f"no network has names like {clean_text(name, limit=60)}")
            parent = ""
            for part in name.split("."):
                self._children.setdefault(parent, {})[part] = None
                parent = f"{parent}.{part}" if parent else part

    def children(self, prefix: str = "") -> tuple[str, ...]:
        """What follows `prefix` in the names, in their order."""
        return tuple(self._children.get(prefix, ()))

    def numbered(self, prefix: str) -> list[int]:
        """Those of the children that are numbers, ascending."""
        return sorted(int(c) for c in self.children(prefix) if c.isdecimal() and len(c) < 5)

    def size(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor of that name; empty where there is none."""
        return self.sizes.get(name, ())

    def is_conv(self, prefix: str) -> bool:
        """Do its weights look like those of a convolution?"""
        return len(self.size(f"{prefix}.weight")) == 4

    def is_norm(self, prefix: str) -> bool:
        """Do its weights look like those of a BatchNorm?"""
        return len(self.size(f"{prefix}.running_mean")) == 1

    def is_linear(self, prefix: str) -> bool:
        """Do its weights look like those of a linear layer?"""
        return len(self.size(f"{prefix}.weight")) == 2

    def conv(self, prefix: str, incoming: int, stride: int = 1) -> nn.Conv2d:
        """A convolution that keeps the size of images but for its stride."""
        size = self.size(f"{prefix}.weight")
        if len(size) != 4 or size[2] != size[3] or not 1 <= size[2] <= MAX_KERNEL:
            raise Misfit(f"{clean_text(prefix)} is no square convolution")
        if min(size) < 1 or incoming % size[1] or size[0] % (incoming // size[1]):
            raise Misfit(f"{clean_text(prefix)} does not take {incoming} channels")
        return nn.Conv2d(
            incoming, size[0], size[2], stride=stride, padding=size[2] // 2,
            groups=incoming // size[1], bias=f"{prefix}.bias" in self.sizes,
        )  # fmt: skip

    def first_conv(self, prefix: str, stride: int = 1) -> nn.Conv2d:
        """The convolution that images go through first."""
        size = self.size(f"{prefix}.weight")
        if len(size) != 4 or size[1] not in (1, 3):
            raise Misfit(f"{clean_text(prefix)} does not take images")
        return self.conv(prefix, size[1], stride)

    def norm(self, prefix: str, channels: int) -> nn.BatchNorm2d:
        """A BatchNorm of as many channels."""
        size = self.size(f"{prefix}.weight") or self.size(f"{prefix}.running_mean")
        if size != (channels,):
            raise Misfit(f"{clean_text(prefix)} is no BatchNorm of {channels} channels")
        return nn.BatchNorm2d(
            channels,
            affine=f"{prefix}.weight" in self.sizes,
            track_running_stats=self.is_norm(prefix),
        )

    def linear(self, prefix: str) -> nn.Linear:
        """A linear layer."""
        size = self.size(f"{prefix}.weight")
        if len(size) != 2 or min(size) < 1:
            raise Misfit(f"{clean_text(prefix)} is no linear layer")
        return nn.Linear(size[1], size[0], bias=f"{prefix}.bias" in self.sizes)

    def head(self, prefix: str) -> nn.Module:
        """The linear layer at the end, or a chain of some with ReLU between.

        Numbers that are left out are layers without weights: the first after a linear layer or its
        BatchNorm is a ReLU, the others dropout, whose strength nobody knows and which is left out.
        """
        if self.is_linear(prefix):
            return self.linear(prefix)
        places = self.numbered(prefix)
        if not places or len(places) != len(self.children(prefix)) or places[-1] > 4 * len(places):
            raise Misfit(f"{clean_text(prefix)} is no head of linear layers")
        layers: list[nn.Module] = [nn.Identity() for _ in range(places[-1] + 1)]
        for place, following in zip(places, [*places[1:], places[-1]], strict=True):
            name = f"{prefix}.{place}"
            if self.is_linear(name):
                layers[place] = self.linear(name)
            elif self.is_norm(name) and len(self.size(f"{name}.weight")) == 1:
                layers[place] = nn.BatchNorm1d(self.size(f"{name}.weight")[0])
            else:
                raise Misfit(f"{clean_text(name)} is no linear layer")
            if following > place + 1:
                layers[place + 1] = nn.ReLU()
        if not self.is_linear(f"{prefix}.{places[-1]}"):
            raise Misfit(f"{clean_text(prefix)} does not end in a linear layer")
        return nn.Sequential(*layers)

    def head_inputs(self, prefix: str) -> int:
        """How many numbers an image the head takes."""
        if self.is_linear(prefix):
            return self.size(f"{prefix}.weight")[1]
        first = next((n for n in self.numbered(prefix) if self.is_linear(f"{prefix}.{n}")), None)
        if first is None:
            raise Misfit(f"{clean_text(prefix)} has no linear layer")
        return self.size(f"{prefix}.{first}.weight")[1]

    def head_name(self) -> str:
        """Name of the last part with a matrix."""
        tops = self.children()
        for top in reversed(tops):
            if self.is_linear(top):
                return top
            if any(self.is_linear(f"{top}.{number}") for number in self.numbered(top)):
                return top
        raise Misfit("there is no linear layer at the end")

    def pooled_side(self, prefix: str, channels: int) -> int:
        """Side of the feature map that the head takes: 1 after global pooling.

        Raises:
            Misfit: The head does not take so many channels.
        """
        inputs = self.head_inputs(prefix)
        side = math.isqrt(inputs // channels) if channels else 0
        if side < 1 or channels * side * side != inputs:
            raise Misfit(f"{clean_text(prefix)} takes {inputs} numbers, not {channels} channels")
        return side


def missing_bytes(tensor: Tensor) -> int:
    """How much more it claims to hold than the file holds for it: one number can stand for many."""
    claimed = tensor.numel() * tensor.element_size()
    return max(0, claimed - tensor.untyped_storage().nbytes())


def has_values(tensor: Tensor) -> bool:
    """Has it numbers, and not absurdly many more than the file?"""
    hollow = tensor.is_meta or tensor.layout != torch.strided
    return not hollow and missing_bytes(tensor) <= MAX_MISSING


def refuse_hollow(state: State, name: str) -> None:
    """Refuse weights that are not there.

    Args:
        state: The weights.
        name: Of the file, clean.

    Raises:
        UnsuitableModel: Tensors have no values.
        UnsafeModel: They claim far more numbers than the file holds.
    """
    missing = 0
    for key, tensor in state.items():
        shown = clean_text(key, limit=120)
        if tensor.is_meta or tensor.layout != torch.strided:
            raise UnsuitableModel(f"{name}: weights without values, first {shown}.")
        missing += missing_bytes(tensor)
        if missing > MAX_MISSING:
            raise UnsafeModel(
                f"{name}: {shown} claims {tensor.numel():,} numbers, far more than the file holds for it."
            )
