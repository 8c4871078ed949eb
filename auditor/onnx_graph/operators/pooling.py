"""Maxima and means over windows, and over whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.convolution import CONVOLUTIONS, margins, padded
from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import bounded, integers

MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Windows:
    """Where the windows of a pooling lie over the last axes of `x`."""

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        ceil_mode: int,
    ) -> None:
        rank = x.ndim - 2
        self.kernel = list(kernel)
        self.strides = list(strides or [1] * rank)
        self.dilations = list(dilations or [1] * rank)
        sizes = x.shape[2:]
        self.before, self.after = margins(
            sizes, self.kernel, self.strides, self.dilations, pads, auto_pad
        )
        self.beyond = [0] * rank
        """What has to be added after the padding so that the last, incomplete window fits."""
        if ceil_mode:
            for axis in range(rank):
                self.beyond[axis] = self._beyond(sizes[axis], axis)

    def _beyond(self, size: int, axis: int) -> int:
        step = self.strides[axis]
        reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        room = size + self.before[axis] + self.after[axis]
        count = -(-(room - reach) // step) + 1
        if (count - 1) * step >= size + self.before[axis]:
            count -= 1  # a window that would begin in the padding does not count
        return max((count - 1) * step + reach - room, 0)

    @property
    def ends(self) -> list[int]:
        """What has to be added after each axis in all."""
        return [pad + more for pad, more in zip(self.after, self.beyond, strict=True)]

    @property
    def plain(self) -> bool:
        """True where torch's own pooling can pad."""
        halves = [size // 2 for size in self.kernel]
        return self.before == self.ends and all(
            0 <= pad <= half for pad, half in zip(self.before, halves, strict=True)
        )

    def sums(self, x: Tensor) -> Tensor:
        """The sum over each window of a tensor that is padded already."""
        rank = len(self.kernel)
        ones = x.new_ones(bounded([1, 1, *self.kernel], x))
        flat = x.reshape(-1, 1, *x.shape[2:])
        sums = CONVOLUTIONS[rank](flat, ones, None, self.strides, 0, self.dilations)
        return sums.reshape(*x.shape[:2], *sums.shape[2:])


@operator("MaxPool")
def max_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window, and where in the input it was found."""
    windows = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    pool = MAXIMA[x.ndim - 2]
    dtype, values = x.dtype, x if x.is_floating_point() else x.float()
    if windows.plain and outputs == 1:
        padding = windows.before
    else:
        values = padded(values, windows.before, windows.ends, -math.inf)
        padding = [0] * len(windows.kernel)
    arguments = (windows.kernel, windows.strides, padding, windows.dilations)
    if outputs == 1:
        return pool(values, *arguments).to(dtype)
    maxima, found = pool(values, *arguments, return_indices=True)
    positions = _unpadded(found, values.shape[2:], windows.before, x.shape, storage_order)
    return maxima.to(dtype), positions


def _unpadded(
    found: Tensor,
    sizes: Sequence[int],
    before: Sequence[int],
    shape: Sequence[int],
    storage_order: int,
) -> Tensor:
    """Flat positions in a padded image as flat positions in the tensor that was padded."""
    coordinates = []
    for size, pad in zip(reversed(sizes), reversed(before), strict=True):
        coordinates.append(found % size - pad)
        found = found // size
    spatial = shape[2:]
    position = torch.zeros_like(found)
    axes = list(range(len(spatial)))
    for axis in reversed(axes) if storage_order else axes:
        position = position * spatial[axis] + coordinates[len(spatial) - 1 - axis]
    planes = torch.arange(shape[0] * shape[1], device=found.device)
    return position + (planes * math.prod(spatial)).reshape(*shape[:2], *[1] * len(spatial))


@operator("AveragePool")
def average_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean of each window, with or without the padding in it."""
    windows = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if windows.plain and max(windows.dilations) == 1:
        return MEANS[x.ndim - 2](
            x,
            windows.kernel,
            windows.strides,
            windows.before,
            count_include_pad=bool(count_include_pad),
        )
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = padded(ones, windows.before, windows.after, 1.0)
        counted = padded(counted, [0] * len(windows.kernel), windows.beyond)
    else:
        counted = padded(ones, windows.before, windows.ends)
    return windows.sums(padded(x, windows.before, windows.ends)) / windows.sums(counted)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: float = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window."""
    windows = _Windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    powers = padded(x.abs() ** p, windows.before, windows.ends)
    return windows.sums(powers) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor, /) -> Tensor:
    """The mean of each channel."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor, /) -> Tensor:
    """The maximum of each channel."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, /, *, p: float = 2) -> Tensor:
    """The p-norm of each channel."""
    norm: Tensor = torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)
    return norm


@operator("MaxUnpool", host=(2,))
def max_unpool(
    x: Tensor,
    positions: Tensor,
    size: Tensor | None = None,
    /,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Maxima put back where `MaxPool` found them, zeros elsewhere."""
    rank = x.ndim - 2
    steps, margin = list(strides or [1] * rank), list(pads or [0] * 2 * rank)
    spatial = [
        (x.shape[2 + axis] - 1) * steps[axis]
        - margin[axis]
        - margin[rank + axis]
        + kernel_shape[axis]
        for axis in range(rank)
    ]
    inferred = [*x.shape[:2], *spatial]
    shape = bounded(inferred if size is None else integers(size), x)
    # positions count in the tensor that was pooled, whose size may be smaller than asked for
    flat = x.new_zeros(math.prod(inferred)).scatter(0, positions.reshape(-1), x.reshape(-1))
    if shape == inferred:
        return flat.reshape(shape)
    rest = [wanted - have for wanted, have in zip(shape, inferred, strict=True)]
    return padded(flat.reshape(inferred), [0] * len(rest), rest)
