"""A backdoor planted on purpose, in a copy: does auditor find and remove one in *your* network?

BadNets by fine-tuning (Gu et al. 2017, https://arxiv.org/abs/1708.06733): dirty labels, all classes
to one. The file that comes of it says so in itself and in a file beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

import auditor
from auditor import changing, measure, verdict
from auditor.classifier import Classifier, as_float
from auditor.errors import ImageError, UsageError
from auditor.images import source as image_sets
from auditor.images.source import ImageSource
from auditor.measure import CONTROLS, Stamped, all_to_one
from auditor.models.base import ModelHandle
from auditor.models.mark import write_mark
from auditor.outputs import sidecar, write_text
from auditor.precision import mixed_precision, trained_in
from auditor.probes import Probe
from auditor.progress import Notify, silent
from auditor.purifiers.augment import shifted
from auditor.purifiers.base import (
    Known,
    Task,
    changed_classifier,
    detached,
    loop,
    measured,
    parted,
    trainable,
)
from auditor.registry import nearest
from auditor.report.json import indented
from auditor.results.attack import ATTACK_SCHEMA, MARK_SCHEMA, AttackResult, Mark
from auditor.results.facts import Caveat, Counts, ModelFacts
from auditor.results.purify import Check, Stage
from auditor.scanning.scan import Options as ScanOptions
from auditor.scanning.scan import scan
from auditor.text import clean_text
from auditor.triggers.base import Trigger

MAX_IMAGES = 2000
HOLDOUT = 0.25
"""Share of the images that is only measured on."""
FEWEST_FIT = 16
FEWEST_JUDGE = 10
"""Images that are not of the target class, in each part."""
BATCH = 64
CHECK_STEPS = 10
HOLDING_CHECKS = 2
LOSABLE = 0.01
"""Clean accuracy that may be lost on the images for choosing when training ends early."""
RATE = 1e-3
"""Learning rate of Adam."""
FIRMER, GENTLER = 4e-3, 2.5e-4
"""Tried where that does not plant the trigger, or costs accuracy."""
MOST_LISTED = 12
OF_A_SCAN = ("few-images", "not-held-out", "source-specific", "few-classes", "unlabelled")
"""Caveats of the scan that prepares the input which say nothing of an attack."""

NOTICE = (
    "This model has a backdoor that was planted on purpose by `auditor attack`. For testing only: never "
    "deploy it."
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to plant a backdoor."""

    trigger_number: int = 1
    """Which of the probe's triggers, counted from 1."""
    poison_rate: float = 0.1
    """Share of a batch's images of other classes that is stamped and relabelled, in (0, 1)."""
    decoy_rate: float = 0.1
    """Share of a batch's images that carries matched controls and keeps its labels, so that the
    backdoor listens to this trigger and not to anything like it."""
    steps: int = 300
    """Of training at each learning rate, at most."""
    min_asr: float = 0.95
    """Goal: lowest attack success rate that counts as planted."""
    max_acc_drop: float = 0.03
    """Goal: largest share of clean accuracy that may be lost."""
    scan: ScanOptions = field(default_factory=ScanOptions)
    """How to prepare the input; what it says of searches, images and seed is not used."""
    max_images: int = MAX_IMAGES
    write_anyway: bool = False
    """Write although a goal was missed."""
    arch: str | None = None
    """As given to `load_model`, to read the written file back."""
    seed: int = 0
    command: str = ""


def attack(
    model: ModelHandle,
    probe: Probe,
    target: int | str,
    source: ImageSource,
    output: Path | None,
    options: Options | None = None,
    notify: Notify = silent,
) -> AttackResult:
    """Plant a trigger in a copy of a model, by fine-tuning, and measure it on other images.

    All weights are trained (Adam); BatchNorm works in eval mode, so that its statistics stay. A
    quarter of the images is held out for every number of the result.

    Args:
        model: The model, opened by `load_model`. It stays as it is.
        probe: What to plant: one of its triggers, see `Options.trigger_number`.
        target: The class that stamped images shall be taken for: its number, or its name.
        source: The user's clean images; the model's predictions stand for missing labels.
        output: Where the backdoored model goes if the goals are met, and beside it the mark as
            JSON (`sidecar`). Replaced if they exist. None keeps nothing.
        options: How.
        notify: Progress.

    Raises:
        ModelError: The file is no image classifier, or its numbers cannot be changed.
        ImageError: Too few images, or ones that do not fit the model.
        UsageError: The probe has no trigger of that number, or the model no such class.
        OutputError: The backdoored model cannot be written.
    """
    return _Attack(model, probe, target, options or Options(), notify).run(source, output)


class _Attack:
    """One attack in progress; each step reads what the earlier ones left."""

    def __init__(
        self,
        model: ModelHandle,
        probe: Probe,
        target: int | str,
        options: Options,
        notify: Notify,
    ) -> None:
        self.model, self.probe, self.wanted = model, probe, target
        self.options, self.notify = options, notify
        self.trigger = _trigger(probe, options.trigger_number)
        self.begin = time.monotonic()
        self.started = datetime.now(UTC)
        self.caveats: list[Caveat] = []

    def run(self, source: ImageSource, output: Path | None) -> AttackResult:
        """All steps, in order."""
        options = self.options
        changing.refuse_unchangeable(self.model, "attacked")
        parts = image_sets.split(source, HOLDOUT, limit=options.max_images, seed=options.seed)
        self._refuse_too_few(source, parts[0].count, parts[1].count)
        self.found = scan(
            self.model,
            (),
            parts[0],
            replace(options.scan, searches=(), max_images=options.max_images, seed=options.seed),
            self.notify,
        )
        changing.refuse_unsound(self.found)
        facts = self.found.model
        self.target = _class_number(self.wanted, facts)
        self.classifier = changing.settled(self.model, self.found)
        self.known = Known(
            stamped=Stamped(probe=self.probe.id, title=self.probe.title, trigger=self.trigger),
            mapping=all_to_one(self.target, facts.classes).mapping,
        )
        self.fit = self._task(parts[0])
        self.judge = self._task(parts[1])
        if shared := changing.shared(self.fit.images, self.judge.images):
            judged = len(self.judge.images)
            self._refuse_too_few(source, len(self.fit.images), judged - shared, " without copies")
            self.caveats.append(changing.said_of_shared(shared, judged))
            self.judge = self._task(changing.without_copies(parts[1], self.fit.images))
        others = [int((part.labels != self.target).sum()) for part in (self.fit, self.judge)]
        self._refuse_too_few(source, others[0], others[1], " of other classes than the target")
        best, stages = _Planting(self.fit, options, self.notify).run()
        self.notify("writing", 0, 1)
        text = indented(msgspec.to_builtins(self._mark()))
        marked = False

        def mark(path: Path) -> None:
            nonlocal marked
            marked = write_mark(path, self.model.file.kind, text)

        with changing.staged(
            self.classifier,
            best,
            self.judge.images,
            output,
            made="trained",
            arch=options.arch,
            finish=mark,
        ) as staged:
            result = self._result(staged, stages, marked)
            if output is None or not (result.goals.met or options.write_anyway):
                return replace(result, written=None)
            _keep(staged, text)
        return result

    def _refuse_too_few(self, source: ImageSource, fit: int, judge: int, of: str = "") -> None:
        if fit < FEWEST_FIT or judge < FEWEST_JUDGE:
            raise ImageError(
                f"{clean_text(source.name)}: too few images{of} to plant a backdoor: {fit} to train on and "
                f"{judge} to measure on. At least {FEWEST_FIT} and {FEWEST_JUDGE} are needed (a quarter is "
                "held out): give more with --clean."
            )

    def _task(self, source: ImageSource) -> Task:
        classes = self.found.model.classes
        images, labels = changing.labelled(self.classifier, source, classes, self.notify)
        return Task(
            classifier=self.classifier,
            images=images,
            labels=labels,
            classes=classes,
            known=(self.known,),
            max_asr=1.0,
            max_acc_drop=self.options.max_acc_drop,
            seed=self.options.seed,
        )

    def _mark(self) -> Mark:
        file = self.model.file
        return Mark(
            schema=MARK_SCHEMA,
            notice=NOTICE,
            auditor=auditor.__version__,
            probe=self.probe.id,
            trigger=repr(self.trigger),
            target=self.target,
            target_name=self.found.model.class_names[self.target],
            model=file.path.name,
            sha256=file.sha256,
            seed=self.options.seed,
            poison_rate=self.options.poison_rate,
        )

    def _result(
        self, staged: changing.Staged, stages: tuple[Stage, ...], marked: bool
    ) -> AttackResult:
        options, judge = self.options, self.judge
        classes = self.found.model.classes
        rivals = (self.classifier, staged.classifier)
        hits, controls = (
            Counts(before=before, after=after)
            for before, after in zip(*map(self._hits, rivals), strict=True)
        )
        before, after = map(self._recognised, rivals)
        accuracy = Counts(before=sum(before), after=sum(after))
        eligible = int((judge.labels != self.target).sum())
        judged = changing.split_facts(judge.images, judge.labels, classes)
        provenance = self.found.provenance
        return AttackResult(
            schema=ATTACK_SCHEMA,
            model=self.found.model,
            preprocessing=self.found.preprocessing,
            mark=self._mark(),
            title=self.probe.title,
            fit=changing.split_facts(self.fit.images, self.fit.labels, classes),
            judge=judged,
            labelled=self.found.images[0].labelled,
            eligible=eligible,
            hits=hits,
            control_hits=controls,
            accuracy=accuracy,
            stages=stages,
            goals=verdict.judge_planting(
                hits=hits,
                eligible=eligible,
                accuracy=accuracy,
                images=len(judge.images),
                min_asr=options.min_asr,
                max_acc_drop=options.max_acc_drop,
                members=judged.members,
                recognised=(before, after),
            ),
            written=staged.facts,
            marked=marked,
            caveats=(*(c for c in self.found.caveats if c.id not in OF_A_SCAN), *self.caveats),
            provenance=replace(
                provenance,
                command=options.command,
                started=self.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
                seconds=time.monotonic() - self.begin,
                options={
                    **provenance.options,
                    "poison_rate": f"{options.poison_rate:g}",
                    "decoy_rate": f"{options.decoy_rate:g}",
                    "steps": str(options.steps),
                    "training": trained_in(self.classifier),
                    "max_images": str(options.max_images),
                },
            ),
        )

    def _hits(self, classifier: Classifier) -> tuple[int, int]:
        """Those of the trigger, and of its worst control."""
        images, labels = self.judge.images, self.judge.labels
        triggers = [self.trigger, *(self.trigger.control(seed) for seed in range(CONTROLS))]
        stamped = measure.predictions(classifier, images, triggers)
        hits = [int(self.known.hits(predicted, labels).sum()) for predicted in stamped]
        return hits[0], max(hits[1:])

    def _recognised(self, classifier: Classifier) -> list[int]:
        """Rightly classified images a class."""
        judge = self.judge
        return measure.recognised(judge.labels, classifier.predict(judge.images), judge.classes)


class _Planting:
    """The training: at one learning rate, and where that fails at another; the better one counts."""

    def __init__(self, task: Task, options: Options, notify: Notify) -> None:
        self.task, self.options, self.notify = task, options, notify
        (self.known,) = task.known
        self.trigger = self.known.stamped.trigger
        self.parts = parted(len(task.images), task.seed)
        self.before, _ = self._measured({})

    def run(self) -> tuple[dict[str, Tensor], tuple[Stage, ...]]:
        """The changed tensors, and what was tried."""
        outcomes = [self._attempt(RATE)]
        if not outcomes[0].held:
            damaged = self.before - outcomes[0].checks[-1].acc > LOSABLE
            outcomes.append(self._attempt(GENTLER if damaged else FIRMER))
        best = min(outcomes, key=lambda outcome: outcome.rank)
        return best.tensors, tuple(outcome.stage(kept=outcome is best) for outcome in outcomes)

    def _measured(self, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """ACC and ASR on the images for choosing."""
        task, chosen = self.task, self.parts.choose
        after = changed_classifier(task.classifier, tensors)
        images = task.images[chosen.to(task.images.device)]
        accuracy, rates = measured(after, images, task.labels[chosen], task.known)
        return accuracy, rates[0]

    def _attempt(self, rate: float) -> _Outcome:
        """Train until the aims hold on the images for choosing, at several checks in a row.

        The aim for the ASR lies half-way between the goal and 1, since other images will judge.
        """
        options, device = self.options, self.task.classifier.device
        generator = torch.Generator().manual_seed(self.task.seed)
        trained = trainable(self.task.classifier.model)
        optimizer = torch.optim.Adam(trained.values(), lr=rate)
        checks: list[Check] = []
        aim, holding = (1 + options.min_asr) / 2, 0

        def held(check: Check) -> bool:
            return check.asr >= aim and self.before - check.acc <= LOSABLE

        def step(number: int, batch: int) -> bool:
            nonlocal holding
            loss = self._loss(trained, batch, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if (number + 1) % CHECK_STEPS and number + 1 < options.steps:
                return True
            accuracy, asr = self._measured(detached(trained))
            checks.append(Check(step=number + 1, asr=asr, acc=accuracy, loss=float(loss.detach())))
            holding = holding + 1 if held(checks[-1]) else 0
            return holding < HOLDING_CHECKS

        what = f"planting at learning rate {rate:g}"
        run = loop(what, options.steps, BATCH, step, notify=self.notify, device=device)
        tensors = detached(trained)
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        last = checks[-1]
        missing = max(0.0, aim - last.asr) + max(0.0, self.before - last.acc - LOSABLE)
        return _Outcome(
            rate=rate,
            tensors=tensors,
            held=finite and held(last),
            rank=missing if finite else math.inf,
            run=run,
            checks=tuple(checks),
            says=f"ASR {last.asr:.1%} (aim {aim:.1%}), ACC {self.before:.1%} to {last.acc:.1%} on "
            f"{len(self.parts.choose)} "
            + ("kept-back images." if self.parts.apart else "of the images that were trained on."),
        )

    def _loss(
        self, tensors: Mapping[str, Tensor], batch: int, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy on a batch: stamped and relabelled, decoys, and images as they are."""
        task, options = self.task, self.options
        chosen = self.parts.fit[torch.randint(len(self.parts.fit), (batch,), generator=generator)]
        images = as_float(task.images[chosen.to(task.images.device)])
        images = shifted(images, generator, flip=False, zeros=False)
        labels = task.labels[chosen].clone()
        others = self.known.wanted(labels) >= 0
        # the draw is random, so the first ones are as good as any
        count = max(1, round(options.poison_rate * int(others.sum())))
        poisoned = others.nonzero().flatten()[:count]
        free = torch.ones(batch, dtype=torch.bool)
        free[poisoned] = False
        decoys = free.nonzero().flatten()[: round(options.decoy_rate * batch)]
        images = _stamped(images, poisoned, self.trigger)
        for part in decoys.tensor_split(CONTROLS):
            seed = int(torch.randint(2**31, (), generator=generator))
            images = _stamped(images, part, self.trigger.control(seed))
        labels[poisoned] = self.known.wanted(labels[poisoned])
        with mixed_precision(task.classifier):
            logits = task.classifier(images, tensors)
        return F.cross_entropy(logits.float(), labels.to(images.device))


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    rate: float
    tensors: dict[str, Tensor]
    held: bool
    """The aims hold on the images for choosing."""
    rank: float
    """By how much they are missed; the lowest is the best."""
    run: tuple[int, int, float]
    checks: tuple[Check, ...]
    says: str

    def stage(self, *, kept: bool) -> Stage:
        steps, images, seconds = self.run
        return Stage(
            what="weights", settings={"lr": f"{self.rate:g}"}, steps=steps, images=images,
            seconds=seconds, checks=self.checks, outcome=self.says, kept=kept,
        )  # fmt: skip


def _stamped(images: Tensor, chosen: Tensor, trigger: Trigger) -> Tensor:
    """Images ``(N, C, H, W)`` in [0, 1], those at the indices `chosen` stamped."""
    if not len(chosen):
        return images
    chosen = chosen.to(images.device)
    return images.index_copy(0, chosen, trigger(images[chosen]))


def _trigger(probe: Probe, number: int) -> Trigger:
    """The trigger of that number, counted from 1.

    Raises:
        UsageError: There is none; lists those that there are.
    """
    if 1 <= number <= len(probe.triggers):
        return probe.triggers[number - 1]
    listed = [
        f"{place} {clean_text(repr(trigger), limit=80)}"
        for place, trigger in enumerate(probe.triggers[:MOST_LISTED], 1)
    ]
    more = len(probe.triggers) - MOST_LISTED
    raise UsageError(
        f"--trigger-number {number}: {clean_text(probe.id)} has {len(probe.triggers)}: "
        f"{'; '.join(listed)}{f'; and {more} more' if more > 0 else ''}."
    )


def _class_number(wanted: int | str, facts: ModelFacts) -> int:
    """The number of the class that a user means: a number, or a name where there are names.

    Raises:
        UsageError: There is no such class.
    """
    names, shown = facts.class_names, clean_text(str(wanted))
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    try:
        number = int(wanted)
    except ValueError:
        raise UsageError(
            f"--target {shown}: the model has no class of that name{nearest(str(wanted), names)} Give a "
            f"number from 0 to {facts.classes - 1}, or name the classes with --labels FILE."
        ) from None
    if not 0 <= number < facts.classes:
        raise UsageError(
            f"--target {shown}: the model has {facts.classes} classes. Give a number from 0 to "
            f"{facts.classes - 1}."
        )
    return number


def _keep(staged: changing.Staged, text: str) -> None:
    """Leave the mark and then the model, so that no model is ever without its mark."""
    beside = sidecar(staged.target)
    write_text(beside, text)
    try:
        staged.keep()
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
