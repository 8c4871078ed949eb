"""Which files beside those that a user names does a worker have to read?

Found without interpreting the suspect: the worker that does that is confined already.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from auditor.endings import ARRAYS, PICTURES, TABLES, UNREAD_PICTURES, is_probe

LOCATION = b"\x0a\x08location\x12"
"""How ONNX names a file with weights: a key, and what announces the path that follows."""
LENGTH = re.compile(rb"[\x80-\xff]?[\x00-\x7f]")
"""Of a path: a protobuf number, seven bits a byte, the last one below 128."""
MOST_BYTES = 2 << 30
"""An ONNX file has no more, by its format."""
MOST_DATA = 10_000
MOST_NAMED = 1_000_000
"""Names are not looked for beyond so many: that would take minutes, before any limit holds."""
MOST_LINKS = 100_000
LED_TO = PICTURES | UNREAD_PICTURES | ARRAYS | TABLES
"""By links in a folder of images."""


def external_data(model: Path) -> list[Path]:
    """The files below the model's folder that an ONNX file may name as its weights.

    A superset, found by pattern; another kind of file gives none, or nothing that matters.
    """
    folder = model.parent.resolve()
    found: dict[Path, None] = {}
    try:
        size = model.stat().st_size
        if not 0 < size <= MOST_BYTES:
            return []
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:2] == b"PK":
                return []
            names: dict[bytes, None] = {}
            for place, length in itertools.islice(_locations(data), MOST_NAMED):
                names[data[place : place + length]] = None
                if len(names) == MOST_DATA:
                    break
            for name in names:
                path = folder / os.fsdecode(name)
                if path.is_file() and path.resolve().is_relative_to(folder):
                    found[path.resolve()] = None
    except (OSError, ValueError):
        pass  # the worker says what is wrong with it
    return list(found)


def _locations(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where each path begins, and how long it is."""
    place = data.find(LOCATION)
    while place >= 0:
        place += len(LOCATION)
        if length := LENGTH.match(data, place):
            digits = enumerate(length[0])
            yield length.end(), sum((digit & 0x7F) << 7 * number for number, digit in digits)
        place = data.find(LOCATION, place)


def linked_images(folder: Path) -> list[Path]:
    """What the links in a folder of images lead to: pictures, and folders of classes.

    A link that changes the kind of a file, or leads above the user's files, is not followed.
    """
    found: dict[Path, None] = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            if not path.is_symlink():
                continue
            target = path.resolve()
            picture = target.is_file() and target.suffix.lower() in LED_TO
            if picture or (target.is_dir() and not is_private(target)):
                found[target] = None
        if len(found) >= MOST_LINKS:
            break
    return list(found)


def is_private(folder: Path) -> bool:
    """True for the user's home and the folders above it, and for the folder of temporary files."""
    kept = [Path(tempfile.gettempdir()).resolve()]
    with contextlib.suppress(RuntimeError):
        kept.append(Path.home().resolve())
    return any(home == folder or folder in home.parents for home in kept)


def beside_code(file: Path) -> list[Path]:
    """The user's own Python file, and what it may import or read beside it."""
    folder = file.resolve().parent
    return sorted(folder.glob("*.py")) if is_private(folder) else [folder]


def of_probes(path: Path) -> list[Path]:
    """A picture, a probe file or a folder of them, and the pictures that probes name."""
    if not is_probe(path):
        return [path]
    folder = path.resolve().parent
    if not is_private(folder):
        return [folder]
    return [path, *(other for other in folder.glob("*") if other.suffix.lower() in LED_TO)]
