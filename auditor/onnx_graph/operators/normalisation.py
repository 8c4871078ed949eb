"""Normalisation by running, image-wise, layer-wise and group-wise statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axis_of


def per_channel(values: Tensor, rank: int) -> Tensor:
    """``(C,)`` shaped so that it acts on the channels of ``(N, C, ...)`` of `rank` axes."""
    return values.reshape(-1, *[1] * (rank - 2))


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    /,
    *,
    epsilon: float = 1e-5,
    is_test: int = 1,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Normalisation by running statistics, which no gradient reaches."""
    del is_test
    if not spatial:
        raise NotImplementedError("normalises every pixel by statistics of its own (spatial = 0)")
    mean, variance = mean.detach(), variance.detach()
    if not training_mode:
        normalised = F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
        return normalised if outputs == 1 else (normalised, mean, variance, mean, variance)
    # exported in train mode: the batch's own statistics
    others = [0, *range(2, x.ndim)]
    with torch.no_grad():
        new_mean = momentum * mean + (1 - momentum) * x.mean(others)
        new_variance = momentum * variance + (1 - momentum) * x.var(others, correction=0)
    normalised = F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
    return (normalised, new_mean, new_variance)


@operator("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, /, *, epsilon: float = 1e-5
) -> Tensor:
    """Every channel of every image by its own statistics."""
    return standardised(x, list(range(2, x.ndim)), epsilon)[0] * per_channel(
        scale, x.ndim
    ) + per_channel(bias, x.ndim)


def standardised(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """`x` with mean 0 and variance 1 along `axes`; its mean; one over its deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    return centred * inverse, mean, inverse


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Everything from `axis` on by its own statistics."""
    del stash_type
    start = axis_of(axis, x.ndim)
    whole = scale.shape == x.shape[start:] and (bias is None or bias.shape == scale.shape)
    if outputs == 1 and whole:
        return F.layer_norm(x, x.shape[start:], scale, bias, epsilon)
    normalised, mean, inverse = standardised(x, list(range(start, x.ndim)), epsilon)
    scaled = normalised * scale
    return (scaled if bias is None else scaled + bias), mean, inverse


@operator("RMSNormalization")
@operator("SimplifiedLayerNormalization")
def rms_normalization(
    x: Tensor,
    scale: Tensor,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, Tensor]:
    """Everything from `axis` on by its root mean square."""
    del stash_type
    axes = list(range(axis_of(axis, x.ndim), x.ndim))
    inverse = torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon)
    return x * inverse * scale, inverse


@operator("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    /,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
) -> Tensor:
    """Every group of channels of every image by its own statistics."""
    del stash_type
    if len(scale) != x.shape[1]:  # opset 18: one number a group
        repeats = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN")
def local_response_normalization(
    x: Tensor, /, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Every number by the squares of the channels around it."""
    before = (size - 1) // 2
    borders = [0, 0] * (x.ndim - 2) + [before, size - 1 - before]
    squares = F.pad(x * x, borders).unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * squares) ** beta


@operator("LpNormalization")
def lp_normalization(x: Tensor, /, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divided by the p-norm along `axis`; zeros stay."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, /, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Mean 0 and variance 1 along `axes`."""
    mean = x.mean(list(axes), keepdim=True)
    centred = x - mean
    deviation = (centred * centred).mean(list(axes), keepdim=True).sqrt()
    return centred / (deviation + 1e-9)
