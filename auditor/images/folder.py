"""Images in a folder, one a file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from auditor.endings import PICTURES, UNREAD_PICTURES
from auditor.errors import ImageError
from auditor.images.labels import class_numbers, csv_labels
from auditor.images.source import ImageSource, remark, upright
from auditor.text import clean_text

MAX_PIXELS = 64_000_000
"""Larger pictures are left out: a decompression bomb, or no input for a classifier."""


class FolderSource(ImageSource):
    """`DIR/<class>/*.png`, or a flat folder, perhaps with `labels.csv` (file,label).

    Class folders are numbered by `names` where given, by their own name where all of them are
    whole numbers, and alphabetically otherwise, as torchvision's ImageFolder does.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self._files: list[Path]
        name = clean_text(str(folder))
        flat = _image_files(folder)
        classes = sorted(
            (d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "__"))),
            key=lambda d: d.name,
        )
        members = {d.name: _image_files(d, deep=True) for d in classes}
        if any(members.values()) and flat:
            raise ImageError(
                f"{name} holds both loose images ({clean_text(flat[0].name)} …) and class folders "
                f"({clean_text(classes[0].name)} …). Give one or the other."
            )
        labels: list[int] | None = None
        class_names: tuple[str, ...] = ()
        remarks: tuple[str, ...] = ()
        if any(members.values()):
            empty = [d for d, files in members.items() if not files]
            numbers, class_names = class_numbers(list(members), empty, names, name)
            self._files = [file for files in members.values() for file in files]
            labels = [numbers[d] for d, files in members.items() for _ in files]
            remarks = remark("Class folders without an image that is read", empty)
        elif flat:
            self._files = flat
            if (folder / "labels.csv").is_file():
                labels, remarks = csv_labels(folder / "labels.csv", flat, names)
        else:
            raise ImageError(
                f"{name}: no images found. Expected {name}/<class>/*.png, or {name}/*.png, perhaps "
                "with labels.csv (file,label). PNG, JPEG, WebP and BMP are read."
            )
        remarks += remark("Pictures of formats that are not read", _unread(folder))
        super().__init__(name, len(self._files), labels, class_names, remarks)
        self._folder = folder

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        found = set()
        for index in indices:
            try:
                with Image.open(self._files[index]) as image:
                    found.add((image.height, image.width))
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
        return found

    def contents(self, indices: Sequence[int]) -> list[bytes | None]:
        sizes = [_size(self._files[index]) for index in indices]
        often = Counter(sizes)
        return [
            _digest(self._files[index]) if size is not None and often[size] > 1 else None
            for index, size in zip(indices, sizes, strict=True)
        ]

    def read(self, index: int) -> Image.Image:
        with Image.open(self._files[index]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels")
            return upright(image)

    def title(self, index: int) -> str:
        return clean_text(str(self._files[index].relative_to(self._folder)))


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:  # it is said to be unreadable when it is read
        return None


def _digest(file: Path) -> bytes | None:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return None


def _image_files(folder: Path, *, deep: bool = False) -> list[Path]:
    entries = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        entry
        for entry in entries
        if entry.suffix.lower() in PICTURES and entry.is_file() and not entry.name.startswith(".")
    )


def _unread(folder: Path) -> list[str]:
    """Pictures in a folder that nothing here reads."""
    found = (entry for entry in folder.rglob("*") if entry.suffix.lower() in UNREAD_PICTURES)
    return sorted(str(entry.relative_to(folder)) for entry in found)
