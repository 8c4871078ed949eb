"""What the worker is told: the options of each command, as records without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.cli.setup import Setup
from auditor.endings import is_probe
from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.safety import needed
from auditor.text import clean_text

if TYPE_CHECKING:
    from auditor.probes import Probe
    from auditor.purifiers import Purifier


PAPER = "nft-paper"
METHODS = (
    "nft", "fst", "fip", "fast-fip", PAPER, "finetune", "fine-pruning", "anp", "rnp", "clp", "awm",
    "i-bau", "ft-sam",
)  # fmt: skip
"""Names of `--method`, and the order in which `all` runs them: it decides between equals."""
EVERY_METHOD = "all"


class Bound(StrEnum):
    """Shape of NFT's lower bound of masks over depth."""

    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    COSINE = "cosine"
    NONE = "none"


def method_names(text: str) -> tuple[str, ...]:
    """The methods that `--method` names: one, several between commas, or all.

    Raises:
        UsageError: There is none of that name.
    """
    if text.strip() == EVERY_METHOD:
        return METHODS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METHODS:
            raise UsageError(
                f'--method: no method is named "{clean_text(name)}"{nearest(name, METHODS)} Known: '
                f"{', '.join(METHODS)}; {EVERY_METHOD} runs every one."
            )
    return names


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The settings of `--method nft-paper` and of no other."""

    iterations: int = 1000
    mixup: bool = True
    bound: Bound = Bound.EXPONENTIAL
    depth_aware: bool = False
    statistics: bool = True
    regulariser: bool = True

    def changed(self) -> list[str]:
        """Those that are not as published, as the command line has them."""
        options = {"bound": "--mask-bound", "statistics": "--keep-statistics", "mixup": "--no-mixup",
                   "regulariser": "--no-regulariser"}  # fmt: skip
        return [
            options.get(field.name, f"--{field.name.replace('_', '-')}")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]

    def purifier(self) -> dict[str, object]:
        """As the method's fields spell them; there, the regulariser is a weight."""
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
    methods: tuple[str, ...] = METHODS[:1]
    time_budget: float = math.inf
    """Seconds for all of several methods."""
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
        if odd and PAPER not in self.methods:
            raise UsageError(
                f"{odd[0]} is a setting of --method {PAPER}, not of {', '.join(self.methods)}."
            )
        if self.time_budget < math.inf and len(self.methods) == 1:
            raise UsageError(
                f"--time-budget is for several methods; {self.methods[0]} takes the time that it needs."
            )

    def purifiers(self) -> tuple[Purifier, ...]:
        """The methods with their settings."""
        from auditor import api

        settings = {PAPER: self.paper.purifier()}
        return tuple(api.PURIFIERS[name](**settings.get(name, {})) for name in self.methods)

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
            api.load_probe(path) if is_probe(path) else api.probe_from_image(path, None)
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
