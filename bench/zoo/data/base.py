"""What a data set is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from auditor.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images ``(N, C, H, W)`` uint8 and their classes ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set. `test` is never trained on; audits take their clean images from it."""

    names: tuple[str, ...]
    train: Part
    test: Part

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)


DATA: Registry[Callable[[Path], Data]] = Registry("data set")
"""Name -> loader; it is given the folder that holds all data sets."""
