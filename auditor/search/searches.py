"""The searches of a scan, chosen like probes: each runs, or says why it did not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from auditor.classifier import Classifier, as_float
from auditor.errors import ModelError
from auditor.measure import Half, Stamped
from auditor.memory import is_out_of_memory
from auditor.probes import rebuilt
from auditor.progress import Notify, silent
from auditor.results.facts import Skipped
from auditor.results.scan import FoundTrigger, Inversion, MarginSearch, ScanResult
from auditor.search.inversion import MOST_CLASSES, Candidate, Inverted, invert
from auditor.search.inversion import images_needed as inverted_images
from auditor.search.margin import images_needed as margin_images
from auditor.search.margin import search_margins
from auditor.search.pace import (
    USUAL,
    Effort,
    NoGradient,
    NoNumber,
    OverBudget,
    planned,
    seconds_per_image,
)
from auditor.search.template import UnsuitableImages, search_templates
from auditor.text import listed
from auditor.triggers import TRIGGERS
from auditor.triggers.base import Trigger

T = TypeVar("T")

MARGIN, TEMPLATE = "search.margin", "search.template"
NEEDS_GRADIENTS = "needs gradients"
SECONDS = 300.0
"""Time that one search may take where the user sets no limit. On a slow machine it does less, or is
skipped, and that is said."""

SEARCHES: Mapping[str, tuple[str, str]] = {
    MARGIN: (
        "quick",
        "Data-free margin: how far free images can drive the model towards each class",
    ),
    "search.patch": (
        "standard",
        "Smallest patch that sends images of all classes to one, for each class",
    ),
    "search.additive": (
        "standard",
        "Smallest picture that sends images of all classes to one when it is added, for each class",
    ),
    TEMPLATE: (
        "standard",
        "Small patches of few colours, by trial; for models without gradients, in place of the others",
    ),
    "search.blend": (
        "deep",
        "Faintest picture that sends images of all classes to one when it is blended in, for each class",
    ),
    "search.warp": (
        "deep",
        "Smallest warp that sends images of all classes to one, for each class",
    ),
    "search.colour": (
        "deep",
        "Smallest change of colours that sends images of all classes to one, for each class",
    ),
}
"""Searches that are selected like probes: id -> tier, title."""


INVERSIONS = frozenset(SEARCHES) - {MARGIN}
"""The searches that exhibit triggers."""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A trigger that a search proposes, to be confirmed on images that it has not seen."""

    stamped: Stamped
    target: int
    rivals: tuple[tuple[int, Trigger], ...] = ()
    """See `Candidate.rivals`."""


class Searches:
    """The searches that were chosen, within a deadline."""

    def __init__(
        self,
        classifier: Classifier,
        classes: int,
        chosen: Sequence[str],
        *,
        sample: Tensor,
        seed: int,
        deadline: float,
        notify: Notify = silent,
    ) -> None:
        """Choose.

        Args:
            classifier: The suspect.
            classes: K.
            chosen: Names of `SEARCHES`.
            sample: ``(N, C, H, W)`` uint8, to see on whether the scores have a gradient.
            seed: Of all draws.
            deadline: `time.monotonic` value.
            notify: Progress.
        """
        self.classifier, self.classes, self.chosen = classifier, classes, chosen
        self.seed, self.deadline, self.notify = seed, deadline, notify
        self.skipped: list[Skipped] = []
        self.reduced: dict[str, Effort] = {}
        """Searches that were made with less than the usual work, since this device is slow."""
        self.sample = sample
        self._begun: set[str] = set()

    @cached_property
    def gradient(self) -> Tensor | None:
        """Of the sample, see `gradient_of`."""
        return gradient_of(self.classifier, self.sample)

    @cached_property
    def seconds_each(self) -> float:
        """Of an image with its gradient."""
        return seconds_per_image(self.classifier, self.sample)

    def reductions(self) -> str | None:
        """Which searches did less than usual, in words; None where all did what they do."""
        not_run = {entry.what for entry in self.skipped}
        done = {name: effort for name, effort in self.reduced.items() if name not in not_run}
        if not done:
            return None
        shares = [f"{name} ({effort.share:.0%})" for name, effort in done.items()]
        return (
            "This device is slow for this model, so that searches did a part of their usual work: "
            f"{listed(shares, len(shares))}. They find nearly as much with it. More --time-budget, or a GPU, "
            "gives all of it."
        )

    def margins(self) -> MarginSearch | None:
        """The data-free margins, if they were chosen and can be had."""
        if MARGIN not in self.chosen:
            return None
        return self._run(
            MARGIN,
            lambda budget: search_margins(
                self.classifier, self.classes, seed=self.seed, notify=self.notify, budget=budget,
                effort=self._planned(MARGIN, partial(margin_images, self.classes), budget),
            ),
        )  # fmt: skip

    def without_images(self) -> None:
        """Note that no trigger is searched: that needs images to stamp it on."""
        self.skipped += [
            Skipped(what=name, reason="needs clean images (--clean DIR), two or more")
            for name in self.chosen
            if name in INVERSIONS and (name != TEMPLATE or self.gradient is None)
        ]

    def inversions(
        self, family: str, half: Half, margin: MarginSearch | None
    ) -> tuple[list[Inversion], list[Proposed]]:
        """Every chosen form of trigger, searched on some images.

        Args:
            family: What the images are.
            half: The images; those that a finding is confirmed on are others.
            margin: Decides which of many classes are searched.
        """
        searched, proposed = [], []
        classes = self._worth_searching(margin)
        others = INVERSIONS.intersection(self.chosen) - {TEMPLATE}
        for name in (n for n in self.chosen if n != MARGIN):
            if name == TEMPLATE and self.gradient is not None and bool(self.gradient.any()):
                if not others:
                    reason = "the model has gradients, by which search.patch finds more"
                    self.skipped.append(Skipped(what=name, reason=reason))
                continue
            search = (
                partial(self._templates, half, classes)
                if name == TEMPLATE
                else partial(self._inverted, name.removeprefix("search."), half, classes)
            )
            inverted = self._run(name, search)
            if inverted is not None:
                searched.append(recorded(name, family, inverted))
                proposed += [
                    Proposed(
                        stamped=presented(
                            name, candidate, ", at a larger size" if candidate.rivals else ""
                        ),
                        target=candidate.target,
                        rivals=candidate.rivals,
                    )
                    for candidate in inverted.candidates
                ]
        return searched, proposed

    def _inverted(self, form: str, half: Half, classes: Sequence[int], budget: float) -> Inverted:
        needed = partial(inverted_images, form, len(classes))
        return invert(
            self.classifier, half.images, half.groups, classes, form,
            seed=self.seed, notify=self.notify, budget=budget,
            effort=self._planned(f"search.{form}", needed, budget),
        )  # fmt: skip

    def _planned(self, name: str, images: Callable[[Effort], int], budget: float) -> Effort:
        """How much of the usual work fits; less of it is noted."""
        effort = planned(images, self.seconds_each, budget)
        if effort != USUAL:
            self.reduced[name] = effort
        return effort

    def _templates(self, half: Half, classes: Sequence[int], budget: float) -> Inverted:
        return search_templates(
            self.classifier, half.images, half.groups, classes,
            seed=self.seed, notify=self.notify, budget=budget,
        )  # fmt: skip

    def _worth_searching(self, margin: MarginSearch | None) -> list[int]:
        """All classes; of many, half those of the largest margins, half an even sample to compare."""
        if self.classes <= MOST_CLASSES:
            return list(range(self.classes))
        even = torch.linspace(0, self.classes - 1, MOST_CLASSES).round().long().tolist()
        largest: list[int] = []
        if margin is not None:
            ranked = sorted(zip(margin.margins, margin.classes, strict=True), reverse=True)
            largest = [k for _, k in ranked[: MOST_CLASSES // 2]]
            even = even[::2]
        chosen = sorted({*largest, *even})
        self.skipped.append(
            Skipped(
                what="searches for smallest triggers",
                reason=f"{len(chosen)} of {self.classes} classes were searched, the others were not",
            )
        )
        return chosen

    def _allowance(self) -> float:
        """Seconds for the next search: its share of what is left of the user's time, if that is limited."""
        if math.isinf(self.deadline):
            return SECONDS
        still = len(set(self.chosen) - self._begun)
        return (self.deadline - time.monotonic()) / max(1, still)

    def _run(self, name: str, search: Callable[[float], T]) -> T | None:
        """One search, or None with the reason noted."""
        if name != TEMPLATE and self.gradient is None:
            self.skipped.append(Skipped(what=name, reason=NEEDS_GRADIENTS))
            return None
        allowance = self._allowance()
        self._begun.add(name)
        try:
            return search(allowance)
        except NoGradient:
            reason = "the scores have no gradient with respect to the image"
        except NoNumber:
            reason = "the scores are NaN or infinite on the images that it makes"
        except UnsuitableImages as error:
            reason = str(error)
        except OverBudget as over:
            why = "too slow on this device" if math.isinf(self.deadline) else "time budget"
            reason = f"{why}: it would take about {over.seconds:.0f} s"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = "out of memory"
        self.skipped.append(Skipped(what=name, reason=reason))
        return None


def gradient_of(classifier: Classifier, images: Tensor) -> Tensor | None:
    """How the largest score of the first of some images depends on it; None where it cannot be told.

    A network may have no gradient, hide it, or hold operators without derivative.
    """
    if not classifier.differentiable:
        return None
    rows = classifier.model.batch or 1
    image = as_float(images[:1]).repeat(rows, 1, 1, 1).to(classifier.device).requires_grad_()
    try:
        scores = classifier(image)
        if not scores.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(scores.amax(1).sum(), image, allow_unused=True)
    except (ModelError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return gradient


def recorded(search: str, family: str, inverted: Inverted) -> Inversion:
    """The record of one search."""
    return Inversion(
        search=search,
        what=inverted.what,
        measure=inverted.measure,
        family=family,
        images=inverted.images,
        steps=inverted.steps,
        classes=inverted.classes,
        sizes=inverted.sizes,
        found=tuple(
            FoundTrigger(
                target=candidate.target,
                size=candidate.size,
                kind=TRIGGERS.name_of(type(candidate.trigger)),
                fields=candidate.trigger.fields(),
                trigger=repr(candidate.trigger),
            )
            for candidate in inverted.candidates
        ),
    )


def presented(search: str, candidate: Candidate, which: str = "") -> Stamped:
    """A found trigger under the name of its search; `which` tells several apart."""
    return Stamped(
        probe=search,
        title=title_of(candidate.what, candidate.target) + which,
        trigger=candidate.trigger,
    )


def found_triggers(result: ScanResult) -> list[Stamped]:
    """Everything that the searches of a scan found."""
    return [
        Stamped(
            probe=search.search,
            title=title_of(search.what, found.target),
            trigger=rebuilt(found),
        )
        for search in result.inversions
        for found in search.found
    ]


def title_of(what: str, target: int) -> str:
    """A found trigger in words."""
    return f"The {what} that the search found for class {target}"
