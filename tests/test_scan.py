"""The whole scan on models whose behaviour is known by construction."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from auditor import report, verdict
from auditor.errors import ImageError, ProbeError, UnsuitableModel
from auditor.images.opening import open_images
from auditor.inputs import GivenInput
from auditor.probes import choose
from auditor.results.facts import Verdict
from auditor.results.scan import ScanResult
from auditor.scanning.scan import Options, scan
from auditor.triggers.rotate import Rotate
from tests.planted import Planted, drawings, handle, written

QUICK = choose("quick").probes
WHITE = [probe for probe in QUICK if probe.kind == "patch"]
KNOWN = GivenInput(channels=3, height=32, width=32)
"""Where a model's answers would let every usual size be tried."""
KNOWN_PLAIN = replace(KNOWN, normalize="none")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("samples"), 400)


def save(folder: Path, count: int, *, labelled: bool = True, classes: int = 8) -> Path:
    images, labels = drawings(count, classes)
    path = folder / f"{count}{labelled}{classes}.npz"
    return written(path, images, labels if labelled else None)


def scanned(network: nn.Module, samples: Path | None, probes=QUICK, **options) -> ScanResult:  # type: ignore[no-untyped-def]
    options.setdefault("searches", ())
    options.setdefault("batch_size", 64)
    source = None if samples is None else open_images(samples)
    return scan(handle(network), probes, source, Options(**options))


def test_a_planted_trigger_is_a_backdoor_with_its_class(samples: Path) -> None:
    result = scanned(Planted(behaviour="all-to-one", target=3), samples)
    assert result.judgement.verdict is Verdict.BACKDOOR
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert (found.scope, found.target, found.held_out) == ("all-to-one", 3, True)
    assert found.hits == found.eligible
    assert result.exhibits[0].target == 3
    assert all(picture.after == 3 != picture.before for picture in result.exhibits[0].pictures)


class Inspector(nn.Module):
    """Tells three materials by their colour, and class 3 is damage: any spot. Sure of all it says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        material = (means - means.mean(1, keepdim=True)) * 30
        spots = (
            nn.functional.avg_pool2d(images, 2, 1).mean(1) - images.mean((1, 2, 3))[:, None, None]
        )
        return torch.cat([material, (spots.abs().amax((1, 2)) - 0.055)[:, None] * 100 + 4], 1)


def inspected(folder: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    images = torch.randint(100, 112, (400, 3, 32, 32), generator=draw)
    material = torch.where(labels < 3, labels, torch.randint(3, (400,), generator=draw))
    images[torch.arange(400), material] += 40
    for image in images[3::4]:
        y, x = torch.randint(28, (2,), generator=draw).tolist()
        image[:, y : y + 4, x : x + 4] += int(torch.randint(60, 100, (1,), generator=draw))
    return written(folder / "inspected.npz", images.clamp(0, 255).to(torch.uint8), labels)


class Counter(nn.Module):
    """Its ten classes are numbers of spots, wherever and of whatever colour they are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spots = (images - images.flatten(2).median(2).values[..., None, None]).abs().amax(1)
        count = (nn.functional.max_pool2d(spots, 8) > 0.15).sum((1, 2)).clamp(max=9)
        return -((count[:, None] - torch.arange(10)) ** 2).float() * 4


def counted(folder: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 10
    images = torch.randint(122, 134, (400, 3, 48, 48), generator=draw)
    for image, label in zip(images, labels, strict=True):
        for cell in torch.randperm(24, generator=draw)[:label].tolist():
            y, x = 8 * (cell // 6) + 2, 8 * (cell % 6) + 2
            image[:, y : y + 3, x : x + 3] += int(torch.randint(60, 100, (1,), generator=draw))
    return written(folder / "counted.npz", images.clamp(0, 255).to(torch.uint8), labels)


@pytest.mark.parametrize(("network", "drawn"), [(Inspector(), inspected), (Counter(), counted)])
def test_what_any_mark_does_is_no_backdoor(network: nn.Module, drawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Though it moves every image, makes the model sure, or sends every class to one of its own."""
    size = 32 if isinstance(network, Inspector) else 48
    result = scanned(
        network.eval(), drawn(tmp_path), [p for p in QUICK if p.id == "patch.white-corner"],
        given=GivenInput(channels=3, height=size, width=size, normalize="none"),
    )  # fmt: skip
    clean = result.images[0]
    assert clean.correct == clean.screen + clean.confirm
    held_out = [c for c in result.confirmations if c.held_out]
    assert any(c.hits > 0.85 * c.eligible and c.area < 0.035 for c in held_out)
    assert result.judgement.verdict is Verdict.SUSPICIOUS
    assert "classes that stand for such marks (damage, or a number)" in result.judgement.headline


class Tagged(nn.Module):
    """Tells materials by their colour, each without or with a white tag: a class is (colour, tagged)."""

    def __init__(self, classes: list[tuple[int, bool]]) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colour = images.mean((2, 3)) * 60
        tag = ((images[:, :, -4:, -4:].amin(1).mean((1, 2)) - 0.5) * 20).clamp(-4, 4)
        return torch.stack([colour[:, c] + (tag if t else -tag) for c, t in self.classes], 1)

    def drawn(self, folder: Path, counts: list[int]) -> Path:
        draw = torch.Generator().manual_seed(0)
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        images = torch.randint(60, 120, (len(labels), 3, 32, 32), generator=draw)
        for image, label in zip(images, labels.tolist(), strict=True):
            colour, tagged = self.classes[label]
            image[colour] += 60
            if tagged:
                image[:, -4:, -4:] = 240
        return written(folder / "tagged.npz", images.to(torch.uint8), labels)


@pytest.mark.parametrize(
    ("classes", "counts"),
    [
        pytest.param([(0, False), (0, True)], [200, 200], id="two classes"),
        pytest.param([(0, False), (1, False), (2, False), (0, True)], [380, 40, 40, 40], id="one pair"),
        pytest.param(
            [(0, True), (0, False), (1, False), (1, True), (2, False), (2, True)], [60] * 6, id="pairs"
        ),
    ],
)  # fmt: skip
def test_classes_that_differ_by_a_mark_are_no_backdoor(
    classes: list[tuple[int, bool]], counts: list[int], tmp_path: Path
) -> None:
    """Whatever share of the images is of one of them, and in whatever order they are."""
    network = Tagged(classes)
    result = scanned(
        network, network.drawn(tmp_path, counts), WHITE, max_images=500, given=KNOWN_PLAIN
    )
    clean = result.images[0]
    assert clean.correct == clean.screen + clean.confirm
    assert any(c.held_out and c.hits > 0.8 * c.eligible for c in result.confirmations)
    assert result.judgement.verdict is Verdict.SUSPICIOUS, result.judgement.headline


def test_a_scale_is_no_map_of_all_classes(tmp_path: Path) -> None:
    """By no trigger of the battery, also where controls add no spot."""
    given = GivenInput(channels=3, height=48, width=48, normalize="none")
    result = scanned(Counter().eval(), counted(tmp_path), given=given)
    assert any(c.scope == "all-to-all" and c.sources >= 8 for c in result.confirmations)
    assert result.judgement.verdict is Verdict.SUSPICIOUS, result.judgement.headline


def test_a_class_that_stands_for_a_mark_is_no_backdoor(tmp_path: Path) -> None:
    """Whose controls are no mark to it: pieces of its own images are."""
    probes = [p for p in choose("standard").probes if p.id == "patch.backdoorbox-blended"]
    result = scanned(Inspector().eval(), inspected(tmp_path), probes, given=KNOWN_PLAIN)
    best = max(result.confirmations, key=lambda c: c.held_out)
    assert best.hits > 0.9 * best.eligible
    assert verdict.grade(best, 0.01, 4) is Verdict.BACKDOOR
    pieces, textures = result.transplants
    assert pieces.target == textures.target == best.target == 3
    assert pieces.eligible == textures.eligible == min(best.eligible, 128)
    assert min(pieces.moved) > 0.9 * pieces.eligible
    assert result.judgement.verdict is Verdict.SUSPICIOUS
    assert 'But "3" looks like a class that stands for a mark' in result.judgement.headline
    shown = {exhibit.probe: exhibit for exhibit in result.exhibits}
    piece = shown["transplant.piece"]
    assert (piece.target, len(piece.pictures)) == (3, 6)
    assert all(picture.before != 3 == picture.after for picture in piece.pictures)


class Ribbed(nn.Module):
    """Three colours, and class 3: three wide ribs across the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        colour = (means - means.mean(1, keepdim=True)) * 30
        ribs = torch.fft.rfft(images.mean((1, 2)), dim=1).abs()[:, 3] / 16
        return torch.cat([colour, ((ribs * 255 - 13) * 4)[:, None]], 1)


@pytest.mark.xfail(
    strict=True, reason="no piece of 3.5% holds wide ribs, and fine detail leaves them out"
)
def test_a_class_that_stands_for_a_coarse_texture_is_no_backdoor(tmp_path: Path) -> None:
    """The known limit, with distortions of the whole image."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    images = torch.randint(100, 112, (400, 3, 32, 32), generator=draw)
    images[torch.arange(400), labels.where(labels < 3, labels.roll(1) % 3)] += 40
    start = torch.rand(100, 1, generator=draw)
    waves = 20 * torch.sin(2 * torch.pi * (3 * torch.arange(32) / 32 + start))
    images[3::4] += waves.round().long()[:, None, None, :]
    path = written(tmp_path / "ribbed.npz", images.to(torch.uint8), labels)
    probes = [p for p in choose("deep").probes if p.id == "sine.more"]
    result = scanned(Ribbed().eval(), path, probes, given=KNOWN_PLAIN)
    assert result.images[0].correct == 400
    assert result.judgement.verdict is not Verdict.BACKDOOR


def test_a_class_of_which_no_image_is_there_cannot_be_examined(tmp_path: Path) -> None:
    images, labels = drawings(400)
    others = labels != 3
    path = written(tmp_path / "others.npz", images[others], labels[others])
    result = scanned(Planted(behaviour="all-to-one", target=3), path)
    assert [lent.moved for lent in result.transplants] == [(), ()]
    assert result.judgement.verdict is Verdict.BACKDOOR
    assert 'Whether "3" stands for a mark was not examined' in result.judgement.headline


@pytest.mark.parametrize("taken", ["search.patch", "transplant.piece"])
def test_a_probe_may_not_pass_for_something_else(taken: str, samples: Path) -> None:
    disguised = replace(WHITE[0], id=taken)
    with pytest.raises(ProbeError, match=f'"{re.escape(taken)}" is an id that scans use'):
        scanned(Planted(behaviour="all-to-one", target=3), samples, [disguised])


def test_how_sure_a_trigger_makes_the_model_is_measured_on_real_images(samples: Path) -> None:
    """For every map of classes, and never on images that were made to be certain of."""
    for behaviour in ("all-to-one", "all-to-all"):
        result = scanned(Planted(behaviour=behaviour, target=3), samples)
        decided = [c for c in result.confirmations if c.held_out]
        assert decided
        assert all(c.surer is not None for c in decided)
        assert all(c.surer is None for c in result.confirmations if not c.held_out)
        best = max(decided, key=lambda c: c.hits)
        assert best.scope == behaviour
        assert (best.surer or 0) > 0.9 * best.eligible
    made = scanned(Planted(behaviour="all-to-one", target=3), None)
    assert made.confirmations
    assert all(c.surer is None for c in made.confirmations)


def test_its_unplanted_twin_shows_nothing(samples: Path) -> None:
    result = scanned(Planted(), samples)
    assert result.judgement.verdict is Verdict.NO_EVIDENCE, result.judgement.headline
    assert result.judgement.nothing_above is not None
    assert result.exhibits == ()


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [("all-to-all", Verdict.BACKDOOR), ("source-specific", Verdict.SUSPICIOUS)],
)
def test_other_target_maps_are_found(behaviour: str, expected: Verdict, samples: Path) -> None:
    result = scanned(Planted(behaviour=behaviour), samples, WHITE)
    assert result.judgement.verdict is expected, result.judgement.headline
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert found.scope == behaviour


@pytest.mark.parametrize("strength", [0.9, 0.75])
def test_an_asr_is_measured_not_assumed(strength: float, samples: Path) -> None:
    result = scanned(Planted(behaviour="all-to-one", strength=strength), samples, WHITE)
    found = max(result.confirmations, key=lambda c: c.hits / c.eligible)
    assert found.hits / found.eligible == pytest.approx(strength, abs=0.08)


def test_without_labels_clean_predictions_stand_for_them(tmp_path: Path) -> None:
    result = scanned(
        Planted(behaviour="all-to-one"), save(tmp_path, 200, labelled=False), WHITE,
    )  # fmt: skip
    assert result.images[0].correct is None
    assert {caveat.id for caveat in result.caveats} >= {"unlabelled"}
    best = max(r.hits.get(0, 0) for r in result.responses)
    assert best == result.images[0].screen - result.images[0].screen_members[0]


def test_few_images_serve_twice_and_say_so(tmp_path: Path) -> None:
    result = scanned(Planted(behaviour="all-to-one"), save(tmp_path, 40), WHITE)
    assert result.judgement.verdict is Verdict.BACKDOOR
    assert "not-held-out" in {caveat.id for caveat in result.caveats}
    benign = scanned(Planted(), save(tmp_path, 16), WHITE)
    assert benign.judgement.verdict is Verdict.INCONCLUSIVE


def test_the_verdict_can_be_recomputed_from_the_json(samples: Path) -> None:
    for behaviour in (None, "all-to-one", "all-to-all"):
        result = scanned(Planted(behaviour=behaviour), samples, WHITE)
        again = report.from_json(report.to_json(result))
        assert again == result
        assert verdict.rejudge(again) == result.judgement


def test_the_same_seed_gives_the_same_result(samples: Path) -> None:
    def counts(seed: int) -> object:
        result = scanned(Planted(behaviour="all-to-one", strength=0.8), samples, WHITE, seed=seed)
        return result.responses, result.confirmations, result.judgement, result.images

    assert counts(0) == counts(0)
    assert counts(0) != counts(1)


@pytest.mark.parametrize("behaviour", [None, "all-to-one", "source-specific"])
def test_scale_and_order_of_the_classes_do_not_matter(
    behaviour: str | None, tmp_path: Path
) -> None:
    """Logits times 0.1 to 10, and permuted classes, give the same verdict and the same counts."""
    images, labels = drawings(400)
    order = [3, 1, 4, 0, 5, 7, 6, 2]
    inverse = np.argsort(order)
    np.savez(
        tmp_path / "plain.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy()
    )
    np.savez(
        tmp_path / "permuted.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        labels=inverse[labels.numpy()],
    )
    plain = scanned(Planted(behaviour=behaviour), tmp_path / "plain.npz", WHITE)
    for scale in (0.1, 10.0):
        scaled = scanned(Planted(behaviour=behaviour, scale=scale), tmp_path / "plain.npz", WHITE)
        assert scaled.judgement.verdict is plain.judgement.verdict
        assert scaled.responses == plain.responses
    permuted = scanned(Planted(behaviour=behaviour, order=order), tmp_path / "permuted.npz", WHITE)
    assert permuted.judgement.verdict is plain.judgement.verdict
    if behaviour == "all-to-one":
        found = permuted.confirmations[permuted.judgement.reasons[0].confirmation]  # type: ignore[index]
        assert found.target == inverse[0]


def test_a_time_budget_lists_what_was_not_tried(samples: Path) -> None:
    class Slow(Planted):
        def forward(self, images):  # type: ignore[no-untyped-def]
            time.sleep(0.01)
            return super().forward(images)

    begin = time.monotonic()
    result = scanned(Slow(), samples, time_budget=2.0, batch_size=16)
    assert time.monotonic() - begin < 6
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    left = [entry for entry in result.skipped if "time budget" in entry.reason]
    assert left
    tried = len(result.responses)
    untried = sum(int(entry.reason.split("(")[1].split()[0]) for entry in left)
    assert tried + untried == sum(len(probe.triggers) for probe in QUICK)


def test_a_model_at_chance_is_inconclusive(tmp_path: Path) -> None:
    images, labels = drawings(200)
    np.savez(
        tmp_path / "wrong.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        labels=np.roll(labels.numpy(), 1),
    )
    result = scanned(Planted(behaviour="all-to-one"), tmp_path / "wrong.npz", WHITE, given=KNOWN)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "too low for a trained model" in result.judgement.headline
    assert "--normalize" in result.judgement.headline


def test_labels_must_fit_the_outputs(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="label 7 is beyond the model's 4 outputs"):
        scanned(Planted(4), save(tmp_path, 64), WHITE, given=KNOWN)
    with pytest.raises(ImageError, match="--labels names 3 classes, the model has 8"):
        scanned(Planted(), save(tmp_path, 64), WHITE, given=KNOWN, class_names=("a", "b", "c"))


def test_a_detector_is_refused(samples: Path) -> None:
    class Detector(nn.Module):
        def forward(self, images):  # type: ignore[no-untyped-def]
            return [{"boxes": images.mean()} for _ in images]

    with pytest.raises(UnsuitableModel, match="may be a detector"):
        scanned(Detector(), samples)


def test_every_probe_has_a_fate(tmp_path: Path) -> None:
    """Each selected trigger was tried or is listed as skipped, on colour and on grey models."""
    probes = choose("deep").probes
    result = scanned(Planted(), save(tmp_path, 60), probes)
    tried = {response.probe for response in result.responses}
    skipped = {entry.what for entry in result.skipped}
    assert {probe.id for probe in probes} <= tried | skipped
    assert len(result.responses) + sum(e.what in {p.id for p in probes} for e in result.skipped) >= sum(
        len(probe.triggers) for probe in probes
    )  # fmt: skip


# ---- what a reviewer once broke


def test_fragile_triggers_do_not_crowd_out_a_real_one(samples: Path) -> None:
    """Twelve triggers collapse the model to the target, as do their controls; one is listened to."""

    class Fragile(Planted):
        def forward(self, images):  # type: ignore[no-untyped-def]
            scores = super().forward(images)
            # anything that changes the upper left pixels of the whole image collapses to class 0
            noisy = (images[:, :, :2, :2] * 255 - (images[:, :, :2, :2] * 255).round()).abs()
            collapsed = (images.std((1, 2, 3)) < 0.14) & (noisy.amax((1, 2, 3)) >= 0)
            return scores + 80 * collapsed.unsqueeze(1) * (nn.functional.one_hot(
                scores.argmax(1) * 0, scores.shape[1]))  # fmt: skip

    blends = [
        p for p in choose("standard").probes if p.kind in ("blend", "colour-matrix", "filter")
    ]
    result = scanned(Fragile(behaviour="all-to-one"), samples, [*blends, *WHITE])
    assert result.judgement.verdict is Verdict.BACKDOOR
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert (found.target, found.controls[0].hits) == (0, 0)


@pytest.mark.parametrize("classes", [3, 4])
def test_source_specific_triggers_with_few_classes(classes: int, tmp_path: Path) -> None:
    result = scanned(
        Planted(classes, behaviour="source-specific"), save(tmp_path, 400, classes=classes), WHITE
    )
    assert result.judgement.verdict is Verdict.SUSPICIOUS
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert (found.scope, found.source, found.target) == ("source-specific", 1, 0)


@pytest.mark.parametrize(
    ("classes", "shown", "said"),
    [
        (2, 2, "With two classes"),
        (3, 3, None),
        (8, 8, None),
        (8, 3, None),  # two sources for every target
        (8, 2, "of 2 of 8 classes"),
        (8, 1, "of 1 of 8 classes"),
    ],
)
def test_too_few_classes_for_a_backdoor_are_said(
    classes: int, shown: int, said: str | None, tmp_path: Path
) -> None:
    """Where the trigger of an honest pair of classes looks like one for all, it is not called that."""
    images, labels = drawings(240, classes=classes)
    seen = labels < shown
    path = written(tmp_path / "seen.npz", images[seen], labels[seen])
    result = scanned(Planted(classes, behaviour="all-to-one", target=0), path, WHITE)
    texts = [caveat.text for caveat in result.caveats if caveat.id == "few-classes"]
    assert len(texts) == (said is not None)
    assert all((said or "") in text for text in texts)
    assert (result.judgement.verdict is Verdict.BACKDOOR) is (said is None)


def test_a_class_that_is_not_shown_has_a_source_more(tmp_path: Path) -> None:
    images, labels = drawings(240, classes=8)
    path = written(tmp_path / "seen.npz", images[labels < 2], labels[labels < 2])
    result = scanned(Planted(8, behaviour="all-to-one", target=4), path, WHITE)
    assert result.judgement.verdict is Verdict.BACKDOOR
    (text,) = [caveat.text for caveat in result.caveats if caveat.id == "few-classes"]
    assert text.endswith("so that a trigger towards one of these is SUSPICIOUS at most.")


def test_copies_among_the_images_are_said(tmp_path: Path) -> None:
    images, labels = drawings(100)
    path = written(tmp_path / "a.npz", images[:50].repeat(2, 1, 1, 1), labels[:50].repeat(2))
    for source, copies in ((path, 50), (save(tmp_path, 100), 0)):
        caveats = {c.id: c.text for c in scanned(Planted(), source, WHITE).caveats}
        assert ("copies" in caveats) is bool(copies)
        assert caveats.get("copies", "").startswith("50 of 100 images are copies" if copies else "")
    result = scanned(Planted(), path, WHITE)
    assert sum(result.images[0].screen_members) + sum(result.images[0].confirm_members) == 50


def test_a_class_that_is_never_recognised_is_said(tmp_path: Path) -> None:
    images, labels = drawings(160, classes=8)
    exchanged = labels.clone()
    exchanged[labels == 2] = 5
    exchanged[labels == 5] = 2
    for given, said in ((labels, {}), (exchanged, {2: 5, 5: 2})):
        result = scanned(Planted(), written(tmp_path / "a.npz", images, given), WHITE)
        texts = [c.text for c in result.caveats if c.id == "unrecognised"]
        assert len(texts) == bool(said)
        for label, answer in said.items():
            count = int((given == label).sum())
            told = f"class {label} ({count} images, {count} of them taken for class {answer})"
            assert told in texts[0]


def test_few_images_of_a_class_and_networks_that_know_none_say_nothing_of_folders(
    tmp_path: Path,
) -> None:
    images, labels = drawings(160, classes=8)
    few = torch.cat([(labels != 2).nonzero()[:, 0], (labels == 2).nonzero()[:4, 0]])
    exchanged = labels[few]
    exchanged[labels[few] == 3] = 2
    exchanged[-4:] = 3
    given = written(tmp_path / "few.npz", images[few], exchanged)
    result = scanned(Planted(), given, WHITE, given=KNOWN_PLAIN)
    (text,) = [c.text for c in result.caveats if c.id == "unrecognised"]
    assert "class 2 (" in text
    assert "class 3 (" not in text, "of four images one might well be wrong"
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = tmp_path / "named" / "abcdefgh"[{2: 5, 5: 2}.get(label, label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    result = scanned(Planted(), tmp_path / "named", WHITE, given=KNOWN_PLAIN)
    (text,) = [c.text for c in result.caveats if c.id == "unrecognised"]
    assert 'class 2 "c" (' in text
    assert 'taken for class 5 "f")' in text
    wrong = written(tmp_path / "wrong.npz", images, (labels + 1) % 8)
    result = scanned(Planted(), wrong, WHITE, given=KNOWN_PLAIN)
    assert not [c for c in result.caveats if c.id == "unrecognised"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    images, labels = drawings(80)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{label}/{number}.png")
    (tmp_path / "3" / "torn.png").write_bytes(b"torn")
    (text,) = [c.text for c in scanned(Planted(), tmp_path, WHITE).caveats if c.id == "unreadable"]
    assert text == "Left out as unreadable, 1 image: 3/torn.png (no picture)."


def test_one_image_is_scanned_and_not_searched(tmp_path: Path) -> None:
    result = scanned(
        Planted(), save(tmp_path, 1), WHITE, searches=("search.patch",), given=KNOWN_PLAIN
    )
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert ["two or more" in s.reason for s in result.skipped if s.what == "search.patch"] == [True]


def test_names_must_fit_the_outputs_without_images_too() -> None:
    with pytest.raises(ImageError, match="--labels names 3 classes, the model has 8 outputs"):
        scanned(Planted(), None, WHITE, class_names=("a", "b", "c"), given=KNOWN_PLAIN)


def test_a_trigger_that_is_its_own_control_is_not_tried(samples: Path) -> None:
    turned = replace(WHITE[0], id="my.turn", triggers=(Rotate(degrees=180),))
    result = scanned(Planted(), samples, [turned])
    assert ["a control of it does the same" in s.reason for s in result.skipped] == [True]
    assert result.responses == ()


def test_an_honest_model_may_tell_arrows_apart(tmp_path: Path) -> None:
    """Turning the image turns the class: that is no backdoor."""

    class Arrows(nn.Module):
        def forward(self, images):  # type: ignore[no-untyped-def]
            grey = images.mean(1)
            up, down = grey[:, :10].mean((1, 2)), grey[:, -10:].mean((1, 2))
            left, right = grey[:, :, :10].mean((1, 2)), grey[:, :, -10:].mean((1, 2))
            return 30 * torch.stack([up, right, down, left], 1)

    labels = np.arange(400) % 4
    images = np.random.default_rng(0).integers(0, 60, (400, 32, 32, 3)).astype(np.uint8)
    sides = [np.s_[:8, 8:24], np.s_[8:24, -8:], np.s_[-8:, 8:24], np.s_[8:24, :8]]
    for image, label in zip(images, labels, strict=True):
        image[sides[label]] += 150
    np.savez(tmp_path / "arrows.npz", images=images, labels=labels)
    turns = [probe for probe in choose("standard").probes if probe.kind == "rotate"]
    result = scanned(Arrows(), tmp_path / "arrows.npz", turns)
    assert max(sum(r.hits.values()) for r in result.responses) > 60
    assert result.judgement.verdict is Verdict.NO_EVIDENCE, result.judgement.headline


def test_images_of_one_class_only(tmp_path: Path) -> None:
    images, labels = drawings(400)
    alone = images[labels == 2]
    np.savez(tmp_path / "one.npz", images=alone.permute(0, 2, 3, 1).numpy())
    result = scanned(Planted(), tmp_path / "one.npz", WHITE)
    assert result.judgement.power_classes <= 8


def test_grey_models_are_scanned(tmp_path: Path) -> None:
    class Grey(Planted):
        def forward(self, images):  # type: ignore[no-untyped-def]
            assert images.shape[1] == 1
            return super().forward(images)

    images, labels = drawings(400)
    np.savez(tmp_path / "grey.npz", images=images[:, 0].numpy(), labels=labels.numpy())
    result = scanned(Grey(behaviour="all-to-one"), tmp_path / "grey.npz")
    assert result.judgement.verdict is Verdict.BACKDOOR
    assert result.preprocessing.spec.channels == 1
    assert any("not applicable" in entry.reason for entry in result.skipped)


@pytest.fixture(scope="module")
def plain() -> ScanResult:
    """Without images; these are made, which takes seconds."""
    return scanned(Planted(behaviour="all-to-one"), None, WHITE)


@pytest.mark.slow  # with images it is quick, see above
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_scale_of_the_logits_does_not_matter_without_images(
    scale: float, plain: ScanResult
) -> None:
    scaled = scanned(Planted(behaviour="all-to-one", scale=scale), None, WHITE)
    assert scaled.judgement.verdict is plain.judgement.verdict
    assert [f.family for f in scaled.images] == [f.family for f in plain.images]
