"""The layers of a network that have numbers: what masks act on, and what other methods look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

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

Place = tuple[str, int]
"""Name of a tensor, and the axis of it that is its layer's output channels."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A normalisation with a scale for every channel, a convolution, or a linear layer."""

    name: str
    """Of the layer in its network, such as `layer1.0.bn2`; unique."""
    kind: str
    """BatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, Conv, ConvTranspose or Linear."""
    channels: int
    weight: Place
    """The scale of a normalisation, ``(channels,)``; else the kernel or matrix. Of int8 weights in
    ONNX, their scales, ``(channels,)``."""
    bias: Place | None = None
    variance: str | None = None
    """Name of a BatchNorm's running variance, ``(channels,)``."""
    is_last: bool = False
    """It gives the classes: no convolution and no linear layer comes after it."""

    @property
    def is_norm(self) -> bool:
        """True for normalisations."""
        return self.kind.endswith("Norm")


def find_layers(network: nn.Module) -> list[Layer]:
    """The layers of a network, in the order in which it defines them.

    A LayerNorm over several axes has no channel axis and is left out, as are layers whose tensors
    do not have the shapes that their class promises, and grouped transposed convolutions. A tensor
    that has several names goes by the first one.

    Args:
        network: Eager or TorchScript. Class names of the latter are the file's own claim.
    """
    tensors: dict[str, Tensor] = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    found: list[Layer] = []
    last: int | None = None
    for name, module in network.named_modules():
        own = _Own(name, tensors, names)
        classes = _classes(module)
        layer = _norm(own, _kind(classes, NORMS))
        if layer is None:
            layer = _weighted(own, module, _kind(classes, WEIGHTED))
            last = last if layer is None else len(found)
        found += [] if layer is None else [layer]
    return [replace(layer, is_last=place == last) for place, layer in enumerate(found)]


def transposed_axis(shape: Sequence[int], groups: int) -> int | None:
    """The axis of output channels of a transposed convolution, where there is one.

    Depthwise: the first. With several groups of several channels no axis is one of channels.

    Args:
        shape: Of the weight, ``(in, out / groups, ...)``.
        groups: Of the convolution.
    """
    inputs, outputs = shape[:2]
    if groups == 1:
        return 1
    return 0 if outputs == 1 and groups == inputs else None


class _Own:
    """The tensors of one layer, by their names in it."""

    def __init__(self, layer: str, tensors: Mapping[str, Tensor], names: Mapping[int, str]) -> None:
        self.layer = layer
        self._tensors, self._names = tensors, names

    def __getitem__(self, leaf: str) -> Tensor | None:
        return self._tensors.get(f"{self.layer}.{leaf}" if self.layer else leaf)

    def name(self, leaf: str) -> str:
        """The first name of a tensor that is there."""
        return self._names[id(self[leaf])]


def _classes(module: nn.Module) -> list[str]:
    if isinstance(module, torch.jit.ScriptModule):
        return [str(getattr(module, "original_name", ""))]
    return [entry.__name__ for entry in type(module).__mro__]


def _kind(classes: list[str], kinds: Mapping[str, str]) -> str | None:
    return next((kinds[name] for name in classes if name in kinds), None)


def _norm(own: _Own, kind: str | None) -> Layer | None:
    scale, bias = own["weight"], own["bias"]
    mean, variance = own["running_mean"], own["running_var"]
    if scale is None or scale.ndim != 1 or not scale.is_floating_point():
        return None
    if kind is None and mean is not None and mean.shape == scale.shape:
        kind = "BatchNorm"  # of a class that we do not know
    if kind is None or (mean is not None and mean.shape != scale.shape):
        return None
    has_bias = bias is not None and bias.shape == scale.shape
    has_variance = variance is not None and variance.shape == scale.shape
    return Layer(
        name=own.layer,
        kind=kind,
        channels=len(scale),
        weight=(own.name("weight"), 0),
        bias=(own.name("bias"), 0) if has_bias else None,
        variance=own.name("running_var") if has_variance else None,
    )


def _weighted(own: _Own, module: nn.Module, kind: str | None) -> Layer | None:
    weight, bias = own["weight"], own["bias"]
    if kind is None or weight is None or not weight.is_floating_point():
        return None
    if (weight.ndim == 2) != (kind == "Linear") or weight.ndim not in (2, 3, 4, 5):
        return None
    axis: int | None = 0
    if kind == "ConvTranspose":
        axis = transposed_axis(weight.shape, _groups(module, weight, bias))
    if axis is None or (bias is not None and bias.shape != (weight.shape[axis],)):
        return None
    return Layer(
        name=own.layer,
        kind=kind,
        channels=weight.shape[axis],
        weight=(own.name("weight"), axis),
        bias=None if bias is None else (own.name("bias"), 0),
    )


def _groups(module: nn.Module, weight: Tensor, bias: Tensor | None) -> int:
    groups = getattr(module, "groups", None)
    if isinstance(groups, int):
        return groups
    # traced: only the bias tells
    return 1 if bias is None else len(bias) // max(weight.shape[1], 1)
