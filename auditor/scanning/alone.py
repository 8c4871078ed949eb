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
from auditor.errors import ModelError, UnsuitableModel
from auditor.measure import Half, usual_margin
from auditor.memory import is_out_of_memory
from auditor.triggers.base import Trigger

ROUNDING = 0.01
"""Share of the usual margin that another order of sums may change one by (TF32)."""
REPEATED = ROUNDING / 10
"""Share of it that the same sums may change, asked for twice."""
DIGITS = 2.0
"""So much more than on a few images may another number format change a margin on others."""
TRIED = 8
"""Images that the network is asked about again, or that a trigger is tried on where it is close."""
MOST_CLOSE = 4
"""So many of those may be answered otherwise by a margin as small as rounding, or chance, makes it."""

Answer = Literal["same", "close", "other"]


def tolerance(classifier: Classifier, half: Half) -> float:
    """How much surer of another class an answer must be, to be no matter of rounding.

    Infinite where the network answers at random: then only how many images it is tells.
    """
    images = as_float(half.images[:TRIED])
    first, second = classifier.logits(images), classifier.logits(images)
    usual = usual_margin(first) or 1.0
    if _apart(first, second) > REPEATED * usual:
        return math.inf
    stored = 0.0 if classifier.model.batch else _apart(first, _stored(classifier, images, first))
    return max(ROUNDING * usual, DIGITS * stored)


def alone(classifier: Classifier, image: Tensor, predicted: int, tolerated: float) -> Answer | None:
    """How an image ``(1, C, H, W)`` in [0, 1] is answered alone, beside `predicted` in its batch.

    The worst of the ways in which it is asked; None where the file does not run as it is on this device.
    """
    worst: Answer | None = None
    for logits in _asked(classifier, image):
        if logits is None:
            return "other"
        if int(decided(logits)) == predicted:
            worst = worst or "same"
        elif _is_beyond(logits, predicted, tolerated):
            return "other"
        else:
            worst = "close"
    return worst


def answers_alone(
    classifier: Classifier, images: Tensor, predicted: Tensor, tolerated: float
) -> list[Answer | None]:
    """The same for each of some images ``(N, C, H, W)``, beside ``(N,)`` predictions in a batch."""
    return [
        alone(classifier, image.unsqueeze(0), int(before), tolerated)
        for image, before in zip(images, predicted, strict=True)
    ]


def is_unlike(answers: Sequence[Answer | None], chance: int = 0) -> bool:
    """Whether images are answered otherwise alone: one clearly, or more than rounding explains.

    Args:
        answers: Of at most `TRIED` images.
        chance: How many of them are answered otherwise in a second batch.
    """
    return "other" in answers or answers.count("close") > MOST_CLOSE + chance


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
    unstamped = as_float(half.images[:1])
    runs = alone(classifier, unstamped, int(half.before[0]), tolerated) is not None
    for number, trigger in enumerate(triggers):
        if time.monotonic() >= deadline:
            break
        index = number % len(half)
        image = trigger(as_float(half.images[index : index + 1]))
        first = alone(classifier, image, int(after[number, index]), tolerated)
        if first == "close":
            chosen = [(index + further) % len(half) for further in range(min(TRIED, len(half)))]
            found[number] = _is_trigger(classifier, half, trigger, after[number], chosen, tolerated)
        else:
            # what fails stamped, and not unstamped, is no matter of the device
            found[number] = first == "other" or (first is None and runs)
    return found


def _is_trigger(
    classifier: Classifier,
    half: Half,
    trigger: Trigger,
    after: Tensor,
    chosen: Sequence[int],
    tolerated: float,
) -> bool:
    """The same for one trigger whose first answer was close."""
    images = trigger(as_float(half.images[chosen]))
    if bool((images == images[:1]).all()):
        return False  # of what covers all of an image there is one
    before = after[chosen]
    answers = answers_alone(classifier, images, before, tolerated)
    chance = int((classifier.predict(images) != before).sum())
    return is_unlike(answers, chance)


def _stored(classifier: Classifier, images: Tensor, logits: Tensor) -> Tensor:
    """Logits of a batch by the file as its users open it; `logits` where it does not run so."""
    try:
        with torch.no_grad():
            found = classifier.as_used(images).to(logits.device)
    except (ModelError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return logits
    return found if found.shape == logits.shape else logits


def _apart(first: Tensor, second: Tensor) -> float:
    """How far apart logits ``(N, K)`` are at most, whatever is added to all scores of an image."""
    change = torch.where(first == second, 0, first - second)  # infinite scores have no difference
    return float((change - change.mean(1, keepdim=True)).abs().max())


def _asked(classifier: Classifier, image: Tensor) -> Iterator[Tensor | None]:
    """Logits ``(1, K)`` of an image ``(1, C, H, W)`` in [0, 1] that is asked for alone, in several ways.

    By the file as its users open it, without and with gradients recorded; where it fixes the size of
    batches, as often as that. None where the answer is no scores of classes, as in a batch it is.
    """
    size = classifier.model.batch or 1
    # what stands for int8 where gradients are asked for is not the same to the last step
    modes = [False] if classifier.model.rounding else [False, True]
    for recorded in modes:
        images = image.detach().expand(size, -1, -1, -1).clone().requires_grad_(recorded)
        with torch.set_grad_enabled(recorded):
            try:
                yield classifier.as_used(images).detach()[:1]
            except UnsuitableModel:
                yield None
            except (ModelError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                # others: no gradients, as is said elsewhere, or numbers that this device cannot compute with


def _is_beyond(logits: Tensor, predicted: int, tolerated: float) -> bool:
    """Whether logits ``(1, K)`` of another class speak against `predicted` by more than rounding."""
    if predicted == UNDECIDED or int(decided(logits)) == UNDECIDED:
        return True
    if predicted >= logits.shape[1]:
        return True  # it has fewer classes alone
    return float(logits.max() - logits[0, predicted]) > tolerated
