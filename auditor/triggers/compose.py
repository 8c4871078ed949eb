"""Several triggers, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from auditor.errors import ProbeError
from auditor.triggers.base import TRIGGERS, Trigger


@TRIGGERS.register("compose")
@dataclass(frozen=True, kw_only=True, repr=False)
class Compose(Trigger):
    """Stamps the parts in order; each is clamped and rounded as it is by itself."""

    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        """Check that there is something to stamp."""
        if not self.parts:
            raise ProbeError("parts is empty; compose needs one trigger at least")

    @property
    def needs_structure(self) -> bool:  # type: ignore[override]
        """Whether one of the parts does."""
        return any(part.needs_structure for part in self.parts)

    @property
    def keeps_meaning(self) -> bool:  # type: ignore[override]
        """Whether all of the parts do."""
        return all(part.keeps_meaning for part in self.parts)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with every part."""
        for part in self.parts:
            images = part(images)
        return images

    def control(self, seed: int) -> Compose:
        """The controls of the parts."""
        return Compose(
            parts=tuple(part.control(seed) for part in self.parts), rounding=self.rounding
        )
