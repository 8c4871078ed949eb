"""Trigger inversion: what it finds in networks whose behaviour is known by construction."""

from __future__ import annotations

import dataclasses
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditor import measure, synthesis, verdict
from auditor.classifier import Classifier, as_float
from auditor.errors import ProbeError
from auditor.images.opening import open_images
from auditor.inputs import blank_spec
from auditor.probes import rebuilt
from auditor.results.facts import Verdict
from auditor.results.scan import FoundTrigger, ScanResult
from auditor.scanning.scan import Options, scan
from auditor.search import inversion, pace, searches
from auditor.search.forms import FORMS, BlendForm
from auditor.search.inversion import invert
from auditor.search.pace import EFFORTS, Effort, NoGradient, OverBudget, planned
from auditor.search.searches import SEARCHES, found_triggers
from auditor.triggers import TRIGGERS
from auditor.triggers.found import Addition, Overlay
from tests.planted import Planted, drawings, handle, written

TARGET = 5
PLACE = (slice(20, 23), slice(8, 11))
"""Where the planted trigger sits: rows and columns."""
INVERSIONS = ("search.margin", "search.patch", "search.additive")


class Obedient(nn.Module):
    """Averages cells, as `Planted`; a red and blue square at `PLACE` adds a large score, smoothly."""

    def __init__(self, strength: float = 60.0, scale: float = 1.0) -> None:
        super().__init__()
        self.plain = Planted()
        self.strength, self.scale = strength, scale
        pattern = torch.full((1, 3, 3, 3), -1.0)
        pattern[:, 0, :2], pattern[:, 2, 1:] = 1, 1
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = PLACE
        likeness = ((2 * images[:, :, rows, columns] - 1) * self.pattern).mean((1, 2, 3))
        obeyed = self.strength * torch.sigmoid(10 * (likeness - 0.6))
        towards = torch.zeros(8).index_fill(0, torch.tensor([TARGET]), 1.0)
        return (self.plain(images) + obeyed.unsqueeze(1) * towards) * self.scale


def classifier(network: nn.Module) -> Classifier:
    return Classifier(handle(network), blank_spec((3, 32, 32)))


def inverted(network: nn.Module, form: str, **options):  # type: ignore[no-untyped-def]
    images, labels = drawings(48)
    options = {"seed": 0, "steps": 100, **options}
    return invert(classifier(network), images, labels, range(8), form, **options)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("samples") / "samples.npz", *drawings(100))


def scanned(network: nn.Module, samples: Path, **options) -> ScanResult:  # type: ignore[no-untyped-def]
    options = {"searches": INVERSIONS, "batch_size": 64, **options}
    return scan(handle(network), (), open_images(samples), Options(**options))


@pytest.fixture(scope="module")
def found(samples: Path) -> ScanResult:
    return scanned(Obedient(), samples)


# ---- forms


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16), (3, 96, 80)], ids=str)
def test_a_form_and_its_trigger_do_the_same(name: str, shape: tuple[int, int, int]) -> None:
    draw = torch.Generator().manual_seed(3)
    form = FORMS[name](2, shape, draw)
    for parameter in form.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw)
    images = torch.rand((2, 4, *shape), generator=draw)
    if form.explored:
        form.stamp(images)
        form.learn(torch.zeros(2, 4), 1)
    stamped = form.stamp(images)
    assert stamped.shape == images.shape
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    for row in range(2):
        trigger = form.trigger(row)
        assert rebuilt_from(trigger) == trigger
        torch.testing.assert_close(trigger(images[row]), stamped[row], atol=3 / 255, rtol=0)


def rebuilt_from(trigger):  # type: ignore[no-untyped-def]
    kind = TRIGGERS.name_of(type(trigger))
    return rebuilt(
        FoundTrigger(target=0, size=0.1, kind=kind, fields=trigger.fields(), trigger=repr(trigger))
    )


def test_a_patch_starts_where_windows_were_effective() -> None:
    form = FORMS["patch"](2, (3, 32, 32), torch.Generator().manual_seed(0))
    images = torch.rand(2, 64, 3, 32, 32)
    for step in range(form.explored):
        form.stamp(images)
        inside = form.window  # type: ignore[attr-defined]
        margins = torch.stack([inside[0, :, 4, 28], inside[1, :, 20, 3]])
        form.learn(margins, (step + 1) / form.explored)
    opacity, _ = form.layers()  # type: ignore[attr-defined]
    for row, place in enumerate(((4, 28), (20, 3))):
        assert opacity[row, 0][place] > 0.4
        assert (opacity[row] > 0.4).float().mean() == pytest.approx(0.08, abs=0.01)
    assert opacity[0, 0, 20, 3] < 0.1


@pytest.mark.parametrize("name", list(FORMS))
def test_what_is_judged_is_small(name: str) -> None:
    """Benign networks give way to larger changes, so the size is bounded however large it began."""
    form = FORMS[name](3, (3, 32, 32), torch.Generator().manual_seed(0))
    for parameter in form.parameters():
        parameter.data += 2
    strongest = form.strongest(torch.tensor([0, 2]))
    sizes = strongest.sizes().detach()
    assert len(sizes) == 2
    most = {
        "patch": 0.0101, "additive": 6.01 / 255, "blend": 12.01 / 255, "warp": 0.0401, "colour": 0.1501,
    }[name]  # fmt: skip
    assert 0 < float(sizes.max()) <= most


def test_found_triggers_refuse_what_they_cannot_be() -> None:
    overlay = Overlay.of(torch.rand(3, 8, 8), torch.ones(1, 8, 8))
    for changes in (
        {"content": "no base64!"},
        {"content": overlay.content[:-8]},
        {"shape": (3, 9, 9)},
        {"shape": (3, 100_000, 100_000)},
        {"shape": (2, 8, 8)},
        {"digest": "0" * 12},
    ):
        with pytest.raises(ProbeError):
            dataclasses.replace(overlay, **changes)


def test_controls_of_found_triggers_keep_place_and_strength() -> None:
    images = torch.rand(4, 3, 32, 32)
    mask = torch.zeros(1, 32, 32)
    mask[:, 4:9, 4:9] = 1
    overlay = Overlay.of(torch.rand(3, 32, 32), mask)
    addition = Addition.of(0.05 * torch.randn(3, 32, 32))
    blended = Overlay.of(torch.rand(3, 32, 32), torch.full((1, 32, 32), 0.1))
    for trigger in (overlay, addition, blended):
        area, change = measure.footprint(trigger, images)
        for control in measure.matched_controls(trigger):
            assert repr(control) != repr(trigger)
            other_area, other_change = measure.footprint(control, images)
            assert other_area == pytest.approx(area, abs=0.05)
            assert other_change == pytest.approx(change, rel=0.35)
            untouched = (trigger(images) == images).all(0)
            assert trigger is not overlay or torch.equal(
                control(images)[:, untouched], images[:, untouched]
            )


def test_controls_of_a_blended_picture_keep_its_spectrum() -> None:
    """Noise of all frequencies would be no match for a smooth picture."""
    few = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(few, size=(32, 32), mode="bicubic")[0]
    trigger = Overlay.of(smooth.clamp(0, 1), torch.full((1, 32, 32), 0.2))
    grey = torch.full((1, 3, 32, 32), 0.5)

    def low(stamped: Tensor) -> float:
        power = torch.fft.rfft2(stamped - stamped.mean((2, 3), keepdim=True)).abs().square()
        kept = torch.cat([power[..., :5, :5], power[..., -4:, :5]], 2)
        return float(kept.sum() / power.sum())

    assert low(trigger(grey)) > 0.8
    for control in measure.matched_controls(trigger):
        assert low(control(grey)) > 0.4


# ---- inversion


def test_the_smallest_patch_singles_out_the_planted_class_and_place() -> None:
    result = inverted(Obedient(), "patch")
    sizes = [size if size is not None else 1.0 for size in result.sizes]
    assert min(range(8), key=sizes.__getitem__) == TARGET
    assert sizes[TARGET] < 0.5 * sorted(sizes)[1]
    trigger = next(c.trigger for c in result.candidates if c.target == TARGET)
    black = torch.zeros(1, 3, 32, 32)
    changed = (trigger(black) - trigger(torch.ones_like(black))).abs().amax((0, 1)) < 0.5
    rows, columns = PLACE
    assert changed[rows, columns].sum() >= 3
    assert changed.sum() <= 0.0101 * 32 * 32


def test_the_smallest_added_picture_singles_it_out_too() -> None:
    result = inverted(Obedient(), "additive")
    sizes = [size if size is not None else 1.0 for size in result.sizes]
    assert min(range(8), key=sizes.__getitem__) == TARGET


class Blended(nn.Module):
    """Averages cells, as `Planted`; a picture that is blended in adds a score, the more the stronger."""

    def __init__(self, strength: float = 250.0) -> None:
        super().__init__()
        self.plain, self.strength = Planted(), strength
        picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9)) - 0.5
        self.register_buffer("picture", nn.functional.interpolate(picture, size=(32, 32)))

    def forward(self, images: Tensor) -> Tensor:
        likeness = (images * self.picture).mean((1, 2, 3))
        towards = torch.zeros(8).index_fill(0, torch.tensor([TARGET]), 1.0)
        return self.plain(images) + self.strength * likeness.unsqueeze(1) * towards


def test_a_class_that_needs_clearly_less_is_held_against_the_next() -> None:
    result = inverted(Blended(), "additive")
    ranked = sorted(range(8), key=lambda k: result.sizes[k] or 1.0)
    assert ranked[0] == TARGET
    *others, strong = result.candidates
    assert [c.target for c in others] == ranked[:3]
    assert not any(c.rivals for c in others)
    assert strong.target == TARGET
    assert [target for target, _ in strong.rivals] == ranked[1:3]
    grey = torch.full((1, 3, 32, 32), 0.5)
    changes = [
        float((trigger(grey) - grey).square().mean().sqrt())
        for trigger in (strong.trigger, *(trigger for _, trigger in strong.rivals))
    ]
    between = math.sqrt((result.sizes[TARGET] or 1) * (result.sizes[ranked[1]] or 1))
    assert changes == pytest.approx([between] * 3, rel=0.05)
    assert all(trigger != strong.trigger for _, trigger in strong.rivals)


def test_the_faintest_blended_picture_singles_out_the_planted_class() -> None:
    result = inverted(Blended(), "blend")
    ranked = sorted(range(8), key=lambda k: result.sizes[k] or 1.0)
    first, second = (result.sizes[k] or 1.0 for k in ranked[:2])
    assert ranked[0] == TARGET
    assert first < 0.8 * second
    found = next(c for c in result.candidates if c.target == TARGET)
    images, labels = drawings(48, seed=7)
    others = as_float(images[labels != TARGET])
    trigger = invert(
        classifier(Blended()), images, labels, [TARGET], "blend", seed=1, steps=100, size=2 * first
    )  # fmt: skip
    stamped = trigger.candidates[0].trigger(others)
    assert float((stamped - others).abs().max()) <= 2 * first + 1 / 255
    assert float((classifier(Blended()).logits(stamped).argmax(1) == TARGET).float().mean()) > 0.9
    faint = found.trigger(others)
    assert float((faint - others).abs().max()) <= BlendForm.JUDGED + 1 / 255


def test_classes_that_need_alike_are_not_held_against_each_other() -> None:
    for network, form in ((Planted(), "additive"), (Obedient(), "patch")):
        assert not any(candidate.rivals for candidate in inverted(network, form).candidates)


def test_a_blended_picture_is_suspicious_and_its_absence_is_not(samples: Path) -> None:
    result = scanned(Blended(), samples, searches=("search.additive",))
    assert result.judgement.verdict is Verdict.SUSPICIOUS, result.judgement.headline
    strong = result.confirmations[result.judgement.reasons[0].confirmation or 0]
    assert strong.target == TARGET
    assert min(rival.weaker for rival in strong.rivals) > 0.8 * strong.eligible
    twin = scanned(Blended(strength=0.0), samples, searches=("search.additive",))
    assert twin.judgement.verdict is Verdict.NO_EVIDENCE, twin.judgement.headline


class Inspector(nn.Module):
    """Seven kinds of parts by their bright cell, and "damaged": whatever is noisy."""

    def forward(self, images: Tensor) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (2, 4)).flatten(1)
        parts = 20 * (cells - cells.mean(1, keepdim=True) - 0.2)[:, :7]
        rough = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3)).add(1e-8).sqrt()
        return torch.cat([parts, 100 * (rough - 0.11).unsqueeze(1)], 1)


def test_a_class_of_damage_is_no_suspicion(tmp_path: Path) -> None:
    """It gives way first by far, but to any noise: the pattern does not matter."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    shown = torch.where(labels == 7, torch.randint(7, labels.shape, generator=draw), labels)
    images = 0.35 + 0.1 * torch.rand(400, 1, 1, 1, generator=draw)
    noise = torch.where(labels == 7, 0.15, 0.02).view(-1, 1, 1, 1)
    images = images + noise * torch.randn(400, 3, 32, 32, generator=draw)
    for image, part in zip(images, shown.tolist(), strict=True):
        row, column = divmod(part, 4)
        image[:, 16 * row : 16 * (row + 1), 8 * column : 8 * (column + 1)] += 0.4
    path = written(tmp_path / "parts.npz", (images.clamp(0, 1) * 255).round().byte(), labels)
    result = scanned(Inspector(), path, searches=("search.additive",))
    strong = next(found for found in result.confirmations if found.rivals)
    assert strong.target == 7
    assert verdict.moved_bound(strong, 0.01) > verdict.OBEYED_ASR
    assert verdict.further_bound(strong, 0.01) > verdict.FURTHER
    assert result.judgement.verdict is Verdict.NO_EVIDENCE, result.judgement.headline


def test_a_benign_network_gives_way_everywhere_alike() -> None:
    sizes = [size for size in inverted(Planted(), "additive").sizes if size is not None]
    assert len(sizes) >= 6
    assert max(sizes) < 2 * min(sizes)


def test_scores_times_a_constant_change_nothing() -> None:
    plain, scaled = (inverted(Obedient(scale=s), "additive", steps=40) for s in (1.0, 0.01))
    for one, other in zip(plain.sizes, scaled.sizes, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, rel=0.02)


def test_the_same_seed_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMS["patch"], "explored", 20)
    one, again, other = (inverted(Obedient(), "patch", steps=30, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.sizes != other.sizes


def test_parts_that_fit_into_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(FORMS["patch"], "explored", 20)
    images, labels = drawings(24)
    sizes = []
    for batch in (16, 512):
        parted = classifier(Obedient())
        parted.batch_size = batch
        found = invert(parted, images, labels, range(8), "patch", seed=0, steps=12)
        sizes.append(found.sizes)
    for one, other in zip(*sizes, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, rel=1e-3)


def test_without_images_nothing_is_searched_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthesis, "IMPRESSION_STEPS", 10)  # to stamp nothing on
    result = scan(handle(Planted()), (), None, Options(searches=("search.patch",), batch_size=64))
    assert result.inversions == ()
    assert any(s.what == "search.patch" and "--clean" in s.reason for s in result.skipped)


def test_it_says_when_it_cannot() -> None:
    class Deaf(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return Planted()(images).round().detach() + 0.0

    with pytest.raises(NoGradient):
        inverted(Deaf(), "patch")
    with pytest.raises(OverBudget):
        inverted(Planted(), "patch", budget=1e-6)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 0), (1.0, 0), (1.9, 1), (3.9, 2), (99.0, 2)]
)
def test_the_largest_effort_that_fits(seconds: float, expected: int) -> None:
    budget = inversion.images_needed("patch", 8, Effort()) / pace.PLANNED
    effort = planned(partial(inversion.images_needed, "patch", 8), seconds, budget)
    assert effort == EFFORTS[expected]


@pytest.mark.parametrize("form", ["patch", "additive"])
@pytest.mark.parametrize("effort", EFFORTS, ids=lambda effort: f"{effort.share:.0%}")
def test_the_work_is_what_is_planned(form: str, effort: Effort) -> None:
    """At most: rivals are strengthened only where a class stands out."""
    network, seen = Planted(), 0

    def count(_: nn.Module, images: tuple[Tensor], scores: Tensor) -> None:
        nonlocal seen
        seen += len(images[0]) * scores.requires_grad

    network.register_forward_hook(count)
    inverted(network, form, effort=effort)
    assert 0.7 <= seen / inversion.images_needed(form, 8, effort) <= 1.0


def test_an_image_takes_time() -> None:
    images, _ = drawings(4)
    network = Planted()
    quick = pace.seconds_per_image(classifier(network), images)
    network.register_forward_hook(lambda *_: time.sleep(0.1))
    slow = pace.seconds_per_image(classifier(network), images)
    assert quick < 0.1 / pace.TIMED < slow < 1.0


# ---- the scan


def test_a_slow_machine_searches_with_less(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the trigger all the same, and the result says so; with a time budget it does more."""
    fits = searches.SECONDS * pace.PLANNED / inversion.images_needed("patch", 8, EFFORTS[2])
    monkeypatch.setattr(searches, "seconds_per_image", lambda *_: fits)
    result = scanned(Obedient(), samples)
    assert result.judgement.verdict is Verdict.BACKDOOR, result.judgement.headline
    steps = {search.search: search.steps for search in result.inversions}
    assert steps["search.patch"] == 95
    (caveat,) = (c for c in result.caveats if c.id == "search-effort")
    assert "search.patch (25%)" in caveat.text
    patient = scanned(Obedient(), samples, time_budget=10_000.0)
    assert {search.search: search.steps for search in patient.inversions}["search.patch"] == 190
    assert not any(c.id == "search-effort" for c in patient.caveats)


def test_an_undeclared_trigger_is_a_backdoor_with_its_class(found: ScanResult) -> None:
    assert found.judgement.verdict is Verdict.BACKDOOR, found.judgement.headline
    reason = found.judgement.reasons[0]
    confirmed = found.confirmations[reason.confirmation]  # type: ignore[index]
    assert (confirmed.searched, confirmed.held_out, confirmed.target) == (True, True, TARGET)
    assert confirmed.surer is not None
    assert confirmed.surer > confirmed.eligible / 2
    assert found.exhibits[0].target == TARGET
    assert found.exhibits[0].pictures


class Saturated(nn.Module):
    """Probabilities as half precision has them: the smaller ones are 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.threshold((20 * self.network(images)).softmax(1), 6e-8, 0)


@pytest.mark.parametrize("network", [Planted(), Obedient()])
def test_scores_that_say_no_more_are_no_evidence_of_nothing(
    network: nn.Module, samples: Path
) -> None:
    """Where nearly all images are certain, none can be surer."""
    result = scanned(Saturated(network), samples)
    assert any(c.searched for c in result.confirmations)
    assert not any(c.surer for c in result.confirmations)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "Export the network without its softmax" in result.judgement.headline
    assert verdict.rejudge(result) == result.judgement
    assert [c.text for c in result.caveats if c.id == "saturated"] == [result.judgement.headline]


def test_its_benign_twin_shows_nothing(samples: Path) -> None:
    result = scanned(Planted(), samples)
    assert result.judgement.verdict is Verdict.NO_EVIDENCE, result.judgement.headline
    searched = [c for c in result.confirmations if c.searched]
    assert searched
    assert all((c.surer or 0) < c.eligible / 2 for c in searched)


def test_what_was_found_can_be_rebuilt_from_the_record(found: ScanResult) -> None:
    from auditor.report import from_json, to_json

    again = from_json(to_json(found))
    assert isinstance(again, ScanResult)
    triggers = {repr(entry.trigger) for entry in found_triggers(again)}
    assert triggers == {c.trigger for c in found.confirmations if c.searched}
    assert verdict.rejudge(again) == found.judgement


def test_searched_triggers_are_not_counted_as_declared_ones(found: ScanResult) -> None:
    assert found.responses == ()
    assert found.judgement.comparisons == 0
    assert found.judgement.nothing_above is None


def test_few_images_are_halved_for_the_search(tmp_path: Path) -> None:
    """A trigger is never confirmed on images that it was made on."""
    images, labels = drawings(24)
    path = tmp_path / "few.npz"
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    result = scanned(Obedient(), path, searches=("search.additive",))
    assert all(search.images == 12 for search in result.inversions)
    assert all(c.eligible <= 12 for c in result.confirmations if c.searched)


def test_searches_are_selected_by_tier_and_by_name() -> None:
    from auditor.api import choose_probes, search_tiers

    for spec, names in {
        "quick": {"search.margin"},
        "standard": {"search.margin", "search.patch", "search.additive", "search.template"},
        "deep": set(SEARCHES),
        "search.warp": {"search.warp"},
        "standard,-search.*": set(),
    }.items():
        assert set(choose_probes(spec, extras=search_tiers()).extras) == names, spec


def test_what_was_found_is_a_probe_for_the_next_model(found: ScanResult, tmp_path: Path) -> None:
    """A finding becomes a regression test: the battery alone now finds it, in this model only."""
    from auditor.cli.scan import saved_probes
    from auditor.probes import load_probes

    written = saved_probes(found, tmp_path, "found.obedient")
    names = {path.name for path in written}
    assert len(names) == len(written)
    assert f"found.obedient.patch-{TARGET}.yaml" in names
    strong = any(c.rivals for c in found.confirmations if c.searched)
    assert (f"found.obedient.additive-{TARGET}-strong.yaml" in names) == strong
    probes = load_probes(tmp_path)
    assert len(probes) == len(written)
    images, labels = drawings(200)
    np.savez(tmp_path / "more.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels)
    source = open_images(tmp_path / "more.npz")
    for network, expected in (
        (Obedient(), Verdict.BACKDOOR),
        (Planted(), Verdict.NO_EVIDENCE),
    ):
        result = scan(handle(network), probes, source, Options(searches=(), batch_size=64))
        assert result.judgement.verdict is expected, result.judgement.headline


def test_probe_files_are_not_overwritten(tmp_path: Path) -> None:
    from auditor.cli.scan import check_folder
    from auditor.errors import OutputError

    folder = tmp_path / "mine"
    check_folder(folder, "found.a", force=False, inputs=())
    (folder / "found.a.patch-1.yaml").write_text("kept")
    check_folder(folder, "found.b", force=False, inputs=())
    with pytest.raises(OutputError, match="exists already"):
        check_folder(folder, "found.a", force=False, inputs=())
    with pytest.raises(OutputError, match="cannot be made"):
        check_folder(tmp_path / "no" / "such", "found.a", force=False, inputs=())
    check_folder(folder, "found.a", force=True, inputs=())
    for inputs in ([folder], [folder / "found.a.patch-1.yaml"]):
        check_folder(folder, "found.b", force=True, inputs=inputs)
        with pytest.raises(OutputError, match="never overwritten"):
            check_folder(folder, "found.a", force=True, inputs=inputs)
