"""Shapes: told, changed, joined, split, repeated and padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.convolution import padded
from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axes_of, axis_of, bounded, integers


@operator("Shape")
def shape(x: Tensor, /, *, end: int | None = None, start: int = 0) -> Tensor:
    """The sizes of (some of) the axes, as int64 on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor, /) -> Tensor:
    """The number of elements, as int64 on the CPU."""
    return torch.tensor(x.numel())


@operator("Reshape", host=(1,))
def reshape(
    x: Tensor,
    wanted: Tensor | None = None,
    /,
    *,
    allowzero: int = 0,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """Another shape: 0 keeps the size of an axis, -1 is what is left."""
    sizes = list(shape or ()) if wanted is None else integers(wanted)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, /, *, axis: int = 1) -> Tensor:
    """Two axes: everything before `axis`, everything from it on."""
    start = axis + x.ndim if axis < 0 else axis
    rows = math.prod(x.shape[:start])
    return x.reshape(rows, math.prod(x.shape[start:]))


@operator("Squeeze", host=(1,))
def squeeze(
    x: Tensor, given: Tensor | None = None, /, *, axes: Sequence[int] | None = None
) -> Tensor:
    """Without (some of) the axes of size 1."""
    chosen = axes_of(given, axes, x.ndim)
    if chosen is None:
        return x.squeeze()
    for axis in chosen:
        if x.shape[axis] != 1:
            raise ValueError(f"cannot squeeze axis {axis} of {list(x.shape)}")
    return x.squeeze(tuple(chosen))


@operator("Unsqueeze", host=(1,))
def unsqueeze(
    x: Tensor, given: Tensor | None = None, /, *, axes: Sequence[int] | None = None
) -> Tensor:
    """With new axes of size 1 where the result has `axes`."""
    count = len(axes or ()) if given is None else given.numel()
    for axis in sorted(axes_of(given, axes, x.ndim + count) or []):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, /, *, perm: Sequence[int] | None = None) -> Tensor:
    """The axes in another order, reversed if none is told."""
    return x.permute(list(perm) if perm is not None else list(reversed(range(x.ndim))))


@operator("Concat")
def concat(*tensors: Tensor, axis: int = 1) -> Tensor:
    """Tensors behind one another."""
    first = tensors[0]
    along = axis_of(axis, first.ndim)
    sizes = list(first.shape)
    sizes[along] = sum(tensor.shape[along] for tensor in tensors)
    bounded(sizes, *tensors)
    return torch.cat(tensors, along)


@operator("Split", host=(1,))
def split(
    x: Tensor,
    sizes: Tensor | None = None,
    /,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    split: Sequence[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Parts along an axis: of told sizes, or as equal as can be."""
    along = axis_of(axis, x.ndim)
    if sizes is not None:
        return x.split_with_sizes(integers(sizes), along)
    if split:
        return x.split_with_sizes(list(split), along)
    count = num_outputs or outputs
    part = -(-x.shape[along] // count)
    parts = [part] * (count - 1)
    return x.split_with_sizes([*parts, x.shape[along] - sum(parts)], along)


@operator("Expand", host=(1,))
def expand(x: Tensor, shape: Tensor, /) -> Tensor:
    """Broadcast to a shape that is broadcast to it."""
    sizes = np.broadcast_shapes(x.shape, integers(shape))
    return x.expand(bounded(sizes, x))


@operator("Tile", host=(1,))
def tile(x: Tensor, repeats: Tensor, /) -> Tensor:
    """Repeated along every axis."""
    times = integers(repeats)
    bounded([size * time for size, time in zip(x.shape, times, strict=True)], x)
    return x.repeat(times)


@operator("Pad", host=(1, 3))
@operator("Pad", domain="com.microsoft", host=(1, 3))
def pad(
    x: Tensor,
    borders: Tensor | None = None,
    constant: Tensor | None = None,
    along: Tensor | None = None,
    /,
    *,
    mode: str = "constant",
    paddings: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    value: float = 0.0,
) -> Tensor:
    """A border of a constant, of the edge, or of what lies mirrored or wrapped around."""
    widths = list(pads or paddings or ()) if borders is None else integers(borders)
    axes = axes_of(along, None, x.ndim)
    axes = list(range(x.ndim)) if axes is None else axes
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(axes):
        before[axis], after[axis] = widths[position], widths[position + len(axes)]
    if mode == "constant":
        return padded(x, before, after, value if constant is None else constant.item())
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        x = _bordered(x, axis, low, high, mode)
    return x


def _bordered(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """`x` padded along an axis with its own elements; a negative border crops."""
    if before == after == 0:
        return x
    sizes = list(x.shape)
    sizes[axis] += before + after
    bounded(sizes, x)
    order = np.arange(x.shape[axis])
    order = order[max(-before, 0) : len(order) - max(-after, 0)]
    width = (max(before, 0), max(after, 0))
    if mode not in ("reflect", "edge", "wrap"):
        raise NotImplementedError(f"pads in the mode {mode!r}")
    order = np.pad(order, width, mode=mode)  # type: ignore[call-overload]
    return x.index_select(axis, torch.from_numpy(order).to(x.device))


@operator("CenterCropPad", host=(1,))
def center_crop_pad(x: Tensor, shape: Tensor, /, *, axes: Sequence[int] | None = None) -> Tensor:
    """Cropped or padded with zeros, on both sides, to a size."""
    before, after = [0] * x.ndim, [0] * x.ndim
    chosen = axes_of(None, axes, x.ndim) or list(range(x.ndim))
    for axis, wanted in zip(chosen, integers(shape), strict=True):
        more = wanted - x.shape[axis]
        # of an odd number to crop the larger half is cut behind, of one to pad it is put there
        before[axis] = more // 2 if more >= 0 else -(-more // 2)
        after[axis] = more - before[axis]
    return padded(x, before, after)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, /, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels spread over blocks of pixels."""
    images, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(images, blocksize, blocksize, depth, height, width)
        blocks = blocks.permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(images, depth, blocksize, blocksize, height, width)
        blocks = blocks.permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(images, depth, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, /, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels gathered into channels."""
    images, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    blocks = x.reshape(images, channels, rows, blocksize, columns, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(images, channels * blocksize**2, rows, columns)


@operator("Col2Im", host=(1, 2))
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    /,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Blocks put back to where they were cut out, added where they overlap."""
    image, block = integers(image_shape), integers(block_shape)
    rank = len(image)
    if rank != 2:
        raise NotImplementedError(f"puts together images of {rank} axes")
    margin = list(pads or [0] * 4)
    whole = [image[axis] + margin[axis] + margin[rank + axis] for axis in range(rank)]
    bounded([len(x), x.shape[1] // math.prod(block), *whole], x)
    steps, spread = tuple(strides or (1, 1)), tuple(dilations or (1, 1))
    folded = F.fold(x, tuple(whole), tuple(block), spread, 0, steps)
    return padded(folded, [-low for low in margin[:rank]], [-high for high in margin[rank:]])
