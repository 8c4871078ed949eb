"""Sizes that a file asks for: read as plain numbers, and refused where they are absurd."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor

LARGEST = 2**28
"""Elements that any single value may have: a gigabyte of float32."""
GROWTH = 64
"""How many times larger than its inputs a value may be beyond that (large batches are)."""


class TooLarge(ValueError):
    """A node asks for a value so large that no classifier of images has it."""


def bounded(shape: Iterable[int], *sources: Tensor) -> list[int]:
    """`shape`, if a tensor of it may be made from `sources`.

    Raises:
        TooLarge: It has too many elements.
    """
    sizes = list(shape)
    limit = max([LARGEST, *(GROWTH * source.numel() for source in sources)])
    if math.prod(sizes) > limit:
        raise TooLarge(f"asks for a tensor of shape {sizes}")
    return sizes


def broadcastable(*tensors: Tensor) -> None:
    """Refuse tensors whose common shape would be absurd.

    Raises:
        TooLarge: It has too many elements.
    """
    if math.prod(tensor.numel() for tensor in tensors) > LARGEST:
        bounded(np.broadcast_shapes(*(tensor.shape for tensor in tensors)), *tensors)


def integers(tensor: Tensor) -> list[int]:
    """The elements of a tensor of sizes, axes or indices as plain numbers."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def axes_of(given: Tensor | None, attribute: Iterable[int] | None, rank: int) -> list[int] | None:
    """Axes from an input (newer operator sets) or an attribute (older), counted from the front.

    Raises:
        IndexError: There is no such axis.
    """
    if given is None and attribute is None:
        return None
    axes = list(attribute or ()) if given is None else integers(given)
    return [axis_of(axis, rank) for axis in axes]


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front.

    Raises:
        IndexError: There is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise IndexError(f"has no axis {axis}: its input has {rank}")
    return axis % max(rank, 1)
