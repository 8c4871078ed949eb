"""Other numbers in a copy of a file of `torch.save`; every other byte stays.

The copy is mapped into memory and the new numbers are written through the mapping, so that nothing
is pickled anew. Where that cannot be done (the format before 1.6; two entries that share numbers of
which only one may change; Windows, where torch maps no files for writing) the content is saved
anew, if it consists of plain containers and tensors. Pickled networks are never saved anew: the
reader puts inert stubs in place of some of their attributes.
"""

from __future__ import annotations

import copy
import mmap
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from auditor.errors import OutputError
from auditor.models.archive import copied, records_of, repair_checksums
from auditor.safety.allowed import Inert
from auditor.safety.static import load_pickle
from auditor.safety.structure import FileFacts, Kind
from auditor.text import clean_text

CONTAINERS = (dict, OrderedDict, defaultdict, list, tuple, torch.Size)
LEAVES = (
    *(str, bytes, int, float, complex, bool, type(None), set, torch.dtype, torch.device),
    *(Tensor, nn.Parameter),
)
"""Exactly these types come back from a file as they went into it, and go into it again."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where a network's tensors are in the loaded content of a file."""

    keys: tuple[Any, ...]
    """From the content to the state dict or the pickled network; none where it is the content."""
    tensors: Mapping[str, Tensor]
    """Name in the network -> the very tensor of the content."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """Name in the network -> key in the state dict; empty for a pickled network."""


Locate = Callable[[Any], Home]
"""Finds the network's tensors in the loaded content of a file."""


Changes = Mapping[str, Tensor]
"""Name in the network -> new values, contiguous on the CPU."""


def write_changed(
    file: FileFacts, path: Path, changed: Sequence[tuple[Sequence[str], Tensor]], locate: Locate
) -> None:
    """Write a copy of `file` to `path` in which some tensors have other values.

    An entry beside the network's own that shares its numbers (`{"model": weights, "ema":
    weights}`) keeps the old ones; the two are then saved apart.

    Args:
        file: The suspect, a file of `torch.save`.
        path: The new file.
        changed: All names of a tensor in the network, and its values.
        locate: Finds the network's tensors in the loaded content.

    Raises:
        OutputError: The file cannot be written, or the values cannot be put into it.
    """
    copied(file, path)
    old = load_pickle(file.path)
    home = locate(old)
    changes = _changes(file, home, changed)
    if _patch(file, path, old, changes, locate):
        return
    _save_anew(file, path, old, home, changes)
    if not _as_wanted(old, load_pickle(path), changes, locate):
        raise OutputError(
            f"{clean_text(file.path.name)}: its tensors share numbers in a way that auditor cannot "
            "write. Save clones of them: {key: tensor.clone() for key, tensor in state.items()}."
        )


def _changes(
    file: FileFacts, home: Home, changed: Sequence[tuple[Sequence[str], Tensor]]
) -> Changes:
    """The values under every name that the file has for them."""
    changes: dict[str, Tensor] = {}
    for names, values in changed:
        present = [name for name in names if name in home.tensors]
        # files of before PyTorch 0.4.1 have no such counter, and `fit` does not ask for it
        if not present and not names[0].endswith("num_batches_tracked"):
            raise OutputError(
                f"{clean_text(file.path.name)} does not hold {clean_text(names[0], limit=120)}, "
                "which was changed, so that it cannot be written."
            )
        for name in present:
            if home.tensors[name].shape != values.shape:
                raise ValueError(f"{name} is {tuple(home.tensors[name].shape)}: {values.shape}")
        changes |= dict.fromkeys(present, values.detach().cpu().contiguous())
    return changes


def _patch(file: FileFacts, path: Path, old: Any, changes: Changes, locate: Locate) -> bool:
    """Write the values through a mapping of the copy; False where that is no way to do it."""
    mappable = file.kind is Kind.TORCH_ZIP and hasattr(mmap, "MAP_SHARED")
    if not mappable or not records_of(path):
        return False
    content = load_pickle(path, writable=True)
    home = locate(content)
    if _has_second_owner(content, home.keys):
        return False
    try:
        with torch.no_grad():
            for name, values in changes.items():
                home.tensors[name].copy_(values)
    except RuntimeError:  # one number of the file stands for several of a tensor
        return False
    del content, home
    repair_checksums(file.path, path)
    return _as_wanted(old, load_pickle(path), changes, locate)


@torch.no_grad()
def _save_anew(file: FileFacts, path: Path, old: Any, home: Home, changes: Changes) -> None:
    odd = next((value for value in _values(old) if not _is_plain(value)), None)
    if odd is not None:
        kind = (
            "value beside its weights" if isinstance(odd, Inert) else clean_text(type(odd).__name__)
        )
        raise OutputError(
            f"{clean_text(file.path.name)} holds a {kind}, which auditor "
            "never saves anew, and its numbers cannot be changed in place: several entries share "
            "them, or this system cannot map files (Windows). Save the network's state_dict and "
            "pass --arch."
        )
    twins: dict[tuple[Any, ...], Tensor] = {}
    replaced = {}
    for name, values in changes.items():
        stored = home.tensors[name]
        # tied tensors stay tied: one new tensor for one old with one new value
        known = (id(values), *_identity(stored))
        twin = twins.setdefault(known, torch.empty_like(stored.detach()))
        replaced[home.entries[name]] = _like(stored, twin.copy_(values))
    try:
        path.unlink()  # it may be half patched, and still be mapped
        torch.save(
            _with(old, home.keys, replaced),
            path,
            _use_new_zipfile_serialization=file.kind is not Kind.TORCH_LEGACY,
        )
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{clean_text(str(path))} cannot be written ({error}).") from None


def _with(content: Any, keys: tuple[Any, ...], replaced: Mapping[str, Tensor]) -> Any:
    """New containers on the way to the state dict and for it; every other entry as it was."""
    content = copy.copy(content)
    if keys:
        content[keys[0]] = _with(content[keys[0]], keys[1:], replaced)
    else:
        content.update(replaced)
    return content


def _like(stored: Tensor, twin: Tensor) -> Tensor:
    if isinstance(stored, nn.Parameter):
        return nn.Parameter(twin, requires_grad=stored.requires_grad)
    return twin.detach().requires_grad_(stored.requires_grad)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *place, tensor.dtype, tensor.shape, tensor.stride()


def _as_wanted(old: Any, new: Any, changes: Changes, locate: Locate) -> bool:
    """True where `new` has the changes in the network's tensors, and `old`'s numbers elsewhere."""
    home, former = locate(new), locate(old)
    for name, tensor in home.tensors.items():  # two names may be one tensor of the file
        expected = changes.get(name, former.tensors[name]).to(tensor.dtype)
        if not same_numbers(expected, tensor):
            return False
    owner = _entry(new, home.keys)
    wanted = {id(home.tensors[name]): values for name, values in changes.items()}
    stack, visited = [(old, new, False)], set()
    while stack:
        before, after, inside = stack.pop()
        inside = inside or after is owner
        if (id(before), id(after), inside) in visited:
            continue
        visited.add((id(before), id(after), inside))
        if isinstance(before, Tensor) and isinstance(after, Tensor):
            values = wanted.get(id(after)) if inside else None
            expected = before if values is None else values.to(before.dtype)
            if before.dtype != after.dtype or not same_numbers(expected, after):
                return False
        inner, others = list(_children(before)), list(_children(after))
        if type(before) is not type(after) or len(inner) != len(others):
            return False
        stack += [(one, other, inside) for one, other in zip(inner, others, strict=True)]
    return True


def same_numbers(expected: Tensor, found: Tensor) -> bool:
    """Bit for bit, NaNs included; False for tensors that claim more numbers than they have."""
    if expected.shape != found.shape or expected.layout != found.layout:
        return False
    if found.is_meta or found.layout != torch.strided:
        return True  # not among the network's, and without a storage of their own
    for tensor in (expected, found):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            return False
    return bool(torch.equal(_bytes(expected), _bytes(found)))


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor.int_repr() if tensor.is_quantized else tensor
    plain = tensor.detach().resolve_neg().resolve_conj()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def _has_second_owner(content: Any, keys: tuple[Any, ...]) -> bool:
    """True where another entry of the file is the network's own state dict or module."""
    owners = Counter(id(value) for value in _values(content))
    way = [_entry(content, keys[:depth]) for depth in range(len(keys) + 1)]
    return any(owners[id(container)] > 1 for container in way)


def _entry(content: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        content = content[key]
    return content


def _values(content: Any) -> Iterator[Any]:
    """The content and every entry in it, once for each container that holds it."""
    stack, visited = [content], set()
    yield content
    while stack:
        value = stack.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        for child in _children(value):
            yield child
            stack.append(child)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, nn.Module):
        return vars(value).values()
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _is_plain(value: Any) -> bool:
    return type(value) in CONTAINERS or type(value) in LEAVES
