"""Fisher-Information-guided Purification: all weights, fine-tuned into a flat minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from auditor.models.base import ModelHandle
from auditor.purifiers.base import PURIFIERS
from auditor.purifiers.fisher import Coordinates, FlatMinimum
from auditor.results.purify import What


@PURIFIERS.register("fip")
@dataclass(frozen=True, kw_only=True)
class FisherPurification(FlatMinimum):
    """Backdoored networks sit in sharper minima than clean ones; fine-tuning leads out of them.

    The loss of `FlatMinimum`, theta = all weights. The paper's trace is estimated without bias by one
    double backward pass (`fisher_trace`), which the released code does not do; strengths are chosen
    by clean accuracy, which the paper tunes by hand.
    """

    title: ClassVar[str] = "Fisher-information-guided purification (FIP)"
    source: ClassVar[str] = "ACM CCS 2024, arXiv 2409.00863"
    what: ClassVar[What] = "weights"

    def coordinates(self, model: ModelHandle) -> Coordinates:
        """The weights themselves."""
        return Coordinates(start=model.weights(), weights=dict)
