"""What is left out for want of time is said, on every kind of images."""

from __future__ import annotations

import time

import pytest
import torch

from auditor.measure import Stamped, all_to_one
from auditor.progress import silent
from auditor.results.scan import Confirmation, ControlCount
from auditor.scanning.confirming import Confirming, Screened, _strongest
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


@pytest.mark.parametrize(
    ("hits", "controls", "confirmed"),
    [
        (90, (10, 0, 0, 0), True),
        (90, (89, 0, 0, 0), True),  # SIG on CIFAR-10: one other frequency does the same
        (77, (74, 2, 0, 2), True),
        (90, (89, 88, 87, 89), False),  # whatever is stamped
        (50, (47, 0, 0, 0), False),  # fragility: it does not move nearly all images
        (50, (10, 0, 0, 0), True),
    ],
)
def test_what_the_verdict_would_count_goes_on_to_other_images(
    hits: int, controls: tuple[int, ...], confirmed: bool
) -> None:
    assert bool(_strongest([candidate(hits, controls)])) is confirmed


def candidate(hits: int, controls: tuple[int, ...], probe: str = "sine.sig") -> Screened:
    counts = tuple(
        ControlCount(trigger=f"{n}", hits=count, gained=hits - min(hits, count), lost=0)
        for n, count in enumerate(controls)
    )
    seen = Confirmation(
        probe=probe, title="Stripes", trigger="Corner()", family="clean", scope="all-to-one",
        target=4, held_out=False, eligible=90, hits=hits, clean_hits=0, controls=counts, area=0.87,
        change=0.1,
    )  # fmt: skip
    return Stamped(probe=probe, title="Stripes", trigger=Corner()), all_to_one(4, 8), seen


def test_six_triggers_of_a_hypothesis_go_on_two_of_a_probe_the_strongest_first() -> None:
    obeyed = candidate(90, (89, 0, 0, 0), "half.weight")
    plain = [candidate(60 - n, (0, 0, 0, 0), f"p.{n}") for n in range(7)]
    chosen = [entry.probe for entry, _, _ in _strongest([obeyed, *reversed(plain)])]
    assert chosen == [f"p.{n}" for n in range(6)]
    chosen = [entry.probe for entry, _, _ in _strongest([obeyed, *plain[:3]])]
    assert chosen == ["p.0", "p.1", "p.2", "half.weight"]
    alike = [candidate(60 - n, (0, 0, 0, 0), "one") for n in range(3)]
    assert [seen.hits for _, _, seen in _strongest(alike)] == [60, 59]
