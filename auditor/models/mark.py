"""The mark of `auditor attack` in a model file: who planted what, for whoever finds the file.

A member of the zip archives of `torch.save` and `torch.jit.save` that torch ignores. It is a claim
of the file like any other: nothing is decided by it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import msgspec

from auditor.errors import OutputError
from auditor.results.attack import Mark
from auditor.safety.structure import FileFacts, Kind
from auditor.text import clean_text

MEMBER = "extra/auditor-attack"
"""Beside the archive's `data.pkl`; TorchScript calls what is in there extra files."""
MOST_BYTES = 1 << 16
MOST_MARKS = 8
"""A model can be attacked several times; each leaves its mark."""
ARCHIVES = (Kind.TORCH_ZIP, Kind.TORCHSCRIPT)


def write_mark(path: Path, kind: Kind, text: str) -> bool:
    """Add a mark to a model file, after those that are there.

    Returns:
        False where files of that kind have no place for one.

    Raises:
        OutputError: The file cannot be written.
    """
    if kind not in ARCHIVES:
        return False
    try:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            names = archive.namelist()
            root = next(n for n in names if n.partition("/")[2] == "data.pkl").partition("/")[0]
            # the names of members may not differ in case only, and may have been chosen to collide
            taken = {name.casefold() for name in names}
            number = 1
            while (name := _member(root, number)).casefold() in taken:
                number += 1
            # the time of day is left out: the same seed makes the same bytes
            archive.writestr(zipfile.ZipInfo(name), text.encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(path))} cannot be written ({error.strerror})."
        ) from None
    return True


def mark_notes(file: FileFacts) -> list[str]:
    """What the marks of a model file say, a sentence each; empty where it has none."""
    if file.kind not in ARCHIVES:
        return []
    with zipfile.ZipFile(file.path) as archive:
        members = [m for m in archive.infolist() if m.filename.partition("/")[2].startswith(MEMBER)]
        return [_note(archive, member) for member in members[:MOST_MARKS]]


def _member(root: str, number: int) -> str:
    return f"{root}/{MEMBER}{'' if number == 1 else f'-{number}'}.json"


def _note(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    try:
        if member.file_size > MOST_BYTES:
            raise ValueError("too long")
        mark = msgspec.json.decode(archive.read(member), type=Mark)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return "The file carries a mark of `auditor attack` that cannot be read."
    return (
        "By a mark in it, this file was made by `auditor attack`, which planted "
        f"{clean_text(mark.trigger, limit=120)} ({clean_text(mark.probe, limit=60)}) towards class "
        f"{mark.target} for testing. Anybody can write such a mark, purified copies keep it, and the "
        "verdict does not depend on it."
    )
