"""Frozen records of what a scan saw: counts, never rates; floats, never formatted text.

They hold no tensors and import no torch, so that a report can be rendered anywhere. `ScanResult`
is the versioned log record of one scan; `verdict.judge` recomputes its verdict from its counts.
`PurifyResult` is that of one purification, with the scans of the model before and after in it;
`AttackResult` that of a backdoor that auditor itself planted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

SCAN_SCHEMA = "auditor.scan/1"
PURIFY_SCHEMA = "auditor.purify/1"
ATTACK_SCHEMA = "auditor.attack/1"
MARK_SCHEMA = "auditor.attack-mark/1"

TRANSPLANT = "transplant."


class Verdict(StrEnum):
    """What a scan concludes. The best one is that nothing was found; none says "safe"."""

    NO_EVIDENCE = "NO EVIDENCE FOUND"
    INCONCLUSIVE = "INCONCLUSIVE"
    SUSPICIOUS = "SUSPICIOUS"
    BACKDOOR = "BACKDOOR"

    @property
    def rank(self) -> int:
        """How bad it is, from 0."""
        return list(Verdict).index(self)

    @property
    def exit_code(self) -> int:
        """The process exit code: 0 no evidence, 1 backdoor or suspicious, 3 inconclusive."""
        return {Verdict.NO_EVIDENCE: 0, Verdict.INCONCLUSIVE: 3}.get(self, 1)

    @property
    def is_alarm(self) -> bool:
        """True for a backdoor and for a suspicion."""
        return self in (Verdict.BACKDOOR, Verdict.SUSPICIOUS)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image in [0, 1] becomes the network's input: `(x - mean) / std`, a channel at a time."""

    channels: int
    height: int
    width: int
    normalize: str
    """Name of the normalisation, or "custom"."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: Literal["rgb", "bgr"] = "rgb"
    per_image: bool = False
    """Each image is stretched to [0, 1] by its own minimum and maximum first."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to prepare the input that was tried, and how the model liked it."""

    spec: InputSpec
    images: int
    correct: int | None = None
    """Rightly classified images, where there are labels."""
    batchnorm_distance: float | None = None
    """Mean KL divergence of BatchNorm's batch statistics from its running ones (nats)."""
    confidence: float | None = None
    """Mean largest softmax probability."""
    agreement: float | None = None
    """Share of images on which the prediction equals the one under the chosen candidate."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the input preparation was chosen. `candidates[0]` is the chosen one, then the runners-up."""

    spec: InputSpec
    source: Literal["given", "file", "measured", "unresolved"]
    reason: str
    """One sentence: why this one, how sure."""
    advice: str = ""
    """What to pass on the command line, where it could not be resolved."""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The suspect file."""

    name: str
    """File name without its folder."""
    sha256: str
    bytes: int
    format: str
    architecture: str
    classes: int
    class_names: tuple[str, ...]
    """As given by class folders or labels; the class numbers as text where nothing is known."""
    parameters: int | None
    differentiable: bool
    output: str
    """What the network returns: "logits" or "probabilities"."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One family of images that triggers were stamped on."""

    family: str
    """"clean" for the user's; "impressions", "mixes", "leaves", "noise" for made ones."""
    labelled: bool
    """True: images of the target class are left out by label; false: by clean prediction."""
    screen: int
    """Images of the screening half."""
    confirm: int
    """Images of the confirming half, which the screen has not seen; 0 where all serve both."""
    screen_members: tuple[int, ...]
    """Images a class (by label or prediction) in the screening half, length K."""
    confirm_members: tuple[int, ...]
    """The same for the confirming half."""
    predicted: tuple[int, ...]
    """Clean predictions a class over both halves, length K."""
    correct: int | None
    """Rightly classified images over both halves, where labelled."""
    digest: str
    """SHA-256 over the stored pixels and labels."""
    files: int = 0
    """Files found in the folder, of which `screen + confirm` were drawn."""
    unreadable: tuple[str, ...] = ()
    """Files that were left out, with the reason."""


Scope = Literal["all-to-one", "all-to-all", "source-specific"]


@dataclass(frozen=True, kw_only=True)
class Response:
    """One trigger on the screening images of one family."""

    probe: str
    trigger: str
    """Its repr, which rebuilds it."""
    family: str
    images: int
    hits: dict[int, int]
    """Class -> images that are not of this class (see `ImageFacts.labelled`) and are predicted as
    it when stamped. Classes without hits are left out."""
    flips: int
    """Images whose prediction changed."""
    area: float
    """Share of pixels that the trigger changes visibly (by 2/255 or more), mean over images."""
    change: float
    """Root mean square change, in [0, 1] units, mean over images."""
    unanswered: int = 0
    """Images whose scores name no class when stamped: one is NaN, or the largest is infinite."""
    unlike: bool = False
    """A stamped image alone, asked for as users do, is clearly answered otherwise than in its batch."""


@dataclass(frozen=True, kw_only=True)
class ControlCount:
    """One matched control on the images of a confirmation."""

    trigger: str
    hits: int
    gained: int
    """Images that the trigger moves into the target and this control does not."""
    lost: int
    """Images that this control moves into the target and the trigger does not."""


@dataclass(frozen=True, kw_only=True)
class RivalCount:
    """A trigger of the same kind and size that was searched for another class, on the same images."""

    trigger: str
    target: int
    weaker: int
    """Eligible images that it drives less far towards its own target (by the margin of the scores)
    than the confirmed trigger does towards that one's. Images of its own class are there already, and
    so count for it: of K classes alike, a share of 1 / (K - 1)."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A candidate of the screen, measured again on images that the screen has not seen."""

    probe: str
    title: str
    trigger: str
    family: str
    scope: Scope
    target: int | None
    """The class, for all-to-one and source-specific."""
    source: int | None = None
    """The one source class, for source-specific."""
    mapping: tuple[int, ...] | None = None
    """Source class -> target class, for all-to-all; -1 where a source was not seen."""
    shift: int | None = None
    """For all-to-all: the mapping is `class + shift mod K`; None for a fitted map."""
    sources: int = 0
    """Source classes of which most images go where the hypothesis says."""
    permuted: int = 0
    """Those of them with enough images that the map sends round in circles of three or more."""
    held_out: bool
    """True: the screen has not seen these images."""
    keeps_meaning: bool = True
    """False: an honest model may answer differently for good reason (a rotation, a colour change)."""
    searched: bool = False
    """True: a search made this trigger for this model, on the screening images."""
    surer: int | None = None
    """Eligible images that are taken for the target more surely when stamped (by the margin of the
    scores) than the model is of half of the unstamped screening images; None: not measured."""
    eligible: int
    hits: int
    clean_hits: int
    """Of the eligible images, those predicted as the target without any trigger."""
    controls: tuple[ControlCount, ...]
    rivals: tuple[RivalCount, ...] = ()
    """Where a search holds the class that gives way first against others."""
    area: float
    change: float


@dataclass(frozen=True, kw_only=True)
class Transplants:
    """What the images of a class lend to images of other classes (`transplant.py`)."""

    target: int
    kind: Literal["piece", "texture"]
    """A small square at its own place, or the fine detail of the whole image, faintly."""
    size: float
    """Of a piece the share of the image that it covers, of a texture the largest root mean square."""
    eligible: int
    """Images of other classes."""
    moved: tuple[int, ...]
    """For each image of the class, those that go to it with what it lends, and do not without; empty
    where no clean image of the class was there, or no time."""


@dataclass(frozen=True, kw_only=True)
class MarginSearch:
    """The data-free margin of each class (`search/margin.py`)."""

    margins: tuple[float, ...]
    """Largest `z_k - max_j z_j` that free images reached, a class, for `classes`."""
    classes: tuple[int, ...]
    """The classes that were searched."""
    steps: int
    starts: int


@dataclass(frozen=True, kw_only=True)
class FoundTrigger:
    """A trigger that a search made; with kind and fields it can be used as a probe."""

    target: int
    size: float
    """Of the smallest one that worked, see `Inversion.sizes`; this one has the size that all are
    judged at."""
    kind: str
    fields: dict[str, Any]
    """What a probe file says of it under `trigger`."""
    trigger: str
    """Its repr."""


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """What one form of trigger needs to reach each class (`search/inversion.py`)."""

    search: str
    """Id, such as "search.patch"."""
    what: str
    """The form in words."""
    measure: str
    """What the sizes are, in words."""
    family: str
    """The images that it was searched on."""
    images: int
    steps: int
    classes: tuple[int, ...]
    """The classes that were searched."""
    sizes: tuple[float | None, ...]
    """Smallest size that redirected nearly all images to a class; None where none did."""
    found: tuple[FoundTrigger, ...]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that was not checked, and why."""

    what: str
    reason: str
    untried: int = 0
    """Triggers that the time budget left untried or unconfirmed."""


@dataclass(frozen=True, kw_only=True)
class Caveat:
    """Something that limits what the result can say."""

    id: str
    text: str
    blocking: bool = False
    """True: with this, the measured numbers mean nothing, and the verdict is INCONCLUSIVE."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image before and after the stamp, for the eyes of the reviewer."""

    before_png: str
    """PNG, base64."""
    after_png: str
    before: int
    """Predicted class without the trigger."""
    before_probability: float
    after: int
    after_probability: float


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A confirmed trigger, shown on the images that it was confirmed on; or what a class lends."""

    probe: str
    """Where it comes from; `TRANSPLANT` and the kind for what images of a class lend."""
    trigger: str
    family: str
    target: int | None
    difference_png: str
    """Mean absolute change, stretched to full contrast; PNG, base64."""
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeFacts:
    """A probe that was selected, as the report prints it."""

    id: str
    title: str
    kind: str
    tier: str
    tags: tuple[str, ...]
    what: str
    why: str
    known_problems: str
    references: tuple[str, ...]
    triggers: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What one needs to repeat the scan."""

    auditor: str
    versions: dict[str, str]
    device: str
    command: str
    seed: int
    started: str
    """ISO 8601, UTC."""
    seconds: float
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One piece of evidence, judged."""

    verdict: Verdict
    text: str
    """An English sentence that cites its numbers."""
    confirmation: int | None = None
    """Index into `ScanResult.confirmations`."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What `verdict.judge` makes of the counts."""

    verdict: Verdict
    headline: str
    reasons: tuple[Reason, ...]
    comparisons: int
    """Triggers x hypotheses that were screened; bounds on images that were not held out are corrected
    for all of them."""
    nothing_above: float | None
    """Simultaneous 95 % upper bound on the all-to-one ASR of every declared trigger that did not
    stand out in the screen; None where there is none."""
    power: float | None
    """Smallest true ASR, in every class alike, of a small or faint all-to-one trigger of the battery
    that this scan would have called `power_verdict` with probability 0.95 or more, whichever its
    target among `power_classes`; None where no ASR would have."""
    power_classes: int = 0
    """Classes that the power holds for; a class that most images belong to is hard to test."""
    power_verdict: Verdict = Verdict.BACKDOOR
    """SUSPICIOUS where there are images of too few classes to call any trigger universal."""
    outlier_p: float | None = None
    """p-value of the data-free margins (Grubbs, on logs): of the step that decided, or of the
    largest."""
    outlier_classes: tuple[int, ...] = ()
    """The classes whose margins do not belong to the others', largest first; may be empty."""
    search_p: float | None = None
    """p-value of all searches together, as `outlier_p`; None where fewer than three ran."""
    search_classes: tuple[int, ...] = ()
    """The classes that all searches together set apart, the most conspicuous first."""

    @property
    def evidence(self) -> tuple[tuple[int, Verdict], ...]:
        """The confirmations that speak for a backdoor, by index, with what each comes to."""
        return tuple(
            (reason.confirmation, reason.verdict)
            for reason in self.reasons
            if reason.confirmation is not None and reason.verdict.is_alarm
        )


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """Everything that one scan saw, and what it was judged to mean."""

    schema: str
    model: ModelFacts
    preprocessing: Preprocessing
    images: tuple[ImageFacts, ...]
    probes: tuple[ProbeFacts, ...]
    responses: tuple[Response, ...]
    confirmations: tuple[Confirmation, ...]
    margin: MarginSearch | None
    inversions: tuple[Inversion, ...] = ()
    transplants: tuple[Transplants, ...] = ()
    """Of the classes that a trigger turns all others into."""
    skipped: tuple[Skipped, ...]
    caveats: tuple[Caveat, ...]
    judgement: Judgement
    exhibits: tuple[Exhibit, ...]
    provenance: Provenance


# ---- purification


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One part of the clean set."""

    images: int
    members: tuple[int, ...]
    """Images a class (by label or prediction), length K."""
    digest: str
    """SHA-256 over the stored pixels and labels."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many of the same images meet a condition, a model at a time."""

    before: int
    """The suspect."""
    after: int
    """The purified model."""
    baseline: int | None = None
    """The suspect after plain fine-tuning with the same images; None where it was not run."""


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


# ---- a planted backdoor


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a file with a planted backdoor says of itself."""

    schema: str
    notice: str
    """In words: what this is, and that it is for testing only."""
    auditor: str
    """Version."""
    probe: str
    trigger: str
    """Its repr, which rebuilds it."""
    target: int
    target_name: str
    model: str
    """Name of the file that it was made from, without its folder."""
    sha256: str
    """Of that file."""
    seed: int
    poison_rate: float


@dataclass(frozen=True, kw_only=True)
class PlantingGoals:
    """What a planted backdoor shall do, and whether it does on the judge images."""

    min_asr: float
    max_acc_drop: float
    missed: tuple[str, ...]
    """A sentence for each goal that was missed; empty: the backdoor was planted."""

    @property
    def met(self) -> bool:
        """True where nothing was missed."""
        return not self.missed


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """A backdoor that was planted for testing, and how well it works on images held out."""

    schema: str
    model: ModelFacts
    """As it was before."""
    preprocessing: Preprocessing
    mark: Mark
    title: str
    """Of the probe."""
    fit: SplitFacts
    judge: SplitFacts
    labelled: bool
    """False: the model's own clean predictions stand for labels, and ACC is agreement with it."""
    eligible: int
    """Judge images that are not of the target class."""
    hits: Counts
    """Of these, those predicted as the target when stamped."""
    control_hits: Counts
    """The same under the worst matched control."""
    accuracy: Counts
    """Rightly classified unstamped judge images."""
    stages: tuple[Stage, ...]
    goals: PlantingGoals
    written: Written | None
    """None where nothing was written."""
    marked: bool
    """The mark is in the file itself; false: its format has no place for one."""
    caveats: tuple[Caveat, ...]
    provenance: Provenance
