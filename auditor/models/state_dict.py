"""Weights without a network: bare or nested checkpoints, put into the network of `--arch`."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from auditor.architectures import Architecture
from auditor.errors import UnsuitableModel
from auditor.models.base import ModuleHandle
from auditor.models.patching import Home, Locate
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

MAX_DEPTH = 4
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")
"""What wrappers put before every key (DataParallel, torch.compile, Lightning)."""
MAX_LISTED = 5
MAX_CLASSES = 100_000

StateDict = dict[str, Tensor]
Keys = tuple[Any, ...]
Value = TypeVar("Value")


def find_state_dict(checkpoint: Any) -> tuple[Keys, StateDict]:
    """The weights in a checkpoint, and the keys that lead to them.

    The nested dictionary with the most tensors wins; of two with as many, the first in the file.

    Returns:
        Keys such as `("net",)` (none for a bare state dict), and name -> tensor; empty where the
        checkpoint holds no weights.
    """
    best: tuple[Keys, StateDict] = ((), {})
    queue: deque[tuple[Keys, Any]] = deque([((), checkpoint)])
    visited: set[int] = set()
    while queue:
        path, entry = queue.popleft()
        if not isinstance(entry, Mapping) or len(path) > MAX_DEPTH or id(entry) in visited:
            continue
        visited.add(id(entry))
        tensors = {
            key: value
            for key, value in entry.items()
            if isinstance(key, str) and isinstance(value, Tensor)
        }
        if len(tensors) > len(best[1]):
            best = (path, tensors)
        queue += [((*path, key), value) for key, value in entry.items()]
    return best


def locate_state_dict(checkpoint: Any, wanted: Container[str]) -> Home:
    """Where the tensors of a network with the names `wanted` are in a checkpoint."""
    keys, state = find_state_dict(checkpoint)
    entries = unprefixed({key: key for key in state}, wanted)
    tensors = {name: state[key] for name, key in entries.items()}
    return Home(keys=keys, tensors=tensors, entries=entries)


def class_count(state: StateDict) -> int | None:
    """Rows of the last matrix in a state dict: the number of classes of most classifiers."""
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    if matrices and matrices[-1].shape[0] > MAX_CLASSES:
        raise UnsuitableModel(
            f"The last matrix in the file has {matrices[-1].shape[0]:,} rows; no classifier has so many "
            f"classes (auditor takes {MAX_CLASSES:,})."
        )
    return matrices[-1].shape[0] if matrices else None


def unprefixed(state: dict[str, Value], wanted: Container[str]) -> dict[str, Value]:
    """`state` without the wrapper's prefix, if that makes more keys fit the network's."""

    def fitting(names: Iterable[str]) -> int:
        return sum(name in wanted for name in names)

    best = state
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        if fitting(state) > fitting(best):
            best = state
    return best


def open_state_dict(
    file: FileFacts,
    checkpoint: Any,
    architecture: Architecture | None,
    device: torch.device,
    *,
    locate: Locate | None = None,
) -> ModuleHandle:
    """Put a checkpoint's weights into the network of `architecture`.

    Args:
        file: The suspect.
        checkpoint: The weights, alone or among other entries.
        architecture: The network they belong to.
        device: Where it will run.
        locate: Finds the weights in the file's content, where that is more than `checkpoint`.

    Raises:
        UnsuitableModel: There are no weights, no architecture was given, or they do not fit.
    """
    name = clean_text(file.path.name)
    keys, state = find_state_dict(checkpoint)
    if not state:
        raise UnsuitableModel(
            f"{name} holds no weights (it is a {clean_text(type(checkpoint).__name__)}"
            f"{_keys_of(checkpoint)}). Save the network or its state_dict."
        )
    under = f' under "{clean_text(".".join(map(str, keys)))}"' if keys else ""
    if architecture is None:
        raise UnsuitableModel(
            f"{name} holds only weights ({len(state)} tensors{under}), not the network: first "
            f"{_listed(list(state))}. Add --arch with a torchvision name (--arch resnet18) or with "
            "your own code (--arch my_model.py:build)."
        )
    network = architecture.build(class_count(state))
    fit(network, state, name=name, architecture=architecture.name)
    extras = {
        key: value
        for key, value in (checkpoint.items() if isinstance(checkpoint, Mapping) else ())
        if isinstance(key, str) and isinstance(value, Tensor) and key not in state
    }
    handle = ModuleHandle(
        file,
        network,
        architecture=architecture.name,
        device=device,
        input_size=architecture.input_size,
        default_side=architecture.default_side,
        extras=extras,
        locate=locate or partial(locate_state_dict, wanted=frozenset(network.state_dict())),
    )
    if keys:
        handle.notes.append(f"The weights were found{under}.")
    return handle


def fit(network: nn.Module, state: StateDict, *, name: str, architecture: str) -> None:
    """Load `state` into `network`, all of it.

    Raises:
        UnsuitableModel: Lists the weights whose shapes differ, that are missing or too many.
    """
    own = network.state_dict()
    state = unprefixed(state, set(own))
    hollow = [
        key for key, tensor in state.items() if tensor.is_meta or tensor.layout != torch.strided
    ]
    if hollow:
        raise UnsuitableModel(f"{name}: weights without values, first {_listed(hollow)}.")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    differing = [
        f"{clean_text(key)} is {_shape(state[key])} in the file, {_shape(own[key])} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or differing:
        parts = [
            f"{len(state)} weights in the file, {len(own)} in the network "
            f"--arch {architecture}; they do not fit."
        ]
        if differing:
            parts.append(f"Other shape ({len(differing)}): {_listed(differing)}.")
        if missing:
            parts.append(f"Missing in the file ({len(missing)}): {_listed(missing)}.")
        if unexpected:
            parts.append(f"Not in the network ({len(unexpected)}): {_listed(unexpected)}.")
        raise UnsuitableModel(f"{name}: {' '.join(parts)}")
    network.load_state_dict(state, strict=False)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _listed(names: list[str]) -> str:
    shown = ", ".join(clean_text(name, limit=120) for name in names[:MAX_LISTED])
    return shown + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def _keys_of(checkpoint: Any) -> str:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        return ""
    return f" with the keys {_listed([str(key) for key in checkpoint])}"
