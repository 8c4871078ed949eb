"""What a network computes on the way, for purifiers that hold on to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from auditor.classifier import Classifier, as_float

LAYERS = 4
"""Anchored layers: the last one, and others evenly over the depth."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def anchor_layers(classifier: Classifier, images: Tensor) -> list[nn.Module]:
    """Layers whose inputs stand for what a network has understood, in the order of computation.

    Inputs of convolutions and linear layers: the last one's are the penultimate features, the
    first one's (the image) are left out. Empty where there is no eager module to look into.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8; one of them is looked at.
    """
    module = classifier.model.module
    if module is None:
        return []
    called: list[nn.Module] = []

    def note(layer: nn.Module, inputs: object) -> None:
        if layer not in called:
            called.append(layer)

    handles = [
        layer.register_forward_pre_hook(note)
        for layer in module.modules()
        if isinstance(layer, WEIGHTED)
    ]
    try:
        with torch.no_grad():
            classifier(as_float(images[:1].to(classifier.device)))
    finally:
        for handle in handles:
            handle.remove()
    inner = called[1:]
    if len(inner) <= LAYERS:
        return inner
    places = [round((len(inner) - 1) * (i + 1) / LAYERS) for i in range(LAYERS)]
    return [inner[place] for place in places]


@contextmanager
def tapped(layers: list[nn.Module]) -> Iterator[Callable[[], list[Tensor]]]:
    """While this lasts, inputs of `layers` are kept; calling the result hands them over."""
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])

    def taken() -> list[Tensor]:
        features = list(kept)
        kept.clear()
        return features

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def distance(features: list[Tensor], wanted: list[Tensor]) -> Tensor | None:
    """Squared distance of features from wanted ones, relative to the latter's size.

    Mean over images and layers; None where there are no features, or other ones than wanted.
    """
    if not features or len(features) != len(wanted):
        return None
    parts = []
    for have, want in zip(features, wanted, strict=True):
        size = want.float().square().sum() / len(want)
        difference = (have.float() - want.float()).square().sum() / len(want)
        parts.append(difference / size.clamp_min(1e-12))
    return torch.stack(parts).mean()
