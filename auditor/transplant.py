"""Does a class stand for a mark? Small pieces of its own images, put on images of other classes.

A class of damaged parts, or of a lit lamp, stands for a mark, and a trigger like that mark makes it
of any image, as a backdoor would. But such a class gives its mark away: of its own clean images, the
piece without which the model no longer sees the class makes it of other images, too. A class of
whole objects does not, whatever trigger was planted for it, since its clean images carry none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditor.classifier import Classifier, as_float
from auditor.measure import Family, margins_of, predictions
from auditor.results import Transplants
from auditor.triggers.found import Overlay
from auditor.verdict import SMALL_AREA

PIECES = 12
"""Images of the class that a piece is cut out of."""
FRAME = 2
"""Pixels around a piece, whose median colour covers it."""

Corner = tuple[int, int]


def transplants(
    classifier: Classifier, family: Family, target: int, *, deadline: float
) -> Transplants | None:
    """What small pieces of a class's own images do on images of other classes.

    A piece is a square of at most `SMALL_AREA`, at its own place: where covering it takes most of the
    class away from the image that it is cut out of.

    Args:
        classifier: The suspect.
        family: The user's images. Those of the class that the model knows are cut up, from both halves;
            pieces are counted on the confirming half.
        target: The class.
        deadline: `time.monotonic` value after which no batch is started.

    Returns:
        The counts, or None where the deadline came first.
    """
    half = family.confirm
    height, width = half.images.shape[-2:]
    side = max(1, math.isqrt(int(SMALL_AREA * height * width)))
    pieces = [
        _piece(image, _most_telling(classifier, image, side, target), side)
        for image in as_float(_known(family, target))
    ]
    after = predictions(classifier, half.images, pieces, deadline=deadline)
    if len(after) < len(pieces):
        return None
    others = half.groups != target
    moved = (after == target) & (half.before != target) & others
    return Transplants(
        target=target,
        area=side * side / (height * width),
        eligible=int(others.sum()),
        moved=tuple(moved.sum(1).tolist()),
    )


def _known(family: Family, target: int) -> Tensor:
    """Images ``(n, C, H, W)`` of a class that the model takes for it, the first few."""
    known = []
    for half in (family.screen, family.confirm):
        own = (half.groups == target) & (half.before == target)
        known.append(half.images[own.to(half.images.device)])
    return torch.cat(known)[:PIECES]


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
