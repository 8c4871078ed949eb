"""Attacks with a declared trigger and dirty labels: BadNets, Blend, TrojanNN, CTRL, FTrojan, ...

- BadNets: Gu et al. 2017, https://arxiv.org/abs/1708.06733 (any fixed patch)
- Blend: Chen et al. 2017, https://arxiv.org/abs/1712.05526 (a picture at alpha 0.2)
- TrojanNN as NFT's code plants it: a fixed optimised square, https://arxiv.org/abs/2407.10052
- CTRL: https://arxiv.org/abs/2210.07346, FTrojan: https://arxiv.org/abs/2111.10991 (DCT coefficients)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from auditor.errors import AuditorError
from auditor.probes import load_probe
from auditor.triggers import TRIGGERS, Trigger
from bench.zoo.attacks.base import ATTACKS, Attack
from bench.zoo.rows import ZooError

PROBES = Path(__file__).parents[3] / "probes"


@ATTACKS.register("static")
class Static(Attack):
    """Stamps one trigger of `auditor.triggers`, the same on every image, and changes the label."""

    def __init__(
        self,
        *,
        name: str,
        probe: str | None = None,
        number: int = 0,
        trigger: dict[str, Any] | None = None,
    ) -> None:
        """Choose the trigger.

        Args:
            name: Of the attack in the literature; only for the tables.
            probe: Id of a shipped probe that declares the trigger.
            number: Which trigger of this probe.
            trigger: Or its kind and fields, for triggers that no probe declares.
        """
        self.name = name
        self.trigger = declared(probe, number) if probe else built(trigger)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the trigger."""
        return self.trigger(images)


@ATTACKS.register("clean-label")
class CleanLabel(Static):
    """The same on images of the target class only, whose labels stay as they are.

    SIG: Barni et al. 2019, https://arxiv.org/abs/1902.11237.
    """

    clean_label: ClassVar[bool] = True


def declared(probe: str, number: int) -> Trigger:
    """Trigger `number` of a shipped probe.

    Raises:
        ZooError: There is no such probe, or it has fewer triggers.
    """
    try:
        return load_probe(PROBES / f"{probe}.yaml").triggers[number]
    except (AuditorError, IndexError) as error:
        raise ZooError(f"probe {probe}, trigger {number}: {error}") from error


def built(fields: dict[str, Any] | None) -> Trigger:
    """A trigger from its kind and fields.

    Raises:
        ZooError: There is no such kind, or the fields do not fit it.
    """
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (fields or {}).items()
    }
    try:
        return TRIGGERS[fields.pop("kind", "")](**fields)
    except (AuditorError, TypeError) as error:
        raise ZooError(f"trigger {fields}: {error}") from error
