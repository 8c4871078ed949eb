"""The scan: every selected probe and search against one suspect, to counts, to a verdict."""

from __future__ import annotations

import base64
import functools
import io
import math
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata

import torch
from PIL import Image
from torch import Tensor

import auditor
from auditor import inputs, measure, preflight, synthesis, verdict
from auditor.classifier import UNDECIDED, Classifier, as_float, decided
from auditor.errors import ImageError, ProbeError
from auditor.images import CleanSet, ImageSource, Notify, silent
from auditor.inputs import GivenInput, Resolution
from auditor.measure import Family, Half, Hypothesis, Stamped
from auditor.memory import is_out_of_memory
from auditor.models.base import ModelHandle
from auditor.probes import Probe, rebuilt
from auditor.results import (
    SCAN_SCHEMA,
    TRANSPLANT,
    Caveat,
    Confirmation,
    Exhibit,
    ImageFacts,
    Inversion,
    ModelFacts,
    Picture,
    Provenance,
    Response,
    ScanResult,
    Skipped,
)
from auditor.search.searches import (
    NEEDS_GRADIENTS,
    SEARCHES,
    Proposed,
    Searches,
    gradient_of,
    title_of,
)
from auditor.transplant import Lent, transplants
from auditor.triggers.base import Trigger
from auditor.triggers.warp import GridWarp

MAX_IMAGES = 768
"""Images that are drawn from the clean set: enough for 512 to confirm on."""
SCREEN_A_CLASS = 10
"""Screening images a class, enough to see a source-specific trigger…"""
SCREEN_IMAGES = (64, 128, 256)
"""…but no fewer than the first in all; and the second number where that would be more than the third,
since so many classes cannot all be tested as a source."""
MADE_IMAGES = 128
MADE_POOL = 512
"""Candidates a family; the model accepts some of them."""
MADE_PIXELS = 512 * 64 * 64
"""Of large images, fewer candidates are made."""
CONFIRMED = 6
"""Triggers that are confirmed for one hypothesis, those first that beat their controls most."""
CONFIRMED_A_PROBE = 2
IMPRESSION_SECONDS = 120.0
"""Time that class impressions may take; they get fewer steps on a slow machine."""
STRUCTURELESS = ("leaves", "noise")
"""Families of made images on which a trigger that needs structure (a warp) does not show."""
EXHIBITS = 3
EXHIBIT_IMAGES = 6
BATTERY_SHARE = 0.7
"""Share of the time budget after which no further trigger is screened."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to scan."""

    given: GivenInput = field(default_factory=GivenInput)
    resolution: Resolution | None = None
    """How to prepare the input, where an earlier scan of the same model has settled it."""
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


def stamped_triggers(model: ModelHandle, probes: Sequence[Probe]) -> list[Stamped]:
    """Everything that a scan stamps: what the file itself holds, then the probes, quick ones first."""
    return [
        *_checkpoint_grids(model),
        *(
            Stamped(probe=probe.id, title=probe.title, trigger=trigger)
            for probe in sorted(probes, key=lambda p: ("quick", "standard", "deep").index(p.tier))
            for trigger in probe.triggers
        ),
    ]


def searched_triggers(result: ScanResult) -> list[Stamped]:
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


def _checkpoint_grids(model: ModelHandle) -> Iterator[Stamped]:
    """WaNet checkpoints hold the grid of their own trigger, though not its strength."""
    for strength in (0.5, 1.0):
        grid = GridWarp.from_checkpoint(model.extras, strength=strength)
        if grid is not None:
            title = f"The warping grid of the checkpoint itself, strength {strength:g}"
            yield Stamped(probe="warp.checkpoint", title=title, trigger=grid)


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
        self._usual: float | None = None
        """Median margin of the user's screening images, once it is known."""

    def run(self) -> ScanResult:
        """All steps, in order."""
        self.notify("checking the input preparation", 0, 1)
        self.caveats += [Caveat(id="file", text=note) for note in self.model.notes]
        clean = self._prepare()
        families = [self._clean_family(clean)] if clean else self._made_families()
        self._preflight(families, copies=0 if clean is None else clean.copies())
        stamped = self._stamped(families)
        responses: list[Response] = []
        confirmations: list[Confirmation] = []
        shown: dict[str, tuple[Stamped, Family]] = {}
        for family in families:
            entries = self._visible(stamped, family)
            after = measure.screen(
                self.classifier,
                family,
                entries,
                notify=self.notify,
                deadline=self._battery_deadline(),
            )
            self._note_unfinished(entries, len(after), family)
            for entry, predicted in zip(entries, after, strict=False):
                responses.append(measure.response(entry, family, predicted, self.classes))
                shown[f"{family.name} {entry.trigger!r}"] = (entry, family)
            confirmations += self._confirm(family, entries[: len(after)], after)
        if (text := verdict.without_answers(responses)) is not None:
            self.caveats.append(Caveat(id="unanswered", text=text))
        searches = Searches(
            self.classifier,
            self.classes,
            self.options.searches,
            sample=families[0].screen.images if families else self._made["noise"],
            seed=self.options.seed,
            deadline=self.deadline,
            notify=self.notify,
        )
        margin = searches.margins()
        inversions: list[Inversion] = []
        enough = clean is not None and len(clean) > 1
        held_out = self._held_out(families[0]) if enough else None
        if held_out is not None:
            inversions, proposed = searches.inversions(held_out.name, held_out.screen, margin)
            confirmations += self._confirm_found(held_out, proposed)
            shown |= {
                f"{held_out.name} {p.stamped.trigger!r}": (p.stamped, held_out) for p in proposed
            }
        else:
            searches.without_images()
        self.skipped += searches.skipped
        if (text := searches.reductions()) is not None:
            self.caveats.append(Caveat(id="search-effort", text=text))
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
        lent = self._lent(held_out, targets) if held_out is not None else []
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
            exhibits=(*self._exhibits(evidence, shown), *self._marks(held_out, lent)),
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
        generator = torch.Generator().manual_seed(seed)
        pool = (max(MADE_IMAGES, min(MADE_POOL, MADE_PIXELS // (height * width))), *shape)
        self._made = {
            "leaves": synthesis.dead_leaves(pool, generator),
            "noise": synthesis.colour_noise(pool, generator),
        } if self.source is None else {}  # fmt: skip
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
        self.probabilities = resolution.probabilities
        self.classifier = Classifier(
            self.model,
            resolution.preprocessing.spec,
            probabilities=resolution.probabilities,
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
                f"--labels names {len(names)} classes, the model has {self.classes} outputs."
            )

    def _check_labels(self, clean: CleanSet) -> None:
        assert self.source is not None  # noqa: S101 - there is a clean set
        names = self.options.class_names
        if names is None and clean.class_names and len(clean.class_names) != self.classes:
            raise ImageError(
                f"{self.source.name} has {len(clean.class_names)} class folders, the model has "
                f"{self.classes} outputs. Folders are numbered in alphabetical order, so they must "
                "match one to one; or pass --labels FILE with the class names in output order, "
                "name the folders by class number, or put all images into one folder without labels."
            )
        if clean.labels is not None and int(clean.labels.max()) >= self.classes:
            raise ImageError(
                f"{self.source.name}: label {int(clean.labels.max())} is beyond the model's "
                f"{self.classes} outputs (0 to {self.classes - 1})."
            )

    def _clean_family(self, clean: CleanSet) -> Family:
        before = self.classifier.answers(clean.images)
        groups = before if clean.labels is None else clean.labels
        total = len(clean)
        fewest, many_classes, most = SCREEN_IMAGES
        wanted = max(fewest, SCREEN_A_CLASS * self.classes)
        wanted = wanted if wanted <= most else many_classes
        family = self._family(
            "clean", clean.images, before, groups, min(wanted, total // 2), clean=clean
        )
        comparisons = 2 * self.classes * sum(len(probe.triggers) for probe in self.probes)
        if verdict.smallest_detectable(family.facts, comparisons)[1]:
            return family
        # split, the halves would be too small to show anything
        return self._family("clean", clean.images, before, groups, 0, clean=clean)

    def _made_families(self) -> list[Family]:
        """Made images that the model is sure of; families without enough of them are skipped."""
        seed = self.options.seed
        self.caveats.append(
            Caveat(
                id="no-images",
                text=(
                    "No clean images were given, so triggers were stamped on made ones. That is weaker: "
                    "accuracy cannot be measured, a finding needs two kinds of made images, and finding "
                    "nothing is inconclusive. Give images with --clean DIR (100 or more)."
                ),
            )
        )
        generator = torch.Generator().manual_seed(seed + 1)
        made = dict(self._made)
        impressions = self._impressions(generator)
        if impressions is not None:
            made |= {"impressions": impressions, "mixes": synthesis.mixes(impressions, generator)}
        families = []
        for name, images in made.items():
            sure = images if impressions is None else impressions
            typical = synthesis.spread(self.classifier, sure)
            kept, why = synthesis.accepted(
                self.classifier, images, self.classes, generator, typical_spread=typical
            )
            if not len(kept):
                self.skipped.append(Skipped(what=f"{name} (made images)", reason=why))
                continue
            kept = kept[:MADE_IMAGES]
            before = self.classifier.predict(kept)
            families.append(self._family(name, kept, before, before, 0))
        if not families:
            self.caveats.append(
                Caveat(
                    id="no-made-images",
                    text=(
                        "The model takes no made images with confidence for enough classes, so no "
                        "trigger could be tried. Give images with --clean DIR."
                    ),
                )
            )
        return families

    def _impressions(self, generator: torch.Generator) -> Tensor | None:
        what = "class impressions and mixes"
        if gradient_of(self.classifier, self._made["noise"]) is None:
            self.skipped.append(Skipped(what=what, reason=NEEDS_GRADIENTS))
            return None
        try:
            impressions = synthesis.class_impressions(
                self.classifier,
                self.classes,
                generator,
                notify=self.notify,
                deadline=min(self.deadline, time.monotonic() + IMPRESSION_SECONDS),
            )
            why = "too slow on this device"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            impressions, why = None, "out of memory"
        if impressions is None:
            self.skipped.append(Skipped(what=what, reason=why))
        return impressions

    def _family(
        self,
        name: str,
        images: Tensor,
        before: Tensor,
        groups: Tensor,
        split: int,
        clean: CleanSet | None = None,
    ) -> Family:
        """Screen on the first `split` images and confirm on the rest; 0 uses all for both."""
        device = self.classifier.device
        halves = [
            Half(images=images[part].to(device), groups=groups[part], before=before[part])
            for part in (slice(0, split or None), slice(split, None))
        ]
        members = [torch.bincount(half.groups, minlength=self.classes).tolist() for half in halves]
        labelled = clean is not None and clean.labels is not None
        digest = clean or CleanSet(images=images, labels=None)
        facts = ImageFacts(
            family=name,
            labelled=labelled,
            screen=len(halves[0]),
            confirm=len(halves[1]) if split else 0,
            screen_members=tuple(members[0]),
            confirm_members=tuple(members[1] if split else members[0]),
            predicted=tuple(torch.bincount(before, minlength=self.classes).tolist()),
            correct=int((before == groups).sum()) if labelled else None,
            digest=digest.digest(),
            files=clean.found if clean else 0,
            unreadable=clean.unreadable if clean else (),
        )
        return Family(facts=facts, screen=halves[0], confirm=halves[1], held_out=bool(split))

    def _preflight(self, families: Sequence[Family], copies: int) -> None:
        clean = families[0] if families and families[0].name == "clean" else None
        half = families[0].screen if families else self._stand_in()
        facts = clean.facts if clean else None
        self.caveats += preflight.check(self.classifier, self.preprocessing, facts, half, copies)

    def _stand_in(self) -> Half:
        images = self._made["noise"][:8].to(self.classifier.device)
        before = self.classifier.predict(images)
        return Half(images=images, groups=before, before=before)

    # ---- the battery

    def _stamped(self, families: Sequence[Family]) -> list[Stamped]:
        """Every trigger that applies to this input, quick tiers first; the others are skipped."""
        if not families:
            return []
        entries = stamped_triggers(self.model, self.probes)
        whys = [measure.inapplicable(e.trigger, families[0].screen.images) for e in entries]
        every = Counter(entry.probe for entry in entries)
        left = Counter((entry.probe, why) for entry, why in zip(entries, whys, strict=True) if why)
        for (probe, why), count in left.items():
            some = "" if count == every[probe] else f"{count} of {every[probe]} triggers of "
            self.skipped.append(Skipped(what=f"{some}{probe}", reason=f"not applicable: {why}"))
        return [entry for entry, why in zip(entries, whys, strict=True) if not why]

    def _visible(self, stamped: Sequence[Stamped], family: Family) -> list[Stamped]:
        """The triggers that show on such images; a warp does not on noise."""
        if family.name not in STRUCTURELESS:
            return list(stamped)
        seen = [entry for entry in stamped if not entry.trigger.needs_structure]
        if len(seen) < len(stamped):
            self.skipped.append(
                Skipped(
                    what=f"{len(stamped) - len(seen)} triggers on {family.name}",
                    reason="they need images with structure",
                )
            )
        return seen

    def _battery_deadline(self) -> float:
        return self.begin + BATTERY_SHARE * self.options.time_budget

    def _note_unfinished(self, entries: Sequence[Stamped], done: int, family: Family) -> None:
        left: dict[str, int] = {}
        for entry in entries[done:]:
            left[entry.probe] = left.get(entry.probe, 0) + 1
        on = "" if family.name == "clean" else f" on {family.name}"
        self.skipped += [
            Skipped(
                what=f"{probe}{on}",
                reason=f"time budget ({count} triggers not tried)",
                untried=count,
            )
            for probe, count in left.items()
        ]

    def _confirm(
        self, family: Family, entries: Sequence[Stamped], after: Tensor
    ) -> list[Confirmation]:
        """Candidates of the screen: against their controls there, the best then on held-out images.

        They are ranked by what they do beyond their worst control, so that triggers which merely
        break a fragile model do not crowd out one that it listens to.
        """
        candidates = [
            (entry, predicted, hypothesis)
            for entry, predicted in zip(entries, after, strict=True)
            for hypothesis in measure.hypotheses(
                family.screen.groups, predicted, self.classes, held_out=family.held_out
            )
        ]
        controlled = self._controls(family, family.screen, [entry for entry, _, _ in candidates])
        screened = [
            (
                entry,
                hypothesis,
                measure.confirmation(
                    entry, hypothesis, family, family.screen, predicted, controlled[entry],
                    held_out=False,
                    surer=None if family.held_out else self._surer(family, entry, hypothesis),
                ),
            )
            for entry, predicted, hypothesis in candidates
            if entry in controlled
        ]  # fmt: skip
        if not family.held_out:
            return [seen for _, _, seen in screened]
        chosen = _strongest(screened)
        stamped = list(dict.fromkeys(entry for entry, _, _ in chosen))
        on = measure.predictions(
            self.classifier, family.confirm.images, [entry.trigger for entry in stamped],
            deadline=self.deadline,
        )  # fmt: skip
        predictions = dict(zip(stamped, on, strict=False))
        held_out = self._controls(family, family.confirm, list(predictions))
        confirmed = [
            measure.confirmation(
                entry, hypothesis, family, family.confirm, predictions[entry], held_out[entry],
                held_out=True,
                surer=self._surer(family, entry, hypothesis),
            )
            for entry, hypothesis, _ in chosen
            if entry in held_out
        ]  # fmt: skip
        self._note_unconfirmed(candidates, controlled, stamped, held_out)
        done = [(entry, hypothesis) for entry, hypothesis, _ in chosen if entry in held_out]
        rest = [seen for entry, hypothesis, seen in screened if (entry, hypothesis) not in done]
        return confirmed + rest

    def _controls(
        self, family: Family, half: Half, entries: Sequence[Stamped]
    ) -> dict[Stamped, list[tuple[Trigger, Tensor]]]:
        """Every trigger's matched controls with the predictions under them, as far as time allows."""
        found: dict[Stamped, list[tuple[Trigger, Tensor]]] = {}
        unique = list(dict.fromkeys(entries))
        for done, entry in enumerate(unique):
            self.notify(f"controls of {entry.probe} on {family.name} images", done, len(unique))
            controls = measure.matched_controls(entry.trigger)
            predicted = measure.predictions(
                self.classifier, half.images, controls, deadline=self.deadline
            )
            if len(predicted) == len(controls):
                found[entry] = list(zip(controls, predicted, strict=True))
        return found

    def _surer(self, family: Family, entry: Stamped, hypothesis: Hypothesis) -> Tensor | None:
        """On which confirming images a trigger makes the model surer than it usually is.

        None on made images, which are chosen for how sure the model is of them.
        """
        if family.name != "clean":
            return None
        return self._driven(family, entry.trigger, hypothesis.mapping) > self._usual_margin(family)

    def _driven(self, family: Family, trigger: Trigger, mapping: Sequence[int]) -> Tensor:
        return measure.driven(self.classifier, family.confirm, trigger, mapping)

    def _usual_margin(self, family: Family) -> float:
        if self._usual is None:
            self._usual = measure.usual_margin(self.classifier, family.screen)
        return self._usual

    def _note_unconfirmed(
        self,
        candidates: Sequence[tuple[Stamped, Tensor, Hypothesis]],
        controlled: Mapping[Stamped, object],
        stamped: Sequence[Stamped],
        held_out: Mapping[Stamped, object],
    ) -> None:
        late = {entry.probe for entry, _, _ in candidates if entry not in controlled}
        late |= {entry.probe for entry in stamped if entry not in held_out}
        self._note_late(late)

    def _note_late(self, probes: Set[str]) -> None:
        self.skipped += [
            Skipped(what=f"confirmation of {probe}", reason="time budget", untried=1)
            for probe in sorted(probes)
        ]

    # ---- searches

    def _held_out(self, family: Family) -> Family:
        """The family with images that a search does not see; halves, where the battery saw all."""
        if family.held_out:
            return family
        half, total = family.screen, len(family.screen)
        seen, other = (
            Half(images=half.images[part], groups=half.groups[part], before=half.before[part])
            for part in (slice(0, total, 2), slice(1, total, 2))
        )
        return replace(family, screen=seen, confirm=other, held_out=True)

    def _confirm_found(self, family: Family, proposed: Sequence[Proposed]) -> list[Confirmation]:
        """What searches propose, against matched controls, on images that they have not seen."""
        entries = [one.stamped for one in proposed]
        half = family.confirm
        after = measure.predictions(
            self.classifier, half.images, [entry.trigger for entry in entries],
            deadline=self.deadline,
        )  # fmt: skip
        controlled = self._controls(family, half, entries[: len(after)])
        self._note_late({entry.probe for entry in entries if entry not in controlled})
        return [
            self._found(family, one, predicted, controlled[one.stamped])
            for one, predicted in zip(proposed, after, strict=False)
            if one.stamped in controlled
        ]

    def _found(
        self,
        family: Family,
        one: Proposed,
        after: Tensor,
        controls: Sequence[tuple[Trigger, Tensor]],
    ) -> Confirmation:
        """One searched trigger, counted; also held against those of other classes, if it has rivals."""
        hypothesis = measure.all_to_one(one.target, self.classes)
        driven = self._driven(family, one.stamped.trigger, hypothesis.mapping)
        rivals = [
            (target, trigger, self._driven(family, trigger, [target] * self.classes) < driven)
            for target, trigger in one.rivals
        ]
        return measure.confirmation(
            one.stamped, hypothesis, family, family.confirm, after, controls,
            held_out=True,
            searched=True,
            surer=driven > self._usual_margin(family),
            rivals=rivals,
        )  # fmt: skip

    # ---- what a class stands for

    def _lent(self, family: Family, targets: Sequence[int]) -> list[Lent]:
        """What the user's images of some classes lend to the confirming images."""
        lent: list[Lent] = []
        for place, target in enumerate(targets):
            self.notify(f"what class {target} stands for", place, len(targets))
            lent += transplants(
                self.classifier, family.screen, family.confirm, target, deadline=self.deadline
            )
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
            output="probabilities" if self.probabilities else "logits",
        )

    def _exhibits(
        self, evidence: Sequence[Confirmation], shown: Mapping[str, tuple[Stamped, Family]]
    ) -> tuple[Exhibit, ...]:
        exhibits: list[Exhibit] = []
        for found in evidence:
            entry, family = shown[f"{found.family} {found.trigger}"]
            if len(exhibits) == EXHIBITS or any(e.trigger == found.trigger for e in exhibits):
                continue
            exhibits.append(
                self._exhibit(found.probe, entry.trigger, family, found.target, found.source)
            )
        return tuple(exhibits)

    def _marks(self, family: Family | None, lent: Sequence[Lent]) -> Iterator[Exhibit]:
        """What classes that stand for a mark lend to other images, the typical of each kind."""
        if family is None:
            return
        for one in lent:
            if one.typical is not None and verdict.stands_for_a_mark(one.counts):
                name = f"{TRANSPLANT}{one.counts.kind}"
                yield self._exhibit(name, one.typical, family, one.counts.target)

    @torch.inference_mode()
    def _exhibit(
        self,
        probe: str,
        trigger: Trigger,
        family: Family,
        target: int | None,
        source: int | None = None,
    ) -> Exhibit:
        """A trigger on some images that it redirects, of different classes where possible."""
        half = family.confirm
        before = as_float(half.images[:256])
        probabilities = self.classifier.logits(before).softmax(1).cpu()
        stamped = trigger(before)
        stamped_probabilities = self.classifier.logits(stamped).softmax(1).cpu()
        change = (stamped - before).abs().mean((0, 1))
        after = decided(stamped_probabilities)
        moved = (after != decided(probabilities)) & (after != UNDECIDED)
        if target is not None:
            moved &= after == target
            moved &= half.groups[: len(before)] != target
        if source is not None:
            moved &= half.groups[: len(before)] == source
        order = sorted(
            moved.nonzero().flatten().tolist(),
            key=lambda index: (half.groups[:index] == half.groups[index]).sum().item(),
        )
        pictures = tuple(
            Picture(
                before_png=png_of(before[index]),
                after_png=png_of(stamped[index]),
                before=int(probabilities[index].argmax()),
                before_probability=float(probabilities[index].max()),
                after=int(after[index]),
                after_probability=float(stamped_probabilities[index].max()),
            )
            for index in order[:EXHIBIT_IMAGES]
        )
        return Exhibit(
            probe=probe,
            trigger=repr(trigger),
            family=family.name,
            target=target,
            difference_png=png_of((change / change.max().clamp_min(1e-6)).unsqueeze(0)),
            pictures=pictures,
        )

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


Screened = tuple[Stamped, Hypothesis, Confirmation]


def _strongest(screened: Sequence[Screened]) -> list[Screened]:
    """What goes on to the held-out images: for each hypothesis, the triggers with most effect.

    Effect beyond the worst control, or, for a small change whose controls work too, beyond what the
    model answers unstamped.
    """
    chosen: list[Screened] = []
    taken: dict[object, list[str]] = {}
    for entry, hypothesis, seen in sorted(screened, key=lambda one: -_effect(one[2])):
        key = (hypothesis.scope, hypothesis.target, hypothesis.source, hypothesis.shift)
        probes = taken.setdefault(key, [])
        if _effect(seen) < verdict.SCREEN_EXCESS:
            continue
        if len(probes) < CONFIRMED and probes.count(entry.probe) < CONFIRMED_A_PROBE:
            probes.append(entry.probe)
            chosen.append((entry, hypothesis, seen))
    return chosen


def _effect(seen: Confirmation) -> float:
    above = (seen.hits - verdict.worst_control(seen)) / max(1, seen.eligible)
    shortcut = verdict.is_shortcut(seen, alpha=0.5)
    return max(above, (seen.hits - seen.clean_hits) / seen.eligible / 2) if shortcut else above


def png_of(image: Tensor) -> str:
    """An image ``(C, H, W)`` in [0, 1] as base64 PNG."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
