"""Numbers that an ONNX file keeps in data files beside it: where they are, checked.

A suspect names these files itself, so that the copies never take their names from it: they are
called after the new model file. The gate of `auditor.models.onnx` has checked the names before; they
are checked again, because the folder may be another by now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from auditor.errors import OutputError
from auditor.outputs import side_names
from auditor.text import clean_text

DIGITS = 18
"""Of an offset or a length; more would not fit into a file."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor's numbers are."""

    location: str
    """Of the data file, as the model names it."""
    begin: int
    end: int


def place_of(tensor: Any, path: Path) -> Place:
    """Where an external tensor's numbers are, inside a data file that is there.

    Args:
        tensor: A TensorProto with `data_location` EXTERNAL.
        path: The model file.

    Raises:
        OutputError: The file is not in the model's folder, is a link, or is too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    shown = f"{clean_text(path.name)}: {clean_text(tensor.name, limit=80)}"
    if len(entries) != len(tensor.external_data) or "location" not in entries:
        raise OutputError(
            f"{shown} says in two ways, or in none, where its numbers are; nothing was written. "
            "Export the model again."
        )
    size = data_file(entries["location"], path).stat().st_size
    begin = _whole_number(entries.get("offset", "0"), shown)
    length = _whole_number(entries.get("length", str(max(size - begin, 0))), shown)
    if begin + length > size:
        raise OutputError(
            f"{shown} claims bytes {begin:,} to {begin + length:,} of "
            f"{clean_text(entries['location'], limit=80)}, which has {size:,}; nothing was "
            "written. Download both files again."
        )
    return Place(location=entries["location"], begin=begin, end=begin + length)


def data_file(location: str, path: Path) -> Path:
    """The data file that a model names.

    Raises:
        OutputError: It is not a file of its own in the model's folder.
    """
    folder = path.parent.resolve()
    data = folder / location
    try:
        inside = not Path(location).is_absolute() and data.resolve().is_relative_to(folder)
        own = inside and not data.is_symlink() and data.is_file() and data.stat().st_nlink == 1
    except (OSError, ValueError):  # too long, or with a zero byte in it
        own = False
    if not own:
        raise OutputError(
            f"{clean_text(path.name)}: its external data {clean_text(location, limit=80)} is no "
            "file of its own in the model's folder; nothing was written. Copy the real file there."
        )
    return data


def is_external(tensor: Any) -> bool:
    """True where a tensor's numbers are in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def all_tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a model: of nested graphs, functions and sparse tensors as well."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            # repeated fields of every protobuf version are iterable, and messages are not
            for inner in value if hasattr(value, "__len__") else [value]:
                yield from all_tensors(inner)


def new_names(locations: Iterable[str], output: str, *, renamed: bool) -> dict[str, str]:
    """What the copies of the data files are called, beside a new model file.

    Args:
        locations: The data files that the suspect names, each once.
        output: Name of the new model file.
        renamed: Whether the suspect has another name. It may then be in the same folder, and its
            data files must not be replaced.

    Returns:
        Location -> `m.onnx.data`, as torch calls it; further ones `m.onnx.2.data` and so on.
    """
    known = list(dict.fromkeys(locations))
    own = {Path(location).name.casefold() for location in known} if renamed else set()
    return dict(zip(known, side_names(output, len(known), own), strict=True))


def refuse_overlaps(places: Iterable[Place], changing: Collection[Place], path: Path) -> None:
    """Refuse to change numbers that are those of another tensor as well.

    Args:
        places: Of every external tensor, once for each.
        changing: Those that get other numbers.
        path: The model file, for the message.

    Raises:
        OutputError: Two tensors overlap, of which at least one changes.
    """
    reach: dict[str, int] = defaultdict(int)
    changed: dict[str, int] = defaultdict(int)
    for place in sorted(places, key=lambda entry: entry.begin):
        location = place.location
        before = reach if place in changing else changed
        if place.begin < min(before[location], place.end):
            raise OutputError(
                f"{clean_text(path.name)}: several of its tensors share bytes of "
                f"{clean_text(location, limit=80)}, so that one cannot change alone; nothing was "
                "written. Save it anew: onnx.save(onnx.load(path), other_path)."
            )
        reach[location] = max(reach[location], place.end)
        if place in changing:
            changed[location] = max(changed[location], place.end)


def _whole_number(text: str, shown: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
        raise OutputError(
            f"{shown} has {clean_text(text, limit=40)} as offset or length of its numbers; nothing "
            "was written. Download both files again."
        )
    return int(text)
