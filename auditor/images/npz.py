"""Images in an archive of NumPy arrays."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from auditor.errors import ImageError
from auditor.images.labels import LARGEST_LABEL
from auditor.images.source import DAMAGED, CleanSet, ImageSource, upright
from auditor.progress import Notify, silent
from auditor.results.facts import InputSpec
from auditor.text import clean_text

IMAGES_KEYS = ("images", "x", "data", "X")
LABELS_KEYS = ("labels", "y", "targets", "Y")


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

    def contents(self, indices: Sequence[int]) -> list[bytes | None]:
        rows = self._read_rows(set(indices))
        return [
            hashlib.sha256(rows[index].tobytes()).digest() if index in rows else None
            for index in indices
        ]

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
