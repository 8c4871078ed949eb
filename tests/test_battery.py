"""What a scan stamps, and what it says of it."""

from __future__ import annotations

import pytest
import torch

from auditor.inputs import blank_spec
from auditor.probes import shipped_probes
from auditor.scanning.battery import SCALED, scaled
from auditor.triggers.patch import Square

TRIGGERS = [trigger for probe in shipped_probes() for trigger in probe.triggers]


@pytest.mark.parametrize(
    ("height", "width", "covers"),
    [
        (16, 16, "2×2"),
        (28, 28, "3×3"),
        (48, 112, "5×11"),
        (240, 299, "23×28"),
        (224, 224, "21×21"),
        (64, 32, "6×3"),
    ],
)
def test_triggers_that_are_scaled_say_so(height: int, width: int, covers: str) -> None:
    (caveat,) = scaled(TRIGGERS, blank_spec((3, height, width)))
    assert caveat.id == SCALED
    assert f"pixels covers {covers} of its {height}×{width}." in caveat.text
    black = torch.zeros(1, 3, height, width)
    stamped = Square(size=3).stamp(black)[0, 0] > 0.5
    rows, columns = (int(stamped.any(axis).sum()) for axis in (1, 0))
    assert covers == f"{rows}×{columns}"


def test_nothing_is_said_where_nothing_is_scaled() -> None:
    assert not scaled(TRIGGERS, blank_spec((3, 32, 32)))
    assert not scaled([], blank_spec((3, 64, 64)))
    assert not scaled([Square(resize="keep")], blank_spec((3, 64, 64)))
