"""What a network computes on the way, for purifiers that hold on to it."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.classifier import Classifier, as_float

LAYERS = 4
"""Anchored layers: the last one, and others evenly over the depth."""


def anchor_layers(classifier: Classifier, images: Tensor) -> list[str]:
    """Layers whose inputs stand for what a network has understood, in the order of computation.

    Inputs of convolutions and linear layers: the last one's are the penultimate features, the
    first one's (the image) are left out. So are those that are the same for every image, or have not
    one row an image: tables of positions, windows. Empty where the format does not let one look inside.

    Args:
        classifier: The suspect.
        images: ``(N, C, H, W)`` uint8; one of them is looked at.
    """
    one = as_float(images[:1].to(classifier.device))
    inner = _telling(classifier, one, classifier.model.layers(classifier.prepared(one)))[1:]
    if len(inner) <= LAYERS:
        return inner
    places = [round((len(inner) - 1) * (i + 1) / LAYERS) for i in range(LAYERS)]
    return [inner[place] for place in places]


@torch.no_grad()
def _telling(classifier: Classifier, image: Tensor, layers: list[str]) -> list[str]:
    """The layers whose inputs differ between an image and noise, with a row for each of a batch."""
    rows = classifier.model.batch or 2
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image.device)

    def seen(layers: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        with classifier.model.tapped(layers) as taken:
            classifier(image.repeat(rows, 1, 1, 1))
            first = taken()
            classifier(noise.repeat(rows, 1, 1, 1))
            return first, taken()

    def tells(one: Tensor, other: Tensor) -> bool:
        return len(one) == len(other) == rows and not torch.equal(one, other)

    def tell(inputs: tuple[list[Tensor], list[Tensor]]) -> bool:
        first, second = inputs
        return len(first) == len(second) > 0 and all(map(tells, first, second))

    first, second = seen(layers) if layers else ([], [])
    if len(first) == len(second) == len(layers):
        return [layer for layer, *pair in zip(layers, first, second, strict=True) if tells(*pair)]
    # a layer that is used several times, or not for every image, has other numbers of inputs
    return [layer for layer in layers if tell(seen([layer]))]


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
