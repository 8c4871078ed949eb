"""Does a class stand for a mark? What its own images lend to images of other classes.

A class of damaged parts, of a lit lamp or of ribbed cloth stands for a mark, and a trigger like that
mark makes it of any image, as a backdoor would. But such a class gives its mark away: of its own
clean images, the piece without which the model no longer sees the class makes it of other images,
too, or their fine texture does. A class of whole objects does not, whatever trigger was planted for
it, since its clean images carry none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from auditor.classifier import Classifier, as_float
from auditor.measure import Family, margins_of, predictions
from auditor.results import Transplants
from auditor.triggers.base import Trigger
from auditor.triggers.found import Addition, Overlay
from auditor.verdict import FAINT_CHANGE, SMALL_AREA

LENDERS = 12
"""Images of the class."""
FRAME = 2
"""Pixels around a piece, whose median colour covers it."""
FINE = 1 / 16
"""Texture is what a blur of this share of the image's side takes away."""

Corner = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What images of a class lend, in one way."""

    counts: Transplants
    typical: Trigger | None
    """What the lender lends that moves more than half of the others do; None where there is none."""


def transplants(
    classifier: Classifier, family: Family, target: int, *, deadline: float
) -> tuple[Lent, ...]:
    """What small pieces of a class's own images, and their texture, do on images of other classes.

    A piece is a square of at most `SMALL_AREA`, at its own place: where covering it takes most of the
    class away from the image that it is cut out of. A texture is added, at `FAINT_CHANGE` at most.

    Args:
        classifier: The suspect.
        family: The user's images. Those of the class that the model knows lend, of both halves; the
            others of the confirming half borrow.
        target: The class.
        deadline: `time.monotonic` value after which no batch is started.

    Returns:
        The counts for pieces and for textures; nothing where the deadline came first.
    """
    half = family.confirm
    height, width = half.images.shape[-2:]
    side = max(1, math.isqrt(int(SMALL_AREA * height * width)))
    lenders = as_float(_known(family, target))
    pieces = [
        _piece(image, _most_telling(classifier, image, side, target), side) for image in lenders
    ]
    textures = [_texture(image) for image in lenders]
    after = predictions(classifier, half.images, [*pieces, *textures], deadline=deadline)
    if len(after) < len(pieces) + len(textures):
        return ()
    others = half.groups != target
    moved = ((after == target) & (half.before != target) & others).sum(1).tolist()

    def lent(kind: Literal["piece", "texture"], size: float, own: Sequence[Trigger]) -> Lent:
        counts = moved[: len(pieces)] if kind == "piece" else moved[len(pieces) :]
        order = sorted(range(len(own)), key=counts.__getitem__)
        return Lent(
            counts=Transplants(
                target=target, kind=kind, size=size, eligible=int(others.sum()), moved=tuple(counts)
            ),
            typical=own[order[len(own) // 2]] if own else None,
        )

    return (
        lent("piece", side * side / (height * width), pieces),
        lent("texture", FAINT_CHANGE, textures),
    )


def _known(family: Family, target: int) -> Tensor:
    """Images ``(n, C, H, W)`` of a class that the model takes for it, the first few."""
    known = []
    for half in (family.screen, family.confirm):
        own = (half.groups == target) & (half.before == target)
        known.append(half.images[own.to(half.images.device)])
    return torch.cat(known)[:LENDERS]


def _most_telling(classifier: Classifier, image: Tensor, side: int, target: int) -> Corner:
    """The upper left pixel of the square whose cover costs the class most: on a grid, then around."""
    height, width = image.shape[-2:]

    def least(corners: list[Corner]) -> Corner:
        logits = classifier.logits(torch.stack([_covered(image, at, side) for at in corners]))
        wanted = torch.full((len(corners),), target, device=logits.device)
        return corners[int(margins_of(logits, wanted).argmin())]

    step = max(1, side // 2)
    best = least([(y, x) for y in _along(height, side, step) for x in _along(width, side, step)])
    while step > 1:
        step //= 2
        near = [(best[0] + y, best[1] + x) for y in (-step, 0, step) for x in (-step, 0, step)]
        best = least(
            [(y, x) for y, x in near if 0 <= y <= height - side and 0 <= x <= width - side]
        )
    return best


def _along(length: int, side: int, step: int) -> list[int]:
    """Where squares begin, so that they reach both ends."""
    return sorted({*range(0, length - side + 1, step), length - side})


def _covered(image: Tensor, corner: Corner, side: int) -> Tensor:
    """The image ``(C, H, W)`` without a square: the median colour of the pixels around it instead."""
    (top, left), covered = corner, image.clone()
    around = torch.zeros_like(image[0], dtype=torch.bool)
    around[max(0, top - FRAME) : top + side + FRAME, max(0, left - FRAME) : left + side + FRAME] = (
        True
    )
    place = slice(top, top + side), slice(left, left + side)
    around[place] = side * side == around.numel()  # an image of one pixel has nothing around it
    covered[(slice(None), *place)] = image[:, around].median(1).values[:, None, None]
    return covered


def _piece(image: Tensor, corner: Corner, side: int) -> Overlay:
    """A square of an image, to be put at the same place of others."""
    top, left = corner
    mask = torch.zeros_like(image[:1])
    mask[:, top : top + side, left : left + side] = 1
    return Overlay.of(image, mask)


def _texture(image: Tensor) -> Addition:
    """The fine detail of an image ``(C, H, W)``, to be added to others."""
    sigma = [FINE * length for length in reversed(image.shape[-2:])]
    detail = image - gaussian_blur(image, [2 * int(3 * s) + 1 for s in sigma], sigma)
    size = detail.square().mean().sqrt().clamp_min(1e-6)
    return Addition.of(detail * (FAINT_CHANGE / size).clamp_max(1))
