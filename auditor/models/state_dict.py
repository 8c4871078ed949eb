"""Weights without a network: bare or nested checkpoints, put into the network they belong to."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from auditor.architectures import Architecture
from auditor.architectures.cifar import examples
from auditor.architectures.infer import HINTS, Match, candidates
from auditor.architectures.shapes import (
    COUNTER,
    PREFIXES,
    Value,
    class_count,
    is_counter,
    refuse_hollow,
    stripped,
    unwrapped,
)
from auditor.errors import UnsuitableModel
from auditor.models.base import ModuleHandle, lost_digits
from auditor.models.patching import Home, Locate
from auditor.safety.allowed import (
    InertOptimizer,
    entries,
    has_odd_attributes,
    hides_tensors,
    holds_tensors,
)
from auditor.safety.structure import FileFacts
from auditor.text import clean_text, counted, listed

MAX_DEPTH = 4
MAX_LISTED = 5
FEWEST_TENSORS = 4
"""Of a network; an optimizer keeps as many numbers of a layer in fewer."""
MOST_TRIED = 12
"""Sets of weights of one file that are tried, where the larger ones fit no network."""
RIVAL = 1 / 4
"""Share of the tensors, or of the numbers, of a network from which on other weights in its file are
worth a word."""
SIMILAR = 0.3
"""Score of a network below which it is no help to name it."""

StateDict = dict[str, Tensor]
Keys = tuple[Any, ...]


class Weights(NamedTuple):
    """A set of weights in a file that may be those of one network."""

    keys: Keys
    """That lead to its dictionary; none for a bare state dict."""
    state: StateDict
    """Name -> tensor."""
    prefix: str = ""
    """Of a wrapper, where tensors without it lie beside these in the dictionary."""
    beside: Mapping[str, Tensor] = MappingProxyType({})
    """Those."""

    @property
    def alone(self) -> bool:
        """Nothing beside them can be a part of the network.

        That is single numbers, such as a count of averaged weights, or whole copies of it under other names.
        """
        own = {
            key.removeprefix(self.prefix): tensor.shape
            for key, tensor in self.state.items()
            if tensor.numel() > 1
        }
        if any(tensor.is_nested for tensor in self.beside.values()):
            return False
        rest = {key: tensor.shape for key, tensor in self.beside.items() if tensor.numel() > 1}
        while rest:
            first = next(iter(rest))
            name = max((name for name in own if first.endswith(name)), key=len, default=None)
            if name is None:
                return False
            copy = first.removesuffix(name)
            if any(rest.pop(copy + name, None) != size for name, size in own.items()):
                return False
        return True

    @property
    def clash(self) -> str:
        """A name that others give to another tensor: who takes prefixes off may find either. Or empty."""
        for step in unwrapped(self.state):
            for name, tensor in step.items():
                other = self.beside.get(name)
                if other is not None and not _same(tensor, other):
                    return name
        return ""

    def doubt(self, *, named: bool) -> str:
        """Why these may not be what others load as the network; empty where they are.

        Args:
            named: The user has said which network it is.
        """
        if not self.beside:
            return ""
        if clash := self.clash:
            return (
                f'"{clean_text(clash, limit=80)}" stands twice with other numbers, with the prefix '
                f'"{self.prefix}" and without it. Which of them are used depends on who loads the file. Save '
                "one of them alone."
            )
        if named or self.alone:
            return ""
        return (
            f'the weights whose names begin with "{self.prefix}" fit a network, but '
            f"{counted(len(self.beside), 'tensor')} beside them may be a part of it, too: "
            f"{_listed(sorted(self.beside))}. If they are none, name the network with --arch, or save its "
            "weights alone."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Where there are numbers to compare: `inspect` may have sizes alone."""
    if one.is_nested or other.is_nested:
        return False
    if one.is_meta or other.is_meta:
        return one.shape == other.shape
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def weights_to_try(checkpoint: Any) -> list[Weights]:
    """The sets of weights of a checkpoint, the likeliest first: whole dictionaries, then parts of them.

    Raises:
        UnsuitableModel: See `weights_in`.
    """
    whole = [Weights(keys, state) for keys, state in weights_in(checkpoint)[:MOST_TRIED]]
    parts = [part for weights in whole for part in _parts(weights)]
    return whole + sorted(parts, key=lambda entry: -len(entry.state))[:MOST_TRIED]


def _parts(weights: Weights) -> Iterator[Weights]:
    """What lies under the prefix of a wrapper, where not all does; below those that all have."""
    first, bare = next(iter(weights.state)), next(iter(stripped(weights.state)))
    shared = first.removesuffix(bare)
    for prefix in (shared + p for p in PREFIXES):
        part = _under_prefix(weights.state, prefix)
        if FEWEST_TENSORS <= len(part) < len(weights.state):
            beside = {k: v for k, v in weights.state.items() if k not in part}
            yield Weights(weights.keys, part, prefix, beside)


def _under_prefix(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {key: value for key, value in state.items() if key.startswith(prefix)}


def weights_in(checkpoint: Any) -> list[tuple[Keys, StateDict]]:
    """Every set of weights in a checkpoint, and the keys that lead to it.

    Returns:
        Keys such as `("net",)` (none for a bare state dict), and name -> tensor, for each nested
        dictionary that holds tensors: the one of most first, of two with as many the first in the file.

    Raises:
        UnsuitableModel: A dictionary that holds tensors, however deep, has a key that is not plain:
            whoever builds it may find other entries there.
    """
    found: list[tuple[Keys, StateDict]] = []
    queue: deque[tuple[Keys, Any]] = deque([((), checkpoint)])
    visited: set[int] = set()
    while queue:
        path, entry = queue.popleft()
        if len(path) > MAX_DEPTH or id(entry) in visited:
            continue
        visited.add(id(entry))
        inner: Iterable[tuple[Any, Any]] = ()
        if isinstance(entry, dict):
            if has_odd_attributes(entry):
                raise UnsuitableModel(
                    f"A dictionary of the file{_under(path)} has attributes, so that programs may find other "
                    "entries in it. Save the network's state_dict alone."
                )
            inner = dict.items(entry)
            if not all(map(_is_plain_key, entry)):
                if holds_tensors(entry):
                    raise UnsuitableModel(
                        f"The weights{_under(path)} are in a dictionary whose keys are not all text or "
                        "numbers of Python, so that other programs may find others in it. Save the "
                        "network's state_dict alone."
                    )
                inner = ()
            tensors = {
                key: value
                for key, value in inner
                if isinstance(key, str) and isinstance(value, Tensor)
            }
            if tensors:
                found.append((path, tensors))
        elif isinstance(entry, list | tuple):
            inner = enumerate(entry)
        queue += [
            ((*path, key), value) for key, value in inner if isinstance(value, dict | list | tuple)
        ]
    return sorted(found, key=lambda entry: -len(entry[1]))


def _is_plain_key(key: object) -> bool:
    return type(key) in (str, int, bool) or (type(key) is float and math.isfinite(key))


def remark_on(handle: ModuleHandle, checkpoint: Any, weights: Weights) -> None:
    """Note what else a file holds that a reviewer must know of, beside the weights that are examined.

    Args:
        handle: The model that was opened.
        checkpoint: The content of the file.
        weights: Those that are examined, also where they came with their network.
    """
    keys, state, prefix, beside = weights
    rivals = handle.rivals
    count, numbers = len(state), _numbers(state.values())
    sets = weights_in(checkpoint)
    others = [
        path
        for path, other in sets
        if path != keys
        and (
            len(other) >= count * RIVAL
            or (len(other) >= FEWEST_TENSORS and _numbers(other.values()) >= numbers * RIVAL)
        )
    ]
    if prefix:
        much = len(beside) >= count * RIVAL or _numbers(beside.values()) >= numbers * RIVAL
        advice = " If they are what is used, save them alone." * much
        (rivals if much else handle.notes).append(
            f'The weights are those whose names begin with "{prefix}". {counted(len(beside), "tensor")} '
            f"beside them, not examined: {_listed(sorted(beside))}.{advice}"
        )
    if isinstance(checkpoint, Mapping):
        others += [
            (key,)
            for key, value in checkpoint.items()
            if isinstance(value, nn.Module) and has_weights(value) and (key,) != keys
        ]
    if others:
        shown = listed([f'"{dotted(path)}"' for path in others], MAX_LISTED)
        rivals.append(
            f"The file holds other weights, too, which are not examined: {shown}. If one of them is what "
            "is used, save it alone."
        )
    told = {
        id(tensor)
        for path, tensors in sets
        if path in others or path == keys
        for tensor in tensors.values()
    }
    direct = (
        {id(value) for value in checkpoint.values()} if isinstance(checkpoint, Mapping) else set()
    )
    loose: list[Tensor] = []
    for entry in entries(checkpoint, past=_is_of_an_optimizer):
        if isinstance(entry, nn.Module) and id(entry) not in direct:
            loose += entry.state_dict().values() if has_weights(entry) else ()
        elif isinstance(entry, Tensor) and id(entry) not in told:
            loose.append(entry)
    if (len(loose) >= max(FEWEST_TENSORS, count * RIVAL)) or _numbers(loose) >= numbers * RIVAL > 0:
        handle.notes.append(
            f"The file keeps {len(loose)} tensors in other places (lists, settings, nested values), which "
            "are not examined."
        )
    elif hides_tensors(checkpoint):
        handle.notes.append(
            "The file keeps tensors in values that auditor does not read (settings, arrays of objects): "
            "they are not examined."
        )


def _is_of_an_optimizer(entry: object) -> bool:
    """Its state has as many numbers as the network that it trained."""
    return isinstance(entry, InertOptimizer) or (
        isinstance(entry, dict) and {"state", "param_groups"} <= dict.keys(entry)
    )


def has_weights(network: nn.Module) -> bool:
    """Losses have none; what is damaged counts, as `check_network` says."""
    try:
        return bool(network.state_dict())
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError):
        return True


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors if not tensor.is_nested)


def locate_state_dict(
    checkpoint: Any, wanted: Container[str], keys: Keys, prefix: str = ""
) -> Home:
    """Where the tensors of a network with the names `wanted` are in a checkpoint, see `Weights`."""
    state = next((state for path, state in weights_in(checkpoint) if path == keys), {})
    own = unprefixed({key: key for key in _under_prefix(state, prefix)}, wanted)
    tensors = {name: state[key] for name, key in own.items()}
    return Home(keys=keys, tensors=tensors, entries=own)


def find_hints(checkpoint: Any, keys: Keys) -> dict[str, str | int]:
    """What a checkpoint says of its network beside the weights: `model_name`, `arch`.

    Args:
        checkpoint: The content of the file.
        keys: The keys that lead to the weights; the entries of every container on the way count.
    """
    hints: dict[str, str | int] = {}
    for depth in range(len(keys) + 1):
        container = checkpoint
        for key in keys[:depth]:
            container = container[key]
        if isinstance(container, Mapping):
            said = {key: container.get(key) for key in HINTS}
            hints |= {k: v for k, v in said.items() if isinstance(v, str | int)}
    return hints


def unprefixed(state: Mapping[str, Value], wanted: Container[str]) -> dict[str, Value]:
    """`state` without the wrapper's prefix, if that makes more keys fit the network's."""
    return max(unwrapped(state), key=lambda step: sum(name in wanted for name in step))


def open_state_dict(
    file: FileFacts,
    checkpoint: Any,
    architecture: Architecture | None,
    device: torch.device,
    *,
    locate: Locate | None = None,
) -> ModuleHandle:
    """Put a checkpoint's weights into the network that they belong to.

    Of several sets of weights (a classifier and a generator, say) the largest that fits; of one that does
    not, the part under a wrapper's prefix.

    Args:
        file: The suspect.
        checkpoint: The weights, alone or among other entries.
        architecture: The network they belong to; None finds it out.
        device: Where it will run.
        locate: Finds the weights in the file's content, where that is more than `checkpoint`.

    Raises:
        UnsuitableModel: There are no weights, they fit no network that is known, or not this one.
    """
    found = weights_to_try(checkpoint)
    if locate is not None:
        # a network that came with the weights is what computes, and no part of it
        found = [weights for weights in found if not weights.prefix]
    if not found:
        raise UnsuitableModel(
            f"{clean_text(file.path.name)} holds no weights (it is a {clean_text(type(checkpoint).__name__)}"
            f"{_keys_of(checkpoint)}). Save the network or its state_dict."
        )
    misfit: UnsuitableModel | None = None
    for weights in found:
        try:
            refuse_odd_tensors(weights.state)
            handle = _opened(file, checkpoint, weights, architecture, device, locate)
        except UnsuitableModel as error:
            misfit = misfit or error  # the largest is what is meant, if none fits
            continue
        if doubt := weights.doubt(named=architecture is not None):
            misfit = UnsuitableModel(f"{clean_text(file.path.name)}: {doubt}")
            continue
        remark_on(handle, checkpoint, weights)
        return handle
    assert misfit is not None  # noqa: S101 - there was one at least
    raise misfit


def refuse_odd_tensors(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no plain arrays of numbers.

    Raises:
        UnsuitableModel: One is nested.
    """
    nested = next((key for key, tensor in state.items() if tensor.is_nested), None)
    if nested is not None:
        raise UnsuitableModel(
            f'"{clean_text(nested, limit=80)}" is a nested tensor, which no layer has for weights.'
        )


def _opened(
    file: FileFacts,
    checkpoint: Any,
    weights: Weights,
    architecture: Architecture | None,
    device: torch.device,
    locate: Locate | None,
) -> ModuleHandle:
    """One set of weights, see `open_state_dict`."""
    keys, state, prefix, _ = weights
    name = clean_text(file.path.name)
    under = _under(keys)
    classes = class_count(state)  # first, because it names the most absurd claim
    refuse_hollow(state, name)
    matches: list[Match] = []
    if architecture is None:
        matches = candidates(state, find_hints(checkpoint, keys))
        if not matches or not matches[0].exact:
            raise UnsuitableModel(
                f"{name} holds only weights ({len(state)} tensors{under}), not the network: first "
                f"{_listed(list(state))}. {_nearest(matches)} Add --arch with torchvision's name of the "
                f"network (--arch resnet18), one of ours ({examples()}), or your own code "
                "(--arch my_model.py:build)."
            )
        architecture = matches[0].architecture
    bare = stripped(state)
    network = architecture.build(bare)
    fit(network, state, name=name, architecture=architecture.name)
    sizes = architecture.sizes(bare)
    extras = {
        key: value
        for key, value in (checkpoint.items() if isinstance(checkpoint, Mapping) else ())
        if isinstance(key, str) and isinstance(value, Tensor) and key not in state
    }
    wanted = frozenset(network.state_dict())
    handle = ModuleHandle(
        file,
        network,
        architecture=architecture.name,
        device=device,
        input_size=sizes.fixed,
        default_side=sizes.side,
        extras=extras,
        locate=locate or partial(locate_state_dict, wanted=wanted, keys=keys, prefix=prefix),
    )
    handle.notes += lost_digits(state.values())
    if keys:
        handle.notes.append(f"The weights were found{under}.")
    if matches:
        handle.alternatives = tuple(match.architecture.name for match in matches)
        handle.notes.append(taken_for(matches[0], classes))
    return handle


def _under(keys: Keys) -> str:
    return f' under "{dotted(keys)}"' if keys else ""


def dotted(keys: Keys) -> str:
    """Keys that lead to weights, fit to be shown."""
    return clean_text(".".join(map(str, keys)), limit=80)


def taken_for(match: Match, classes: int | None) -> str:
    """The sentence that says what weights were taken for.

    Args:
        match: The network.
        classes: How many it has, if that is known.
    """
    return (
        f"Taken for {match.title}, {classes} classes, by names and shapes of its weights "
        f"(--arch {match.architecture.name}); --arch overrides."
    )


def _nearest(matches: Sequence[Match]) -> str:
    """The network that the weights resemble most, and where they differ."""
    if not matches or matches[0].score < SIMILAR:
        return "They resemble no network that auditor knows."
    first = matches[0]
    return (
        f"They resemble --arch {first.architecture.name} most ({first.score:.0%} of names and shapes): "
        f"{'; '.join(first.differences)}."
    )


def fit(network: nn.Module, state: StateDict, *, name: str, architecture: str) -> None:
    """Load `state` into `network`, all of it.

    Raises:
        UnsuitableModel: Lists the weights whose shapes differ, that are missing or too many.
    """
    own = network.state_dict()
    state = unprefixed(state, set(own))
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [
        key
        for key, value in state.items()
        if key not in own and not is_counter(key, value.shape, state)
    ]
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
    versioned = OrderedDict(state)
    # a version says what the layers of older files meant; ours are of now
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        network.load_state_dict(versioned, strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsuitableModel(
            f"{name}: its weights cannot be put into --arch {architecture} "
            f"({clean_text(str(error).strip().splitlines()[-1], limit=160)})."
        ) from None


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _listed(names: list[str]) -> str:
    return listed([clean_text(name, limit=120) for name in names], MAX_LISTED)


def _keys_of(checkpoint: Any) -> str:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        return ""
    return f" with the keys {_listed([key for key in checkpoint if isinstance(key, str)])}"
