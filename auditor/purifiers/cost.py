"""What a purified network costs, on fit images that are kept back from the fitting.

A few of them count ACC and ASR coarsely, so that both are taken in standard errors, and the scores for
other images tell how much else has changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor import measure, verdict
from auditor.classifier import as_float
from auditor.purifiers.augment import mixed, shifted
from auditor.purifiers.base import Known, Task, all_finite, changed_classifier
from auditor.results.purify import Check

ASR_AIM, ACC_AIM = 1 / 2, 1 / 3
"""Shares of the user's goals that are aimed at, since other images will judge."""
DAMAGE_COPIES = 4
SAME_DAMAGE = 1e-3
"""Nats; damage is not told apart far below it."""
MOST_REMEMBERED = 2048
"""Fit images on which classes are counted, those for choosing first."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Tensors, and what they do on the images for choosing."""

    tensors: dict[str, Tensor]
    asr: float
    """Of the strongest trigger."""
    moved: float
    """The same without images that the suspect sends there unstamped, which is no backdoor's doing."""
    accuracy: float
    damage: float
    """Mean KL divergence from the suspect, in nats."""
    excess: float
    """By how much the aim of the ASR is missed so, in standard errors, by the trigger that misses it most."""
    loss: float
    """By how much more accuracy is lost than the user allows, in standard errors."""
    forgotten: tuple[int, ...]
    """Classes that it no longer recognises, see `verdict.forgotten`. On those that it was fitted on as well:
    of many classes, the others hold a few images each, and what is forgotten shows there, too."""
    borne: bool
    """The aim of ACC holds, and no class is forgotten."""
    reached: bool
    """The aims hold, of `moved` and of ACC, and no class is forgotten."""
    meets_goals: bool
    """So do the user's goals; of the ASR itself they need not, by what a weak network confuses anyway."""

    @property
    def cost(self) -> float:
        """The damage in powers of ten; a goal that is missed by one standard error is one more of them.

        By three it is two more, by seven three; so are as many forgotten classes. So one image beyond an
        aim weighs something, but not all; a backdoor that obeys weighs more than a little accuracy, and
        less than all of it.
        """
        missed = sum(math.log2(1 + by) for by in (self.excess, self.loss, len(self.forgotten)))
        return math.log10(self.damage + SAME_DAMAGE) + missed


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What a network makes of the images for choosing."""

    plain: Tensor
    """``(N,)`` classes."""
    stamped: Tensor
    """``(T, N)``, a row a trigger."""


class Scales:
    """The images for choosing, and what the suspect makes of them.

    Args:
        task: What the purifier was given.
        known: Those of the triggers that are unlearnt.
        chosen: Indices of the images for choosing.
        fitted: Those of the images that it is fitted on.
    """

    def __init__(self, task: Task, known: Sequence[Known], chosen: Tensor, fitted: Tensor) -> None:
        self.task, self.known = task, known
        self._images = task.images[chosen.to(task.images.device)]
        self._labels = task.labels[chosen]
        others = fitted[~torch.isin(fitted, chosen)][: max(0, MOST_REMEMBERED - len(chosen))]
        self._others = task.images[others.to(task.images.device)]
        self._labels_of_all = torch.cat([self._labels, task.labels[others]])
        self._suspect = self._answers({})
        self._recognised = self._of_classes({}, self._suspect)
        self.accuracy = self._accuracy(self._suspect)
        """Of the suspect."""
        self._concerned = [entry.wanted(self._labels) >= 0 for entry in known]
        self._movable = [
            concerned & ~entry.hits(self._suspect.plain, self._labels)
            for entry, concerned in zip(known, self._concerned, strict=True)
        ]

    def check(self, tensors: Mapping[str, Tensor], step: int, loss: Tensor) -> Check:
        """What those tensors do after so many steps, for the record."""
        answers = self._answers(tensors)
        asr = max(self._shares(answers, self._concerned), default=0.0)
        return Check(step=step, asr=asr, acc=self._accuracy(answers), loss=float(loss))

    def candidate(self, tensors: dict[str, Tensor], acc_aim: float) -> Candidate:
        """Tensors with their measures; `acc_aim` is the share of the goal for ACC that they may take."""
        answers, finite = self._answers(tensors), all_finite(tensors.values())
        accuracy, shares = self._accuracy(answers), self._shares(answers, self._movable)
        moved = max(shares, default=0.0)
        recognised = self._of_classes(tensors, answers)
        drop = verdict.class_drop(self.task.max_acc_drop)
        forgotten = verdict.forgotten(self._recognised, recognised, drop)
        keeps = finite and not forgotten
        borne = keeps and self._is_right_enough(accuracy, acc_aim)
        return Candidate(
            tensors=tensors,
            asr=max(self._shares(answers, self._concerned), default=0.0),
            moved=moved,
            accuracy=accuracy,
            damage=self._damage(tensors) if finite else math.inf,
            excess=self._excess(shares),
            loss=self._loss(answers),
            forgotten=tuple(forgotten),
            borne=borne,
            reached=borne and moved <= self.task.max_asr * ASR_AIM,
            meets_goals=keeps
            and self._is_right_enough(accuracy, 1.0)
            and moved <= self.task.max_asr,
        )

    def _answers(self, tensors: Mapping[str, Tensor]) -> _Answers:
        network = changed_classifier(self.task.classifier, tensors)
        triggers = [entry.stamped.trigger for entry in self.known]
        return _Answers(
            plain=network.predict(self._images),
            stamped=measure.predictions(network, self._images, triggers),
        )

    def _of_classes(self, tensors: Mapping[str, Tensor], answers: _Answers) -> list[int]:
        """Recognised images a class, of all fit images."""
        network = changed_classifier(self.task.classifier, tensors)
        said = [answers.plain]
        if len(self._others):
            said.append(network.predict(self._others))
        return measure.recognised(self._labels_of_all, torch.cat(said), self.task.classes)

    def _accuracy(self, answers: _Answers) -> float:
        return float((answers.plain == self._labels).float().mean())

    def _shares(self, answers: _Answers, among: Sequence[Tensor]) -> list[float]:
        """Which share of its images ``(N,)`` goes where a trigger sends them, for each of them."""
        return [
            int((entry.hits(after, self._labels) & chosen).sum()) / max(1, int(chosen.sum()))
            for entry, after, chosen in zip(self.known, answers.stamped, among, strict=True)
        ]

    def _is_right_enough(self, accuracy: float, share: float) -> bool:
        """Whether no more accuracy is lost than that share of the goal for it."""
        return self.accuracy - accuracy <= self.task.max_acc_drop * share

    def _excess(self, shares: Sequence[float]) -> float:
        """By how much a share of moved images misses the aim, in standard errors of one that reaches it.

        These are one image at least, of those that the trigger can move.
        """
        aim, most = self.task.max_asr * ASR_AIM, 0.0
        for moved, movable in zip(shares, self._movable, strict=True):
            count = int(movable.sum()) or 1
            error = math.sqrt(max(aim * (1 - aim), 1 / count) / count)
            most = max(most, (moved - aim) / error)
        return most

    def _loss(self, answers: _Answers) -> float:
        """By how much more accuracy is lost than the user allows, in standard errors.

        The images are paired, so that only those count that one network recognises and the other does
        not (McNemar): of n images, b lost and c gained, the loss is ``(b - c) / n`` and its error
        ``sqrt(b + c) / n``.
        """
        right, was = answers.plain == self._labels, self._suspect.plain == self._labels
        lost, gained = int((was & ~right).sum()), int((~was & right).sum())
        beyond = lost - gained - self.task.max_acc_drop * len(right)
        return beyond / math.sqrt(lost + gained) if beyond > 0 else 0.0

    def _mixed(self) -> Tensor:
        """Shifted and mixed images for choosing, the same ones each time."""
        generator = torch.Generator().manual_seed(self.task.seed)
        images = as_float(self._images)
        return torch.cat(
            [
                mixed(shifted(images, generator, flip=True, zeros=False), generator, share=1.0)
                for _ in range(DAMAGE_COPIES)
            ]
        )

    @cached_property
    def _wanted(self) -> Tensor:
        """What the suspect says of those, as log-probabilities."""
        return self.task.classifier.logits(self._mixed()).log_softmax(1)

    @torch.inference_mode()
    def _damage(self, tensors: Mapping[str, Tensor]) -> float:
        """Mean KL divergence from the suspect on shifted and mixed images for choosing, in nats.

        Finer than a count of images: on those that it was trained on, the suspect is right anyway.
        """
        purified = changed_classifier(self.task.classifier, tensors)
        have = purified.logits(self._mixed()).log_softmax(1)
        divergence = F.kl_div(have, self._wanted, log_target=True, reduction="batchmean")
        return max(0.0, float(divergence)) if divergence.isfinite() else math.inf
