"""What every result says: the model, its input, the images, what was left out, and how to repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Output = Literal["logits", "probabilities", "logit", "probability"]
"""What a network returns: one number a class, or one an image, which is that of class 1 against class 0."""
ONE_NUMBER: tuple[Output, ...] = ("logit", "probability")


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
    output: Output
    """What the network returns."""


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
