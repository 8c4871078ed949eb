"""The scan: every selected probe and search against one suspect, to counts, to a verdict."""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata

import torch

import auditor
from auditor import inputs, measure, verdict
from auditor.classifier import Classifier
from auditor.errors import ImageError, ProbeError
from auditor.images.source import CleanSet, ImageSource
from auditor.inputs import GivenInput, Resolution
from auditor.measure import Family, Half, Stamped
from auditor.models.base import ModelHandle
from auditor.probes import Probe
from auditor.progress import Notify, silent
from auditor.results.facts import Caveat, ModelFacts, Provenance, Skipped
from auditor.results.scan import (
    SCAN_SCHEMA,
    TRANSPLANT,
    Confirmation,
    Exhibit,
    Inversion,
    MarginSearch,
    Response,
    ScanResult,
)
from auditor.scanning import alone, preflight
from auditor.scanning.battery import applicable, scaled, stamped_triggers, unfinished, visible
from auditor.scanning.confirming import Confirming
from auditor.scanning.exhibits import exhibit
from auditor.scanning.families import clean_family, held_out, made_families, raw_images
from auditor.scanning.transplant import Lent, transplants
from auditor.scores import described
from auditor.search.searches import SEARCHES, Searches
from auditor.text import counted

MAX_IMAGES = 768
"""Images that are drawn from the clean set: enough for 512 to confirm on."""
EXHIBITS = 3
BATTERY_SHARE = 0.7
"""Share of the time budget after which no further trigger is screened."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to scan."""

    given: GivenInput = field(default_factory=GivenInput)
    resolution: Resolution | None = None
    """How to prepare the input, where an earlier scan of the same model has settled it."""
    margin: MarginSearch | None = None
    """The data-free margins, where an earlier scan of the same model with the same seed has them."""
    searches: tuple[str, ...] = tuple(
        name for name, (tier, _) in SEARCHES.items() if tier == "quick"
    )
    class_names: tuple[str, ...] | None = None
    """Names in the order of the outputs, where the user gave them."""
    max_images: int = MAX_IMAGES
    batch_size: int | None = None
    """None: the fastest one is measured."""
    time_budget: float = math.inf
    """Seconds."""
    seed: int = 0
    command: str = ""
    """For the record."""


def scan(
    model: ModelHandle,
    probes: Sequence[Probe],
    source: ImageSource | None = None,
    options: Options | None = None,
    notify: Notify = silent,
) -> ScanResult:
    """Stamp every trigger on images, measure what it does, and judge it.

    Args:
        model: The suspect, opened by `load_model`.
        probes: What to try.
        source: The user's clean images; None makes images instead.
        options: How.
        notify: Progress: what is going on, how much is done, of how much.

    Raises:
        ModelError: The suspect is no image classifier.
        ImageError: The images or their labels do not fit the model.
        ProbeError: A probe has an id that scans use themselves.
    """
    own = (probe.id for probe in probes if probe.id in SEARCHES or probe.id.startswith(TRANSPLANT))
    if (taken := next(own, None)) is not None:
        raise ProbeError(f'"{taken}" is an id that scans use themselves; give the probe another')
    return _Scan(model, probes, source, options or Options(), notify).run()


class _Scan:
    """One scan in progress; each step reads what the earlier ones left."""

    def __init__(
        self,
        model: ModelHandle,
        probes: Sequence[Probe],
        source: ImageSource | None,
        options: Options,
        notify: Notify,
    ) -> None:
        self.model, self.probes, self.source = model, probes, source
        self.options, self.notify = options, notify
        self.begin = time.monotonic()
        self.started = datetime.now(UTC)
        self.deadline = self.begin + options.time_budget
        self.skipped: list[Skipped] = []
        self.caveats: list[Caveat] = []

    def run(self) -> ScanResult:
        """All steps, in order."""
        self.notify("checking the input preparation", 0, 1)
        self.caveats += [Caveat(id="file", text=note) for note in self.model.notes]
        self.caveats += [Caveat(id=verdict.RIVALS, text=note) for note in self.model.rivals]
        clean = self._prepare()
        families = self._made_families() if clean is None else [self._clean_family(clean)]
        self._preflight(families, clean)
        remembered = self.model.remembered()
        confirming = Confirming(
            self.classifier, self.classes, deadline=self.deadline, notify=self.notify
        )
        stamped, unsuitable = applicable(stamped_triggers(self.model, self.probes), families)
        self.skipped += unsuitable
        self.caveats += scaled((entry.trigger for entry in stamped), self.classifier.spec)
        responses: list[Response] = []
        confirmations: list[Confirmation] = []
        shown: dict[str, tuple[Stamped, Family]] = {}
        for family in families:
            entries, unseen = visible(stamped, family)
            after = measure.screen(
                self.classifier,
                family,
                entries,
                notify=self.notify,
                deadline=self.begin + BATTERY_SHARE * self.options.time_budget,
            )
            self.skipped += [*unseen, *unfinished(entries, len(after), family)]
            unlike = alone.unlike_alone(
                self.classifier, family.screen, [entry.trigger for entry in entries[: len(after)]], after,
                deadline=self.deadline,
            )  # fmt: skip
            for entry, predicted, odd in zip(entries, after, unlike, strict=False):
                responses.append(
                    measure.response(entry, family, predicted, self.classes, unlike=odd)
                )
                shown[f"{family.name} {entry.trigger!r}"] = (entry, family)
            confirmations += confirming.declared(family, entries[: len(after)], after)
        if (text := verdict.without_answers(responses)) is not None:
            self.caveats.append(Caveat(id="unanswered", text=text))
        if (text := verdict.unlike_alone(responses)) is not None:
            self.caveats.append(Caveat(id="unlike-alone", text=text))
        searches = Searches(
            self.classifier,
            self.classes,
            self.options.searches,
            sample=families[0].screen.images if families else self._made["noise"],
            seed=self.options.seed,
            deadline=self.deadline,
            notify=self.notify,
        )
        margin = self.options.margin or searches.margins()
        inversions: list[Inversion] = []
        enough = clean is not None and len(clean) > 1
        parted = held_out(families[0]) if enough else None
        if parted is not None:
            inversions, proposed = searches.inversions(parted.name, parted.screen, margin)
            confirmations += confirming.searched(parted, proposed)
            shown |= {f"{parted.name} {p.stamped.trigger!r}": (p.stamped, parted) for p in proposed}
        else:
            searches.without_images()
        self.skipped += [*confirming.skipped, *searches.skipped]
        if (text := searches.reductions()) is not None:
            self.caveats.append(Caveat(id="search-effort", text=text))
        if self.model.remembered() != remembered:
            self.caveats.append(preflight.CHANGED_ITSELF)
        names = self._class_names()
        images = tuple(family.facts for family in families)
        judged = functools.partial(
            verdict.judge,
            classes=names,
            images=images,
            responses=responses,
            confirmations=confirmations,
            margin=margin,
            inversions=inversions,
            skipped=self.skipped,
            caveats=self.caveats,
        )
        judgement = judged()
        targets = verdict.classes_to_examine(judgement.reasons, confirmations)
        lent = self._lent(parted, targets) if parted is not None else []
        transplanted = tuple(one.counts for one in lent)
        if transplanted:
            judgement = judged(transplants=transplanted)
        evidence = [confirmations[index] for index, _ in judgement.evidence]
        return ScanResult(
            schema=SCAN_SCHEMA,
            model=self._facts(names),
            preprocessing=self.preprocessing,
            images=images,
            probes=tuple(probe.facts() for probe in self.probes),
            responses=tuple(responses),
            confirmations=tuple(confirmations),
            margin=margin,
            inversions=tuple(inversions),
            transplants=transplanted,
            skipped=tuple(self.skipped),
            caveats=tuple(self.caveats),
            judgement=judgement,
            exhibits=(*self._exhibits(evidence, shown), *self._marks(parted, lent)),
            provenance=self._provenance(),
        )

    # ---- input preparation and images

    def _prepare(self) -> CleanSet | None:
        """Settle the input preparation; the clean set at the model's size, if there is one."""
        options, seed = self.options, self.options.seed
        settled = options.resolution
        if settled is None:
            *size, why = inputs.resolve_size(self.model, self.source, options.given, seed)
            channels, height, width = size
        else:
            spec = settled.preprocessing.spec
            channels, height, width = spec.channels, spec.height, spec.width
        shape = (channels, height, width)
        self._made = {} if self.source is not None else raw_images(shape, seed)
        clean = None
        if self.source is not None:
            indices = self.source.draw(options.max_images, seed)
            clean = self.source.load(indices, inputs.blank_spec(shape), self.notify)
        resolution = settled
        if resolution is None:
            made = self._made.values()
            stand_ins = torch.cat([part[:64] for part in made]) if made else None
            resolution = inputs.resolve(self.model, shape, why, clean, stand_ins, options.given)
        self.preprocessing = resolution.preprocessing
        self.classes = resolution.classes
        self.output = resolution.output
        self.classifier = Classifier(
            self.model,
            resolution.preprocessing.spec,
            output=resolution.output,
            batch_size=options.batch_size or resolution.batch_size,
        )
        self._check_names()
        if clean is not None:
            self._check_labels(clean)
        return clean

    def _check_names(self) -> None:
        names = self.options.class_names
        if names is not None and len(names) != self.classes:
            raise ImageError(
                f"--labels names {len(names)} classes, the model has {self._outputs()}."
            )

    def _check_labels(self, clean: CleanSet) -> None:
        assert self.source is not None  # noqa: S101 - there is a clean set
        names = self.options.class_names
        if names is None and clean.class_names and len(clean.class_names) != self.classes:
            raise ImageError(
                f"{self.source.name} has {counted(len(clean.class_names), 'class folder')}, the model has "
                f"{self._outputs()}. Folders are numbered in alphabetical order, so they must "
                "match one to one; or pass --labels FILE with the class names in output order, "
                "name the folders by class number, or put all images into one folder without labels."
            )
        if clean.labels is not None and int(clean.labels.max()) >= self.classes:
            raise ImageError(
                f"{self.source.name}: label {int(clean.labels.max())} is beyond the model's "
                f"{self._outputs()}. Classes are numbered from 0 to {self.classes - 1}."
            )

    def _outputs(self) -> str:
        return described(self.output, self.classes)

    def _clean_family(self, clean: CleanSet) -> Family:
        triggers = sum(len(probe.triggers) for probe in self.probes)
        return clean_family(self.classifier, clean, self.classes, triggers=triggers)

    def _made_families(self) -> Sequence[Family]:
        made = made_families(
            self.classifier,
            self._made,
            self.classes,
            seed=self.options.seed,
            deadline=self.deadline,
            notify=self.notify,
        )
        self.skipped += made.skipped
        self.caveats += made.caveats
        return made.families

    def _preflight(self, families: Sequence[Family], given: CleanSet | None) -> None:
        clean = None if given is None else families[0]
        half = families[0].screen if families else self._stand_in()
        self.caveats += preflight.check(self.classifier, self.preprocessing, half, clean, given)

    def _stand_in(self) -> Half:
        images = self._made["noise"][:8].to(self.classifier.device)
        before = self.classifier.predict(images)
        return Half(images=images, groups=before, before=before)

    # ---- what a class stands for

    def _lent(self, family: Family, targets: Sequence[int]) -> list[Lent]:
        """What the user's images of some classes lend to the confirming images."""
        lent: list[Lent] = []
        for target in targets:
            lent += transplants(
                self.classifier, family.screen, family.confirm, target,
                deadline=self.deadline, notify=self.notify,
            )  # fmt: skip
            if time.monotonic() >= self.deadline:
                what = f"whether class {target} stands for a mark"
                self.skipped.append(Skipped(what=what, reason="time budget"))
        return lent

    # ---- the record

    def _class_names(self) -> tuple[str, ...]:
        named = self.options.class_names
        if named is None and self.source is not None:
            named = self.source.class_names
        return tuple(named) if named else tuple(str(number) for number in range(self.classes))

    def _facts(self, names: tuple[str, ...]) -> ModelFacts:
        file = self.model.file
        return ModelFacts(
            name=file.path.name,
            sha256=file.sha256,
            bytes=file.bytes,
            format=str(file.kind),
            architecture=self.model.architecture,
            classes=self.classes,
            class_names=names,
            parameters=self.model.parameters,
            differentiable=self.classifier.differentiable,
            output=self.output,
        )

    def _exhibits(
        self, evidence: Sequence[Confirmation], shown: Mapping[str, tuple[Stamped, Family]]
    ) -> tuple[Exhibit, ...]:
        exhibits: list[Exhibit] = []
        for found in evidence:
            entry, family = shown[f"{found.family} {found.trigger}"]
            if len(exhibits) == EXHIBITS or any(e.trigger == found.trigger for e in exhibits):
                continue
            entry = replace(entry, probe=found.probe)  # other probes may stamp the same
            exhibits.append(self._exhibit(entry, family, found.target, found.source))
        return tuple(exhibits)

    def _marks(self, family: Family | None, lent: Sequence[Lent]) -> Iterator[Exhibit]:
        """What classes that stand for a mark lend to other images, the typical of each kind."""
        if family is None:
            return
        for one in lent:
            if one.typical is not None and verdict.stands_for_a_mark(one.counts):
                name = f"{TRANSPLANT}{one.counts.kind}"
                stamped = Stamped(probe=name, title=name, trigger=one.typical)
                yield self._exhibit(stamped, family, one.counts.target)

    def _exhibit(
        self, stamped: Stamped, family: Family, target: int | None, source: int | None = None
    ) -> Exhibit:
        return exhibit(self.classifier, stamped, family.confirm, family.name, target, source)

    def _provenance(self) -> Provenance:
        options = self.options
        device = self.classifier.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        packages = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "scipy", "pillow")
        return Provenance(
            auditor=auditor.__version__,
            versions={
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in packages},
            },
            device=f"{device.type} ({name})",
            command=options.command,
            seed=options.seed,
            started=self.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=time.monotonic() - self.begin,
            options={
                "batch_size": str(self.classifier.batch_size),
                "max_images": str(options.max_images),
                "searches": ",".join(options.searches),
                "threads": str(torch.get_num_threads()),
                "time_budget": "none"
                if math.isinf(options.time_budget)
                else f"{options.time_budget:g} s",
            },
        )
