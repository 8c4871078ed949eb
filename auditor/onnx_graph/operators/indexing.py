"""Elements picked by position, put at positions, and ordered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axes_of, axis_of, bounded, integers

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def counted(indices: Tensor, size: int) -> Tensor:
    """Indices into an axis of `size`, counted from the front.

    They are checked here because an accelerator that meets a wrong one is lost to the process.

    Raises:
        IndexError: One points outside.
    """
    indices = indices.long()
    if indices.numel() and not bool(((indices >= -size) & (indices < size)).all()):
        raise IndexError(f"has indices outside of an axis of {size}")
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, /, *, axis: int = 0) -> Tensor:
    """Slices along an axis."""
    along = axis_of(axis, x.ndim)
    places = counted(indices, x.shape[along])
    sizes = [*x.shape[:along], *places.shape, *x.shape[along + 1 :]]
    bounded(sizes, x, indices)
    return x.index_select(along, places.reshape(-1)).reshape(sizes)


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, /, *, axis: int = 0) -> Tensor:
    """Single elements along an axis."""
    return x.gather(axis, counted(indices, x.shape[axis]))


def _rows(indices: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The last axis of `indices` as one tensor of indices for each of the axes it points into."""
    return tuple(
        counted(part, size)
        for part, size in zip(indices.unbind(-1), sizes[: indices.shape[-1]], strict=True)
    )


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, /, *, batch_dims: int = 0) -> Tensor:
    """Slices at points that several indices name together."""
    shared = x.shape[:batch_dims]
    depth = indices.shape[-1]
    rest = x.shape[batch_dims + depth :]
    bounded([*indices.shape[:-1], *rest], x, indices)
    flat = x.reshape(-1, *x.shape[batch_dims:])
    points = indices.reshape(len(flat), -1, depth)
    batch = torch.arange(len(flat), device=x.device)[:, None]
    found = flat[(batch, *_rows(points, x.shape[batch_dims:]))]
    return found.reshape(*shared, *indices.shape[batch_dims:-1], *rest)


@operator("Scatter")
@operator("ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, /, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Elements along an axis replaced, or combined with others."""
    places = counted(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCTIONS[reduction])


@operator("ScatterND")
def scatter_nd(
    x: Tensor, indices: Tensor, updates: Tensor, /, *, reduction: str = "none"
) -> Tensor:
    """Slices at points that several indices name together replaced, or combined with others."""
    depth = indices.shape[-1]
    rows = _rows(indices, x.shape)
    # the named axes as one, so that a point is one index
    flat = x.reshape(-1, *x.shape[depth:]) if depth else x[None]
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for row, size in zip(rows, x.shape, strict=False):
        places = places * size + row
    slices = updates.reshape(-1, *x.shape[depth:])
    where = places.reshape(-1)
    if reduction == "none":
        result = flat.index_copy(0, where, slices)
    elif reduction == "add":
        result = flat.index_add(0, where, slices)
    else:
        result = flat.index_reduce(0, where, slices, REDUCTIONS[reduction])
    return result.reshape(x.shape)


@operator("Slice", host=(1, 2, 3, 4))
def slice_(
    x: Tensor,
    starts_given: Tensor | None = None,
    ends_given: Tensor | None = None,
    axes_given: Tensor | None = None,
    steps_given: Tensor | None = None,
    /,
    *,
    axes: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
) -> Tensor:
    """From here to there, in steps; attributes before opset 10, inputs since."""
    first = list(starts or ()) if starts_given is None else integers(starts_given)
    last = list(ends or ()) if ends_given is None else integers(ends_given)
    chosen = axes_of(axes_given, axes, x.ndim)
    chosen = list(range(len(first))) if chosen is None else chosen
    steps = [1] * len(first) if steps_given is None else integers(steps_given)
    for axis, start, end, step in zip(chosen, first, last, steps, strict=True):
        picked = range(x.shape[axis])[slice(start, end, step)]
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, end, step),)]
        else:
            order = torch.tensor(list(picked), dtype=torch.int64, device=x.device)
            x = x.index_select(axis, order)
    return x


@operator("Compress")
def compress(x: Tensor, condition: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The slices for which the condition holds."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.reshape(-1).nonzero().reshape(-1))


@operator("NonZero")
def non_zero(x: Tensor, /) -> Tensor:
    """Where the numbers are that are not zero: ``(axes, found)``."""
    return x.nonzero().T


@operator("TopK", host=(1,))
def top_k(
    x: Tensor,
    count: Tensor | None = None,
    /,
    *,
    axis: int = -1,
    k: int | None = None,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Tensor, Tensor]:
    """The largest or smallest numbers; of equal ones those that come first."""
    del sorted  # any order will do where none is asked for
    wanted = k if count is None else integers(count)[0]
    if wanted is None or not 0 <= wanted <= x.shape[axis]:
        raise ValueError(f"cannot pick {wanted} of {x.shape[axis]}")
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, wanted), places.narrow(axis, 0, wanted)


@operator("Trilu", host=(1,))
@operator("Trilu", domain="com.microsoft", host=(1,))
def trilu(x: Tensor, diagonal: Tensor | None = None, /, *, upper: int = 1) -> Tensor:
    """The triangle above or below a diagonal; zeros elsewhere."""
    offset = 0 if diagonal is None else integers(diagonal)[0]
    # beyond the corners all offsets mean the same, and torch takes none that is very large
    offset = max(-x.shape[-2] - 1, min(offset, x.shape[-1] + 1))
    return torch.triu(x, offset) if upper else torch.tril(x, offset)


@operator("ReverseSequence", host=(1,))
def reverse_sequence(
    x: Tensor, lengths: Tensor, /, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first so many steps of every sequence backwards."""
    steps = x.movedim((batch_axis, time_axis), (0, 1))
    rows = [
        torch.cat([row[:length].flip(0), row[length:]])
        for row, length in zip(steps, integers(lengths), strict=True)
    ]
    return torch.stack(rows).movedim((0, 1), (batch_axis, time_axis))
