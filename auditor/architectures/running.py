"""What lies between two BatchNorm layers, told by their running statistics alone.

A BatchNorm's output is about normal with mean `bias` and deviation `weight`. What an activation
makes of that has a mean, the next convolution sums these means, and the next BatchNorm's running mean
has recorded that sum over the training data. So each hypothesis of what lies between predicts numbers
that the file holds; no image is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.architectures.architecture import State
from auditor.architectures.shapes import has_values

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "leaky": lambda values: F.leaky_relu(values, 0.1),
    "gelu": F.gelu,
    "silu": F.silu,
}
QUANTILES = 64
NINE_MEAN, NINE_DEVIATION = 0.8, 0.75
"""Of the largest of nine normal numbers that are correlated as neighbouring pixels are (1.49 and 0.6
if they were independent, 0 and 1 if they were the same): what max-pooling passes on."""
CLEAR = 2.0
"""A hypothesis that predicts this many times worse than the best is left out…"""
TELLING = 0.5
"""…if the best leaves no more than this unexplained; otherwise the statistics tell nothing."""


class Pair(NamedTuple):
    """Two BatchNorm layers with a convolution between: prefixes in the state dict."""

    norm: str
    conv: str
    following: str


def unexplained(
    state: State,
    pairs: Sequence[Pair],
    between: Callable[[Tensor], Tensor],
    *,
    pooled: bool = False,
) -> float | None:
    """Share of the running means' variance that a hypothesis leaves unexplained.

    Args:
        state: The weights.
        pairs: Where to look.
        between: The activation, on normal numbers.
        pooled: A 3×3 max-pooling follows it.

    Returns:
        0 is perfect, 1 no better than knowing nothing; None where the weights have no values or
        none of the pairs can be read.
    """
    grid = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    normal = torch.special.ndtri(grid)
    if pooled:
        normal = NINE_MEAN + NINE_DEVIATION * normal
    shares = [_share(state, pair, between, normal) for pair in pairs]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _share(
    state: State, pair: Pair, between: Callable[[Tensor], Tensor], normal: Tensor
) -> float | None:
    names = (
        f"{pair.norm}.weight", f"{pair.norm}.bias", f"{pair.conv}.weight",
        f"{pair.following}.running_mean",
    )  # fmt: skip
    if any(name not in state or not has_values(state[name]) for name in names):
        return None
    scale, shift, weight, mean = (state[name].detach().cpu().double() for name in names)
    if weight.ndim != 4 or weight.shape[:2] != (len(mean), len(scale)) or len(mean) < 2:
        return None
    bias = state.get(f"{pair.conv}.bias")
    passed = between(shift[:, None] + scale.abs()[:, None] * normal).mean(1)
    predicted = weight.sum((2, 3)) @ passed
    if bias is not None and bias.shape == mean.shape:
        predicted += bias.detach().cpu().double()
    total = (mean - mean.mean()).square().sum()
    share = float((mean - predicted).square().sum() / total) if total else float("nan")
    return share if share == share else None


def plausible(scores: Mapping[str, float | None]) -> list[str]:
    """Hypotheses that are about as good as the best, best first; all where nothing is known."""
    known = {name: score for name, score in scores.items() if score is not None}
    if not known or min(known.values()) > TELLING:
        return list(scores)
    ranked = sorted(known, key=lambda name: known[name])
    return [name for name in ranked if known[name] <= CLEAR * known[ranked[0]]]
