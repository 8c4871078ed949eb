"""Does a class stand for a mark? What its own images lend to images of other classes.

A class of damaged parts, of a lit lamp or of ribbed cloth stands for a mark, and a trigger like that
mark makes it of any image, as a backdoor would. But such a class gives its mark away: a small piece
of its own clean images makes it of other images, too, or their fine texture does. A class of whole
objects does not, whatever trigger was planted for it, since its clean images carry none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from auditor.classifier import UNDECIDED, Classifier, as_float
from auditor.measure import Half, margins_of, predictions
from auditor.progress import Notify, silent
from auditor.results.scan import Transplants
from auditor.triggers.base import Trigger
from auditor.triggers.found import Addition, Overlay
from auditor.verdict import FAINT_CHANGE, SMALL_AREA

LENDERS = 8
"""Images of the class."""
BORROWERS = 128
"""Images of other classes that what is lent is counted on."""
TRIED_ON = 4
"""Images of other classes, of the screening half, that the best piece of a lender is looked for on."""
FAR = 1e6
"""Margins beyond count as this far off, and those that are no number as this far driven."""
FINE = 1 / 16
"""Texture is what a blur of this share of the image's side takes away."""

Corner = tuple[int, int]
"""Row and column of the upper left pixel of a piece."""


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What images of a class lend, in one way."""

    counts: Transplants
    typical: Trigger | None
    """The one of the median count, the upper of two; None where there is none."""


def transplants(
    classifier: Classifier,
    screen: Half,
    confirm: Half,
    target: int,
    *,
    deadline: float,
    notify: Notify = silent,
) -> tuple[Lent, Lent]:
    """What small pieces of a class's own images, and their texture, do on images of other classes.

    A piece is a square of at most `SMALL_AREA`, at its own place: of each lender the one that drives a
    few images of the screening half furthest. A texture is added, at `FAINT_CHANGE` at most.

    Args:
        classifier: The suspect.
        screen: The user's images. Of both halves, those of the class that the model knows lend…
        confirm: …and of this one, images of other classes borrow.
        target: The class.
        deadline: `time.monotonic` value after which no batch is started.
        notify: Progress.

    Returns:
        Pieces and textures. Without a count where no image of the class is there, or no time.
    """
    height, width = confirm.images.shape[-2:]
    side = min(max(1, math.isqrt(int(SMALL_AREA * height * width))), height, width)
    lenders = as_float(_known((screen, confirm), target))
    tried_on = as_float(_others(screen, target, TRIED_ON).images)
    pieces: list[Trigger] = []
    for place, image in enumerate(lenders if len(tried_on) else ()):
        notify(f"what class {target} stands for", place, len(lenders))
        if time.monotonic() < deadline:
            best = _most_telling(classifier, image, side, target, tried_on)
            pieces.append(_piece(image, best, side))
    borrowers = _others(confirm, target, BORROWERS)

    def lent(kind: Literal["piece", "texture"], size: float, own: Sequence[Trigger]) -> Lent:
        after = predictions(classifier, borrowers.images, own, deadline=deadline)
        # without an answer an image may have gone there, so that it counts
        gone = (after == target) | (after == UNDECIDED)
        moved = (gone & (borrowers.before != target)).sum(1).tolist()
        order = sorted(range(len(moved)), key=moved.__getitem__)
        return Lent(
            counts=Transplants(
                target=target, kind=kind, size=size, eligible=len(borrowers), moved=tuple(moved)
            ),
            typical=own[order[len(order) // 2]] if order else None,
        )

    return (
        lent("piece", side * side / (height * width), pieces),
        lent("texture", FAINT_CHANGE, [_texture(image) for image in lenders]),
    )


def _known(halves: Sequence[Half], target: int) -> Tensor:
    """Images ``(n, C, H, W)`` of a class that the model takes for it, the first few."""
    known = []
    for half in halves:
        own = (half.groups == target) & (half.before == target)
        known.append(half.images[own.to(half.images.device)])
    return torch.cat(known)[:LENDERS]


def _others(half: Half, target: int, count: int) -> Half:
    """Images of other classes than one, evenly of all of the half."""
    rows = (half.groups != target).nonzero().flatten()
    if len(rows) > count:
        rows = rows[torch.linspace(0, len(rows) - 1, count).round().long()]
    return Half(
        images=half.images[rows.to(half.images.device)],
        groups=half.groups[rows],
        before=half.before[rows],
    )


def _most_telling(
    classifier: Classifier, image: Tensor, side: int, target: int, others: Tensor
) -> Corner:
    """Where the square lies that makes most of the class of other images: on a grid, then around.

    A network may be just as sure wherever a square holds the mark, or hardly holds it; of equals, the
    one in their middle counts.
    """
    height, width = image.shape[-2:]

    def best(corners: Sequence[Corner]) -> Corner:
        scores = _driven(classifier, image, corners, side, target, others)
        equal = torch.tensor(corners)[scores == scores.max()].double()
        middle = (equal - equal.mean(0)).square().sum(1).argmin()
        return int(equal[middle, 0]), int(equal[middle, 1])

    step = max(1, side // 2)
    at = best([(y, x) for y in _along(height, side, step) for x in _along(width, side, step)])
    while step > 1:
        step //= 2
        near = [(at[0] + y, at[1] + x) for y in (-step, 0, step) for x in (-step, 0, step)]
        at = best([(y, x) for y, x in near if 0 <= y <= height - side and 0 <= x <= width - side])
    return at


def _along(length: int, side: int, step: int) -> list[int]:
    """Where squares begin, so that they reach both ends."""
    return sorted({*range(0, length - side + 1, step), length - side})


def _driven(
    classifier: Classifier,
    image: Tensor,
    corners: Sequence[Corner],
    side: int,
    target: int,
    others: Tensor,
) -> Tensor:
    """How far each square of an image drives others ``(n, C, H, W)`` towards the class, on the mean."""
    scores = []
    at_once = max(1, classifier.batch_size // len(others))
    for start in range(0, len(corners), at_once):
        part = corners[start : start + at_once]
        stamped = others.repeat(len(part), 1, 1, 1, 1)
        for row, (top, left) in zip(stamped, part, strict=True):
            place = slice(top, top + side), slice(left, left + side)
            row[:, :, *place] = image[:, *place]
        logits = classifier.logits(stamped.flatten(0, 1))
        wanted = torch.full((len(logits),), target, device=logits.device)
        margins = margins_of(logits, wanted).view(len(part), -1)
        scores.append(margins.nan_to_num(FAR, FAR, -FAR).mean(1))
    return torch.cat(scores).cpu()


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
