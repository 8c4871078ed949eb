"""The record of one purification, with the scans of the model before and after in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from auditor.results.facts import Caveat, Counts, ModelFacts, Preprocessing, Provenance, SplitFacts
from auditor.results.scan import Confirmation, Judgement, ScanResult, Scope

PURIFY_SCHEMA = "auditor.purify/1"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trigger on the judge images, a model at a time."""

    origin: Literal["found", "judge"]
    """"found": a scan found it, of the suspect (the purifier was told) or of a result; "judge":
    `--judge-trigger`, which the purifier never saw."""
    probe: str
    title: str
    trigger: str
    """Its repr, which rebuilds it."""
    scope: Scope
    target: int | None
    source: int | None = None
    mapping: tuple[int, ...] | None = None
    """Source class -> target class, for all-to-all; -1 where a source was not seen."""
    eligible: int
    hits: Counts
    found_too: bool = False
    """A judge trigger that stamps what a found one does."""
    unstamped: int = 0
    """Of the eligible images, those that both the suspect and the purified model send there without the
    trigger: what they confuse anyway. 0 in older records."""
    anyway: int = 0
    """Of these, those that the purified model sends there with the trigger, too."""

    def raises_goal(self, max_asr: float) -> bool:
        """Whether more images go there without the trigger than a goal for the ASR allows."""
        return self.unstamped > max_asr * self.eligible + 1e-9

    def is_beyond(self, max_asr: float) -> bool:
        """Whether it misses a goal for the ASR.

        Where more go there without the trigger, no purification that keeps the suspect's answers could
        reach that: then the goal is of the other images.
        """
        if not self.raises_goal(max_asr):
            return self.hits.after > max_asr * self.eligible + 1e-9
        return self.hits.after - self.anyway > max_asr * (self.eligible - self.unstamped) + 1e-9


def destinations(found: Confirmation | Outcome, classes: int) -> tuple[int, ...]:
    """Source class -> target class of a trigger, -1 where it leaves a class alone."""
    if found.mapping is not None:
        return found.mapping
    target, sources = found.target, range(classes) if found.source is None else (found.source,)
    return tuple(
        -1 if target is None or k == target or k not in sources else target for k in range(classes)
    )


@dataclass(frozen=True, kw_only=True)
class Check:
    """The model in the middle of a purification, on fit images that were kept back for choosing."""

    step: int
    asr: float
    """Highest ASR of the triggers that the purifier knows; 0 where it knows none."""
    acc: float
    loss: float


What = Literal["masks", "weights", "spectral shifts", "pruning"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attempt of a purifier."""

    what: What
    """What was trained or chosen."""
    settings: dict[str, str]
    steps: int
    images: int
    """Images that went forward and backward."""
    seconds: float
    checks: tuple[Check, ...]
    outcome: str
    """One sentence: what it reached on the kept-back fit images, and what was made of it."""
    kept: bool
    """Its result is (part of) the purified model."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One purification, and what a fresh search found in the result."""

    known: int
    """Triggers that the purifier was told of."""
    seed: int
    """Of the search afterwards, on the fit images."""
    found: tuple[str, ...] | None
    """Titles of the triggers that it found; they are told to the next round. None: no time was left."""


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """How the model was purified."""

    name: str
    title: str
    source: str
    """The paper, or why the method is as it is."""
    settings: dict[str, str]
    stages: tuple[Stage, ...]
    """Of the last round."""
    seconds: float
    """Of the purifier, all rounds; without the searches between them."""
    trained: int
    """Numbers that were trained or chosen: masks, weights, spectral shifts."""
    rounds: tuple[Round, ...] = ()
    """Empty where no search for unknown triggers was asked for."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of several methods that were compared."""

    name: str
    title: str
    trained: int
    """As of `MethodFacts`."""
    seconds: float
    """From its beginning to its end, searches of its results included."""
    choosing: Check
    """What it does on the fit images that were kept back for choosing."""
    hits: tuple[int, ...]
    """Judge images that each outcome's trigger still moves, in the order of the outcomes."""
    correct: int
    """Rightly classified unstamped judge images."""
    retuned: int | None
    """Judge images that the stress test's trigger moves after the re-tuning; None: not run."""
    missed: tuple[str, ...]
    """Goals missed on the judge images, a sentence each. Of the best one the scan of the result counts
    as well; the others were not scanned."""
    recognised: tuple[int, ...] | None = None
    """Rightly classified unstamped judge images a class; None in older records."""
    confused: tuple[tuple[int, int], ...] = ()
    """`unstamped` and `anyway` of each outcome; empty in older records."""


@dataclass(frozen=True, kw_only=True)
class NotCompared:
    """A method that was asked for and has no result."""

    name: str
    title: str
    why: str


@dataclass(frozen=True, kw_only=True)
class MaskLayer:
    """The masks of one layer of the purified model, in the order of the network."""

    layer: str
    kind: str
    """BatchNorm, LayerNorm, Conv, Linear …"""
    channels: int
    lower_bound: float
    histogram: tuple[int, ...]
    """Channels a bin; bin i of n holds the masks in [i / n, (i + 1) / n), the last one those of 1
    and more."""
    near_zero: int
    """Masks below 0.1."""
    near_one: int
    """Masks above 0.9."""
    smallest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class ChangedChannel:
    """One of the channels that were changed most."""

    layer: str
    channel: int
    mask: float


@dataclass(frozen=True, kw_only=True)
class ChangedTensor:
    """A tensor that was changed as a whole."""

    name: str
    elements: int
    change: float | None
    """Relative size of the change, `|W' - W| / |W|`; None where W was 0."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One judge image in the t-SNE map, before and after."""

    label: int
    stamped: bool
    before: tuple[float, float]
    after: tuple[float, float]
    predicted_before: int
    predicted_after: int


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One common t-SNE map of the features of both models."""

    features: str
    """What was embedded: "penultimate features", or "logits" where hooks have no effect."""
    trigger: str
    perplexity: float
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Judge images a class and predicted class, unstamped: `before[true][predicted]`."""

    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    lost: int | None = None
    """Images that the suspect alone has right; None in records of before this was counted."""
    gained: int | None = None
    """Images that the purified model alone has right."""

    @property
    def recognised(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Images a class that the suspect has right, and that the purified model has."""
        before, after = (
            tuple(row[k] for k, row in enumerate(table)) for table in (self.before, self.after)
        )
        return before, after

    def sent(self, wanted: Sequence[int]) -> Counts:
        """Images that go to these classes, one a source class, without a trigger; -1 leaves one out."""
        before, after = (
            sum(row[target] for row, target in zip(table, wanted, strict=True) if target >= 0)
            for table in (self.before, self.after)
        )
        return Counts(before=before, after=after)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One judge image with and without a trigger, as both models see it."""

    label: int
    clean_png: str
    """PNG, base64."""
    stamped_png: str
    clean_before: int
    """Predicted class."""
    clean_before_probability: float
    stamped_before: int
    stamped_before_probability: float
    clean_after: int
    clean_after_probability: float
    stamped_after: int
    stamped_after_probability: float


@dataclass(frozen=True, kw_only=True)
class CaseExhibit:
    """A trigger that the suspect obeyed, on some judge images."""

    probe: str
    trigger: str
    target: int | None
    difference_png: str
    """Mean absolute change, stretched to full contrast; PNG, base64."""
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class StressRow:
    """A model that is taught the trigger again, on the judge images."""

    model: Literal["purified", "fine-tuned"]
    hits_before: int
    """Stamped judge images that go to the target, before the re-tuning."""
    hits_after: int
    correct_after: int
    """Rightly classified unstamped judge images, after it."""


@dataclass(frozen=True, kw_only=True)
class Stress:
    """Does it come back? The re-tuning attack (PAM, NeurIPS 2024)."""

    probe: str
    trigger: str
    target: int
    poisoned: int
    """Stamped images with the target's label that the model is re-tuned on."""
    clean: int
    epochs: int
    lr: float
    eligible: int
    total: int
    rows: tuple[StressRow, ...]


@dataclass(frozen=True, kw_only=True)
class SideFile:
    """A file of numbers that belongs to a model file (ONNX external data)."""

    name: str
    """Without its folder, which is that of the model file."""
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """The purified file, read back."""

    name: str
    """File name without its folder."""
    sha256: str
    bytes: int
    format: str
    tensors: int
    """Tensors whose numbers differ from the input's."""
    largest_difference: float
    """Largest difference of a logit between the file, loaded again, and the model that was judged."""
    compared: int
    """Images that were compared."""
    beside: tuple[SideFile, ...] = ()
    """Files that must stay beside it."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """What the user wanted, and whether it holds on the judge images."""

    max_asr: float
    max_acc_drop: float
    missed: tuple[str, ...]
    """A sentence for each goal that was missed; empty: all goals are met."""
    fewest_classes: int = 0
    """Classes that the judge images must be of, where the model was changed; 0 in older records."""
    max_class_drop: float = 1.0
    """Share of the recognised images of one class that may be lost; 1 in older records."""

    @property
    def met(self) -> bool:
        """True where nothing was missed."""
        return not self.missed


@dataclass(frozen=True, kw_only=True)
class PurifyResult:
    """Everything that one purification did and what it was judged by."""

    schema: str
    model: ModelFacts
    preprocessing: Preprocessing
    fit: SplitFacts
    judge: SplitFacts
    labelled: bool
    """False: the suspect's own clean predictions stand for labels, and ACC is agreement with it."""
    evidence: ScanResult
    """The scan of the suspect on the fit images: what the purifier was told."""
    before: ScanResult
    """The suspect on the judge images."""
    after: ScanResult | None
    """The purified model on the judge images: same probes, same seed. None where the model was not
    touched."""
    method: MethodFacts | None
    """The method, of several the best one. None where there was nothing to remove, and the model was
    left alone."""
    contenders: tuple[Contender, ...]
    """Methods that were compared, best first; empty where one was asked for."""
    not_compared: tuple[NotCompared, ...]
    kept_back: int
    """Fit images that the methods were ordered by and that none was fitted on; 0: there are too few, so
    that those which are fitted on order them, or one method was asked for."""
    accuracy: Counts
    """Rightly classified unstamped judge images."""
    outcomes: tuple[Outcome, ...]
    masks: tuple[MaskLayer, ...]
    """Empty where no masks are part of the result."""
    channels: tuple[ChangedChannel, ...]
    tensors: tuple[ChangedTensor, ...]
    """Tensors that were changed beyond masks, most changed first; empty where masks sufficed."""
    exhibits: tuple[CaseExhibit, ...]
    embedding: Embedding | None
    confusion: Confusion | None
    stress: Stress | None
    goals: Goals
    written: Written | None
    """None where nothing was written."""
    caveats: tuple[Caveat, ...]
    provenance: Provenance

    @property
    def suspicion(self) -> Judgement:
        """What is known against the suspect: the worse of the scans of the fit and the judge images."""
        scans = (self.evidence.judgement, self.before.judgement)
        return max(scans, key=lambda judgement: judgement.verdict.rank)

    @property
    def exit_code(self) -> int:
        """Of the process: 0 goals met; where nothing was done, that of what is known of the suspect."""
        if not self.goals.met:
            return 1
        return 0 if self.method is not None else self.suspicion.verdict.exit_code
