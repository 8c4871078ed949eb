"""What onnxruntime's quantiser writes beside the standard's operators (domain com.microsoft).

All of them mean: to numbers, the operator that they are named after, back to the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auditor.onnx_graph.operators.activations import leaky_relu
from auditor.onnx_graph.operators.elementwise import where
from auditor.onnx_graph.operators.matrices import product
from auditor.onnx_graph.operators.pooling import average_pool, global_average_pool
from auditor.onnx_graph.operators.quantisation import (
    centred,
    column_wise,
    dequantised,
    dynamic_quantize_linear,
    matmul_integer,
    quantised,
)
from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.shaping import concat
from auditor.onnx_graph.operators.sizes import axis_of, broadcastable

MICROSOFT = "com.microsoft"


@operator("QLinearAdd", MICROSOFT)
def qlinear_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
    /,
) -> Tensor:
    """The sum of two quantised values."""
    broadcastable(a, b)
    total = dequantised(a, a_scale, a_zero) + dequantised(b, b_scale, b_zero)
    return quantised(total, c_scale, c_zero)


@operator("QLinearMul", MICROSOFT)
def qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
    /,
) -> Tensor:
    """The product of two quantised values, number by number."""
    broadcastable(a, b)
    # in this order sums of integers stay exact: it decides between two grid points
    total = centred(a, a_zero) * centred(b, b_zero) * (a_scale * b_scale)
    return quantised(total, c_scale, c_zero)


@operator("QLinearSigmoid", MICROSOFT)
def qlinear_sigmoid(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    /,
) -> Tensor:
    """1 / (1 + exp(-x))."""
    return quantised(torch.sigmoid(dequantised(x, x_scale, x_zero)), y_scale, y_zero)


@operator("QLinearLeakyRelu", MICROSOFT)
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    /,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """`alpha` x below 0."""
    values = leaky_relu(dequantised(x, x_scale, x_zero), alpha=alpha)
    return quantised(values, y_scale, y_zero)


@operator("QLinearSoftmax", MICROSOFT)
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    /,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Tensor:
    """The soft maximum; `opset` is that of the operator which was quantised."""
    values = dequantised(x, x_scale, x_zero)
    if opset >= 13:
        return quantised(values.softmax(axis), y_scale, y_zero)
    start = axis_of(axis, x.ndim)
    shares = values.flatten(start).softmax(start).reshape(x.shape)
    return quantised(shares, y_scale, y_zero)


@operator("QLinearConcat", MICROSOFT)
def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    """Values of several grids behind one another on one."""
    triples = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    values = [dequantised(x, scale, zero) for x, scale, zero in triples]
    return quantised(concat(*values, axis=axis), y_scale, y_zero)


@operator("QLinearWhere", MICROSOFT)
def qlinear_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    z_scale: Tensor,
    z_zero: Tensor,
    /,
) -> Tensor:
    """`x` where the condition holds, `y` elsewhere."""
    first, second = dequantised(x, x_scale, x_zero), dequantised(y, y_scale, y_zero)
    return quantised(where(condition, first, second), z_scale, z_zero)


@operator("QLinearGlobalAveragePool", MICROSOFT)
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    /,
    *,
    channels_last: int = 0,
) -> Tensor:
    """The mean of each channel."""
    values = dequantised(x, x_scale, x_zero)
    if channels_last:
        mean = global_average_pool(values.movedim(-1, 1)).movedim(1, -1)
    else:
        mean = global_average_pool(values)
    return quantised(mean, y_scale, y_zero)


@operator("QLinearAveragePool", MICROSOFT)
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean of each window."""
    values = dequantised(x, x_scale, x_zero)
    mean = average_pool(
        values.movedim(-1, 1) if channels_last else values,
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return quantised(mean.movedim(1, -1) if channels_last else mean, y_scale, y_zero)


@operator("QGemm", MICROSOFT)
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    /,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Alpha a @ b + c of integers, to numbers or to the grid of the result."""
    left = centred(a, a_zero).T if transA else centred(a, a_zero)
    columns = b.T if transB else b
    sums = product(left, centred(columns, column_wise(b_zero, 2)))
    sums = sums if c is None else sums + c.float()
    values = sums * (alpha * a_scale * column_wise(b_scale, 2))
    return values if y_scale is None else quantised(values, y_scale, y_zero)


@operator("MatMulIntegerToFloat", MICROSOFT)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
    /,
) -> Tensor:
    """The product of matrices of integers as numbers."""
    sums = matmul_integer(a, b, a_zero, b_zero)
    values = sums * (a_scale * column_wise(b_scale, sums.ndim))
    return values if bias is None else values + bias


@operator("DynamicQuantizeMatMul", MICROSOFT)
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
    /,
) -> Tensor:
    """The product of a matrix, quantised by its range, with one of integers."""
    steps, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(steps, b, scale, b_scale, zero, b_zero, bias)
