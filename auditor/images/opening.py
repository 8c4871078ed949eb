"""A path to a source of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auditor.errors import ImageError
from auditor.images.folder import FolderSource
from auditor.images.npz import NpzSource
from auditor.images.source import ImageSource
from auditor.text import clean_text


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
