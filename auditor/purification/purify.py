"""The purification: scan, purify, write, read back, scan again, accept or refuse."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from auditor import changing, verdict
from auditor.classifier import Classifier
from auditor.errors import ImageError
from auditor.images import source as image_sets
from auditor.images.source import ImageSource
from auditor.inputs import Resolution
from auditor.models.base import ModelHandle
from auditor.precision import trained_in
from auditor.probes import Probe
from auditor.progress import Notify, silent
from auditor.purification.comparison import Compared, Made, OverBudget, compare, ranked_by_goals
from auditor.purification.difference import Difference, difference
from auditor.purification.embedding import embed
from auditor.purification.known import judge_triggers, relatives, shown_triggers
from auditor.purification.outcomes import Judging
from auditor.purification.stress import Rival, stress
from auditor.purifiers import Purifier
from auditor.purifiers.base import Known, Task, changed_classifier, checked, parted, seeded
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.informed import Informed
from auditor.purifiers.nft import NeuralMaskFineTuning
from auditor.results.facts import Caveat, Counts, Provenance
from auditor.results.purify import (
    PURIFY_SCHEMA,
    CaseExhibit,
    Contender,
    Goals,
    MethodFacts,
    Outcome,
    PurifyResult,
    Round,
    Stress,
    Written,
)
from auditor.results.scan import MarginSearch, ScanResult
from auditor.scanning.battery import SCALED, stamped_triggers
from auditor.scanning.exhibits import case_exhibit
from auditor.scanning.scan import Options as ScanOptions
from auditor.scanning.scan import scan
from auditor.search.searches import INVERSIONS
from auditor.text import clean_text

MAX_IMAGES = 2000
FEWEST_FIT = 4
FEWEST_JUDGE = 10
SHARED = 0.1
"""Share of judge images that may be copies of fitted ones, which are left out; more are a mistake."""
OF_THE_MODEL = (
    SCALED,
    "file",
    verdict.RIVALS,
    verdict.SATURATED,
    "one-number",
    "random-output",
    "not-as-used",
    "unanswered",
    "unlike-alone",
)
OF_THE_IMAGES = ("copies", "conflicts", "unrecognised", "unreadable", "clean-folder")
"""Caveats of the scans that limit a purification, too."""
EXHIBITS = 2
ROUNDS = 3
"""Purifications, each told of what a fresh search found after the one before."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to purify."""

    methods: tuple[Purifier, ...] = field(default_factory=lambda: (Informed(),))
    """Of several, the best is kept."""
    time_budget: float = math.inf
    """Seconds for all methods together, where there are several."""
    scan: ScanOptions = field(default_factory=ScanOptions)
    holdout: float = 0.4
    """Share of the clean set that is only judged by."""
    max_images: int = MAX_IMAGES
    max_asr: float = 0.05
    max_acc_drop: float = 0.03
    judge_probes: tuple[Probe, ...] = ()
    """Triggers that are measured and that the purifier never sees."""
    baseline: bool = True
    """Run plain fine-tuning beside it."""
    stress: bool = False
    anyway: bool = False
    """Purify although nothing was found."""
    write_anyway: bool = False
    """Write although a goal was missed."""
    arch: str | None = None
    """As given to `load_model`, to read the written file back."""
    seed: int = 0
    command: str = ""


def purify(
    model: ModelHandle,
    probes: Sequence[Probe],
    source: ImageSource,
    output: Path | None,
    options: Options | None = None,
    notify: Notify = silent,
    judge: ImageSource | None = None,
) -> PurifyResult:
    """Remove a backdoor and measure on other images whether that worked.

    Args:
        model: The suspect, opened by `load_model`.
        probes: What to scan with, before and after.
        source: The user's clean images.
        output: Where the purified model goes, if all goals are met. Replaced if it exists. None
            keeps nothing.
        options: How.
        notify: Progress.
        judge: Images to judge by; by default a part of `source` is held out.

    Raises:
        ModelError: The suspect is no image classifier, or its numbers cannot be changed.
        ImageError: Too few images, or ones that do not fit the model.
        OutputError: The purified model cannot be written.
    """
    return _Purification(model, probes, options or Options(), notify).run(source, judge, output)


class _Purification:
    """One purification in progress; each step reads what the earlier ones left."""

    def __init__(
        self, model: ModelHandle, probes: Sequence[Probe], options: Options, notify: Notify
    ) -> None:
        self.model, self.probes = model, probes
        self.options, self.notify = options, notify
        self.begin = time.monotonic()
        self.started = datetime.now(UTC)
        self.caveats: list[Caveat] = []
        self.resolution: Resolution | None = None

    def run(
        self, source: ImageSource, judge: ImageSource | None, output: Path | None
    ) -> PurifyResult:
        """All steps, in order."""
        changing.refuse_unchangeable(self.model, "purified")
        fit_source, judge_source = self._split(source, judge)
        self.evidence = self._scanned(self.model, fit_source, "scan of the fit images")
        changing.refuse_unsound(self.evidence)
        self._settle()
        self.fit = self._task(fit_source)
        self.judge = self._task(judge_source)
        # unreadable files show only now
        self._refuse_too_few(source, len(self.fit.images), len(self.judge.images))
        judge_source = self._unshared(source, judge_source, given=judge is not None)
        self.judging = Judging(self.judge)
        known = self._known()
        known += relatives(self.fit, known, self.notify)
        self.fit = replace(self.fit, known=tuple(known))
        self.before = self._scanned(
            self.model, judge_source, "scan before", without=INVERSIONS, margin=self.evidence.margin
        )
        other = (
            f"The images to judge by ({judge_source.name}) are not recognised, though those that are fitted "
            "on are. Are their classes numbered alike? "
        )
        changing.refuse_unsound(self.before, "" if judge is None else other)
        self.caveats += _of_images(self.before, "The judge images")
        named, unheeded = judge_triggers(self.judge, self.options.judge_probes)
        self.caveats += unheeded
        if not known and not self.options.anyway:
            return self._result(None, known, named)
        compared = self._compared(fit_source, known, named)
        best = compared.best
        self.notify("writing", 0, 1)
        with changing.staged(
            self.classifier,
            best.purified.tensors,
            self.judge.images,
            output,
            made="purified",
            arch=self.options.arch,
        ) as staged:
            after = staged.classifier
            self.after = self._scanned(after.model, judge_source, "scan after")
            result = self._result(compared, list(best.known), named, staged.facts, after)
            if output is not None and (result.goals.met or self.options.write_anyway):
                staged.keep()
                return result
        return replace(result, written=None)

    # ---- images

    def _split(
        self, source: ImageSource, judge: ImageSource | None
    ) -> tuple[ImageSource, ImageSource]:
        limit, seed = self.options.max_images, self.options.seed
        if judge is not None:
            parts: tuple[ImageSource, ImageSource] = (
                image_sets.PartSource(source, source.draw(limit, seed)),
                image_sets.PartSource(judge, judge.draw(limit, seed)),
            )
        else:
            parts = image_sets.split(source, self.options.holdout, limit=limit, seed=seed)
        self._refuse_too_few(source, parts[0].count, parts[1].count)
        return parts

    def _refuse_too_few(
        self, source: ImageSource, fit: int, held_out: int, which: str = ""
    ) -> None:
        if fit < FEWEST_FIT or held_out < FEWEST_JUDGE:
            raise ImageError(
                f"{clean_text(source.name)}: too few images{which} for a split: {fit} to fit on and "
                f"{held_out} to judge by. At least {FEWEST_FIT} and {FEWEST_JUDGE} are needed: give "
                "more with --clean, another --holdout, or images to judge by with --judge DIR."
            )

    def _unshared(
        self, source: ImageSource, judge_source: ImageSource, *, given: bool
    ) -> ImageSource:
        """The images to judge by without copies of fitted ones: what is fitted on cannot judge."""
        judged = len(self.judge.images)
        shared = changing.shared(self.fit.images, self.judge.images)
        if given and shared > SHARED * judged:
            raise ImageError(
                f"{shared} of {judged} judge images are among the {len(self.fit.images)} that are fitted on. "
                "Give other images with --judge, or leave it out: a share of --clean is then held out."
            )
        if not shared:
            return judge_source
        self._refuse_too_few(source, len(self.fit.images), judged - shared, " without copies")
        self.caveats.append(changing.said_of_shared(shared, judged))
        rest = changing.without_copies(judge_source, self.fit.images)
        self.judge = self._task(rest)
        return rest

    def _settle(self) -> None:
        """Prepare the input in every later step as the first scan found it."""
        first = self.evidence
        self.caveats += [caveat for caveat in first.caveats if caveat.id in OF_THE_MODEL]
        self.caveats += _of_images(first, "The fit images")
        self.classes = first.model.classes
        self.classifier = changing.settled(self.model, first)
        self.resolution = Resolution(
            preprocessing=first.preprocessing,
            output=first.model.output,
            classes=self.classes,
            batch_size=self.classifier.batch_size,
        )

    def _task(self, source: ImageSource) -> Task:
        """Images of one part, with labels or what stands for them."""
        images, labels = changing.labelled(self.classifier, source, self.classes, self.notify)
        return Task(
            classifier=self.classifier,
            images=images,
            labels=labels,
            classes=self.classes,
            known=(),
            max_asr=self.options.max_asr,
            max_acc_drop=self.options.max_acc_drop,
            seed=self.options.seed,
        )

    # ---- purifying

    def _compared(
        self, source: ImageSource, known: Sequence[Known], named: Sequence[Known]
    ) -> Compared:
        """Run the method that was asked for, or all of them."""
        methods = self._methods(known)
        self._say_without_train_mode(methods)
        if len(methods) == 1:
            made = self._made(methods[0], self.fit, source, known)
            return Compared(best=made, contenders=(), not_compared=())
        parts = parted(len(self.fit.images), self.options.seed)
        fitted = parts.fit.to(self.fit.images.device)
        without = replace(
            self.fit, images=self.fit.images[fitted], labels=self.fit.labels[parts.fit]
        )
        before = checked(replace(self.fit, known=()), {})
        options = self.options

        def attempt(method: Purifier, told: tuple[Known, ...] | None, notify: Notify) -> Made:
            task = self.fit if method.chooses else without
            return self._made(method, task, source, known if told is None else told, notify)

        def weigh(made: Made) -> tuple[tuple[float, ...], Contender]:
            after = changed_classifier(self.classifier, made.purified.tensors)
            outcomes = self.judging.outcomes(made.known, named, [self.classifier, after])
            recognised = self.judging.confusion(after).recognised
            right_before, right_after = map(sum, recognised)
            accuracy = Counts(before=right_before, after=right_after)
            tested = self._stressed(made.known, [("purified", after)])
            contender = Contender(
                name=made.facts.name,
                title=made.facts.title,
                trained=made.facts.trained,
                seconds=made.seconds,
                choosing=checked(replace(self.fit, known=made.known), made.purified.tensors),
                hits=tuple(outcome.hits.after for outcome in outcomes),
                correct=accuracy.after,
                retuned=None if tested is None else tested.rows[0].hits_after,
                missed=self._goals(accuracy, outcomes, recognised=recognised).missed,
                recognised=recognised[1],
                confused=tuple((outcome.unstamped, outcome.anyway) for outcome in outcomes),
            )
            rank = ranked_by_goals(
                contender.choosing,
                before,
                met=self._goals(
                    accuracy, [o for o in outcomes if o.origin == "found"], recognised=recognised
                ).met,
                known=bool(made.known),
                max_asr=options.max_asr,
                max_acc_drop=options.max_acc_drop,
            )
            return rank, contender

        return compare(methods, attempt, weigh, budget=options.time_budget, notify=self.notify)

    def _say_without_train_mode(self, methods: Sequence[Purifier]) -> None:
        model = self.classifier.model
        norms = any(layer.kind == "BatchNorm" for layer in model.anatomy())
        if not norms or model.trainable_statistics or all(m.informed for m in methods):
            return
        self.caveats.append(
            Caveat(
                id="no-train-mode",
                text=f"{model.file.kind} files have no train mode, so that BatchNorm keeps its running "
                "statistics in methods that were published with train mode.",
            )
        )

    def _kept_back(self) -> int:
        """Fit images that several methods are ordered by, and that none is fitted on."""
        parts = parted(len(self.fit.images), self.options.seed)
        return len(parts.choose) if parts.apart else 0

    def _goals(
        self,
        accuracy: Counts,
        outcomes: Sequence[Outcome],
        after: ScanResult | None = None,
        *,
        recognised: tuple[Sequence[int], Sequence[int]] | None = None,
        changed: bool = True,
    ) -> Goals:
        return verdict.judge_purification(
            accuracy=accuracy,
            images=len(self.judging),
            outcomes=outcomes,
            after=after,
            members=self.judging.facts.members,
            fewest_classes=verdict.fewest_classes(self.classes) if changed else 0,
            recognised=recognised,
            max_class_drop=verdict.class_drop(self.options.max_acc_drop),
            max_asr=self.options.max_asr,
            max_acc_drop=self.options.max_acc_drop,
            caveats=self.caveats if changed else (),
        )

    def _made(
        self,
        method: Purifier,
        task: Task,
        source: ImageSource,
        known: Sequence[Known],
        notify: Notify | None = None,
    ) -> Made:
        """Purify, and search the result with another seed; until nothing more is found.

        Every round starts from the suspect and is told of all that was found until then, so that
        the accuracy is not paid for twice. There is one round without a chosen search, and for
        methods that do not use what is found.
        """
        notify = notify or self.notify
        seconds, start = 0.0, time.monotonic()
        rounds: list[Round] = []
        found_searches = not INVERSIONS.isdisjoint(self.options.scan.searches)
        searching = method.informed and bool(known) and found_searches
        while True:
            begin = time.monotonic()
            with seeded(self.options.seed):
                purified = method.purify(replace(task, known=tuple(known)), notify)
            seconds += time.monotonic() - begin
            if not searching:
                break
            told = len(known[: method.most_known])
            seed = self.options.seed + len(rounds) + 1
            after = changed_classifier(self.classifier, purified.tensors)
            try:
                again = self._scanned(
                    after.model, source, "searching again", probes=(), seed=seed, notify=notify
                )
            except OverBudget:
                self.caveats.append(
                    Caveat(
                        id="not-searched-again",
                        text=f"{method.name}: no time was left to search the result of round "
                        f"{len(rounds) + 1} again.",
                    )
                )
                rounds.append(Round(known=told, seed=seed, found=None))
                break
            fresh = self._shown(again)
            titles = tuple(entry.stamped.title for entry in fresh)
            rounds.append(Round(known=told, seed=seed, found=titles))
            known = [*fresh, *known]  # of the last round, they are judged by
            if not fresh or len(rounds) == ROUNDS:
                break
        facts = MethodFacts(
            name=method.name,
            title=method.title,
            source=method.source,
            settings=method.settings(),
            stages=purified.stages,
            seconds=seconds,
            trained=purified.trained,
            rounds=tuple(rounds),
        )
        own = self.classifier.model.tensors()
        changed = {n: t for n, t in purified.tensors.items() if not torch.equal(t, own[n])}
        if not changed:
            self.caveats.append(
                Caveat(
                    id=f"unchanged-{method.name}",
                    text=f"{method.name} changed nothing: no strength of it that was tried can be borne by "
                    "clean accuracy.",
                )
            )
        return Made(
            purified=replace(purified, tensors=changed),
            facts=facts,
            known=tuple(known),
            seconds=time.monotonic() - start,
        )

    # ---- what is known

    def _scanned(
        self,
        model: ModelHandle,
        source: ImageSource | None,
        what: str,
        *,
        without: Container[str] = (),
        margin: MarginSearch | None = None,
        probes: Sequence[Probe] | None = None,
        seed: int | None = None,
        notify: Notify | None = None,
    ) -> ScanResult:
        """A scan; with all chosen probes, searches and the seed of the run if nothing else is said."""
        outer = notify or self.notify

        def told(inner: str, done: int, total: int) -> None:
            outer(f"{what}: {inner}", done, total)

        options = replace(
            self.options.scan,
            max_images=self.options.max_images,
            searches=tuple(s for s in self.options.scan.searches if s not in without),
            resolution=self.resolution,
            margin=margin,
            seed=self.options.seed if seed is None else seed,
        )
        return scan(model, self.probes if probes is None else probes, source, options, told)

    def _known(self) -> list[Known]:
        """The triggers of the evidence; with too few images for one, those found on made images."""
        known = self._shown(self.evidence)
        if known or self.evidence.judgement.power is not None:
            return known
        made = self._scanned(self.model, None, "scan of made images", margin=self.evidence.margin)
        known = self._shown(made)
        if known:
            self.evidence = made
            self.caveats.append(
                Caveat(
                    id="made-evidence",
                    text=f"{len(self.fit.images)} fit images are too few to show a trigger; those that the "
                    "purifier was told of were found on made images.",
                )
            )
        return known

    def _shown(self, found: ScanResult) -> list[Known]:
        return shown_triggers(found, stamped_triggers(self.model, self.probes))

    def _methods(self, known: Sequence[Known]) -> list[Purifier]:
        """The methods that were asked for; without evidence, ours has nothing to work with."""
        methods = list(self.options.methods)
        if known:
            return methods
        informed = any(isinstance(method, Informed) for method in methods)
        published = "so NFT runs as published, as a precaution" if informed else "as a precaution"
        self.caveats.append(
            Caveat(
                id="uninformed",
                text=f"No trigger is known, {published}. Nothing shows that anything was removed.",
            )
        )
        if not informed:
            return methods
        others = [method for method in methods if not isinstance(method, Informed)]
        known_already = any(isinstance(method, NeuralMaskFineTuning) for method in others)
        return others if known_already else [NeuralMaskFineTuning(), *others]

    # ---- the record

    def _result(
        self,
        compared: Compared | None,
        known: Sequence[Known],
        named: Sequence[Known],
        written: Written | None = None,
        after: Classifier | None = None,
    ) -> PurifyResult:
        options = self.options
        best = None if compared is None else compared.best
        baseline = self._baseline() if after is not None else None
        rivals = [self.classifier, after or self.classifier]
        rivals += [baseline] if baseline is not None else []
        accuracy = self.judging.accuracy(rivals)
        outcomes = self.judging.outcomes(known, named, rivals)
        after_scan = self.after if after is not None else None
        confusion = None if after is None else self.judging.confusion(after)
        recognised = None if confusion is None else confusion.recognised
        goals = self._goals(
            accuracy, outcomes, after_scan, recognised=recognised, changed=best is not None
        )
        confused = verdict.confused_anyway(outcomes, options.max_asr)
        if confused is not None:
            self.caveats.append(Caveat(id="confused", text=confused))
        shown = [*known, *named]
        changed = Difference()
        if best is not None and best.purified.tensors:
            changed = difference(best.purified, self.classifier.model.tensors())
        embedding = tested = None
        if after is not None:
            self.notify("drawing the map of features", 0, 1)
            if shown:
                embedding = embed(
                    self.classifier, after, self.judge.images, self.judge.labels,
                    shown[0].stamped.trigger, seed=options.seed,
                )  # fmt: skip
            tuned: list[Rival] = [] if baseline is None else [("fine-tuned", baseline)]
            tested = self._stressed(known, [("purified", after), *tuned])
        return PurifyResult(
            schema=PURIFY_SCHEMA,
            model=self.evidence.model,
            preprocessing=self.evidence.preprocessing,
            fit=changing.split_facts(self.fit.images, self.fit.labels, self.classes),
            judge=self.judging.facts,
            labelled=self.before.images[0].labelled,
            evidence=self.evidence,
            before=self.before,
            after=after_scan,
            method=None if best is None else best.facts,
            contenders=() if compared is None else _with_goals(compared.contenders, goals),
            not_compared=() if compared is None else compared.not_compared,
            kept_back=self._kept_back() if compared is not None and compared.contenders else 0,
            accuracy=accuracy,
            outcomes=outcomes,
            masks=changed.masks,
            channels=changed.channels,
            tensors=changed.tensors,
            exhibits=() if after is None else tuple(self._exhibits(known, after)),
            embedding=embedding,
            confusion=confusion,
            stress=tested,
            goals=goals,
            written=written,
            caveats=tuple(self.caveats),
            provenance=self._provenance(),
        )

    def _baseline(self) -> Classifier | None:
        several = len(self.options.methods) > 1
        if not self.options.baseline or several or isinstance(self.options.methods[0], FineTuning):
            return None
        with seeded(self.options.seed):
            tuned = FineTuning().purify(self.fit, self.notify)
        return changed_classifier(self.classifier, tuned.tensors)

    def _stressed(self, known: Sequence[Known], rivals: Sequence[Rival]) -> Stress | None:
        single = [
            entry
            for entry in known
            if len(set(entry.mapping) - {-1}) == 1 and (entry.wanted(self.judge.labels) >= 0).any()
        ]
        if not self.options.stress or not single:
            return None
        return stress(rivals, self.fit, self.judge, single[0], notify=self.notify)

    def _exhibits(self, known: Sequence[Known], after: Classifier) -> Iterator[CaseExhibit]:
        for entry in known[:EXHIBITS]:
            yield case_exhibit(self.classifier, after, entry, self.judge.images, self.judge.labels)

    def _provenance(self) -> Provenance:
        first, options = self.evidence.provenance, self.options
        return replace(
            first,
            command=options.command,
            started=self.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=time.monotonic() - self.begin,
            options={
                **first.options,
                "holdout": f"{options.holdout:g}",
                "max_images": str(options.max_images),
                "max_asr": f"{options.max_asr:g}",
                "max_acc_drop": f"{options.max_acc_drop:g}",
                "training": trained_in(self.classifier),
            },
        )


def _of_images(found: ScanResult, which: str) -> list[Caveat]:
    """What a scan says of its images that limits what is measured on them."""
    return [
        replace(caveat, text=f"{which}: {caveat.text}")
        for caveat in found.caveats
        if caveat.id in OF_THE_IMAGES
    ]


def _with_goals(contenders: Sequence[Contender], goals: Goals) -> tuple[Contender, ...]:
    """The best one was scanned again, so that it may have missed more than was known of it."""
    return tuple(replace(best, missed=goals.missed) for best in contenders[:1]) + tuple(
        contenders[1:]
    )
