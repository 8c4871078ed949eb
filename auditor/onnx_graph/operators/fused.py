"""What onnxruntime's optimiser puts in the place of several operators (domain com.microsoft)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.activations import activated
from auditor.onnx_graph.operators.attention import attended, heads
from auditor.onnx_graph.operators.convolution import conv
from auditor.onnx_graph.operators.matrices import gemm, product
from auditor.onnx_graph.operators.normalisation import standardised
from auditor.onnx_graph.operators.pooling import max_pool
from auditor.onnx_graph.operators.registry import operator

MICROSOFT = "com.microsoft"


@operator("FusedConv", MICROSOFT, like=conv)
def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    /,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    **attributes: Any,
) -> Tensor:
    """A convolution, a shortcut added to it, and an activation."""
    y = conv(x, weight, bias, **attributes)
    return activated(y if added is None else y + added, activation, activation_params)


@operator("NhwcMaxPool", MICROSOFT)
def nhwc_max_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The maximum of each window, channels last."""
    y = max_pool(
        x.movedim(-1, 1),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    if not isinstance(y, Tensor):
        raise TypeError("was asked for positions")
    return y.movedim(1, -1)


def _transposed(x: Tensor, matrix: int, batch: int) -> Tensor:
    """`x` with the first of its batch axes moved before the last axis, or its last two swapped."""
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if matrix else x


@operator("FusedMatMul", MICROSOFT)
@operator("TransposeMatMul", MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    /,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha times a product of matrices, transposed or not."""
    result = product(_transposed(a, transA, transBatchA), _transposed(b, transB, transBatchB))
    return result if alpha == 1 else result * alpha


@operator("FusedGemm", MICROSOFT)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    /,
    *,
    activation: str = "",
    activation_alpha: float = 0.01,
    activation_beta: float = 0.5,
    activation_gamma: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """A `Gemm` and an activation."""
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, (activation_alpha, activation_beta, activation_gamma))


@operator("Gelu", MICROSOFT)
def gelu(x: Tensor, /) -> Tensor:
    """X times the normal distribution function of x."""
    return F.gelu(x)


@operator("BiasGelu", MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor, /) -> Tensor:
    """The same after a bias."""
    return F.gelu(x + bias)


@operator("FastGelu", MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None, /) -> Tensor:
    """Its approximation by tanh, after a bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", MICROSOFT)
def quick_gelu(x: Tensor, /, *, alpha: float = 1.702) -> Tensor:
    """X sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@operator("SkipLayerNormalization", MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    /,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """Layer normalisation of the sum of an input, a shortcut and a bias."""
    total = x + skip if bias is None else x + skip + bias
    normalised, mean, inverse = standardised(total, [-1], epsilon)
    scaled = normalised * gamma
    return (scaled if beta is None else scaled + beta), mean, inverse, total


@operator("SkipSimplifiedLayerNormalization", MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    """The same by the root mean square."""
    total = x + skip if bias is None else x + skip + bias
    inverse = torch.rsqrt((total * total).mean(-1, keepdim=True) + epsilon)
    return total * inverse * gamma, None, inverse, total


@operator("Attention", MICROSOFT)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    scores_bias: Tensor | None = None,
    /,
    *,
    num_heads: int,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
) -> Tensor:
    """Self-attention with its input projections; without the inputs that serve text models."""
    del mask_filter_value
    if mask is not None or past is not None or unidirectional:
        raise NotImplementedError("has a mask or a cache")
    joint = product(x, weights)
    joint = joint if bias is None else joint + bias
    sizes = list(qkv_hidden_sizes or [weights.shape[1] // 3] * 3)
    query, key, value = (heads(part, num_heads) for part in joint.split_with_sizes(sizes, -1))
    factor = scale or 1 / math.sqrt(query.shape[-1])
    return attended(query, key, value, scores_bias, factor).transpose(1, 2).flatten(2)


@operator("MultiHeadAttention", MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    scores_bias: Tensor | None = None,
    /,
    *,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
) -> Tensor:
    """Attention after its input projections; without the inputs that serve text models."""
    del mask_filter_value
    if key is None or value is None or key.ndim != 3 or padding is not None or unidirectional:
        raise NotImplementedError("has packed inputs, a mask or a cache")
    if bias is not None:
        sizes = [query.shape[-1], key.shape[-1], value.shape[-1]]
        parts = bias.split_with_sizes(sizes)
        query, key, value = query + parts[0], key + parts[1], value + parts[2]
    several = [heads(part, num_heads) for part in (query, key, value)]
    factor = scale or 1 / math.sqrt(several[0].shape[-1])
    result = attended(several[0], several[1], several[2], scores_bias, factor)
    return result.transpose(1, 2).flatten(2)
