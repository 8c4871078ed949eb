"""Trigger inversion: the smallest change that sends images of all classes to one.

For every class the same search, side by side: after Neural Cleanse (Wang et al., IEEE S&P 2019,
https://doi.org/10.1109/SP.2019.00031), with other forms of trigger beside its mask and pattern. A
class that a much smaller change reaches than the others is suspicious; benign networks give way to
such changes as well, only larger ones.

The smallest trigger is a weak relative of the attacker's. So what is handed on is the trigger of
the largest margin, at a small size that is the same for all classes and models: a planted trigger
then makes a model surer than its own images do, a natural one hardly moves it.

A strong trigger (a picture that is blended in) has no small relative, and what is larger moves any
network. There the network itself is the measure: the class that gives way first is also held
against the next ones, each with the trigger that was searched for it, at one size between theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import Classifier, as_float
from auditor.measure import margins_of
from auditor.progress import Notify, silent
from auditor.search.forms import FORMS, Form
from auditor.search.pace import USUAL, Effort, NoGradient, Pace
from auditor.statistics import MIN_CLASSES_FOR_OUTLIERS
from auditor.synthesis import TYPICAL_SPREAD, spread
from auditor.triggers.base import Trigger

STEPS = 100
IMAGES = 8
"""Images a class and step."""
WORKS, FAILS = 0.93, 0.85
"""Running ASR above which a trigger is asked to be smaller, and below which it may grow."""
MEMORY = 0.5
"""Weight of the past in the running ASR."""
MARGIN = 1.0
"""Margin that a redirected image should have, in units of a third of the usual spread of scores."""
SURE = 3.0
"""The same while a form looks around."""
REACH = 1 / 16
"""Images are shifted by up to this share of their side, so that no single image decides."""
STRENGTHEN_STEPS = 50
STRENGTHEN_IMAGES = 24
PIXELS_AT_ONCE = 64 * 64 * 64
"""Of small images so many pixels go through the network at once, of large ones half of the batch that
was tuned without gradients."""
MOST_CLASSES = 50
HANDED_ON = 3
"""Classes whose triggers are handed on: those that the smallest changes reach."""
RIVALS = 2
"""Classes that the first is held against: those that give way next."""
RIVAL_SIZE = 1.2
"""Where the next class needs less than so many times the size, they are not held against each other:
the first one's trigger would not work clearly better than its rivals'."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trigger that a search found."""

    what: str
    """Its form in words."""
    target: int
    size: float
    """Of the smallest one that worked. The trigger has the size that all are judged at, or with rivals
    the one at which they are compared."""
    trigger: Trigger
    rivals: tuple[tuple[int, Trigger], ...] = ()
    """Other classes, and the triggers of the same size that were searched for them."""


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """What one form of trigger needs to reach each class."""

    what: str
    """The form in words."""
    measure: str
    """What the sizes are, in words."""
    classes: tuple[int, ...]
    sizes: tuple[float | None, ...]
    """None: not reached within the steps."""
    steps: int
    images: int
    candidates: tuple[Candidate, ...]


def invert(
    classifier: Classifier,
    images: Tensor,
    groups: Tensor,
    classes: Sequence[int],
    form: str,
    *,
    seed: int,
    notify: Notify = silent,
    budget: float = math.inf,
    steps: int = STEPS,
    handed_on: int = HANDED_ON,
    room: float = 1.0,
    size: float | None = None,
    effort: Effort = USUAL,
) -> Inverted:
    """Search the smallest trigger of a form towards each class, and strengthen the smallest ones.

    All classes take the same number of steps, on draws of the same images, so that their sizes can
    be compared.

    Args:
        classifier: The suspect; must be differentiable.
        images: ``(N, C, H, W)`` uint8 on its device.
        groups: ``(N,)`` class of each, on the CPU; a class is searched on images of the others.
        classes: Those to search.
        form: A name of `FORMS`.
        seed: Of the start and of the draws.
        notify: Progress.
        budget: Seconds that it may take; estimated after a few steps.
        steps: Of each class, in which the trigger shrinks; a form may take others before.
        handed_on: Classes whose triggers are strengthened and returned.
        room: See `Form.strongest`.
        size: See there, too.
        effort: Less than usual, for a slow machine.

    Raises:
        NoGradient: The scores do not depend on the image, or not differentiably.
        OverBudget: It would take longer.
    """
    return _Inversion(classifier, images, groups, classes, form, seed, notify, budget, effort).run(
        steps, handed_on, room, size
    )


def images_needed(form: str, classes: int, effort: Effort) -> int:
    """How many images go through the network, at most."""
    steps = effort.of_steps(FORMS[form].explored) + effort.of_steps(STEPS)
    return classes * effort.of_images(IMAGES) * steps + _strengthening(effort)


def _strengthening(effort: Effort) -> int:
    """Images that strengthening takes at most."""
    triggers = HANDED_ON + 1 + RIVALS
    return triggers * effort.of_steps(STRENGTHEN_STEPS) * effort.of_images(STRENGTHEN_IMAGES)


class _Inversion:
    """One search in progress."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        groups: Tensor,
        classes: Sequence[int],
        form: str,
        seed: int,
        notify: Notify,
        budget: float,
        effort: Effort,
    ) -> None:
        self.classifier, self.images, self.effort = classifier, as_float(images), effort
        self.name, self.notify, self.budget = form, notify, budget
        self.draw = torch.Generator().manual_seed(seed)
        self.sources = {k: (groups != k).nonzero().flatten() for k in classes}
        self.classes = [k for k in classes if len(self.sources[k])]
        # margins in units of a common spread, so that multiplying the scores changes nothing
        self.scale = TYPICAL_SPREAD / spread(classifier, self.images)

    def run(self, steps: int, handed_on: int, room: float, judged: float | None) -> Inverted:
        """Search all classes, then strengthen the best."""
        spec = self.classifier.spec
        shape = (spec.channels, spec.height, spec.width)
        form = FORMS[self.name](len(self.classes), shape, self.draw).to(self.classifier.device)
        explored = self.effort.of_steps(form.explored)
        steps = self.effort.of_steps(steps)
        sizes = self._smallest(form, explored, steps).tolist()
        reached = [row for row, size in enumerate(sizes) if math.isfinite(size)]
        reached.sort(key=lambda row: sizes[row])
        candidates = [
            Candidate(
                what=form.what,
                target=self.classes[row],
                size=sizes[row],
                trigger=self._strengthened(form, row, room, judged),
            )
            for row in reached[:handed_on]
        ]
        candidates += self._held_against_others(form, reached, sizes)
        return Inverted(
            what=form.what,
            measure=form.measure,
            classes=tuple(self.classes),
            sizes=tuple(size if math.isfinite(size) else None for size in sizes),
            steps=explored + steps,
            images=len(self.images),
            candidates=tuple(candidates),
        )

    def _smallest(self, form: Form, explored: int, steps: int) -> Tensor:
        """Shrink what works, for all classes at once; the smallest sizes that worked, ``(K,)``.

        The form is left with the triggers of these sizes.
        """
        classes, device = self.classes, self.classifier.device
        count = self.effort.of_images(IMAGES)
        total = explored + steps
        later = -(-_strengthening(self.effort) // (count * max(1, len(classes))))
        pace = Pace(total + later, self.budget, device)
        for step in range(1, explored + 1):
            margins = self._descended(form, classes, count, lambda m: F.relu(SURE - m))
            form.step()
            form.learn(margins, step / explored)
            pace.step()
            self.notify(f"searching the smallest {form.what} towards each class", step, total)
        running = torch.zeros(len(classes), device=device)
        best = torch.full((len(classes),), torch.inf, device=device)
        kept = form.state()
        for step in range(1, steps + 1):
            margins = self._descended(form, classes, count, lambda m: F.relu(MARGIN - m))
            rate = (margins > 0).float().mean(1)
            running = MEMORY * running + (1 - MEMORY) * rate
            with torch.no_grad():
                size = form.sizes()
                better = (running >= WORKS) & (size < best)
                best = torch.where(better, size, best)
                for copy, parameter in zip(kept, form.parameters(), strict=True):
                    copy[better] = parameter[better]
            pressure = form.shrink(running >= WORKS, running < FAILS)
            if pressure.requires_grad:
                torch.autograd.backward(pressure.sum())
            form.step()
            pace.step()
            self.notify(
                f"searching the smallest {form.what} towards each class",
                explored + step,
                total,
            )
        form.restore(kept, best.isfinite())
        return best.cpu()

    def _held_against_others(
        self, form: Form, reached: Sequence[int], sizes: Sequence[float]
    ) -> list[Candidate]:
        """The class that gives way first and the next ones, all at one size between theirs."""
        if form.compared is None or len(reached) < MIN_CLASSES_FOR_OUTLIERS:
            return []
        first, *others = reached[: RIVALS + 1]
        size = math.sqrt(sizes[first] * sizes[others[0]])
        if sizes[others[0]] < RIVAL_SIZE * sizes[first] or size > form.compared:
            return []
        made = {row: self._strengthened(form, row, size=size) for row in (first, *others)}
        return [
            Candidate(
                what=form.what,
                target=self.classes[first],
                size=sizes[first],
                trigger=made[first],
                rivals=tuple((self.classes[row], made[row]) for row in others),
            )
        ]

    def _strengthened(
        self, form: Form, row: int, room: float = 1.0, size: float | None = None
    ) -> Trigger:
        """The trigger of one class with the largest margin; arguments as of `Form.strongest`."""
        target = self.classes[row]
        strongest = form.strongest(torch.tensor([row], device=self.classifier.device), room, size)
        count = self.effort.of_images(STRENGTHEN_IMAGES)
        for _ in range(self.effort.of_steps(STRENGTHEN_STEPS)):
            self._descended(strongest, [target], count, torch.neg)
            strongest.step()
        return strongest.trigger(0)

    def _descended(
        self, form: Form, classes: Sequence[int], count: int, loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Margins ``(K, n)`` of stamped draws of the images, and in the form the gradient of a loss.

        What the network keeps for the gradient is by far the most of the memory, so the images go
        through it in parts; the stamps are differentiated once for all of them.

        Args:
            form: The triggers.
            classes: K targets; each is stamped on images of other classes.
            count: n.
            loss: Of margins, one by one; its mean over the images counts, summed over the classes.
        """
        stamped = form.stamp(self._drawn(classes, count)).flatten(0, 1)
        leaves = stamped.detach().requires_grad_()
        target = torch.tensor(classes, device=leaves.device).repeat_interleave(count)
        pixels = leaves.shape[-2] * leaves.shape[-1]
        size = max(1, self.classifier.batch_size // 2, PIXELS_AT_ONCE // pixels)
        margins = []
        for part, wanted in zip(torch.split(leaves, size), torch.split(target, size), strict=True):
            margin = margins_of(self.classifier(part), wanted) * self.scale
            if not margin.requires_grad:
                raise NoGradient
            torch.autograd.backward(loss(margin).sum() / count)
            margins.append(margin.detach())
        torch.autograd.backward(stamped, leaves.grad)
        return torch.cat(margins).view(len(classes), count)

    def _drawn(self, classes: Sequence[int], count: int) -> Tensor:
        """Images ``(K, n, C, H, W)`` of other classes than the one that they are drawn for."""
        picked = torch.stack(
            [
                self.sources[k][torch.randint(len(self.sources[k]), (count,), generator=self.draw)]
                for k in classes
            ]
        )
        return self._shifted(self.images[picked.to(self.images.device)])

    def _shifted(self, images: Tensor) -> Tensor:
        """All images of a step shifted and mirrored alike, before they are stamped."""
        height, width = images.shape[-2:]
        far = [max(1, round(side * REACH)) for side in (height, width)]
        down, right = (int(torch.randint(-s, s + 1, (), generator=self.draw)) for s in far)
        if int(torch.randint(2, (), generator=self.draw)):
            images = images.flip(-1)
        padded = F.pad(images.flatten(0, 1), (far[1], far[1], far[0], far[0]), mode="replicate")
        top, left = far[0] + down, far[1] + right
        return padded[:, :, top : top + height, left : left + width].view_as(images)
