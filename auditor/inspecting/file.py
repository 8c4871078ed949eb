"""Look into a model file: what it is, what it holds, what it would do. Nothing of it is executed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import auditor
from auditor.architectures.infer import Match, candidates
from auditor.architectures.shapes import class_count, refuse_hollow, stripped
from auditor.errors import ModelError, UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.inspecting.record import MOST_NUMBERS, Ability, Content, Fit, Inspection, Wanted
from auditor.models.module import check_network, find_module
from auditor.models.state_dict import (
    Keys,
    Weights,
    dotted,
    find_hints,
    refuse_odd_tensors,
    weights_to_try,
)
from auditor.safety.allowed import Inert, allowed_global
from auditor.safety.opcodes import PickleFacts, is_allowed, walk
from auditor.safety.static import check_torchscript, other_pickles, unreadable
from auditor.safety.structure import Kind, identify, is_zip
from auditor.text import clean_text, counted

MAX_ENTRIES = 12
MAX_FITS = 5
DECEPTIVE = "deceptive archive"
BARE = "Add --arch with torchvision's name of the network, or your own code (my_model.py:build)."


def inspect_file(path: Path) -> Inspection:
    """Everything that can be said of a file without running it.

    A file that would run code is a finding, not an error.

    Raises:
        UnreadableModel: It is missing, damaged, or no model file.
    """
    try:
        file = identify(path)
    except UnsafeModel as error:
        return _deceptive(path, error)
    read = {
        Kind.TORCH_ZIP: _pickled,
        Kind.TORCH_LEGACY: _pickled,
        Kind.PICKLE: _plain_pickle,
        Kind.TORCHSCRIPT: _script,
        Kind.PT2: _exported,
        Kind.ONNX: _graph,
        Kind.SAFETENSORS: _safetensors,
    }[file.kind]
    try:
        content = read(path)
    except UnsafeModel as error:
        return _deceptive(path, error)
    return _record(path, str(file.kind), file.sha256, content)


def refused_file(path: Path, error: UnsafeModel) -> Inspection:
    """The record of a file that was refused: what `inspect_file` says, and at least why it was."""
    try:
        found = inspect_file(path)
    except ModelError:
        return _deceptive(path, error)
    if found.dangerous:
        return found
    content = replace(found.content, findings=error.findings)
    return _record(path, found.kind, found.sha256, content)


def _deceptive(path: Path, error: UnsafeModel) -> Inspection:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = walk(path)
    content = Content(
        what="It was not read: auditor's gate refuses it.",
        findings=(*error.findings, *facts.findings),
        wanted=_wanted(facts),
        tensors=facts.tensors,
    )
    return _record(path, DECEPTIVE, digest, content)


def _record(path: Path, kind: str, sha256: str, content: Content) -> Inspection:
    ability = _ability(content)
    return Inspection(
        auditor=auditor.__version__,
        name=path.name,
        kind=kind,
        bytes=path.stat().st_size,
        sha256=sha256,
        content=content,
        scan=ability,
        purify=ability,
    )


# ---- torch.save


def _pickled(path: Path) -> Content:
    facts = walk(path)
    if not facts.complete and not facts.refused and not is_zip(path):
        raise UnreadableModel(
            f"{clean_text(path.name)} is damaged or ends early. Download it again."
        )
    others = [f"it holds another pickle than torch reads, {name}" for name in other_pickles(path)]
    content = Content(
        what="A pickle that was not loaded.",
        tensors=facts.tensors,
        parameters=min(facts.numbers, MOST_NUMBERS),
        wanted=_wanted(facts),
        findings=(*facts.findings, *others),
    )
    if content.findings:
        return content
    loaded = _shapes(path, facts)
    try:
        keys, network = find_module(loaded)
        weights = weights_to_try(loaded)
    except UnsuitableModel as error:
        return replace(content, what=str(error))
    content = replace(content, entries=_entries(loaded))
    if network is not None:
        return _of_module(content, keys, network)
    if not weights:
        return replace(content, what="A pickle without weights.")
    return _of_weights(content, weights, partial(find_hints, loaded))


def _of_weights(
    content: Content, weights: Sequence[Weights], hints: Callable[[Keys], Mapping[str, str | int]]
) -> Content:
    """As they are opened: the first ones that fit a network; where none does, the first."""
    found = [
        _of_state(replace(content, what=_what(entry)), entry.state, hints(entry.keys))
        for entry in weights
        if not entry.doubt(named=False)
    ]
    fitting = (one for one in found if one.findings or any(fit.exact for fit in one.fits))
    return next(fitting, found[0])


def _what(weights: Weights) -> str:
    """What a set of weights is, in a sentence."""
    place = f" under {dotted(weights.keys)}" if weights.keys else ""
    part = ""
    if weights.prefix:
        beside = counted(len(weights.beside), "tensor")
        part = f', those whose names begin with "{weights.prefix}"; {beside} beside them'
    return f"Weights without a network{place}{part}."


def _plain_pickle(path: Path) -> Content:
    """Not of torch.save; to be told of where it calls something, for torch.load would unpickle it.

    Raises:
        UnreadableModel: It calls nothing, and is no model file.
    """
    facts = walk(path)
    if not facts.refused:
        raise UnreadableModel(
            f"{clean_text(path.name)} is a plain Python pickle, not a file of torch.save. Save the weights "
            "with torch.save(model.state_dict(), ...)."
        )
    return Content(
        what="A plain Python pickle, which torch.load would execute.",
        wanted=_wanted(facts),
        findings=facts.findings,
    )


def _wanted(facts: PickleFacts) -> tuple[Wanted, ...]:
    return tuple(Wanted(name=name, allowed=is_allowed(name)) for name in sorted(facts.wanted))


def _shapes(path: Path, facts: PickleFacts) -> Any:
    """The content of a file: mapped and not read, or without numbers where it cannot be mapped."""
    allowed: list[Any] = [
        (entry, name) for name in facts.wanted if (entry := allowed_global(name)) is not None
    ]
    mapped = is_zip(path)
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(
                path, map_location="cpu" if mapped else "meta", weights_only=True, mmap=mapped
            )
    except Exception as error:  # whatever a damaged file provokes
        raise unreadable(path, str(error)) from None


def _of_module(content: Content, keys: Any, network: nn.Module) -> Content:
    where = f' under "{clean_text(str(keys[0]))}"' if keys else ""
    try:
        check_network(network, f"A network{where}")
    except UnsuitableModel as error:
        return replace(content, what=str(error))
    state = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    content = replace(
        content,
        what=f"A network of class {clean_text(type(network).__name__)}{where}, with its weights.",
        carries_network=True,
    )
    return _counted(content, state)


def _entries(loaded: Any) -> tuple[str, ...]:
    """The entries of a checkpoint, a line each."""
    if not isinstance(loaded, Mapping) or all(isinstance(v, Tensor) for v in loaded.values()):
        return ()
    lines = [f"{_told(key)}: {_told(value)}" for key, value in list(loaded.items())[:MAX_ENTRIES]]
    more = len(loaded) - len(lines)
    return (*lines, *([f"… {more} more"] if more else []))


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        size = "nested" if value.is_nested else "×".join(map(str, value.shape))
        return f"tensor {size or 'of one number'}"
    if isinstance(value, str | int | float | bool | None):
        return clean_text(str(value), limit=60)
    if isinstance(value, Inert):
        return "not read; holds tensors" if value.holds_tensors else "not read"
    kind = clean_text(type(value).__name__, limit=40)
    return f"{kind} of {len(value)}" if isinstance(value, Mapping | list | tuple) else kind


# ---- weights


def _counted(content: Content, state: Mapping[str, Tensor]) -> Content:
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    try:
        classes = class_count(state)
    except UnsuitableModel:
        classes = None
    return replace(
        content,
        tensors=len(state),
        parameters=min(sum(tensor.numel() for tensor in state.values()), MOST_NUMBERS),
        dtypes=dict(sorted(types.items())),
        classes=classes,
    )


def _of_state(
    content: Content, state: Mapping[str, Tensor], hints: Mapping[str, str | int]
) -> Content:
    try:
        refuse_odd_tensors(state)
    except UnsuitableModel as error:
        return replace(content, what=f"{content.what} {error}")
    content = _counted(content, state)
    try:
        refuse_hollow({key: value for key, value in state.items() if not value.is_meta}, "It")
        matches = candidates(state, hints)
    except UnsafeModel as error:
        return replace(content, findings=(*content.findings, *error.findings))
    except UnsuitableModel as error:
        return replace(content, what=f"{content.what} {error}")
    content = replace(content, fits=tuple(map(_fit, matches[:MAX_FITS])))
    if matches and matches[0].exact:
        sizes = matches[0].architecture.sizes(stripped(state))
        content = replace(content, input_size=sizes.fixed, side=sizes.side)
    return content


def _fit(match: Match) -> Fit:
    return Fit(
        arch=match.architecture.name,
        title=match.title,
        score=round(match.score, 4),
        exact=match.exact,
        differences=match.differences,
    )


def _safetensors(path: Path) -> Content:
    from auditor.models.safetensors import stored_content

    stored = stored_content(path)
    content = Content(what="Weights without a network.", entries=_entries(stored.metadata))
    if not (weights := weights_to_try(stored.state)):
        return _of_state(content, stored.state, stored.metadata)
    return _of_weights(content, weights, lambda _: stored.metadata)


# ---- files that carry their network


def _script(path: Path) -> Content:
    from auditor.models.script_file import UNREADABLE, stored_tensors

    try:
        check_torchscript(path)
        findings: tuple[str, ...] = ()
    except UnsafeModel as error:
        findings = error.findings
    content = Content(
        what="A TorchScript network: its code and its weights.",
        findings=findings,
        carries_network=True,
    )
    try:
        _, stored = stored_tensors(path)
    except (*UNREADABLE, MemoryError):
        return content
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
    matrices = [tensor.size for tensor in stored if len(tensor.size) == 2]
    return replace(
        content,
        tensors=len(stored),
        parameters=min(sum(math.prod(tensor.size) for tensor in stored), MOST_NUMBERS),
        dtypes=dict(sorted(types.items())),
        classes=matrices[-1][0] if matrices else None,
    )


def _exported(path: Path) -> Content:
    from auditor.safety.pt2 import read_pt2

    content = Content(
        what="A program of torch.export: its graph and its weights.", carries_network=True
    )
    try:
        documents = read_pt2(path)
    except UnsafeModel as error:
        return replace(content, findings=error.findings)
    except UnsuitableModel as error:
        return replace(content, what=str(error), carries_network=False)
    return replace(content, tensors=len(documents.weights) + len(documents.constants))


def _graph(path: Path) -> Content:
    from auditor.inspecting.onnx_file import onnx_content

    return onnx_content(path)


# ---- what auditor can do with it


def _ability(content: Content) -> Ability:
    if content.findings:
        return Ability(works=False, why="auditor opens no file that would run code or deceives.")
    if content.obstacle:
        return Ability(works=False, why=content.obstacle)
    if content.carries_network:
        return Ability(works=True, why="")
    exact = [fit.arch for fit in content.fits if fit.exact]
    if len(exact) > 1:
        why = "Several networks fit; labelled images (--clean) or --arch choose among them."
        return Ability(works=True, why=why)
    if exact:
        return Ability(works=True, why="")
    if content.tensors:
        return Ability(works=False, why=BARE)
    return Ability(works=False, why="It holds no network and no weights.")
