"""Masks: one multiplier a channel, put on a network's parameters.

A mask multiplies stored numbers and never activations, so that it works alike in every format and
folding it is the same multiplication, done once and for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.anatomy import Layer, Place

Shape = Literal["exponential", "linear", "cosine", "none"]

DEPTH = 19
"""Masked layers of the CIFAR ResNet-18 for which NFT's lower bounds were chosen."""


@dataclass(frozen=True, kw_only=True)
class MaskSite:
    """Where one mask acts: a layer's tensors, and along which axis of each."""

    layer: str
    """Name of the layer in its network, such as `layer1.0.bn2`; unique among the sites."""
    kind: str
    """As of `Layer`."""
    tensors: tuple[tuple[str, int], ...]
    """Tensor names, each with the axis that the mask multiplies."""
    channels: int


def find_sites(layers: Sequence[Layer]) -> list[MaskSite]:
    """The masks of a network, in the order of its layers.

    One on every normalisation layer's affine scale (NFT, arXiv 2407.10052, masks BatchNorm's).
    Where there is none: on the output channels of every convolution and linear layer, weight and
    bias together, except those that give the classes. A tensor that two layers share is masked once.
    """
    chosen = [layer for layer in layers if layer.is_norm]
    seen: set[str] = set()
    if not chosen:
        chosen = [layer for layer in layers if not layer.is_last]
        seen = {name for layer in layers if layer.is_last for name, _ in _masked(layer)}
    sites = []
    for layer in chosen:
        masked = _masked(layer)
        own = {name for name, _ in masked}
        if own & seen or layer.channels == 0:
            continue
        seen |= own
        sites.append(
            MaskSite(layer=layer.name, kind=layer.kind, tensors=masked, channels=layer.channels)
        )
    return sites


def _masked(layer: Layer) -> tuple[Place, ...]:
    if layer.is_norm or layer.bias is None:
        return (layer.weight,)
    return (layer.weight, layer.bias)


def ones(sites: Sequence[MaskSite], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Masks that change nothing: layer -> ``(channels,)`` float32."""
    return {site.layer: torch.ones(site.channels, device=device) for site in sites}


def effective(
    tensors: Mapping[str, Tensor], sites: Sequence[MaskSite], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masked tensors, differentiable in the masks.

    Args:
        tensors: The network's own, by name.
        sites: Where the masks act.
        masks: Layer -> ``(channels,)``, one for every site.

    Returns:
        Tensor name -> tensor times its mask; tensors without a mask are left out.

    Raises:
        ValueError: Two sites mask one tensor, or a mask has another length than its site.
    """
    masked: dict[str, Tensor] = {}
    for site in sites:
        mask = masks[site.layer]
        if mask.shape != (site.channels,):
            raise ValueError(f"{site.layer} needs {site.channels} masks, not {tuple(mask.shape)}")
        for name, axis in site.tensors:
            if name in masked:
                raise ValueError(f"{name} is masked twice, the second time by {site.layer}")
            tensor = tensors[name]
            shape = [1] * tensor.ndim
            shape[axis] = site.channels
            masked[name] = tensor * mask.reshape(shape)
    return masked


@torch.no_grad()
def clip(masks: Mapping[str, Tensor], sites: Sequence[MaskSite], bounds: Sequence[float]) -> None:
    """Bring masks, in place, back to between their site's lower bound and 1."""
    for site, bound in zip(sites, bounds, strict=True):
        masks[site.layer].clamp_(bound, 1.0)


@torch.no_grad()
def folded(
    tensors: Mapping[str, Tensor], sites: Sequence[MaskSite], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masked tensors as plain numbers, to be written; arguments as of `effective`."""
    return effective(tensors, sites, masks)


def lower_bounds(
    count: int,
    *,
    alpha: float = 0.8,
    beta: float = 0.5,
    shape: Shape = "exponential",
    depth_aware: bool = False,
) -> list[float]:
    """How far masks may fall, a layer: the clip schedule of NFT (arXiv 2407.10052).

    The paper's is alpha * exp(-beta * l) for the l-th masked layer, l = 1 ... L: early layers keep
    at least half their gain, and from about the eighth on pruning is free. `linear` and `cosine`
    fall to 0 at the last layer.

    Args:
        count: Number of masked layers, L.
        alpha: The bound before the first layer.
        beta: How fast the exponential falls.
        shape: Which curve; `none` bounds by 0 everywhere.
        depth_aware: Stretch the exponential over networks deeper than the paper's ResNet-18 with
            its 19 masked layers, l -> 19 l / L, which would otherwise protect two blocks of fifty.
    """
    stretch = DEPTH / count if depth_aware and count > DEPTH else 1.0
    layers = range(1, count + 1)
    match shape:
        case "exponential":
            return [alpha * math.exp(-beta * stretch * layer) for layer in layers]
        case "linear":
            return [alpha * (1 - layer / count) for layer in layers]
        case "cosine":
            return [alpha * (1 + math.cos(math.pi * layer / count)) / 2 for layer in layers]
        case "none":
            return [0.0] * count
