"""The record of one scan; `verdict.judge` recomputes its verdict from its counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from auditor.results.facts import (
    Caveat,
    ImageFacts,
    ModelFacts,
    Picture,
    Preprocessing,
    Provenance,
    Skipped,
    Verdict,
)

SCAN_SCHEMA = "auditor.scan/1"

TRANSPLANT = "transplant."

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
    """What the images of a class lend to images of other classes (`scanning.transplant`)."""

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
