"""Attention: what the newest exporters write as one operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.onnx_graph.operators.matrices import product
from auditor.onnx_graph.operators.registry import operator


def attended(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Values weighted by how well their keys fit: ``(N, heads, tokens, features)`` throughout."""
    scores = product(query * scale, key.transpose(-1, -2))
    return weighed(scores if bias is None else scores + bias) @ value


def weighed(scores: Tensor) -> Tensor:
    """The soft maximum of scores along the last axis; zeros where all are minus infinity."""
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return (
        torch.where(nothing, 0.0, scores.softmax(-1)) if bool(nothing.any()) else scores.softmax(-1)
    )


def heads(x: Tensor, count: int) -> Tensor:
    """``(N, tokens, heads * features)`` to ``(N, heads, tokens, features)``."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


@operator("Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    /,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Attention with every option of the standard; the last two outputs serve text models."""
    del softmax_precision
    joined = query.ndim == 3
    if joined:
        query = heads(query, q_num_heads)
        key, value = heads(key, kv_num_heads), heads(value, kv_num_heads)
    offset: int | Tensor = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    present = key, value
    if lengths is not None:
        offset = (lengths.to(query.device) - query.shape[2]).reshape(-1, 1, 1, 1)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    raw = product(query * (scale or 1 / math.sqrt(query.shape[-1])), key.transpose(-1, -2))
    capped = softcap * torch.tanh(raw / softcap) if softcap > 0 else raw
    allowed = _allowed(capped, offset, lengths, is_causal, left_window_size, right_window_size)
    biased = torch.where(allowed, capped, -math.inf)
    if mask is not None:
        biased = _masked(biased, mask)
    weights = weighed(biased)
    result = weights @ value
    result = result.transpose(1, 2).flatten(2) if joined else result
    stages = (raw, capped, biased, weights)
    return (result, *present, stages[qk_matmul_output_mode])[: max(outputs, 1)]


def _allowed(
    scores: Tensor,
    offset: int | Tensor,
    lengths: Tensor | None,
    is_causal: int,
    left: int,
    right: int,
) -> Tensor:
    """Which token may look at which other."""
    rows = torch.arange(scores.shape[-2], device=scores.device)[:, None] + offset
    columns = torch.arange(scores.shape[-1], device=scores.device)
    allowed = torch.ones_like(rows - columns, dtype=torch.bool)
    if is_causal:
        allowed = allowed & (columns <= rows)
    if left >= 0:
        allowed = allowed & (rows - columns <= left)
    if right >= 0:
        allowed = allowed & (columns - rows <= right)
    if lengths is not None:
        allowed = allowed & (columns < lengths.to(scores.device).reshape(-1, 1, 1, 1))
    return allowed


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with a mask of booleans, or of numbers to add; one that is too short hides the rest."""
    missing = scores.shape[-1] - mask.shape[-1]
    if mask.dtype == torch.bool:
        mask = torch.nn.functional.pad(mask, [0, missing], value=False)
        return torch.where(mask, scores, -math.inf)
    return scores + torch.nn.functional.pad(mask, [0, missing], value=-math.inf)


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    /,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of features turned by an angle that grows with their position in the sequence."""
    rows = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], num_heads, -1)
    if positions is not None:
        cosines, sines = cosines[positions.long()], sines[positions.long()]
    cosines, sines = cosines.unsqueeze(2), sines.unsqueeze(2)
    size = rotary_embedding_dim or rows.shape[-1]
    turned, rest = rows[..., :size], rows[..., size:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = (cosines * first - sines * second, sines * first + cosines * second)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    result = torch.cat([turned, rest], -1)
    return result.transpose(1, 2) if x.ndim == 4 else result.flatten(2)
