"""Is this file well formed, and what kind of model file is it? Reads bytes, interprets nothing."""

from __future__ import annotations

import difflib
import hashlib
import json
import lzma
import pickletools
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from auditor.errors import UnreadableModel, UnsafeModel
from auditor.text import clean_text

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LEGACY_TORCH_MAGIC = (
    b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.serialization.MAGIC_NUMBER
)
HEAD = 4096
"""Bytes that tell what a file is."""
MAX_MEMBERS = 100_000
MAX_CODE = 64 << 20
"""Largest inflated size of a TorchScript archive's compressed members, in bytes."""


DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, EOFError, OSError, ValueError, OverflowError),
)
"""What Python's own reader raises for damaged archives."""


PICKLES = (".pkl", ".pickle")
"""Endings of archive members that are pickles."""
MAX_LISTED = 8
ALIKE = 0.75
"""Of two names of files, of which one may be meant by the other; 1 is equality."""


def is_zip(path: Path) -> bool:
    """As torch decides it: by the first bytes, whatever is at the end."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


class Kind(StrEnum):
    """What a file turned out to be, by its bytes and not by its name."""

    TORCH_ZIP = "PyTorch zip"
    TORCH_LEGACY = "PyTorch legacy pickle"
    PICKLE = "Python pickle"
    """Not of torch.save, but torch.load would unpickle it all the same."""
    TORCHSCRIPT = "TorchScript"
    PT2 = "torch.export archive"
    ONNX = "ONNX"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A suspect file, identified."""

    path: Path
    kind: Kind
    bytes: int
    sha256: str


def identify(path: Path) -> FileFacts:
    """Find out what kind of model file `path` is.

    Raises:
        UnreadableModel: There is no such file, or it is no model file; says what it is instead.
        UnsafeModel: An archive that was made to be read in two ways, or to fill the memory.
    """
    name = clean_text(path.name)
    if path.is_dir():
        raise UnreadableModel(
            f"{clean_text(str(path))} is a directory, not a model file. Name the file in it."
        )
    if not path.exists():
        raise UnreadableModel(f"{clean_text(str(path))}: no such file.{_similar(path)}")
    if not path.is_file():
        raise UnreadableModel(f"{name} is not a regular file (a device or a pipe).")
    size = path.stat().st_size
    if size == 0:
        raise UnreadableModel(f"{name} is empty (0 bytes). Download it again.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableModel(f"{name} cannot be read: {error.strerror}.") from None
    if head.startswith(LFS_POINTER):
        raise UnreadableModel(
            f"{name} is a Git LFS pointer ({size} bytes), not the model. Run: git lfs pull"
        )
    return FileFacts(path=path, kind=_kind(path, head, size), bytes=size, sha256=sha256)


def _kind(path: Path, head: bytes, size: int) -> Kind:
    name = clean_text(path.name)
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if _is_safetensors(head, size):  # before pickles: the length of its header may begin like one
        return Kind.SAFETENSORS
    if head[:1] == b"\x80" and LEGACY_TORCH_MAGIC in head[:64]:
        return Kind.TORCH_LEGACY
    if _is_pickle(head):
        return Kind.PICKLE
    if _is_onnx(path, head):
        return Kind.ONNX
    if _is_text(head):
        shown = clean_text(head.decode("utf-8", "replace").strip(), limit=60)
        raise UnreadableModel(
            f'{name} is a text file, not a model (it begins with "{shown}"). '
            "If it is an error page or a pointer, download the model again."
        )
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin", ".onnx"):
        raise UnreadableModel(
            f"{name} is not a model file that auditor knows: it begins with "
            f"{head[:8].hex(' ')}. It may be damaged; download it again."
        )
    raise UnreadableModel(
        f"{name} is not a model file that auditor knows: it begins with {head[:8].hex(' ')}. "
        "Known: PyTorch (.pt, .pth), TorchScript, torch.export (.pt2), ONNX, safetensors."
    )


def _kind_of_zip(path: Path) -> Kind:
    """Check a zip archive and tell TorchScript, torch.save and torch.export apart.

    torch's reader takes the first of two members of the same name, Python's the last; it inflates
    without limit and ignores checksums. A file in which these differ was made to be read in two
    ways, so such files are refused.
    """
    name = clean_text(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise UnsafeModel(f"{name}: {len(members)} members in the archive; refused.")
            names = [member.filename for member in members]
            if any(member.filename != member.orig_filename for member in members):
                raise UnsafeModel(f"{name}: members have two names in the archive; refused.")
            # torch's reader ignores the case of names
            counts = Counter(name.casefold() for name in names)
            twice = next((n for n in names if counts[n.casefold()] > 1), None)
            if twice is not None:
                raise UnsafeModel(
                    f'{name}: the archive holds "{clean_text(twice)}" twice, so that readers '
                    "disagree about its content; refused."
                )
            _refuse_bombs(name, members, path.stat().st_size)
            _refuse_two_directories(path, len(members))
            damaged = archive.testzip()
    except DAMAGED as error:
        raise UnreadableModel(
            f"{name} is damaged or ends early ({clean_text(str(error))}). Download it again."
        ) from None
    if damaged is not None:
        raise UnreadableModel(
            f'{name} is damaged: the checksum of "{clean_text(damaged)}" is wrong. '
            "Download it again."
        )
    inner = {member.partition("/")[2] for member in names}
    if "constants.pkl" in inner and any(member.startswith("code/") for member in inner):
        kind = Kind.TORCHSCRIPT
    elif "archive_format" in inner or any(member.startswith("models/") for member in inner):
        kind = Kind.PT2
    elif "data.pkl" in inner:
        kind = Kind.TORCH_ZIP
    else:
        raise UnreadableModel(
            f"{name} is a zip archive, but not one of PyTorch (no data.pkl in it). "
            "If it contains the model, unpack it and name the model file."
        )
    _refuse_second_reading(name, kind, members)
    return kind


OF_OTHERS = {
    Kind.TORCH_ZIP: ("code/", "constants.pkl", "bytecode.pkl", "model.json"),
    Kind.TORCHSCRIPT: ("models/", "archive_format", "bytecode.pkl", "model.json"),
    Kind.PT2: ("code/", "constants.pkl", "bytecode.pkl", "model.json", "data.pkl"),
}
"""Members, folded, by which another reader than the one of that kind would take an archive for its own:
those of `torch.load`, `torch.jit.load`, `torch.export.load` and of TorchScript's mobile interpreter."""


def _refuse_second_reading(name: str, kind: Kind, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive in which another reader would find another model than we do.

    That is one with several folders at its top (torch's reader takes the first one's name for all), with
    members of two kinds of model, or with compressed numbers: torch never writes these, and where they
    are mapped into memory, it takes the compressed bytes for the numbers.

    Raises:
        UnsafeModel: It is one of those.
    """
    roots = {member.filename.partition("/")[0] for member in members}
    if len(roots) > 1 or not all("/" in member.filename for member in members):
        raise UnsafeModel(
            f"{name}: the archive holds more than one folder at its top, of which readers take one each; "
            "refused."
        )
    for member in members:
        inner = member.filename.partition("/")[2].casefold()
        if inner.startswith(OF_OTHERS[kind]):
            raise UnsafeModel(
                f"{name} ({kind}) holds what readers of another kind of model look for as well "
                f'("{clean_text(member.filename, limit=80)}"), so that they may see another model; refused. '
                "Ways out: save the network again by torch.save, torch.jit.save or torch.export.save alone."
            )
        if member.compress_type != zipfile.ZIP_STORED and not inner.startswith("code/"):
            raise UnsafeModel(
                f'{name}: "{clean_text(member.filename, limit=80)}" is compressed, as torch never writes it; '
                "torch.load with mmap=True would read other numbers. Ways out: save it again, "
                "torch.save(torch.load(...), ...)."
            )


END, END64, LOCATOR = (
    struct.Struct("<4s4H2LH"),
    struct.Struct("<4sQ2H2L4Q"),
    struct.Struct("<4sLQL"),
)
"""Of a zip archive: end of its directory, the same with 64 bits, and what tells where that is."""


def _refuse_two_directories(path: Path, members: int) -> None:
    """Refuse an archive whose directory is not exactly where its end says, right before it.

    Python's reader looks for it before the end, torch's at the offset that the end gives; with two of
    them, each would see another archive.

    Raises:
        UnsafeModel: It is elsewhere, something follows, or the numbers contradict each other.
    """
    with path.open("rb") as file:
        at = file.seek(0, 2) - END.size
        file.seek(max(0, at - LOCATOR.size))
        tail = file.read()
        end = END.unpack(tail[-END.size :])
        *numbers, comment = end[1:]
        sound = end[0] == b"PK\x05\x06" and comment == 0
        place = [*numbers[2:4], *numbers[4:6]]
        before = tail[: -END.size]
        if sound and before.startswith(b"PK\x06\x07"):
            at = LOCATOR.unpack(before)[2]
            file.seek(min(at, len(tail) + file.tell()))
            record = file.read(END64.size)
            sound = len(record) == END64.size and record.startswith(b"PK\x06\x06")
            if sound:
                found = END64.unpack(record)
                wide = list(found[6:10])
                # the fields of 32 bits repeat those of 64, or say that they cannot
                same = zip(place, wide, (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
                sound = all(a in (b, full) for a, b, full in same) and found[1] == END64.size - 12
                sound = sound and at + END64.size + LOCATOR.size + END.size == path.stat().st_size
                place = wide
    if not sound or place[0] != members or place[1] != members or place[3] + place[2] != at:
        raise UnsafeModel(
            f"{clean_text(path.name)}: the directory of the archive is not where its end says, so that "
            "readers may see different files in it; refused."
        )


def _refuse_bombs(name: str, members: list[zipfile.ZipInfo], size: int) -> None:
    inflated = 0
    for member in members:
        if member.flag_bits & 0x1:
            raise UnreadableModel(f"{name}: the archive is encrypted; refused.")
        if member.compress_type != zipfile.ZIP_STORED:
            inflated += member.file_size
    stored = sum(m.file_size for m in members if m.compress_type == zipfile.ZIP_STORED)
    if stored > size:
        raise UnsafeModel(
            f"{name}: the archive claims {stored:,} bytes of content in a file of {size:,}; refused."
        )
    if inflated > MAX_CODE:
        raise UnsafeModel(
            f"{name}: {inflated:,} bytes of compressed content (PyTorch stores tensors "
            "uncompressed); refused as a decompression bomb."
        )


def _is_pickle(head: bytes) -> bool:
    """Does a pickle begin here? Those of protocols 0 and 1 look like text, and must name a global."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    named = False
    try:
        for opcode, _, _ in pickletools.genops(head):
            named = named or opcode.name in ("GLOBAL", "INST")
    except (ValueError, IndexError, OverflowError):
        return named and len(head) == HEAD and head[:1] in b"c("
    return named


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if length + 8 > size:
        return False
    try:
        json.loads(head[8 : 8 + length])
    except RecursionError:
        return False
    except ValueError:
        return bool(length > len(head) - 8)
    return True


def _is_onnx(path: Path, head: bytes) -> bool:
    """A ModelProto begins with field 1 (ir_version, a varint) in every exporter's output."""
    return (len(head) > 1 and head[:1] == b"\x08" and 1 <= head[1] <= 64) or (
        path.suffix.lower() == ".onnx" and not _is_text(head)
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head[:1024].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(head), 1024) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t" for c in text)


def _similar(path: Path) -> str:
    if path.is_symlink():
        return " It is a link, and what it leads to is not there."
    folder = path.parent
    if not folder.is_dir():
        return f' The folder "{clean_text(str(folder))}" does not exist either.'
    close = difflib.get_close_matches(
        path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=ALIKE
    )
    return f' Did you mean "{clean_text(close[0])}"?' if close else ""
