"""Changed numbers in a copy of the user's ONNX file, and nothing else changed.

The numbers are written over the old ones in a copy of the file, so that not a byte outside them
differs. Only where more than numbers has to change is the graph serialised anew, with the same
nodes, names and metadata: where a layer gets a copy of a tensor that it shared with others, and
where the data files have other names.

Data files are copied as well, called after the new model file (`external.new_names`), never as the
suspect says. Whoever moves the new file has to move them along: `side_files` says which they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
from torch import Tensor

from auditor.errors import OutputError
from auditor.onnx_graph.external import (
    Place,
    all_tensors,
    data_file,
    is_external,
    new_names,
    place_of,
    refuse_overlaps,
)
from auditor.onnx_graph.numbers import encoded, inline_bytes, put_inline
from auditor.onnx_graph.parameters import Wiring
from auditor.onnx_graph.unshare import Copy, copies_of, give
from auditor.onnx_graph.wire import Malformed, number_spans
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What has to be written."""

    wanted: onnx.ModelProto
    """What the new model file shall say."""
    inline: Mapping[str, bytes] = field(default_factory=dict)
    """Tensor of the suspect's graph -> its new numbers, where the model file holds them."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Location of a data file -> name of its copy."""
    patches: Mapping[str, Sequence[tuple[Place, bytes]]] = field(default_factory=dict)
    """Location -> the new numbers in it, in the order of the file."""


def write_changed(
    file: FileFacts, path: Path, changed: Mapping[str, Tensor], copies: Mapping[str, str]
) -> None:
    """Write a copy of an ONNX file in which some tensors have other values.

    A copy that got other values than its original becomes an initialiser of the new file; one that
    did not is left out.

    Args:
        file: The suspect.
        path: The new file, which does not exist. Its data files come beside it.
        changed: Name -> values, of the stored tensor's shape, on any device. Names are those of
            initialisers, of outputs of Constant nodes, and of copies.
        copies: As `unshare.unshared` returns it for the suspect.

    Raises:
        OutputError: The file cannot be written, or the values cannot be put into it. Nothing is
            left behind.
        ValueError: A value has another shape than its tensor, or the copies are of another model.
    """
    data = _read(file)
    plan = _plan(file, path, _parsed(data, file.path), changed, copies)
    beside = {location: path.with_name(name) for location, name in plan.names.items()}
    for entry in (path, *beside.values()):
        if entry.exists() or entry.is_symlink():
            raise OutputError(
                f"{clean_text(str(entry))} exists already, and would be replaced. Name another output."
            )
    try:
        for location, entry in beside.items():
            _write_data(file.path, location, entry, plan.patches.get(location, ()))
        _write_model(path, data, plan)
    except BaseException as error:
        for entry in (path, *beside.values()):
            with contextlib.suppress(OSError):
                entry.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{clean_text(str(path))} cannot be written ({error.strerror})."
            ) from None
        raise


def side_files(file: FileFacts, output: Path) -> list[Path]:
    """The data files that belong to a copy of a suspect, beside it; most have none.

    Args:
        file: The suspect.
        output: Where the copy is, or will be. Only its name and folder matter.

    Raises:
        OutputError: The suspect or its data cannot be read, or changed since it was opened.
    """
    model = _parsed(_read(file), file.path)
    return [output.with_name(name) for name in _names(model, file.path, output).values()]


def _read(file: FileFacts) -> bytes:
    name = clean_text(file.path.name)
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise OutputError(f"{name} cannot be read any more ({error.strerror}).") from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OutputError(f"{name} changed since it was opened. Run the command again.")
    return data


def _plan(
    file: FileFacts,
    path: Path,
    model: onnx.ModelProto,
    changed: Mapping[str, Tensor],
    copies: Mapping[str, str],
) -> _Plan:
    known = copies_of(model)
    if not copies.items() <= {copy.name: copy.original for copy in known}.items():
        raise ValueError("the copies are not those of this model")
    stored = _stored_once(model, file.path)
    new: dict[str, bytes] = {}
    for name, values in changed.items():
        tensor = stored.get(copies.get(name, name))
        if tensor is None:
            raise OutputError(
                f"{clean_text(file.path.name)} does not hold {clean_text(name, limit=120)}, which "
                "was changed, so that it cannot be written."
            )
        new[name] = encoded(values, tensor)
        if len(new[name]) != len(_old_bytes(tensor, file.path)):
            raise OutputError(
                f"{clean_text(file.path.name)}: {clean_text(name, limit=120)} does not hold as "
                f"many numbers as its shape {tuple(tensor.dims)} says. Export the model again."
            )
    needed = _needed(known, new, stored, file.path)
    own = {name: data for name, data in new.items() if name in stored}

    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    give(wanted, needed)
    tensors = Wiring(wanted.graph).stored
    for copy in needed:
        data = new[copy.name] if copy.name in new else _old_bytes(stored[copy.original], file.path)
        _put_here(tensors[copy.name], data)
    inline = {name: data for name, data in own.items() if not is_external(stored[name])}
    for name, data in inline.items():
        put_inline(tensors[name], data)
    outside = {
        place_of(stored[name], file.path): data for name, data in own.items() if name not in inline
    }
    names = _names(model, file.path, path)
    _rename(wanted, names)
    return _Plan(
        wanted=wanted, inline=inline, names=names, patches=_patches(model, outside, file.path)
    )


def _needed(
    known: Sequence[Copy], new: Mapping[str, bytes], stored: Mapping[str, object], path: Path
) -> list[Copy]:
    """The copies that hold other numbers than their originals will."""
    needed = []
    for copy in known:
        if copy.name not in new and copy.original not in new:
            continue
        old = _old_bytes(stored[copy.original], path)
        if new.get(copy.name, old) != new.get(copy.original, old):
            needed.append(copy)
    return needed


def _stored_once(model: onnx.ModelProto, path: Path) -> dict[str, onnx.TensorProto]:
    wiring = Wiring(model.graph)
    names = [tensor.name for tensor in model.graph.initializer]
    if len(set(names)) < len(names) or set(names) & set(wiring.producers):
        raise OutputError(
            f"{clean_text(path.name)} has two tensors of one name, so that it cannot be changed. "
            "Export it again."
        )
    return wiring.stored


def _old_bytes(tensor: onnx.TensorProto, path: Path) -> bytes:
    if not is_external(tensor):
        return inline_bytes(tensor)
    place = place_of(tensor, path)
    try:
        with data_file(place.location, path).open("rb") as stream:
            stream.seek(place.begin)
            return stream.read(place.end - place.begin)
    except OSError as error:
        raise OutputError(
            f"{clean_text(path.name)}: its external data {clean_text(place.location, limit=80)} "
            f"cannot be read ({error.strerror})."
        ) from None


def _put_here(tensor: onnx.TensorProto, data: bytes) -> None:
    """Let the model file hold a tensor's numbers, wherever they were."""
    if is_external(tensor):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data
    put_inline(tensor, data)


def _names(model: onnx.ModelProto, path: Path, output: Path) -> dict[str, str]:
    locations = [
        place_of(tensor, path).location for tensor in all_tensors(model) if is_external(tensor)
    ]
    return new_names(locations, output.name, renamed=output.name != path.name)


def _rename(wanted: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for tensor in all_tensors(wanted):
        for entry in tensor.external_data if is_external(tensor) else ():
            if entry.key == "location":
                entry.value = names[entry.value]


def _patches(
    model: onnx.ModelProto, outside: Mapping[Place, bytes], path: Path
) -> dict[str, list[tuple[Place, bytes]]]:
    places = [place_of(tensor, path) for tensor in all_tensors(model) if is_external(tensor)]
    refuse_overlaps(places, outside, path)
    patches: dict[str, list[tuple[Place, bytes]]] = {}
    for place, data in sorted(outside.items(), key=lambda entry: entry[0].begin):
        patches.setdefault(place.location, []).append((place, data))
    return patches


def _write_data(
    path: Path, location: str, beside: Path, patches: Sequence[tuple[Place, bytes]]
) -> None:
    """Copy one data file with its new numbers, and compare."""
    source = data_file(location, path)
    shutil.copyfile(source, beside)
    with beside.open("r+b") as stream:
        for place, data in patches:
            stream.seek(place.begin)
            stream.write(data)
    with source.open("rb") as old, beside.open("rb") as new:
        at = 0
        for place, data in patches:
            same = _same(old, new, at, place.begin)
            new.seek(place.begin)
            if not same or new.read(len(data)) != data:
                raise _not_as_wanted(path)
            at = place.end
        size = max(source.stat().st_size, beside.stat().st_size)
        if not _same(old, new, at, size):
            raise _not_as_wanted(path)


def _write_model(path: Path, data: bytes, plan: _Plan) -> None:
    """Put the new numbers over the old ones; where that is not all, write the file anew."""
    digest = _digest(plan.wanted)
    written = _patched(data, plan.inline)
    if written is None or not _says(written, digest):
        written = plan.wanted.SerializeToString()
    path.write_bytes(written)
    if not _says(path.read_bytes(), digest):
        raise _not_as_wanted(path)


def _patched(data: bytes, inline: Mapping[str, bytes]) -> bytes | None:
    """The file with other numbers in the same places; None where they do not fit there."""
    try:
        spans = number_spans(data)
    except Malformed:
        return None
    patched = bytearray(data)
    for name, numbers in inline.items():
        at = 0
        for begin, end in spans.get(name, ()):
            patched[begin:end] = numbers[at : at + end - begin]
            at += end - begin
        if at != len(numbers) or len(patched) != len(data):
            return None
    return bytes(patched)


def _parsed(data: bytes, path: Path) -> onnx.ModelProto:
    try:
        return onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's implementations raise different types
        raise OutputError(
            f"{clean_text(path.name)} cannot be read as ONNX: it is damaged. Download it again."
        ) from None


def _digest(model: onnx.ModelProto) -> str:
    """Equal for equal models; messages themselves compare unequal where they hold a NaN."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _says(data: bytes, digest: str) -> bool:
    """True where the content of a file is the model of that digest."""
    try:
        return _digest(onnx.ModelProto.FromString(data)) == digest
    except Exception:  # protobuf's implementations raise different types
        return False


def _same(old: BinaryIO, new: BinaryIO, begin: int, end: int) -> bool:
    old.seek(begin)
    new.seek(begin)
    for at in range(begin, end, CHUNK):
        count = min(CHUNK, end - at)
        if old.read(count) != new.read(count):
            return False
    return True


def _not_as_wanted(path: Path) -> OutputError:
    return OutputError(
        f"{clean_text(path.name)}: what was written is not what should have been, so that it was "
        "not kept. Please report this."
    )
