"""Arithmetic, comparisons, logic and types: what is computed number by number."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import torch
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import broadcastable


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def apply(x: Tensor, /) -> Tensor:
        return function(x)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}
for _name, _function in _UNARY.items():
    _unary(_name, _function)


def aligned(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """`b` shaped so that it broadcasts against `a` as before opset 7: from `axis` on."""
    if axis is None or axis < 0:
        return b
    return b.reshape(*b.shape, *[1] * (a.ndim - axis - b.ndim))


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def apply(a: Tensor, b: Tensor, /, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
        del broadcast  # what does not broadcast has equal shapes, to which all rules apply
        b = aligned(a, b, axis)
        broadcastable(a, b)
        return function(a, b)


def _div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    result = torch.pow(base, exponent)
    return result if base.is_floating_point() else result.to(base.dtype)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _div,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _pow,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
for _name, _pair in _BINARY.items():
    _binary(_name, _pair)


@operator("Mod")
def mod(a: Tensor, b: Tensor, /, *, fmod: int = 0) -> Tensor:
    """The rest of a division, of the sign of the dividend (fmod) or of the divisor."""
    broadcastable(a, b)
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("BitShift")
def bit_shift(x: Tensor, y: Tensor, /, *, direction: str) -> Tensor:
    """Bits moved to the left or to the right."""
    broadcastable(x, y)
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return shift(x, y)


def _variadic(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def apply(*tensors: Tensor) -> Tensor:
        broadcastable(*tensors)
        return functools.reduce(function, tensors)


_variadic("Sum", torch.add)
_variadic("Max", torch.maximum)
_variadic("Min", torch.minimum)


@operator("Mean")
def mean(*tensors: Tensor) -> Tensor:
    """The mean of several tensors, number by number."""
    broadcastable(*tensors)
    return functools.reduce(torch.add, tensors) / len(tensors)


@operator("Where")
def where(condition: Tensor, x: Tensor, y: Tensor, /) -> Tensor:
    """`x` where the condition holds, `y` elsewhere."""
    broadcastable(condition, x, y)
    return torch.where(condition.bool(), x, y)


@operator("Clip")
def clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    /,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Numbers brought between bounds: attributes before opset 11, inputs since."""
    if low is not None or high is not None:
        return torch.clamp(x, low, high)
    return x if min is None and max is None else torch.clamp(x, min, max)


@operator("IsInf")
def is_inf(x: Tensor, /, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Which numbers are infinite, of which sign."""
    negative = torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)
    return negative | torch.isposinf(x) if detect_positive else negative


TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    # half precision and doubles are computed as float32: gradients would underflow in the first
    onnx.TensorProto.FLOAT16: torch.float32,
    onnx.TensorProto.BFLOAT16: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float32,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.UINT16: torch.int32,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.UINT32: torch.int64,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT64: torch.int64,
}
"""ONNX element type -> the torch type that we compute with."""


def type_of(element: int) -> torch.dtype:
    """The torch type for an ONNX element type.

    Raises:
        TypeError: We compute with no such type (strings, float8, four bits, complex numbers).
    """
    if element not in TYPES:
        raise TypeError(f"needs the element type {element}, which is not supported")
    return TYPES[element]


@operator("Cast")
def cast(x: Tensor, /, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Another type; `saturate` and `round_mode` concern types that we have not."""
    del saturate, round_mode
    return x.to(type_of(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, /, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The type of another tensor."""
    del saturate, round_mode
    return x.to(like.dtype)


@operator("Identity")
def identity(x: Tensor, /) -> Tensor:
    """The same; exporters write it for weights that several layers share."""
    return x


@operator("Dropout")
def dropout(
    x: Tensor,
    chance: Tensor | None = None,
    training: Tensor | None = None,
    /,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    is_test: int = 1,
) -> tuple[Tensor, Tensor]:
    """Nothing is dropped when a network is judged, whatever the file says."""
    del chance, training, ratio, seed, is_test
    return x, torch.ones_like(x, dtype=torch.bool)
