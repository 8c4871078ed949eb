"""Our own method: unlearn what the scan found, and keep everything else as it was.

Why it is as it is (numbers in bench/RESULTS.md): the suspect itself is the teacher. Stamped images
shall look to the purified model like the same images unstamped looked to the suspect, in its output
and in its features; unstamped and mixed images shall look as they did. Anchoring features on the
way keeps the accuracy: on images that the suspect was trained on, its outputs are saturated and
say little. What the attacker's trigger leaves in the features that the last layer reads is much what a
found one leaves there, so that the last layer learns to ignore that (`Imprints`). Masks and all weights
are tried; of what makes the triggers ineffective, that counts which changes the network least otherwise,
by its scores, since a few kept-back images count accuracy and ASR too coarsely (`Candidate.cost`).
BatchNorm keeps its running statistics unless re-estimated ones do better. Every choice is made on fit
images that are kept back from the fitting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import as_float
from auditor.errors import UnsuitableModel
from auditor.masks import clip, effective, lower_bounds, ones
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.augment import mixed, shifted
from auditor.purifiers.base import (
    PURIFIERS,
    Purified,
    Purifier,
    Task,
    count,
    detached,
    loop,
    parted,
    trainable,
)
from auditor.purifiers.cost import ACC_AIM, ASR_AIM, Candidate, Scales
from auditor.purifiers.features import anchor_layers, distance
from auditor.purifiers.imprints import SAMPLE, Imprints
from auditor.purifiers.reestimate import reestimated
from auditor.purifiers.strengthen import Strengthened
from auditor.results.purify import Check, Stage
from auditor.text import clean_text

Stamp = Callable[[Tensor], Tensor]

MOST_TRIGGERS = 8
"""That are unlearnt, the first ones: more of them cost accuracy."""
CHECK_STEPS = 20
"""For the record alone: nothing is decided by these checks but by the one at the end."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to train."""

    what: Literal["masks", "weights"]
    lr: float
    steps: int
    batch: int | None = None
    """Images a step, where it is not the method's."""
    stamped: float | None = None
    """Share of them that is stamped, where it is not the method's."""
    imprints: float | None = None
    """Weight of imprints, where it is not the method's."""
    acc_aim: float = ACC_AIM
    """Share of the user's goal for ACC that it may take."""


ATTEMPTS = (
    Attempt(what="masks", lr=0.02, steps=40),
    Attempt(what="weights", lr=1e-3, steps=200),
)
GENTLER = Attempt(what="weights", lr=2.5e-4, steps=100)
"""For networks that the usual step damages: tried where what was made misses the user's goals."""
THOROUGH = tuple(
    Attempt(
        what="weights", lr=1e-3, steps=100, batch=192, stamped=share, imprints=0.25, acc_aim=1 / 2
    )
    for share in (2 / 3, 1 / 2)
)
"""For triggers that a search found: what makes them ineffective need not be enough for the attacker's,
of which they are relatives, so that the first turn counts which the network bears. And for those that
no other attempt makes ineffective, where the turn counts that costs least. So many images that are pushed
away from a class can make a network forget it, and then the turn does not count (`Candidate.forgotten`)."""


@PURIFIERS.register("nft")
@dataclass(frozen=True, kw_only=True)
class Informed(Purifier):
    """Distil the suspect into itself, with the found triggers made ineffective on the way.

    Loss of a batch: ``KL(suspect(x), model(x')) + features * |f(x') - f_suspect(x)|² / |f_suspect|²``,
    where x' is x, stamped for a share of the batch; and ``imprints * KL(suspect(x), model(x) + W d)`` for
    the rest of it, where W is the last layer's weight and d a trigger's imprint on what it reads. Adam,
    with the suspect's running statistics in BatchNorm; afterwards these are re-estimated where that is
    measurably better. The learning rate falls along a cosine, and no stage ends before its last step:
    after half the steps, the triggers are as ineffective, but the network differs by half as much again.
    """

    title: ClassVar[str] = "NFT informed by the scan"
    informed: ClassVar[bool] = True
    most_known: ClassVar[int | None] = MOST_TRIGGERS
    source: ClassVar[str] = "auditor's own; bench/RESULTS.md says what it was compared with"

    batch: int = 96
    stamped: float = 0.3
    """Share of a batch that is stamped."""
    features: float = 10.0
    """Weight of the feature anchor."""
    imprints: float = 0.1
    """Weight of the divergence of unstamped images with a trigger's imprint on their features."""
    strengthen: bool = True
    """Also unlearn stronger relatives of small triggers."""

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Try masks and weights; the attempt that costs least counts.

        Where that misses a goal, a gentler one is tried, and where it misses the aim of the ASR, thorough
        ones. Where searched triggers are among those known, a thorough one counts if it can be borne.
        """
        if not task.classifier.model.weights():
            raise UnsuitableModel(
                f"{clean_text(task.classifier.model.file.path.name)} has no weights that can be changed."
            )
        run = _Run(self, task, notify)
        outcomes = list(run.each(a for a in ATTEMPTS if a.what == "weights" or run.sites))
        best = min(outcomes, key=_cost)
        if not best.made.meets_goals:
            outcomes += run.each([GENTLER])
            best = min(outcomes, key=_cost)
        missed = best.made.excess > 0
        relatives = any(entry.searched for entry in run.known)
        for attempt in THOROUGH if missed or relatives else ():
            outcome = run.attempt(attempt)
            outcomes.append(outcome)
            borne = outcome.made.borne and outcome.made.moved <= best.made.moved
            if (relatives and borne) or (missed and _cost(outcome) < _cost(best)):
                best = outcome
            if best is outcome and borne:
                break
        return Purified(
            tensors=best.made.tensors,
            masks=best.masks,
            sites=tuple(run.sites) if best.masks else (),
            lower_bounds=tuple(run.bounds) if best.masks else (),
            stages=tuple(outcome.stage(best) for outcome in outcomes),
            trained=count(best.masks or task.classifier.model.weights()),
        )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    attempt: Attempt
    made: Candidate
    masks: dict[str, Tensor]
    imprints: float
    settings: dict[str, str]
    steps: int
    images: int
    seconds: float
    checks: tuple[Check, ...]
    says: str

    def stage(self, best: _Outcome) -> Stage:
        attempt, kept = self.attempt, self is best
        settings = {"lr": f"{attempt.lr:g}", "steps": str(attempt.steps)}
        if attempt.batch is not None:
            settings["batch"] = str(attempt.batch)
        if attempt.stamped is not None:
            settings["stamped"] = f"{attempt.stamped:.2f}"
        if attempt.what == "weights":
            settings["imprints"] = f"{self.imprints:g}"
        settings |= self.settings
        ending = "Kept." if kept else "Not kept."
        if self.made.reached and best.made.reached and self.made.damage > best.made.damage:
            ending = "Not kept: another attempt diverges less."
        return Stage(
            what=attempt.what, settings=settings, steps=self.steps, images=self.images,
            seconds=self.seconds, checks=self.checks, outcome=f"{self.says} {ending}", kept=kept,
        )  # fmt: skip


def _cost(outcome: _Outcome) -> float:
    return outcome.made.cost


def _asr(made: Candidate) -> str:
    asr = f"ASR {made.asr:.1%}"
    if made.moved == made.asr:
        return asr
    return f"{asr}, {made.moved:.1%} of the images that the suspect does not send there unstamped"


class _Run:
    """One purification: the images parted, the triggers ready, the anchor found."""

    def __init__(self, method: Informed, task: Task, notify: Notify) -> None:
        self.method, self.task, self.notify = method, task, notify
        self.classifier = task.classifier
        self.device = task.classifier.device
        self.sites = self.classifier.model.mask_sites()
        self.bounds = lower_bounds(len(self.sites), shape="none")
        self.own = self.classifier.model.tensors()
        parts = parted(len(task.images), task.seed)
        self.fit, self.kept_back = parts.fit, parts.choose
        self.choosing = (
            "kept-back fit images" if parts.apart else "fit images (too few to keep some back)"
        )
        self.known = task.known[: method.most_known]
        self.layers = anchor_layers(self.classifier, task.images)
        self.imprints = self._imprints()
        self.scales = Scales(task, self.known, self.kept_back, self.fit)

    def _imprints(self) -> Imprints | None:
        """Of the triggers that are unlearnt, where the network lets one look at them."""
        if not (self.known and self.layers and self.method.imprints):
            return None
        some = self.fit[:SAMPLE]
        images, labels = self.task.images[some.to(self.device)], self.task.labels[some]
        return Imprints.measured(self.classifier, self.known, images, labels, self.layers[-1])

    def _weight_of_imprints(self, attempt: Attempt, trained: Mapping[str, Tensor]) -> float:
        """The weight of imprints in an attempt's loss; 0 where nothing is trained that could ignore them."""
        if self.imprints is None or not self.imprints.reach(trained):
            return 0.0
        return self.method.imprints if attempt.imprints is None else attempt.imprints

    def each(self, attempts: Iterable[Attempt]) -> Iterator[_Outcome]:
        """What comes of attempts, one after the other.

        Where a trigger's imprint is much what the last layer recognises the target by, the network forgets
        that class. Then the attempt is made again without imprints, and no later one has any.
        """
        targets = {target for entry in self.known for target in entry.mapping}
        for attempt in attempts:
            outcome = self.attempt(attempt)
            yield outcome
            if outcome.imprints > 0 and targets.intersection(outcome.made.forgotten):
                self.imprints = None
                yield self.attempt(attempt)

    def attempt(self, attempt: Attempt) -> _Outcome:
        """Train as the attempt says, and measure what came of it."""
        generator = torch.Generator().manual_seed(self.task.seed)
        if attempt.what == "masks":
            trained = {n: m.requires_grad_() for n, m in ones(self.sites, self.device).items()}
        else:
            trained = trainable(self.classifier.model)

        def current() -> dict[str, Tensor]:
            if attempt.what == "masks":
                return effective(self.own, self.sites, trained)
            return trained

        def plain() -> dict[str, Tensor]:
            return detached(current())

        stamps: list[Stamp] = [
            Strengthened(entry.stamped.trigger, self.task.images, entry.size)
            if self.method.strengthen
            else entry.stamped.trigger
            for entry in self.known
        ]
        optimizer = torch.optim.Adam(trained.values(), lr=attempt.lr)
        checks: list[Check] = []
        last = torch.zeros(())
        with self.classifier.model.tapped(self.layers) as features:

            def step(number: int, batch: int) -> bool:
                nonlocal last
                rate = attempt.lr * (1 + math.cos(math.pi * number / attempt.steps)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._loss(current(), stamps, features, batch, attempt, generator)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                if attempt.what == "masks":
                    clip(trained, self.sites, self.bounds)
                for stamp in stamps:
                    if isinstance(stamp, Strengthened):
                        stamp.follow()
                last = loss.detach()
                if (number + 1) % CHECK_STEPS == 0 and number + 1 < attempt.steps:
                    checks.append(self.scales.check(plain(), number + 1, last))
                return True

            steps, images, seconds = loop(
                f"purifying: {attempt.what}",
                attempt.steps,
                attempt.batch or self.method.batch,
                step,
                notify=self.notify,
                device=self.device,
            )
        made = self.scales.candidate(plain(), attempt.acc_aim)
        settings, choice = {}, ""
        if statistics := self._reestimated(made.tensors):
            other = self.scales.candidate({**made.tensors, **statistics}, attempt.acc_aim)
            better = other.cost < made.cost
            settings["BatchNorm"] = "re-estimated" if better else "kept"
            made, other = (other, made) if better else (made, other)
            choice = (
                f" BatchNorm statistics {settings['BatchNorm']} ({'kept' if better else 're-estimated'}: "
                f"{_asr(other)}, ACC {other.accuracy:.1%}, divergence {other.damage:.3f} nats)."
            )
        checks.append(Check(step=steps, asr=made.asr, acc=made.accuracy, loss=float(last)))
        return _Outcome(
            attempt=attempt,
            made=made,
            masks=detached(trained) if attempt.what == "masks" else {},
            imprints=self._weight_of_imprints(attempt, trained),
            settings=settings,
            steps=steps,
            images=images,
            seconds=seconds,
            checks=tuple(checks),
            says=self._says(attempt, made) + choice,
        )

    def _says(self, attempt: Attempt, made: Candidate) -> str:
        task, images = self.task, f"{len(self.kept_back)} {self.choosing}"
        reached = "reached the aims" if made.reached else "did not reach the aims"
        aim = f"aim {task.max_asr * ASR_AIM:.1%}{' of these' if made.moved != made.asr else ''}"
        forgotten = ", ".join(map(str, made.forgotten))
        classes = f", of all fit images it forgets those of class {forgotten}" if forgotten else ""
        return (
            f"{attempt.what.capitalize()} {reached} on {images}: {_asr(made)} ({aim}), "
            f"ACC {self.scales.accuracy:.1%} to {made.accuracy:.1%} (aim: "
            f"{task.max_acc_drop * 100 * attempt.acc_aim:.1f} points less at most), divergence "
            f"{made.damage:.3f} nats{classes}."
        )

    def _reestimated(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """BatchNorm statistics of the changed network on the images that it was fitted on."""
        return reestimated(
            self.classifier,
            tensors,
            self.task.images,
            self.fit,
            batch=self.method.batch,
            seed=self.task.seed,
            notify=self.notify,
        )

    def _loss(
        self,
        tensors: Mapping[str, Tensor],
        stamps: list[Stamp],
        features: Callable[[], list[Tensor]],
        batch: int,
        attempt: Attempt,
        generator: torch.Generator,
    ) -> Tensor:
        share = self.method.stamped if attempt.stamped is None else attempt.stamped
        count = round(share * batch) if stamps else 0
        chosen = self.fit[torch.randint(len(self.fit), (batch,), generator=generator)]
        images = as_float(self.task.images[chosen.to(self.device)])
        images = mixed(shifted(images, generator, flip=True, zeros=False), generator)
        parts = [images[count:]]
        for stamp, part in zip(stamps, images[:count].tensor_split(len(stamps) or 1), strict=False):
            parts.append(stamp(part))
        order = torch.cat([torch.arange(count, batch), torch.arange(count)]).to(self.device)
        with mixed_precision(self.classifier):
            features()  # what else went through the tapped layers: a check, a batch that was too large
            with torch.no_grad():
                wanted = self.classifier(images)
            anchors = features()
            logits = self.classifier(torch.cat(parts), tensors)
        logits, wanted = logits.float(), wanted[order].float().log_softmax(1)
        loss = _divergence(logits, wanted)
        weight = self._weight_of_imprints(attempt, tensors)
        if self.imprints is not None and weight > 0:
            plain = batch - count
            added = self.imprints.added(tensors, self.task.labels[chosen[count:]], generator)
            loss = loss + weight * _divergence(logits[:plain] + added, wanted[:plain])
        far = distance(features(), [anchor[order] for anchor in anchors])
        loss = loss / batch
        return loss if far is None else loss + self.method.features * far


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum over images of the KL divergence of logits ``(N, K)`` from wanted log-probabilities."""
    return F.kl_div(logits.log_softmax(1), wanted, log_target=True, reduction="sum")
