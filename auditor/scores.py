"""From whatever a network returns to one logit a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from auditor.errors import UnsuitableModel
from auditor.results.facts import ONE_NUMBER, Output
from auditor.text import clean_text

LOG_FLOOR = 1e-30
NEAR_ONE = torch.finfo(torch.float32).eps / 2
"""What is left of one where a probability is as near to it as float32 tells. One near to nought is taken
for no surer, since the two classes are held against each other."""


def scores_of(raw: Any, name: str) -> Tensor:
    """One score a class from whatever a network returned, ``(N, K)``; one number an image is ``(N, 1)``.

    Raises:
        UnsuitableModel: The output is that of a detector, a segmentation network or no classifier.
    """
    name = clean_text(name)
    if isinstance(raw, list | tuple | dict) and len(raw) == 1:
        (raw,) = raw.values() if isinstance(raw, dict) else raw
    if isinstance(raw, list | tuple | dict):
        parts = raw.items() if isinstance(raw, dict) else enumerate(raw)
        shown = ", ".join(f"{clean_text(str(k), limit=30)} {_shape(v)}" for k, v in list(parts)[:6])
        raise UnsuitableModel(
            f"{name} returns {len(raw)} outputs ({shown}): it may be a detector, have several heads, or hand "
            "out features beside its scores, and the file does not say which of them its users take. auditor "
            "tests image classifiers that return one score a class and nothing else. Export only the scores."
        )
    if not isinstance(raw, Tensor):
        raise UnsuitableModel(
            f"{name} returns a {type(raw).__name__}, not a tensor of class scores."
        )
    if raw.ndim == 4 and raw.shape[2:] == (1, 1):
        raw = raw.flatten(1)
    if raw.ndim < 2 and raw.is_floating_point():
        raw = raw.reshape(-1, 1)
    chosen = raw.ndim == 2 and raw.shape[1] == 1 and not raw.is_floating_point()
    if raw.ndim != 2 or not raw.shape[1] or chosen:
        kinds = {1: ", as if it had chosen a class already", 4: ", as of segmentation"}
        kind = kinds.get(1 if chosen else raw.ndim, "")
        raise UnsuitableModel(
            f"{name}: the output is not one score a class but of shape {_shape(raw)}{kind}. "
            "auditor tests image classifiers."
        )
    scores: Tensor = raw.float()
    return scores


def output_of(answers: Sequence[Tensor]) -> Output:
    """What a network returns, by its scores ``(N, K)`` for images that were prepared in different ways.

    Probabilities where all are: several that are non-negative and sum to one, or one number an image
    that lies in [0, 1].
    """
    probabilities = all(map(_like_probabilities, answers))
    if answers[0].shape[1] == 1:
        return "probability" if probabilities else "logit"
    return "probabilities" if probabilities else "logits"


def described(output: Output | None, classes: int) -> str:
    """How many outputs a network has, in words."""
    if output in ONE_NUMBER:
        return "2 classes (it returns one number an image)"
    return f"{classes} outputs"


def as_logits(scores: Tensor, output: Output | None) -> Tensor:
    """Logits ``(N, K)`` of two classes or more, whose differences are those of the network's.

    Args:
        scores: ``(N, K)``. One number an image, ``(N, 1)``, is that of class 1: a logit above 0, or a
            probability above 1/2, is class 1, else it is class 0.
        output: What they are; of probabilities the logarithms are taken. None: leave them as they are.
    """
    if output is None:
        return scores
    probabilities = output in ("probability", "probabilities")
    if scores.shape[1] > 1:
        return scores.clamp_min(LOG_FLOOR).log() if probabilities else scores
    if not probabilities:
        return torch.cat([-scores / 2, scores / 2], 1)
    return torch.cat([1 - scores, scores], 1).clamp_min(NEAR_ONE).log()


def _like_probabilities(scores: Tensor) -> bool:
    if scores.shape[1] == 1:
        return bool(((scores >= 0) & (scores <= 1)).all())
    sums = scores.sum(1)
    return bool((scores >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _shape(value: Any) -> str:
    return "×".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
