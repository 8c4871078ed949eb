"""Is an image answered alone, by the file as its users open it, as it is in our batches?

A file may tell single images from batches, a program that records gradients from one that does
not, and its own numbers from ours, while scans ask in one way only. Honest ones differ by the order
of sums alone. How much that may be is measured by the margins of clean images, and not by the scores:
a number that is added to all of them changes no answer, and would hide a change of any.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from auditor.classifier import UNDECIDED, Classifier, as_float, decided
from auditor.errors import ModelError
from auditor.measure import Half, usual_margin
from auditor.memory import is_out_of_memory
from auditor.triggers.base import Trigger

ROUNDING = 0.01
"""Share of the usual margin that another order of sums may change one by (TF32)."""
REPEATED = ROUNDING / 10
"""Share of it that the same sums may change, asked for twice."""
TRIED = 8
"""Images that the network is asked about again, or that a trigger is tried on where it is close."""
MOST_CLOSE = 2
"""So many of those may be answered otherwise by a margin as small as rounding makes it."""

Answer = Literal["same", "close", "other"]


def tolerance(classifier: Classifier, half: Half) -> float:
    """How much surer of another class an answer must be, to be no matter of rounding.

    Infinite where the network answers at random: then only how many images it is tells.
    """
    images = half.images[:TRIED]
    first, second = classifier.logits(images), classifier.logits(images)
    usual = usual_margin(first) or 1.0
    change = torch.where(first == second, 0, first - second)  # infinite scores have no difference
    drift = (change - change.mean(1, keepdim=True)).abs().max()
    return ROUNDING * usual if float(drift) <= REPEATED * usual else math.inf


def alone(classifier: Classifier, image: Tensor, predicted: int, tolerated: float) -> Answer | None:
    """How an image ``(1, C, H, W)`` in [0, 1] is answered alone, beside `predicted` in its batch.

    The worst of the ways in which it is asked; None where the file does not run as it is on this device.
    """
    worst: Answer | None = None
    for logits in _asked(classifier, image):
        if int(decided(logits)) == predicted:
            worst = worst or "same"
        elif _is_beyond(logits, predicted, tolerated):
            return "other"
        else:
            worst = "close"
    return worst


def is_unlike(answers: Sequence[Answer | None]) -> bool:
    """Whether images are answered otherwise alone: one clearly, or more than rounding explains."""
    return "other" in answers or answers.count("close") > MOST_CLOSE


def unlike_alone(
    classifier: Classifier, half: Half, triggers: Sequence[Trigger], after: Tensor, deadline: float
) -> list[bool]:
    """Which triggers have images that are answered otherwise alone; what was found in time.

    One image a trigger is tried, another for each, and more where its answer is another by little.

    Args:
        classifier: The suspect.
        half: N images.
        triggers: T of them.
        after: ``(T, N)`` predictions in batches.
        deadline: `time.monotonic` value.
    """
    found = [False] * len(triggers)
    tolerated = tolerance(classifier, half)
    for number, trigger in enumerate(triggers):
        if time.monotonic() >= deadline:
            break
        chosen = [(number + further) % len(half) for further in range(min(TRIED, len(half)))]
        tried: list[Tensor] = []
        answers: list[Answer | None] = []
        for index in chosen:
            image = trigger(as_float(half.images[index : index + 1]))
            if tried and torch.equal(image, tried[0]):
                continue  # of what covers all of an image there is one
            tried.append(image)
            answers.append(alone(classifier, image, int(after[number, index]), tolerated))
            if answers[0] != "close" or is_unlike(answers):
                break
        found[number] = is_unlike(answers)
    return found


def _asked(classifier: Classifier, image: Tensor) -> Iterator[Tensor]:
    """Logits ``(1, K)`` of an image ``(1, C, H, W)`` in [0, 1] that is asked for alone, in several ways.

    By the file as its users open it, without and with gradients recorded; where it fixes the size of
    batches, as often as that.
    """
    size = classifier.model.batch or 1
    # what stands for int8 where gradients are asked for is not the same to the last step
    modes = [False] if classifier.model.rounding else [False, True]
    for recorded in modes:
        images = image.detach().expand(size, -1, -1, -1).clone().requires_grad_(recorded)
        with torch.set_grad_enabled(recorded):
            try:
                yield classifier.as_used(images).detach()[:1]
            except (ModelError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                # others: no gradients, as is said elsewhere, or numbers that this device cannot compute with


def _is_beyond(logits: Tensor, predicted: int, tolerated: float) -> bool:
    """Whether logits ``(1, K)`` of another class speak against `predicted` by more than rounding."""
    if predicted == UNDECIDED or int(decided(logits)) == UNDECIDED:
        return True
    return float(logits.max() - logits[0, predicted]) > tolerated
