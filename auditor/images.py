"""The clean set: a user's images, with or without labels, at the model's input size."""

from __future__ import annotations

import csv
import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from auditor.endings import PICTURES, UNREAD_PICTURES
from auditor.errors import ImageError
from auditor.results.facts import InputSpec
from auditor.text import clean_text, counted, listed

MAX_PIXELS = 64_000_000
"""Larger pictures are left out: a decompression bomb, or no input for a classifier."""
IMAGES_KEYS = ("images", "x", "data", "X")
LABELS_KEYS = ("labels", "y", "targets", "Y")
MAX_LISTED = 5
LARGEST_LABEL = 10**9
"""No model has as many classes."""
DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, struct.error,
    zlib.error, zipfile.BadZipFile, Image.DecompressionBombError,
)  # fmt: skip
"""What reading a damaged picture or archive raises."""

Notify = Callable[[str, int, int], None]
"""What is going on, how much is done, of how much."""


def silent(what: str, done: int, total: int) -> None:
    """The default listener: nobody."""


@dataclass(frozen=True, kw_only=True)
class CleanSet:
    """Images at the model's size, 8 bits a channel."""

    images: Tensor
    """``(N, C, H, W)`` uint8 on the CPU."""
    labels: Tensor | None
    """``(N,)`` int64, or None."""
    class_names: tuple[str, ...] = ()
    """Names of the class folders, in the order of their class numbers."""
    found: int = 0
    """Images in the folder or file, of which these were drawn."""
    unreadable: tuple[str, ...] = field(default=())
    """Files that were left out, with the reason."""
    remarks: tuple[str, ...] = ()
    """As of the source."""

    def __len__(self) -> int:
        return len(self.images)

    def copies(self) -> int:
        """Images that are the same as an earlier one, pixel by pixel."""
        return len(self) - len(set(digests(self.images)))

    def digest(self) -> str:
        """SHA-256 over pixels and labels."""
        sha = hashlib.sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()


def digests(images: Tensor) -> list[bytes]:
    """SHA-256 of the pixels of each image ``(N, C, H, W)`` uint8."""
    return [hashlib.sha256(image.numpy()).digest() for image in images.cpu().contiguous()]


class ImageSource:
    """Where clean images come from; knows how many, their labels and sizes before reading all."""

    def __init__(
        self,
        name: str,
        count: int,
        labels: list[int] | None,
        class_names: tuple[str, ...],
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.count = count
        self.labels = labels
        self.class_names = class_names
        self.remarks = remarks
        """What is odd about it, though it can be used, in sentences."""

    def draw(self, limit: int, seed: int) -> list[int]:
        """Indices of at most `limit` images, as evenly over the classes as they come."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed)).tolist()
        if self.labels is None:
            return order[:limit]
        by_class: dict[int, list[int]] = {}
        for index in order:
            by_class.setdefault(self.labels[index], []).append(index)
        rank = {i: place for members in by_class.values() for place, i in enumerate(members)}
        return sorted(order, key=lambda index: rank[index])[:limit]

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        """Heights and widths of some images."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        """One image. Raises one of `DAMAGED` where it cannot be read."""
        raise NotImplementedError

    def label_of(self, index: int) -> int | None:
        """The label of an image, where there are labels."""
        return None if self.labels is None else self.labels[index]

    def title(self, index: int) -> str:
        """How to name an image in a message."""
        return f"image {index}"

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        """Read images and bring them to the model's size.

        Raises:
            ImageError: None of them can be read.
        """
        images, labels, unreadable = [], [], []
        for done, index in enumerate(indices):
            try:
                images.append(resized(self.read(index), spec))
            except DAMAGED as error:
                unreadable.append(f"{self.title(index)} ({_why(error)})")
                continue
            labels.append(self.label_of(index))
            if done % 64 == 63:
                notify("reading images", done + 1, len(indices))
        if not images:
            raise ImageError(
                f"{self.name}: none of the {len(indices)} images can be read: "
                f"{'; '.join(unreadable[:MAX_LISTED])}."
            )
        return CleanSet(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            labels=None if self.labels is None else torch.tensor(labels),
            class_names=self.class_names,
            found=self.count,
            unreadable=tuple(unreadable),
            remarks=self.remarks,
        )


class PartSource(ImageSource):
    """Some images of a source, as a source of its own: the halves of a split."""

    def __init__(self, whole: ImageSource, indices: Sequence[int]) -> None:
        labels = None if whole.labels is None else [whole.labels[index] for index in indices]
        super().__init__(whole.name, len(indices), labels, whole.class_names, whole.remarks)
        self._whole, self._indices = whole, list(indices)

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        return self._whole.sizes([self._indices[index] for index in indices])

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        return self._whole.load([self._indices[index] for index in indices], spec, notify)


def split(
    source: ImageSource, holdout: float, *, limit: int, seed: int
) -> tuple[PartSource, PartSource]:
    """Draw images and part them once: some to work on, the others to judge by.

    The share is taken of every class, where there are labels. A class with one image gives it to
    the first part. Both parts keep the order of the draw, in which classes take turns.

    Args:
        source: Where the images come from.
        holdout: Share of the images that goes to the second part, in (0, 1).
        limit: Draw at most so many, evenly over the classes.
        seed: Of the draw.
    """
    drawn = source.draw(limit, seed)
    by_class: dict[int | None, list[int]] = {}
    for index in drawn:
        by_class.setdefault(source.label_of(index), []).append(index)
    held_out: set[int] = set()
    owed = 0.0
    for members in by_class.values():
        owed += holdout * len(members)  # what is rounded off in one class is made up in the next
        count = min(round(owed), len(members) - 1)
        owed -= count
        held_out.update(members[:count])
    return (
        PartSource(source, [index for index in drawn if index not in held_out]),
        PartSource(source, [index for index in drawn if index in held_out]),
    )


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
            numbers, class_names = _class_numbers(list(members), empty, names, name)
            self._files = [file for files in members.values() for file in files]
            labels = [numbers[d] for d, files in members.items() for _ in files]
            remarks = _remark("Class folders without an image that is read", empty)
        elif flat:
            self._files = flat
            if (folder / "labels.csv").is_file():
                labels, remarks = _csv_labels(folder / "labels.csv", flat, names)
        else:
            raise ImageError(
                f"{name}: no images found. Expected {name}/<class>/*.png, or {name}/*.png, perhaps "
                "with labels.csv (file,label). PNG, JPEG, WebP and BMP are read."
            )
        remarks += _remark("Pictures of formats that are not read", _unread(folder))
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

    def read(self, index: int) -> Image.Image:
        with Image.open(self._files[index]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels")
            return upright(image)

    def title(self, index: int) -> str:
        return clean_text(str(self._files[index].relative_to(self._folder)))


class NpzSource(ImageSource):
    """An `.npz` with `images` (N, H, W[, C]) or (N, C, H, W) uint8 and perhaps `labels` (N,).

    Rows are read from the archive as they are needed, so memory does not grow with the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        name = clean_text(str(path))
        try:
            with zipfile.ZipFile(path) as archive:
                sizes = {member.filename: member.file_size for member in archive.infolist()}
                keys = {Path(member).stem: member for member in sizes}
        except DAMAGED:
            raise ImageError(f"{name} is no .npz file (a zip archive of NumPy arrays).") from None
        image_key = next((key for key in IMAGES_KEYS if key in keys), None)
        if image_key is None:
            raise ImageError(
                f'{name} has no array "images"; it has: {clean_text(", ".join(keys), limit=120)}.'
            )
        self._member = keys[image_key]
        held = sizes[self._member]
        with _opened(path, self._member) as file:
            self._shape, self._dtype = _npy_header(file, name)
        if len(self._shape) not in (3, 4) or self._dtype != np.uint8:
            raise ImageError(
                f"{name}: images are {self._dtype} of shape {self._shape}; expected uint8 "
                "(N, H, W), (N, H, W, C) or (N, C, H, W), values 0 to 255."
            )
        if self._shape[0] == 0:
            raise ImageError(f"{name}: the array {image_key} holds no images.")
        if min(self._shape) < 1 or math.prod(self._shape) > held:
            raise ImageError(
                f"{name}: the array {image_key} is damaged: its shape is {self._shape}, and it holds {held} "
                "bytes."
            )
        label_key = next((key for key in LABELS_KEYS if key in keys), None)
        labels = None if label_key is None else self._labels(keys[label_key], name)
        super().__init__(name, self._shape[0], labels, ())
        self._rows: dict[int, np.ndarray] = {}

    def _labels(self, member: str, name: str) -> list[int]:
        count = self._shape[0]
        with _opened(self._path, member) as file:
            shape, dtype = _npy_header(file, name)
            if shape != (count,) or dtype.kind not in "iu":
                raise ImageError(
                    f"{name}: labels are {dtype} of shape {shape}; expected {count} integers."
                )
            read = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype, count=count)
        labels = [int(label) for label in read]
        strange = next((label for label in labels if not 0 <= label <= LARGEST_LABEL), None)
        if strange is not None:
            raise ImageError(f"{name}: label {strange} is no class number (0, 1, 2 …).")
        return labels

    def load(self, indices: Sequence[int], spec: InputSpec, notify: Notify = silent) -> CleanSet:
        self._rows = self._read_rows(set(indices))
        try:
            return super().load(indices, spec, notify)
        finally:
            self._rows = {}

    def _read_rows(self, wanted: set[int]) -> dict[int, np.ndarray]:
        size = int(np.prod(self._shape[1:]))
        rows = {}
        with _opened(self._path, self._member) as file:
            _npy_header(file, self.name)
            for index in range(max(wanted) + 1):
                data = file.read(size)
                if index in wanted and len(data) == size:
                    rows[index] = np.frombuffer(data, dtype=np.uint8).reshape(self._shape[1:])
        return rows

    def sizes(self, indices: Sequence[int]) -> set[tuple[int, int]]:
        height, width = self._shape[1:3] if not self._channels_first else self._shape[2:4]
        return {(height, width)}

    @property
    def _channels_first(self) -> bool:
        channels = (1, 3, 4)
        return (
            len(self._shape) == 4 and self._shape[1] in channels and self._shape[3] not in channels
        )

    def read(self, index: int) -> Image.Image:
        if index not in self._rows:
            raise ValueError("the file ends before it")
        pixels = self._rows[index]
        if self._channels_first:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        return upright(Image.fromarray(np.ascontiguousarray(pixels)))


def open_images(path: Path, names: Sequence[str] | None = None) -> ImageSource:
    """Understand `--clean`: a folder or an `.npz` file.

    Args:
        path: The folder or file.
        names: Class names in the order of the model's outputs (`--labels`), where known.

    Raises:
        ImageError: There is no such folder, no images in it, or labels that make no sense.
    """
    if path.is_dir():
        return FolderSource(path, names)
    if not path.exists():
        raise ImageError(f"{clean_text(str(path))}: no such folder.")
    if path.suffix.lower() == ".npz":
        return NpzSource(path)
    raise ImageError(f"{clean_text(str(path))} is neither a folder of images nor an .npz file.")


def upright(image: Image.Image) -> Image.Image:
    """A picture as a camera meant it: rotated by its EXIF tag, 8 bits, RGB or grey."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        top = 65535 if pixels.max() > 255 else 255
        image = Image.fromarray((pixels / top * 255).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def resized(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """A picture at the model's size: ``(H, W, C)`` uint8.

    The shorter side is scaled to fit and the middle is cut out; nothing is squeezed.
    """
    image = image.convert("L" if spec.channels == 1 else "RGB")
    if image.size != (spec.width, spec.height):
        image = ImageOps.fit(image, (spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)


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


def _class_numbers(
    folders: list[str], empty: Sequence[str], names: Sequence[str] | None, where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class number a folder, and the class names in order.

    A folder without images takes part in the alphabetical order, as it does for torchvision, and makes
    no difference where folders are named by `names` or by numbers.
    """
    filled = [folder for folder in folders if folder not in empty]
    if names is not None:
        strangers = [folder for folder in filled if folder not in names]
        if strangers:
            raise ImageError(
                f'{where}: the class folder "{clean_text(strangers[0])}" is not among the '
                f"{len(names)} names of --labels."
            )
        return {folder: names.index(folder) for folder in filled}, tuple(names)
    if all(folder.isdecimal() and int(folder) <= LARGEST_LABEL for folder in filled):
        numbers = {folder: int(folder) for folder in filled}
        first: dict[int, str] = {}
        for folder, number in numbers.items():
            if first.setdefault(number, folder) != folder:
                raise ImageError(
                    f"{where}: the class folders {clean_text(first[number])} and {clean_text(folder)} have "
                    "one number. Put their images into one of them."
                )
        return numbers, ()
    return {folder: number for number, folder in enumerate(folders)}, tuple(folders)


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


def _csv_labels(
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
            if by_number and value != number:
                raise ImageError(
                    f'{where}: "{clean_text(row.label)}" is class {value} by its name in --labels, and class '
                    f"{number} by its number. Leave --labels out, or give classes other names."
                )
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
        _remark("labels.csv names files that are no images here", strangers),
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


def _remark(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """What is odd about a folder, with the names of the first few; nothing where there are none."""
    shown = [clean_text(name, limit=60) for name in names]
    return (f"{what}: {listed(shown, MAX_LISTED)}.",) if shown else ()


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    """One array of an archive, to be read.

    Raises:
        ImageError: It is damaged, or compressed or encrypted in a way that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield file
    except (*DAMAGED, RuntimeError) as error:
        shown = clean_text(str(error), limit=120)
        raise ImageError(
            f"{clean_text(str(path))}: {clean_text(member)} is damaged ({shown})."
        ) from None


def _npy_header(file: object, name: str) -> tuple[tuple[int, ...], np.dtype]:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)  # type: ignore[arg-type]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)  # type: ignore[arg-type]
    except ValueError as error:
        raise ImageError(f"{name} holds a damaged array ({clean_text(str(error))}).") from None
    if fortran or dtype.hasobject:
        raise ImageError(f"{name}: arrays must be plain numbers in C order.")
    return shape, dtype


def _why(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture"
    return clean_text(str(error), limit=80) or type(error).__name__
