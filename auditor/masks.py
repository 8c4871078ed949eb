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
from torch import Tensor, nn

Shape = Literal["exponential", "linear", "cosine", "none"]

NORMS = {
    "_BatchNorm": "BatchNorm",  # by this, subclasses of the user's own are found as well
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "BatchNorm3d": "BatchNorm",
    "SyncBatchNorm": "BatchNorm",
    "FrozenBatchNorm2d": "BatchNorm",
    "LayerNorm": "LayerNorm",
    "LayerNorm2d": "LayerNorm",
    "RMSNorm": "RMSNorm",
    "GroupNorm": "GroupNorm",
    "_InstanceNorm": "InstanceNorm",
    "InstanceNorm1d": "InstanceNorm",
    "InstanceNorm2d": "InstanceNorm",
    "InstanceNorm3d": "InstanceNorm",
}
WEIGHTED = {
    "Conv1d": "Conv",
    "Conv2d": "Conv",
    "Conv3d": "Conv",
    "ConvTranspose1d": "ConvTranspose",
    "ConvTranspose2d": "ConvTranspose",
    "ConvTranspose3d": "ConvTranspose",
    "Linear": "Linear",
    "NonDynamicallyQuantizableLinear": "Linear",  # the output projection of MultiheadAttention
}
"""Class names of layers; the file's own claim in TorchScript, so that shapes are checked, too."""

DEPTH = 19
"""Masked layers of the CIFAR ResNet-18 for which NFT's lower bounds were chosen."""


@dataclass(frozen=True, kw_only=True)
class MaskSite:
    """Where one mask acts: a layer's tensors, and along which axis of each."""

    layer: str
    """Name of the layer in its network, such as `layer1.0.bn2`; unique among the sites."""
    kind: str
    """BatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, Conv, ConvTranspose or Linear."""
    tensors: tuple[tuple[str, int], ...]
    """Tensor names, each with the axis that the mask multiplies."""
    channels: int


def find_sites(network: nn.Module) -> list[MaskSite]:
    """The masks of a network, in the order in which it defines its layers.

    One on every normalisation layer's affine scale (NFT, arXiv 2407.10052, masks BatchNorm's).
    Where there is none: on the output channels of every convolution and linear layer, weight and
    bias together, except the last one, which gives the classes. A tensor that two layers share is
    masked once. A LayerNorm over several axes has no channel axis and gets no mask.

    Args:
        network: Eager or TorchScript. Class names of the latter are the file's own claim; a layer
            whose tensors do not have the shapes that its name promises gets no mask.
    """
    tensors: dict[str, Tensor] = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    layers = [(name, module, _classes(module)) for name, module in network.named_modules()]
    norms = [
        site
        for name, _, classes in layers
        if (site := _norm_site(name, _kind(classes, NORMS), tensors)) is not None
    ]
    if norms:
        return _once(norms, tensors, set())
    weighted = [
        site
        for name, module, classes in layers
        if (site := _weighted_site(name, module, _kind(classes, WEIGHTED), tensors)) is not None
    ]
    if not weighted:
        return []
    *inner, last = weighted
    return _once(inner, tensors, {id(tensors[name]) for name, _ in last.tensors})


def _classes(module: nn.Module) -> list[str]:
    if isinstance(module, torch.jit.ScriptModule):
        return [str(getattr(module, "original_name", ""))]
    return [entry.__name__ for entry in type(module).__mro__]


def _kind(classes: list[str], kinds: Mapping[str, str]) -> str | None:
    return next((kinds[name] for name in classes if name in kinds), None)


def _tensor(layer: str, leaf: str, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    name = f"{layer}.{leaf}" if layer else leaf
    return name, tensors.get(name)


def _norm_site(layer: str, kind: str | None, tensors: Mapping[str, Tensor]) -> MaskSite | None:
    name, scale = _tensor(layer, "weight", tensors)
    _, mean = _tensor(layer, "running_mean", tensors)
    if scale is None or scale.ndim != 1 or not scale.is_floating_point():
        return None
    if kind is None and mean is not None and mean.shape == scale.shape:
        kind = "BatchNorm"  # of a class that we do not know
    if kind is None or (mean is not None and mean.shape != scale.shape):
        return None
    return MaskSite(layer=layer, kind=kind, tensors=((name, 0),), channels=len(scale))


def _weighted_site(
    layer: str, module: nn.Module, kind: str | None, tensors: Mapping[str, Tensor]
) -> MaskSite | None:
    name, weight = _tensor(layer, "weight", tensors)
    bias_name, bias = _tensor(layer, "bias", tensors)
    if kind is None or weight is None or not weight.is_floating_point():
        return None
    if (weight.ndim == 2) != (kind == "Linear") or weight.ndim not in (2, 3, 4, 5):
        return None
    axis = _transposed_axis(module, weight, bias) if kind == "ConvTranspose" else 0
    if axis is None or (bias is not None and bias.shape != (weight.shape[axis],)):
        return None
    return MaskSite(
        layer=layer,
        kind=kind,
        tensors=((name, axis),) if bias is None else ((name, axis), (bias_name, 0)),
        channels=weight.shape[axis],
    )


def _transposed_axis(module: nn.Module, weight: Tensor, bias: Tensor | None) -> int | None:
    """The axis of output channels in ``(in, out / groups, ...)``, where there is one.

    Depthwise: the first. With several groups of several channels no axis is one of channels.
    """
    inputs, outputs = weight.shape[:2]
    groups = getattr(module, "groups", None)
    if not isinstance(groups, int):  # traced: only the bias tells
        groups = 1 if bias is None else len(bias) // max(outputs, 1)
    if groups == 1:
        return 1
    return 0 if outputs == 1 and groups == inputs else None


def _once(sites: list[MaskSite], tensors: Mapping[str, Tensor], seen: set[int]) -> list[MaskSite]:
    """`sites` without those that would mask a tensor for the second time."""
    kept = []
    for site in sites:
        own = {id(tensors[name]) for name, _ in site.tensors}
        if own & seen or site.channels == 0:
            continue
        seen |= own
        kept.append(site)
    return kept


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
