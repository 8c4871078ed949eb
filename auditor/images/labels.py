"""Which class an image is of: class folders, `labels.csv`, and the names of `--labels`."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from auditor.errors import ImageError
from auditor.images.source import remark
from auditor.text import clean_text, counted

LARGEST_LABEL = 10**9
"""No model has as many classes."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Understand `--labels`: a text file with one class name a line, in the order of the outputs.

    Raises:
        ImageError: The file cannot be read or names a class twice.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ImageError(f"--labels {clean_text(str(path))}: no such file.") from None
    except (OSError, UnicodeDecodeError):
        raise ImageError(
            f"--labels {clean_text(str(path))}: cannot be read as a text file."
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImageError(f'--labels {clean_text(str(path))}: "{clean_text(twice)}" appears twice.')
    return names


def class_numbers(
    folders: list[str], empty: Sequence[str], names: Sequence[str] | None, where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class number a folder, and the class names in order.

    A folder without images takes part in the alphabetical order, as it does for torchvision, and makes
    no difference where folders are named by `names` or by numbers.
    """
    filled = [folder for folder in folders if folder not in empty]
    by_number = all(map(_is_number, filled))
    if names is not None and not (by_number and set(filled).isdisjoint(names)):
        return _named_folders(filled, names, where, by_number=by_number), tuple(names)
    if by_number:
        return _numbered(filled, where), tuple(names or ())
    return {folder: number for number, folder in enumerate(folders)}, tuple(folders)


def _named_folders(
    folders: Sequence[str], names: Sequence[str], where: str, *, by_number: bool
) -> dict[str, int]:
    """Folders that `names` holds."""
    stranger = next((folder for folder in folders if folder not in names), None)
    if stranger is not None:
        raise ImageError(
            f'{where}: the class folder "{clean_text(stranger)}" is not among the '
            f"{len(names)} names of --labels. Name all folders by them, or all by class numbers."
        )
    numbers = {folder: names.index(folder) for folder in folders}
    for folder, number in numbers.items():
        if by_number and int(folder) != number:
            raise _of_two_classes(f"{where}: the class folder", folder, number, int(folder))
    return numbers


def _of_two_classes(what: str, text: str, by_name: int, by_number: int) -> ImageError:
    return ImageError(
        f'{what} "{clean_text(text)}" is class {by_name} by its name in --labels, and class '
        f"{by_number} by its number. Leave --labels out, or give classes other names."
    )


def _is_number(text: str) -> bool:
    return text.isdecimal() and int(text) <= LARGEST_LABEL


def _numbered(folders: Sequence[str], where: str) -> dict[str, int]:
    """Folders whose names are class numbers."""
    numbers = {folder: int(folder) for folder in folders}
    first: dict[int, str] = {}
    for folder, number in numbers.items():
        if first.setdefault(number, folder) != folder:
            raise ImageError(
                f"{where}: the class folders {clean_text(first[number])} and {clean_text(folder)} have "
                "one number. Put their images into one of them."
            )
    return numbers


def csv_labels(
    path: Path, files: list[Path], classes: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...]]:
    """The label of each file, and a remark on rows without one.

    A label is a class number, or one of the names in `classes`.
    """
    known = {file.name for file in files}
    text = path.read_text("utf-8-sig", errors="replace")
    try:
        rows = max((_rows(text, separator) for separator in ",;\t"), key=lambda r: _named(r, known))
    except csv.Error as error:
        raise ImageError(f"{clean_text(str(path))} is no table ({error}).") from None
    if rows and not {rows[0].name, rows[0].label} & known and not rows[0].label.isdecimal():
        del rows[0]  # the names of the columns
    by_name = classes is not None and all(row.label in classes for row in rows)
    by_number = all(_class_number(row.label) is not None for row in rows)
    table: dict[str, int] = {}
    for row in rows:
        where = f"{clean_text(str(path))} line {row.line}"
        value = _class_number(row.label)
        if classes is not None and by_name:
            value, number = classes.index(row.label), value
            if number is not None and by_number and value != number:
                raise _of_two_classes(f"{where}:", row.label, value, number)
        if value is None:
            order = " The file comes first, then the label." if row.label in known else ""
            raise ImageError(
                f'{where}: "{clean_text(row.label, limit=40)}" is no class number. Expected file,label '
                f"with labels 0, 1, 2 …, or all by the names that --labels FILE gives.{order}"
            )
        if table.setdefault(row.name, value) != value:
            raise ImageError(
                f"{where}: {clean_text(row.name)} has label {value} here and label {table[row.name]} before."
            )
    unlabelled = [file.name for file in files if file.name not in table]
    if unlabelled:
        raise ImageError(
            f"{clean_text(str(path))} has no label for {counted(len(unlabelled), 'image')}, first "
            f"{clean_text(unlabelled[0])}. Complete it, or remove it to scan without labels."
        )
    strangers = sorted(table.keys() - known)
    return (
        [table[file.name] for file in files],
        remark("labels.csv names files that are no images here", strangers),
    )


class _Row(NamedTuple):
    line: int
    name: str
    label: str


def _rows(text: str, separator: str) -> list[_Row]:
    """The rows of a table that name a file; a file's name may hold the separator."""
    table = enumerate(csv.reader(text.splitlines(), delimiter=separator), 1)
    found = [
        _Row(line, separator.join(cells[:-1]).strip(), cells[-1].strip())
        for line, cells in table
        if cells
    ]
    return [row for row in found if row.name]


def _named(rows: Sequence[_Row], known: Collection[str]) -> int:
    """How many rows name one of the files, in either column."""
    return sum(row.name in known or row.label in known for row in rows)


def _class_number(text: str) -> int | None:
    """The number that a text is, if it may be one of a class."""
    number = int(text) if text.isdecimal() and len(text) <= 10 else LARGEST_LABEL + 1
    return number if number <= LARGEST_LABEL else None
