"""The record of a backdoor that auditor itself planted."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.results.facts import Caveat, Counts, ModelFacts, Preprocessing, Provenance, SplitFacts
from auditor.results.purify import Stage, Written

ATTACK_SCHEMA = "auditor.attack/1"

MARK_SCHEMA = "auditor.attack-mark/1"


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
