"""Values that come from nothing but sizes: constants, ranges, one-hot codes, random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auditor.onnx_graph.operators.elementwise import type_of
from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import bounded, integers

FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(shape: Tensor, /, *, value: Tensor | None = None) -> Tensor:
    """One number everywhere."""
    sizes = bounded(integers(shape))
    return torch.zeros(sizes) if value is None else value.reshape(()).expand(sizes).clone()


@operator("Range", host=(0, 1, 2))
def range_(start: Tensor, limit: Tensor, delta: Tensor, /, *, stash_type: int = 1) -> Tensor:
    """Numbers in equal steps."""
    del stash_type
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(int(-(-(last - first) // step)), 0)
    bounded([count])
    return (torch.arange(count, dtype=torch.float64) * step + first).to(start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, /, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal."""
    element = x.dtype if dtype is None else type_of(dtype)
    ones = torch.ones_like(x, dtype=element)
    offset = max(-x.shape[0], min(k, x.shape[1]))
    return ones.triu(offset).tril(offset)


@operator("OneHot", host=(1,))
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, /, *, axis: int = -1) -> Tensor:
    """The second of `values` where an index points, the first elsewhere."""
    size = integers(depth)[0]
    bounded([*indices.shape, size], indices)
    low, high = values.unbind()
    places = indices.long()
    places = torch.where(places < 0, places + size, places).unsqueeze(axis)
    line = [1] * places.ndim
    line[axis] = size
    hot = places == torch.arange(size, device=places.device).reshape(line)
    return torch.where(hot, high, low)


# Random numbers repeat: a network must answer the same whenever it is asked the same.


def _generator(seed: float | None) -> torch.Generator:
    return torch.Generator().manual_seed(0 if seed is None else int(seed))


@operator("RandomNormal")
def random_normal(
    *,
    dtype: int = FLOAT,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    shape: Sequence[int],
) -> Tensor:
    """Normally distributed numbers."""
    noise = torch.randn(bounded(shape), generator=_generator(seed))
    return (noise * scale + mean).to(type_of(dtype))


@operator("RandomNormalLike")
def random_normal_like(
    x: Tensor,
    /,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Normally distributed numbers in the shape of others."""
    noise = torch.randn(x.shape, generator=_generator(seed)).to(x.device) * scale + mean
    return noise.to(x.dtype if dtype is None else type_of(dtype))


@operator("RandomUniform")
def random_uniform(
    *,
    dtype: int = FLOAT,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    shape: Sequence[int],
) -> Tensor:
    """Equally distributed numbers."""
    noise = torch.rand(bounded(shape), generator=_generator(seed))
    return (noise * (high - low) + low).to(type_of(dtype))


@operator("RandomUniformLike")
def random_uniform_like(
    x: Tensor,
    /,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    """Equally distributed numbers in the shape of others."""
    noise = torch.rand(x.shape, generator=_generator(seed)).to(x.device) * (high - low) + low
    return noise.to(x.dtype if dtype is None else type_of(dtype))


@operator("Bernoulli")
def bernoulli(x: Tensor, /, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that the input tells, else 0."""
    drawn = torch.rand(x.shape, generator=_generator(seed)).to(x.device) < x
    return drawn.to(x.dtype if dtype is None else type_of(dtype))
