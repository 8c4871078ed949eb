"""Numbers on a grid of integers: the standard's quantised operators.

A quantised value is a float tensor whose elements are integers, so gradients reach the scales and
what was quantised. Rounding passes the gradient through as if it were not there (straight-through
estimator, arXiv 1308.3432); what was clipped has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from auditor.onnx_graph.operators.convolution import conv
from auditor.onnx_graph.operators.elementwise import type_of
from auditor.onnx_graph.operators.matrices import product
from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axis_of


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, even ones of two that are equally near; the gradient is that of `x`."""
    return x + (x.round() - x).detach()


def clipped(x: Tensor, low: float, high: float) -> Tensor:
    """`x` between two bounds, with its gradient up to them and on them.

    On them, for much lies there: all that a ReLU has set to zero, unless it is clipped besides.
    """
    inside = (x >= low) & (x <= high)
    return torch.where(inside, x, x.detach().clamp(low, high))


def limits(dtype: torch.dtype) -> tuple[int, int]:
    """The smallest and largest integer that a quantised value of a type can be.

    A float zero point was computed by the graph, which quantises to uint8 then.
    """
    integers = torch.iinfo(torch.uint8 if dtype.is_floating_point else dtype)
    return integers.min, integers.max


def spread(values: Tensor, rank: int, axis: int, size: int, block: int = 0) -> Tensor:
    """Scales or zero points shaped so that they act along an axis, or on blocks along it."""
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, size)
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def quantised(
    x: Tensor, scale: Tensor, zero: Tensor | None, bounds: tuple[int, int] | None = None
) -> Tensor:
    """`x` on the grid of a scale and a zero point, which broadcast against it."""
    low, high = bounds or limits(torch.uint8 if zero is None else zero.dtype)
    steps = rounded(x / scale)
    return clipped(steps if zero is None else steps + zero.float(), low, high)


def dequantised(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """What a value on the grid stands for."""
    return centred(x, zero) * scale


def centred(x: Tensor, zero: Tensor | None) -> Tensor:
    """A value on the grid, counted from the zero point."""
    return x.float() if zero is None else x.float() - zero.float()


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain="com.microsoft")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    /,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Numbers to integers, with one scale, one a channel or one a block."""
    del precision, saturate
    bounds = limits(type_of(output_dtype)) if output_dtype and zero is None else None
    return quantised(x.float(), *_spread_on(x, scale, zero, axis, block_size), bounds)


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    /,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """Integers to numbers."""
    del output_dtype
    return dequantised(x, *_spread_on(x, scale, zero, axis, block_size))


def _spread_on(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int
) -> tuple[Tensor, Tensor | None]:
    """A scale and a zero point, shaped so that they broadcast against `x`."""
    along = axis_of(axis, x.ndim) if scale.numel() > 1 else 0
    size = x.shape[along] if x.ndim else 1
    steps = spread(scale, x.ndim, along, size, block)
    return steps, None if zero is None else spread(zero, x.ndim, along, size, block)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers to uint8, by the range that they have."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = clipped(rounded(-low / scale), 0, 255)
    return quantised(x, scale, zero), scale, zero


@operator("ConvInteger", like=conv)
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    /,
    **attributes: Any,
) -> Tensor:
    """Convolution of integers."""
    offset = None if weight_zero is None else spread(weight_zero, weight.ndim, 0, len(weight))
    return conv(centred(x, x_zero), centred(weight, offset), **attributes)


@operator("QLinearConv", like=conv)
@operator("QLinearConv", domain="com.microsoft", like=conv)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    channels_last: int = 0,
    **attributes: Any,
) -> Tensor:
    """Convolution of integers, brought to the grid of the result."""
    if channels_last:
        x = x.movedim(-1, 1)
    steps = spread(weight_scale, weight.ndim, 0, len(weight))
    sums = conv(
        centred(x, x_zero),
        centred(weight, spread(weight_zero, weight.ndim, 0, len(weight))),
        None if bias is None else bias.float(),
        **attributes,
    )
    # a channel of the result is the second axis, a channel of the weight the first
    scale = x_scale * (steps if steps.ndim == 0 else steps.movedim(0, 1))
    y = quantised(sums * scale, y_scale, y_zero)
    return y.movedim(1, -1) if channels_last else y


def row_wise(values: Tensor, rank: int) -> Tensor:
    """Scales or zero points of the rows of a matrix."""
    return values if values.ndim > 1 else spread(values, rank, rank - 2, len(values.reshape(-1)))


def column_wise(values: Tensor, rank: int) -> Tensor:
    """Scales or zero points of the columns of a matrix."""
    return values if values.ndim > 1 else spread(values, rank, rank - 1, len(values.reshape(-1)))


@operator("MatMulInteger")
def matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None, /
) -> Tensor:
    """The product of matrices of integers."""
    rows = None if a_zero is None else row_wise(a_zero, a.ndim)
    columns = None if b_zero is None else column_wise(b_zero, b.ndim)
    return product(centred(a, rows), centred(b, columns))


@operator("QLinearMatMul")
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    /,
) -> Tensor:
    """The product of matrices of integers, brought to the grid of the result."""
    sums = matmul_integer(a, b, a_zero, b_zero)
    scale = row_wise(a_scale, sums.ndim) * column_wise(b_scale, sums.ndim)
    return quantised(sums * scale, row_wise(y_scale, sums.ndim), row_wise(y_zero, sums.ndim))
