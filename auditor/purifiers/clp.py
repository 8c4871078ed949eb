"""Channel Lipschitz pruning (CLP, ECCV 2022, arXiv 2208.03111), which needs no data to prune."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from auditor.anatomy import Layer
from auditor.errors import UnsuitableModel
from auditor.models.base import ModelHandle
from auditor.progress import Notify
from auditor.purifiers.base import PURIFIERS, Purified, Purifier, Task
from auditor.purifiers.strongest import Candidate, strongest
from auditor.text import clean_text

US = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, math.inf)
"""From the strongest to one that prunes nothing; published is 3."""
EPSILON = 1e-5


@PURIFIERS.register("clp")
@dataclass(frozen=True, kw_only=True)
class ChannelLipschitzPruning(Purifier):
    """Prune the channels that can change most: a trigger of few pixels needs such a one.

    ``sigma(W_k) |gamma_k| / sqrt(var_k + 1e-5) > mean + u std``

    On the left is the Lipschitz bound of channel k: W_k is the kernel of a convolution for this
    channel as a matrix, one row an input channel, sigma its largest singular value, and gamma and
    var are of the BatchNorm after it. Mean and (unbiased) standard deviation are over the channels
    of the layer. Scale and shift of a pruned channel are zero.

    To a BatchNorm belongs the last convolution with as many channels that the network lists before
    it. Where no BatchNorm has one (exporters fold BatchNorm away), the bound is that of the
    convolution alone, and weight and bias of a pruned channel are zero.

    Not as published: u, 3 in the paper, is chosen by clean accuracy on kept-back images, the first
    of a rising row of them. This is all that the images are for.
    """

    title: ClassVar[str] = "Channel Lipschitz pruning"
    source: ClassVar[str] = "CLP, ECCV 2022, arXiv 2208.03111"

    us: tuple[float, ...] = US

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Prune at the smallest u that clean accuracy can bear."""
        channels = prunable(task.classifier.model)
        own = task.classifier.model.tensors()

        def candidates() -> Iterator[Candidate]:
            for u in self.us:
                outlying = [outliers(layer.bounds, u) for layer in channels]
                cut = sum(int(out.sum()) for out in outlying)
                yield Candidate(
                    settings={
                        "u": f"{u:g}",
                        "channels pruned": f"{cut:,} of {sum(map(len, outlying)):,}",
                    },
                    tensors=_without(own, channels, outlying),
                )

        chosen = strongest(task, candidates())
        return Purified(
            tensors=chosen.candidate.tensors,
            stages=(chosen.stage("pruning", (0, 0, 0.0)),),
            trained=sum(len(layer.bounds) for layer in channels),
        )


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of one layer, and how far each can change."""

    layer: Layer
    """What is zero where they are pruned: its scale or weight, and its bias."""
    bounds: Tensor
    """``(channels,)`` Lipschitz bounds."""


def prunable(model: ModelHandle) -> list[Channels]:
    """The channels that can be pruned.

    Raises:
        UnsuitableModel: There is no convolution before the last layer.
    """
    own, layers = model.tensors(), model.anatomy()
    pairs = normalised(layers, own)
    if pairs:
        return [
            Channels(layer=norm, bounds=norms(own, conv) * gains(own, norm)) for conv, norm in pairs
        ]
    convolutions = [layer for layer in layers if _is_kernel(layer, own) and not layer.is_last]
    if not convolutions:
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)} has no convolution before the layer that gives the "
            "classes, and CLP prunes the channels of convolutions. Use --method finetune."
        )
    return [Channels(layer=conv, bounds=norms(own, conv)) for conv in convolutions]


def normalised(layers: Sequence[Layer], own: Mapping[str, Tensor]) -> list[tuple[Layer, Layer]]:
    """Convolutions, each with a BatchNorm after it."""
    pairs = []
    for place, norm in enumerate(layers):
        if norm.kind == "BatchNorm" and norm.variance is not None:
            before = (layer for layer in reversed(layers[:place]) if _is_kernel(layer, own))
            conv = next((layer for layer in before if layer.channels == norm.channels), None)
            pairs += [] if conv is None else [(conv, norm)]
    return pairs


def _is_kernel(layer: Layer, own: Mapping[str, Tensor]) -> bool:
    # of int8 weights only the scales are known here
    return layer.kind == "Conv" and own[layer.weight[0]].ndim > 2


def norms(own: Mapping[str, Tensor], conv: Layer) -> Tensor:
    """``(channels,)``, the spectral norm of each channel's kernel as a matrix (in, height width)."""
    name, axis = conv.weight
    kernels = own[name].movedim(axis, 0).flatten(2).float()
    sizes: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    return sizes


def gains(own: Mapping[str, Tensor], norm: Layer) -> Tensor:
    """``(channels,)``, by how much a BatchNorm multiplies each channel."""
    gamma = own[norm.weight[0]].flatten()
    variance = torch.ones_like(gamma) if norm.variance is None else own[norm.variance].flatten()
    return (gamma / (variance + EPSILON).sqrt()).abs()


def outliers(bounds: Tensor, u: float) -> Tensor:
    """Which bounds ``(channels,)`` are more than u standard deviations above their mean."""
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + u * bounds.std()


def _without(
    own: Mapping[str, Tensor], channels: Sequence[Channels], outlying: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The tensors of layers, zero where channels are pruned."""
    tensors: dict[str, Tensor] = {}
    for entry, out in zip(channels, outlying, strict=True):
        for place in (entry.layer.weight, entry.layer.bias):
            if place is not None:
                name, axis = place
                tensor = tensors.get(name, own[name])
                shape = [1] * tensor.ndim
                shape[axis] = len(out)
                tensors[name] = tensor.masked_fill(out.view(shape), 0)
    return tensors
