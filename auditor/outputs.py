"""Result files: checked before the long work, written atomically after it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from auditor.endings import READ
from auditor.errors import OutputError, UsageError
from auditor.registry import nearest
from auditor.text import clean_text

STDOUT = Path("-")
ENDINGS = {
    "htm": "html",
    "markdown": "md",
    **dict.fromkeys(
        ("pt", "pth", "bin", "ckpt", "ts", "torchscript", "pt2", "onnx", "safetensors"), "model"
    ),
}
"""Endings of files that are not the name of their format."""


def parse_outputs(
    texts: Sequence[str], formats: Sequence[str], defaults: Mapping[str, Path]
) -> dict[str, Path]:
    """Understand `-o json=scan.json -o html=report.html`: format -> path.

    A path alone takes its format from its ending; `none` writes no files; nothing at all means
    `defaults`.

    Raises:
        UsageError: Unknown format, or two files of one format.
    """
    if not texts:
        return dict(defaults)
    outputs: dict[str, Path] = {}
    for text in texts:
        if text == "none":
            continue
        name, separator, path = text.partition("=")
        if not separator:
            name, path = Path(text).suffix.lstrip("."), text
        name = ENDINGS.get(name, name) if not separator else name
        if name not in formats:
            raise UsageError(
                f'-o {clean_text(text)}: no format "{clean_text(name)}"{nearest(name, formats)} '
                f"Write -o FORMAT=PATH with one of {', '.join(formats)}."
            )
        if not path:
            raise UsageError(f"-o {clean_text(text)}: the path is missing. Write -o FORMAT=PATH.")
        if name in outputs:
            raise UsageError(f"-o {clean_text(text)}: {name} was asked for twice.")
        outputs[name] = Path(path)
    return outputs


def check_outputs(outputs: Mapping[str, Path], *, force: bool, inputs: Sequence[Path]) -> None:
    """Find out now whether the files can be written later.

    Raises:
        OutputError: One exists already, is an input, or its folder cannot be written to.
        UsageError: Two of them are one file.
    """
    kept = {path.resolve() for path in inputs}
    folders = {path for path in kept if path.is_dir()}
    taken: set[Path] = set()
    for path in outputs.values():
        shown = clean_text(str(path))
        place = path if path == STDOUT else path.resolve()
        if place in taken:
            raise UsageError(f"-o {shown}: two results cannot go to one place.")
        taken.add(place)
        if path == STDOUT:
            continue
        read = place.suffix.lower() in READ and not folders.isdisjoint(place.parents)
        if place in kept or (read and place.exists()):
            raise OutputError(f"{shown} is an input of this command; it is never overwritten.")
        if path.is_dir():
            raise OutputError(f"{shown} is a directory; name a file in it.")
        if path.exists() and not path.is_file():
            raise OutputError(f"{shown} is not a regular file; name another -o.")
        if path.exists() and not force:
            raise OutputError(
                f"{shown} exists already. Add --force to replace it, or name another -o."
            )
        folder = path.parent
        if not folder.is_dir():
            raise OutputError(f"{shown}: the folder {clean_text(str(folder))} does not exist.")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"{clean_text(str(folder))} is not writable ({error.strerror})."
            ) from None


def side_names(model: str, count: int, taken: Collection[str] = ()) -> list[str]:
    """What files of numbers beside a model file are called: `m.onnx.data`, then `m.onnx.2.data`.

    Args:
        model: Name of the model file.
        count: How many there are.
        taken: Names that are left out, in small letters.
    """
    names: list[str] = []
    place = 0
    while len(names) < count:
        place += 1
        name = f"{model}.data" if place == 1 else f"{model}.{place}.data"
        if name.casefold() not in taken:
            names.append(name)
    return names


def sidecar(output: Path) -> Path:
    """Where the mark of `auditor attack` goes besides the model: `model.pt.json` for `model.pt`."""
    return output.with_name(f"{output.name}.json")


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all; `-` is standard output.

    Raises:
        OutputError: The file cannot be written.
    """
    if path == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8"))  # a record is UTF-8, whatever the terminal is
        sys.stdout.buffer.flush()
        return
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".auditor-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(default_mode())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{clean_text(str(path))} cannot be written ({error.strerror})."
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def default_mode() -> int:
    """The permissions that a new file gets here; temporary files are made with fewer."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
