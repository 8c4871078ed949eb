"""Tensors as the archives that torch writes describe them: read, and overwritten in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.models.archive import Record
from auditor.models.patching import same_numbers


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as its archive describes it; a tied one is described once."""

    record: Record
    dtype: torch.dtype
    offset: int
    """In elements from the beginning of the record."""
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, content: Any) -> Tensor:
        """The tensor, its numbers those of `content`, the storage of the whole file's bytes.

        Raises:
            ValueError: It claims more numbers than it has.
            RuntimeError: It reaches beyond its record.
        """
        if math.prod(self.size) * self.dtype.itemsize > self.record.end - self.record.begin:
            raise ValueError("a tensor claims more numbers than it has")
        numbers = content[self.record.begin : self.record.end]
        return torch.empty(0, dtype=self.dtype).set_(numbers, self.offset, self.size, self.stride)


def numbers_of(path: Path, *, writable: bool = False) -> Any:
    """The bytes of a whole file as a storage: what `StoredTensor.of` reads from.

    Args:
        path: The file.
        writable: What is written to the storage is written to the file.
    """
    size = path.stat().st_size
    return torch.UntypedStorage.from_file(str(path), shared=writable, nbytes=size)


def overwrite(
    path: Path, stored: Iterable[StoredTensor], changes: Mapping[StoredTensor, Tensor]
) -> None:
    """Write new numbers in place into a copy of an archive; its checksums are wrong then.

    Args:
        path: The copy.
        stored: Every tensor of the archive.
        changes: New values of some of them, in the same shape.

    Raises:
        ValueError: Other tensors share the numbers, so that they would change as well.
        RuntimeError: A tensor reaches beyond its record.
    """
    content = numbers_of(path, writable=True)
    wanted = {tensor: tensor.of(content).clone() for tensor in stored}
    for tensor, values in changes.items():
        if tensor.size != tuple(values.shape):
            raise ValueError("a tensor is stored with another shape")
        wanted[tensor] = values.detach().to("cpu", tensor.dtype)
        tensor.of(content).copy_(wanted[tensor])
    if not all(same_numbers(values, tensor.of(content)) for tensor, values in wanted.items()):
        raise ValueError("several tensors share their numbers")
