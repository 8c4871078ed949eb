"""What the worker is told: the options of each command, as records without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.cli.setup import Setup
from auditor.errors import UsageError
from auditor.safety import needed

if TYPE_CHECKING:
    from auditor.probes import Probe
    from auditor.purifiers import Purifier


class Recipe(StrEnum):
    """How to purify."""

    INFORMED = "informed"
    PAPER = "paper"
    FINETUNE = "finetune"


class Bound(StrEnum):
    """Shape of NFT's lower bound of masks over depth."""

    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    COSINE = "cosine"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The settings of `--recipe paper` and of no other."""

    iterations: int = 1000
    mixup: bool = True
    bound: Bound = Bound.EXPONENTIAL
    depth_aware: bool = False
    statistics: bool = True
    regulariser: bool = True

    def changed(self) -> list[str]:
        """Names of those that are not as published."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def purifier(self) -> dict[str, object]:
        """As the recipe's fields spell them; there, the regulariser is a weight."""
        chosen: dict[str, object] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "regulariser"
        }
        chosen["bound"] = self.bound.value
        return chosen if self.regulariser else {**chosen, "regulariser": 0.0}


@dataclass(frozen=True, kw_only=True)
class Purification:
    """The options of `purify` alone."""

    judge: Path | None = None
    holdout: float = 0.4
    recipe: Recipe = Recipe.INFORMED
    paper: PaperSettings = PaperSettings()
    judge_triggers: tuple[Path, ...] = ()
    max_asr: float = 0.05
    max_acc_drop: float = 0.03
    stress: bool = False
    baseline: bool = True
    anyway: bool = False
    write_anyway: bool = False

    def __post_init__(self) -> None:
        odd = self.paper.changed()
        if odd and self.recipe is not Recipe.PAPER:
            raise UsageError(f"{odd[0]} is a setting of --recipe paper, not of {self.recipe}.")

    def purifier(self) -> Purifier:
        """The recipe with its settings."""
        from auditor import api

        settings = self.paper.purifier() if self.recipe is Recipe.PAPER else {}
        return api.PURIFIERS[self.recipe.value](**settings)

    def readable(self) -> list[Path]:
        """The files and folders that are needed besides those of the setup."""
        paths = [path for trigger in self.judge_triggers for path in needed.of_probes(trigger)]
        if self.judge is not None:
            paths.append(self.judge)
            if self.judge.is_dir():
                paths += needed.linked_images(self.judge)
        return paths

    def judge_probes(self) -> tuple[Probe, ...]:
        """What `--judge-trigger` names."""
        from auditor import api

        return tuple(
            api.load_probe(path)
            if path.suffix.lower() in (".yaml", ".yml")
            else api.probe_from_image(path, None)
            for path in self.judge_triggers
        )


@dataclass(frozen=True, kw_only=True)
class Planting:
    """The options of `attack` alone."""

    target: str
    trigger_number: int
    poison_rate: float
    steps: int
    min_asr: float
    max_acc_drop: float
    write_anyway: bool


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What `scan` is told."""

    setup: Setup
    time_budget: float
    """Seconds; infinite for none."""


@dataclass(frozen=True, kw_only=True)
class PurifyRequest:
    """What `purify` is told."""

    setup: Setup
    how: Purification
    model: str | None
    """Name of the model file to leave if the goals are met; None leaves none."""


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """What `attack` is told."""

    setup: Setup
    how: Planting
    model: str | None
    """As of `PurifyRequest`."""


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What `inspect` is told."""

    model: Path
