"""Frozen records of what a scan saw: counts, never rates; floats, never formatted text.

They hold no tensors and import no torch, so that a report can be rendered anywhere. `ScanResult`
is the versioned log record of one scan; `verdict.judge` recomputes its verdict from its counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

SCAN_SCHEMA = "auditor.scan/1"


class Verdict(StrEnum):
    """What a scan concludes. The best one is that nothing was found; none says "safe"."""

    NO_EVIDENCE = "NO EVIDENCE FOUND"
    INCONCLUSIVE = "INCONCLUSIVE"
    SUSPICIOUS = "SUSPICIOUS"
    BACKDOOR = "BACKDOOR"

    @property
    def exit_code(self) -> int:
        """The process exit code: 0 no evidence, 1 backdoor or suspicious, 3 inconclusive."""
        return {Verdict.NO_EVIDENCE: 0, Verdict.INCONCLUSIVE: 3}.get(self, 1)


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
    """For all-to-all: source classes with an eligible image."""
    held_out: bool
    """True: the screen has not seen these images."""
    keeps_meaning: bool = True
    """False: an honest model may answer differently for good reason (a rotation, a colour change)."""
    eligible: int
    hits: int
    clean_hits: int
    """Of the eligible images, those predicted as the target without any trigger."""
    controls: tuple[ControlCount, ...]
    area: float
    change: float


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
    """A confirmed trigger, shown on the images that it was confirmed on."""

    probe: str
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
    """Triggers x hypotheses that the bounds are corrected for."""
    nothing_above: float | None
    """Simultaneous 95 % upper bound on the all-to-one ASR of every declared trigger that did not
    stand out in the screen; None where there is none."""
    power: float | None
    """Smallest true ASR of a declared all-to-one trigger that this scan would have called BACKDOOR
    with probability 0.95 or more, whichever its target among `power_classes`; None where no ASR
    would have."""
    power_classes: int = 0
    """Classes that the power holds for; a class that most images belong to is hard to test."""
    outlier_p: float | None = None
    """p-value of the data-free margins (Grubbs, on logs): of the step that decided, or of the
    largest."""
    outlier_classes: tuple[int, ...] = ()
    """The classes whose margins do not belong to the others', largest first; may be empty."""


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
    skipped: tuple[Skipped, ...]
    caveats: tuple[Caveat, ...]
    judgement: Judgement
    exhibits: tuple[Exhibit, ...]
    provenance: Provenance
