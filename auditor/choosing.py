"""Which of several networks do bare weights belong to? The one that classifies clean images best.

Names and shapes leave some things open: whether a pooling follows a small first convolution, where a
projection begins, how wide an attention head is. The wrong choice runs, and classifies badly.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import NamedTuple

from auditor.errors import UnsuitableModel
from auditor.images.source import CleanSet, ImageSource
from auditor.inputs import (
    MAX_SIDE,
    SIZE_NORMALIZATIONS,
    GivenInput,
    blank_spec,
    recognised,
    resolve_size,
    spec_of,
)
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.progress import Notify, silent
from auditor.text import clean_text, listed

IMAGES = 200
FIRST = 64
"""Images on which the normalisation is chosen; the others are only tried with the best."""
EQUAL = 0.01
"""Accuracies this close do not tell networks apart."""
SHOWN = 4


class Tried(NamedTuple):
    """A network, and how many clean images it classifies rightly."""

    model: ModelHandle
    name: str
    """As `--arch` takes it."""
    accuracy: float


def best_fitting(
    model: ModelHandle,
    source: ImageSource | None,
    given: GivenInput | None = None,
    *,
    seed: int = 0,
    notify: Notify = silent,
    deadline: float = math.inf,
) -> ModelHandle:
    """The model as that one of its alternatives which classifies clean images best.

    Args:
        model: As `load_model` opened it; returned as it is where there is nothing to choose.
        source: Clean images; without them, or without labels, it is left at the first, and that is
            said.
        given: What the user said of the input.
        seed: Of the images' choice.
        notify: Progress.
        deadline: `time.monotonic` value after which no further one is tried, if one runs.

    Raises:
        ModelError: None of the alternatives runs.
        ImageError: The images cannot be read.
    """
    if len(model.alternatives) < 2:
        return model
    if source is None or source.labels is None:
        names = [clean_text(name, limit=80) for name in model.alternatives]
        model.notes.append(
            f"The weights also fit {listed(names[1:], SHOWN, ' or ')}, and without labelled clean images "
            "nothing more tells them apart; --arch chooses."
        )
        return model
    tried: list[Tried] = []
    errors: list[UnsuitableModel] = []
    left: list[str] = []
    for done, name in enumerate(model.alternatives):
        if tried and time.monotonic() >= deadline:
            left = list(model.alternatives[done:])
            break
        notify("finding the network", done, len(model.alternatives))
        try:
            tried.append(_tried(model, name, source, given or GivenInput(), seed))
        except UnsuitableModel as error:
            errors.append(error)
    if not tried:
        raise errors[0]
    best, *others = sorted(tried, key=lambda entry: -entry.accuracy)
    names = [best.name, *(name for name in model.alternatives if name != best.name)]
    late = f" No time was left to try {listed(left, SHOWN, ' and ')}." if left else ""
    best.model.notes = [*model.notes, _verdict(best, others, untried=bool(left)) + late]
    best.model.rivals = model.rivals
    best.model.alternatives = tuple(names)
    return best.model


def _tried(
    model: ModelHandle, name: str, source: ImageSource, given: GivenInput, seed: int
) -> Tried:
    first = name == model.alternatives[0]
    opened = model if first else load_model(model.file.path, arch=name, device=model.device)
    size = _size(opened, source, given, seed)
    clean = source.load(source.draw(IMAGES, seed), blank_spec(size))
    names = SIZE_NORMALIZATIONS if given.normalize is None else (given.normalize,)
    labels = None if clean.labels is None else clean.labels[:FIRST]
    part = CleanSet(images=clean.images[:FIRST], labels=labels)
    best = max(names, key=lambda text: _accuracy(opened, size, text, given, part))
    return Tried(opened, name, _accuracy(opened, size, best, given, clean))


def _size(
    model: ModelHandle, source: ImageSource, given: GivenInput, seed: int
) -> tuple[int, int, int]:
    """One size for all: given, fixed, that of the images, or what the network is made for.

    Other sizes are not tried. A wrong network would be tried at all of them.
    """
    channels, *fixed = model.input_size
    native = source.sizes(source.draw(16, seed))
    height, width = fixed
    if not height or not width:
        side = model.default_side or max(max(size) for size in native)
        height, width = next(iter(native)) if len(native) == 1 else (side, side)
        if height != width or height > MAX_SIDE:
            height = width = side
    wanted = replace(
        given,
        channels=given.channels or channels or 3,
        height=given.height or height,
        width=given.width or width,
    )
    channels, height, width, _ = resolve_size(model, source, wanted, seed)
    return channels, height, width


def _accuracy(
    model: ModelHandle, size: tuple[int, int, int], text: str, given: GivenInput, clean: CleanSet
) -> float:
    spec = spec_of(size, text, given.order or "rgb")
    return recognised(model, spec, clean) / len(clean)


def _verdict(best: Tried, others: list[Tried], *, untried: bool) -> str:
    if not others and untried:
        return f"It was taken for {clean_text(best.name)}, without another to compare it with."
    if not others:
        return f"It was taken for {clean_text(best.name)}: none of the others runs on the images."
    second = others[0]
    text = (
        f"Of the networks that its weights fit, {clean_text(best.name)} has the highest clean accuracy "
        f"({best.accuracy:.0%}; next {clean_text(second.name)} with {second.accuracy:.0%})."
    )
    if best.accuracy - second.accuracy <= EQUAL:
        text += " That is no clear choice; --arch makes one."
    return text
