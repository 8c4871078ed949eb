"""Endings of the files that are read from a user's folders."""

from __future__ import annotations

from pathlib import PurePath

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp"))
UNREAD_PICTURES = frozenset((".gif", ".tif", ".tiff", ".avif", ".heic", ".jfif", ".ppm", ".pgm"))
"""Pictures, too, which are said to be left out."""
ARRAYS = frozenset((".npy", ".npz"))
TABLES = frozenset((".csv",))
PROBES = frozenset((".yaml", ".yml"))
MODELS = {
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".ckpt": "PyTorch",
    ".pt2": "torch.export",
    ".onnx": "ONNX",
    ".safetensors": "safetensors",
}
"""Endings that say a model's format; a file's content decides how it is read."""
READ = PICTURES | ARRAYS | TABLES | PROBES
"""Others are no input, but for models and the code that builds them."""


def is_probe(path: PurePath | str) -> bool:
    """Whether a file of that name is a probe."""
    return PurePath(path).suffix.lower() in PROBES
