"""Counting, against loops that cannot be wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from auditor import measure, verdict
from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.measure import Family, Half, Stamped
from auditor.results.facts import ImageFacts, Verdict
from auditor.triggers.base import Trigger
from tests.planted import Planted, drawings, handle


@dataclass(frozen=True, kw_only=True, repr=False)
class Corner(Trigger):
    """A solid square at the lower right."""

    level: float = 1.0

    def stamp(self, images: Tensor) -> Tensor:
        stamped = images.clone()
        stamped[:, :, -3:, -3:] = self.level
        return stamped

    def control(self, seed: int) -> Corner:
        return Corner(level=0.1 * seed)


def family(count: int, behaviour: str | None, *, split: int) -> tuple[Classifier, Family]:
    images, labels = drawings(count)
    classifier = Classifier(handle(Planted(8, behaviour)), blank_spec((3, 32, 32)))
    before = classifier.predict(images)
    halves = [
        Half(images=images[part], groups=labels[part], before=before[part])
        for part in (slice(0, split or None), slice(split, None))
    ]
    facts = ImageFacts(
        family="clean", labelled=True, screen=len(halves[0]), confirm=len(halves[1]) if split else 0,
        screen_members=(), confirm_members=(), predicted=(), correct=None, digest="",
    )  # fmt: skip
    return classifier, Family(
        facts=facts, screen=halves[0], confirm=halves[1], held_out=bool(split)
    )


def test_how_far_images_are_driven_asks_for_the_class_that_the_map_says() -> None:
    classifier, images = family(64, "all-to-all", split=0)
    half, classes = images.screen, 8
    usual = measure.usual_margin(classifier.logits(half.images))
    margins = measure.margins_of(classifier.logits(half.images), half.before).sort().values
    assert usual == pytest.approx(float(margins[(len(margins) - 1) // 2]))
    maps = {shift: tuple((k + shift) % classes for k in range(classes)) for shift in (1, 2)}
    driven = {shift: measure.driven(classifier, half, Corner(), maps[shift]) for shift in maps}
    assert (driven[1] > usual - 1e-3).all()
    assert not (driven[2] > usual - 1e-3).any()


def test_only_classes_that_go_round_in_circles_count_as_permuted() -> None:
    """Neither one large class that moves, nor a scale that every class moves up."""
    groups = torch.tensor([0] * 400 + [k for k in range(1, 10) for _ in range(10)])
    mapping = tuple((k + 1) % 10 for k in range(10))
    everything = torch.ones(len(groups), dtype=torch.bool)

    def following(hit: torch.Tensor, mapping: tuple[int, ...]) -> tuple[int, int]:
        return measure._following(groups, hit, mapping)

    assert following(groups == 0, mapping) == (1, 0)
    assert following(everything, mapping) == (10, 10)
    assert following(groups < 9, mapping) == (9, 0)  # a scale: the last class stays
    assert following(torch.arange(len(groups)) % 2 == 0, mapping) == (0, 0)
    assert following(everything, (1, 2, 0, 4, 3, 6, 7, 8, 9, 5)) == (10, 8)  # 3 and 4 look alike
    assert following(everything, (1, 2, 0, 0, 0, 0, 0, 0, 0, 0)) == (10, 3)
    assert following(everything, (5, 5, 5, 5, 5, -1, 5, 5, 5, 5)) == (10, 0)
    few = torch.arange(10).repeat_interleave(3)
    assert measure._following(few, few >= 0, mapping) == (10, 0)


def test_predictions_pack_batches_across_triggers() -> None:
    classifier, images = family(40, "all-to-one", split=0)
    triggers = [Corner(level=level) for level in (1.0, 0.0, 0.5, 1.0)]
    expected = torch.stack([
        classifier.predict(trigger(images.screen.images.float() / 255)) for trigger in triggers
    ])  # fmt: skip
    for batch_size in (1, 7, 40, 64, 1000):
        classifier.batch_size = batch_size
        found = measure.predictions(classifier, images.screen.images, triggers)
        assert torch.equal(found, expected), batch_size


def test_predictions_stop_at_the_deadline() -> None:
    classifier, images = family(40, None, split=0)
    found = measure.predictions(
        classifier, images.screen.images, [Corner()] * 3, deadline=time.monotonic() - 1
    )
    assert found.shape == (0, 40)


def test_running_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, images = family(40, "all-to-one", split=0)
    classifier.batch_size = 32
    call = classifier.model.call

    def limited(inputs: Tensor, overrides: object = None, *, train: bool = False) -> Tensor:
        if len(inputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(inputs)

    monkeypatch.setattr(classifier.model, "call", limited)
    found = measure.predictions(classifier, images.screen.images, [Corner(), Corner(level=0.0)])
    assert classifier.batch_size == 8
    assert (found[0] == 0).all()


def test_a_response_leaves_the_target_class_out() -> None:
    classifier, images = family(80, "all-to-one", split=0)
    entry = Stamped(probe="corner", title="Corner", trigger=Corner())
    after = measure.predictions(classifier, images.screen.images, [entry.trigger])[0]
    response = measure.response(entry, images, after, 8)
    assert response.hits == {0: 70}
    assert response.flips == 70
    assert response.area == pytest.approx(9 / 1024, abs=1e-3)


@pytest.mark.parametrize(
    ("behaviour", "scope"),
    [
        ("all-to-one", "all-to-one"),
        ("all-to-all", "all-to-all"),
        ("source-specific", "source-specific"),
    ],
)
def test_every_kind_of_target_map_is_proposed_and_confirmed(behaviour: str, scope: str) -> None:
    classifier, images = family(400, behaviour, split=100)
    entry = Stamped(probe="corner", title="Corner", trigger=Corner())
    after = measure.predictions(classifier, images.screen.images, [entry.trigger])[0]
    best = measure.hypotheses(images.screen.groups, after, 8, held_out=True)[0]
    assert best.scope == scope
    controls = measure.matched_controls(entry.trigger)
    on, *off = measure.predictions(classifier, images.confirm.images, [entry.trigger, *controls])
    found = measure.confirmation(
        entry,
        best,
        images,
        images.confirm,
        on,
        list(zip(controls, off, strict=True)),
        held_out=True,
    )
    wanted = {c: k for c, k in enumerate(best.mapping) if k >= 0}
    pairs = list(zip(images.confirm.groups.tolist(), on.tolist(), strict=True))
    assert found.eligible == sum(c in wanted for c, _ in pairs)
    assert found.hits == sum(wanted.get(c) == k for c, k in pairs)
    assert found.hits == found.eligible
    assert found.clean_hits == 0
    assert [control.hits for control in found.controls] == [0, 0, 0, 0]
    assert all(control.gained == found.hits for control in found.controls)


def test_a_benign_model_proposes_nothing() -> None:
    classifier, images = family(400, None, split=100)
    after = measure.predictions(classifier, images.screen.images, [Corner()])[0]
    assert measure.hypotheses(images.screen.groups, after, 8, held_out=True) == []


def test_a_fitted_map_is_found_where_no_shift_fits() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 6, (240,), generator=generator)
    mapping = torch.tensor([3, 0, 1, 5, 2, 4])
    found = measure.hypotheses(groups, mapping[groups], 6, held_out=True)
    maps = [h for h in found if h.scope == "all-to-all" and h.shift is None]
    assert [h.mapping for h in maps] == [tuple(mapping.tolist())]
    assert maps[0].rate == 1.0
    seen = measure.hypotheses(groups, mapping[groups], 6, held_out=False)
    assert not [h for h in seen if h.scope == "all-to-all" and h.shift is None]


def random_map(classes: int, draw: torch.Generator) -> torch.Tensor:
    mapping = torch.randint(classes - 1, (classes,), generator=draw)
    return mapping + (mapping >= torch.arange(classes)).long()


@pytest.mark.parametrize(("classes", "strays"), [(10, 0.0), (10, 0.08), (43, 0.08)])
def test_maps_that_share_targets_are_proposed_and_collapses_are_not(
    classes: int, strays: float
) -> None:
    draw = torch.Generator().manual_seed(0)

    def proposed(mapping: torch.Tensor, largest: float = 0.0) -> bool:
        groups = torch.randint(classes, (128,), generator=draw)
        groups[torch.rand(128, generator=draw) < largest] = 0
        obeyed = torch.rand(128, generator=draw) < 0.85
        after = torch.where(obeyed, mapping[groups], groups)
        stray = torch.rand(128, generator=draw) < strays
        after = torch.where(stray, torch.randint(classes, (128,), generator=draw), after)
        found = measure.hypotheses(groups, after, classes, held_out=True)
        return any(h.scope == "all-to-all" and h.shift is None for h in found)

    assert sum(proposed(random_map(classes, draw)) for _ in range(50)) >= 48
    shuffled = torch.arange(classes).roll(1)[torch.randperm(classes, generator=draw)]
    assert sum(proposed(torch.full((classes,), 4)) for _ in range(50)) == 0
    assert sum(proposed(shuffled) for _ in range(50)) >= 48
    # half of the images are said to be of one class
    assert sum(proposed(shuffled, largest=0.5) for _ in range(50)) >= 45


@pytest.mark.parametrize(
    ("classes", "expected"), [(100, Verdict.BACKDOOR), (1000, Verdict.SUSPICIOUS)]
)
def test_shifts_are_seen_and_judged_with_many_classes(classes: int, expected: Verdict) -> None:
    """Circles are seen where there are a few images of each class only."""
    groups = torch.arange(640) % classes
    best = measure.hypotheses(groups[:128], (groups[:128] + 1) % classes, classes, held_out=True)[0]
    assert (best.scope, best.shift) == ("all-to-all", 1)
    half = Half(images=torch.zeros((640, 3, 8, 8), dtype=torch.uint8), groups=groups, before=groups)
    entry = Stamped(probe="corner", title="Corner", trigger=Corner())
    _, images = family(40, None, split=0)
    found = measure.confirmation(
        entry,
        best,
        images,
        half,
        (groups + 1) % classes,
        [(Corner(level=0.0), groups)],
        held_out=True,
    )
    assert verdict.grade(found, 1e-8, classes) is expected


def test_progress_is_reported() -> None:
    classifier, images = family(40, None, split=0)
    seen: list[tuple[str, int, int]] = []
    entries = [Stamped(probe="corner", title="", trigger=Corner())] * 3
    measure.screen(classifier, images, entries, notify=lambda *what: seen.append(what))
    assert seen[-1] == ("corner on clean images", 3, 3)


def test_scores_that_are_as_far_apart_as_they_can_be_have_no_usual_margin() -> None:
    generator = torch.Generator().manual_seed(0)
    margins = 5 + 3 * torch.rand(40, generator=generator)
    logits = torch.zeros(40, 8)
    logits[:, 2] = margins
    assert measure.usual_margin(logits) == pytest.approx(float(margins.median()))
    logits[:25, 2] = 16 - 1e-3 * torch.rand(25, generator=generator)  # as good as equal
    assert measure.usual_margin(logits) is None
    logits[:25, 2] = torch.inf
    assert measure.usual_margin(logits) is None
    assert measure.usual_margin(logits[30:31]) is not None, "one image is as sure as itself"
