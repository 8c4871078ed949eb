"""Sums, means, extremes and norms along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axes_of, axis_of, integers


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _amax(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.numel():
        return x.amax(axes, keepdim=keep)
    return _of_nothing(x, axes, keep, -math.inf)


def _amin(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.numel():
        return x.amin(axes, keepdim=keep)
    return _of_nothing(x, axes, keep, math.inf)


def _of_nothing(x: Tensor, axes: list[int], keep: bool, value: float) -> Tensor:
    """The extreme of no numbers; of integers, the end of their range."""
    shape = x.sum(axes, keepdim=keep).shape
    if x.is_floating_point():
        return x.new_full(shape, value)
    if x.dtype == torch.bool:
        return x.new_full(shape, value > 0)
    limits = torch.iinfo(x.dtype)
    return x.new_full(shape, limits.max if value > 0 else limits.min)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).to(x.dtype)


def _norm(order: float) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        # its gradient is finite where all numbers are zero, unlike that of the square root
        norm: Tensor = torch.linalg.vector_norm(x.float(), order, axes, keepdim=keep)
        return norm.to(x.dtype)

    return reduce


def _reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @operator(name, host=(1,))
    def reduce(
        x: Tensor,
        along: Tensor | None = None,
        /,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = axes_of(along, axes, x.ndim)
        if not chosen:
            if noop_with_empty_axes:
                return _pointwise(name, x)
            chosen = list(range(x.ndim))
        if x.ndim == 0:
            return _pointwise(name, x)
        return function(x, chosen, bool(keepdims))


def _pointwise(name: str, x: Tensor) -> Tensor:
    """What is left of a reduction that reduces nothing."""
    match name:
        case "ReduceL1" | "ReduceL2":
            return x.abs()
        case "ReduceSumSquare":
            return x * x
        case "ReduceLogSum":
            return x.log()
    return x


for _name, _function in {
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.float().logsumexp(axes, keepdim=keep),
    "ReduceMax": _amax,
    "ReduceMean": _mean,
    "ReduceMin": _amin,
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype),
}.items():
    _reduction(_name, _function)


def _extreme(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name)
    def position(
        x: Tensor, /, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> Tensor:
        if not select_last_index:
            return function(x, dim=axis, keepdim=bool(keepdims))
        flipped = function(x.flip(axis), dim=axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - flipped


_extreme("ArgMax", torch.argmax)
_extreme("ArgMin", torch.argmin)


def _cumulative(name: str, function: Callable[[Tensor, int], Tensor], neutral: float) -> None:
    @operator(name, host=(1,))
    def accumulate(x: Tensor, axis: Tensor, /, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        along = axis_of(integers(axis)[0], x.ndim)
        if reverse:
            x = x.flip(along)
        if exclusive:
            first = torch.full_like(x.narrow(along, 0, 1), neutral)
            x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
        result = function(x, along).to(x.dtype)
        return result.flip(along) if reverse else result


_cumulative("CumSum", torch.cumsum, 0)
_cumulative("CumProd", torch.cumprod, 1)
