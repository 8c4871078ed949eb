"""What a purification did to the numbers of a model: masks, channels, and tensors beyond masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.purifiers.base import Purified
from auditor.results.purify import ChangedChannel, ChangedTensor, MaskLayer

BINS = 20
CHANGED = 20
"""Channels that are listed."""
NEAR_ZERO, NEAR_ONE = 0.1, 0.9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What became of the numbers."""

    masks: tuple[MaskLayer, ...] = ()
    """One a layer; empty where no masks are part of the result."""
    channels: tuple[ChangedChannel, ...] = ()
    """Those that were attenuated most."""
    tensors: tuple[ChangedTensor, ...] = ()
    """Tensors that were changed beyond masks, most changed first; empty where masks sufficed."""


def difference(purified: Purified, own: Mapping[str, Tensor]) -> Difference:
    """What a purifier changed.

    Args:
        purified: What it made.
        own: Name -> the suspect's values.
    """
    layers, channels = [], []
    for site, bound in zip(purified.sites, purified.lower_bounds, strict=True):
        mask = purified.masks[site.layer].cpu().double()
        places = (mask * BINS).floor().clamp(0, BINS - 1).long()
        layers.append(
            MaskLayer(
                layer=site.layer,
                kind=site.kind,
                channels=site.channels,
                lower_bound=bound,
                histogram=tuple(torch.bincount(places, minlength=BINS).tolist()),
                near_zero=int((mask < NEAR_ZERO).sum()),
                near_one=int((mask > NEAR_ONE).sum()),
                smallest=float(mask.min()),
                mean=float(mask.mean()),
            )
        )
        channels += [
            ChangedChannel(layer=site.layer, channel=number, mask=float(value))
            for number, value in enumerate(mask)
        ]
    channels.sort(key=lambda entry: (-abs(1 - entry.mask), entry.layer, entry.channel))
    masked = {name for site in purified.sites for name, _ in site.tensors}
    tensors = []
    for name, tensor in purified.tensors.items():
        if name in masked or not tensor.is_floating_point():
            continue
        before, change = float(own[name].norm()), float((tensor - own[name]).norm())
        if change > 0:
            share = change / before if before else None
            tensors.append(ChangedTensor(name=name, elements=tensor.numel(), change=share))
    tensors.sort(key=lambda entry: (-(entry.change or math.inf), entry.name))
    return Difference(
        masks=tuple(layers), channels=tuple(channels[:CHANGED]), tensors=tuple(tensors)
    )
