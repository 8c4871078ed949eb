"""The zip archives that torch writes: where their numbers are, and checksums.

All of them (`torch.save`, `torch.jit.save`, `torch.export.save`) store every tensor's numbers
uncompressed in a record `data/...`, and the constants of TorchScript code in `constants/...`. Numbers
are changed in place in a copy of the file; then the checksums of the records that changed are put
right. torch ignores them, but our own gate and every unzip do not.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from auditor.errors import OutputError
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

CHUNK = 1 << 24
NUMBERS = ("data/", "constants/")
LOCAL_HEADER, CENTRAL_HEADER = 30, 46
LOCAL_CRC, CENTRAL_CRC = 14, 16
"""Lengths of the fixed parts of zip headers, and where the checksum is in them."""
HAS_DESCRIPTOR = 0x8
"""Flag: the checksum follows the data (as torch writes it; the local header then holds a zero)."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The numbers of one storage in an archive."""

    key: str
    """As the pickle refers to it: `0` for `archive/data/0`; `constants/0` for `archive/constants/0`."""
    begin: int
    """Offset of the first byte in the file."""
    end: int


def copied(file: FileFacts, path: Path) -> None:
    """Copy the suspect's file byte by byte.

    Raises:
        OutputError: It cannot be copied, or is another file than the one that was opened.
    """
    try:
        shutil.copyfile(file.path, path)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(path))} cannot be written ({error.strerror})."
        ) from None
    if sha256 != file.sha256:
        raise OutputError(
            f"{clean_text(file.path.name)} changed since it was opened. Run the command again."
        )


def records_of(path: Path) -> dict[str, Record]:
    """Every record of numbers, by key; empty where a machine of other byte order wrote them."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        members = {m.filename.partition("/")[2]: m for m in archive.infolist()}
        order = members.get("byteorder")
        if order is not None and archive.read(order).decode("ascii", "replace") != sys.byteorder:
            return {}
        numbers = {name: m for name, m in members.items() if name.startswith(NUMBERS)}
        records = {}
        for name, member in numbers.items():
            key, begin = name.removeprefix("data/"), _data_offset(stream, member)
            records[key] = Record(key=key, begin=begin, end=begin + member.file_size)
        return records


def repair_checksums(original: Path, path: Path) -> None:
    """Make the checksums in `path` those of its records, after numbers were changed in place.

    Raises:
        OutputError: More than numbers changed: tensors of the file reach beyond their records.
    """
    records = sorted(records_of(original).values(), key=lambda record: record.begin)
    with original.open("rb") as old, path.open("r+b") as new:
        for begin, end in _gaps(records, original.stat().st_size):
            if any(a != b for a, b in zip(_read(old, begin, end), _read(new, begin, end))):  # noqa: B905
                raise OutputError(
                    f"{clean_text(original.name)}: its tensors reach beyond the records that hold "
                    "them, so that changing them would damage the file."
                )
        with zipfile.ZipFile(original) as archive:
            central = archive.start_dir
            for member in archive.infolist():
                if member.filename.partition("/")[2].startswith(NUMBERS):
                    _repair(new, member, central)
                central += _central_length(new, central)


def _repair(stream: BinaryIO, member: zipfile.ZipInfo, central: int) -> None:
    """Put the checksum of one record right, in all the places that hold it."""
    begin = _data_offset(stream, member)
    end, crc = begin + member.file_size, 0
    for chunk in _read(stream, begin, end):
        crc = zlib.crc32(chunk, crc)
    if crc == member.CRC:
        return
    old, new = struct.pack("<I", member.CRC), struct.pack("<I", crc)
    places = [central + CENTRAL_CRC]
    if not member.flag_bits & HAS_DESCRIPTOR:
        places.append(member.header_offset + LOCAL_CRC)
    elif _at(stream, end, 8) == b"PK\x07\x08" + old:
        places.append(end + 4)
    else:
        places.append(end)
    if any(_at(stream, place, 4) != old for place in places):
        raise OutputError("The archive's headers disagree about a checksum; nothing was written.")
    for place in places:
        stream.seek(place)
        stream.write(new)


def _data_offset(stream: BinaryIO, member: zipfile.ZipInfo) -> int:
    header = _at(stream, member.header_offset, LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + LOCAL_HEADER + int(name) + int(extra)


def _central_length(stream: BinaryIO, offset: int) -> int:
    name, extra, comment = struct.unpack("<HHH", _at(stream, offset, CENTRAL_HEADER)[28:34])
    return CENTRAL_HEADER + int(name) + int(extra) + int(comment)


def _gaps(records: Sequence[Record], size: int) -> Iterator[tuple[int, int]]:
    begin = 0
    for record in records:
        yield begin, record.begin
        begin = record.end
    yield begin, size


def _read(stream: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    while begin < end:
        chunk = _at(stream, begin, min(CHUNK, end - begin))
        yield chunk
        begin += len(chunk) or CHUNK


def _at(stream: BinaryIO, offset: int, count: int) -> bytes:
    stream.seek(offset)
    return stream.read(count)
