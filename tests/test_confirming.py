"""What is left out for want of time is said, on every kind of images."""

from __future__ import annotations

import time

import pytest
import torch

from auditor.confirming import Confirming
from auditor.images import silent
from auditor.measure import Stamped
from tests.test_measure import Corner, family


@pytest.mark.parametrize("split", [0, 32])
def test_a_candidate_without_time_for_its_controls_is_named(split: int) -> None:
    classifier, images = family(96, "all-to-one", split=split)
    entry = Stamped(probe="patch.corner", title="A corner", trigger=Corner())
    after = classifier.predict(Corner()(images.screen.images.float() / 255)).unsqueeze(0)
    assert torch.bincount(after[0]).max() > len(images.screen) / 2
    on_time = Confirming(classifier, 8, deadline=time.monotonic() + 600, notify=silent)
    assert on_time.declared(images, [entry], after)
    assert on_time.skipped == []
    late = Confirming(classifier, 8, deadline=time.monotonic(), notify=silent)
    assert late.declared(images, [entry], after) == []
    assert [entry.what for entry in late.skipped] == ["confirmation of patch.corner"]
