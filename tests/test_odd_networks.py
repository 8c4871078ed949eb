"""Networks that answer NaN, work in place, check their input, or have operators without derivative."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor import api, measure, report
from auditor.classifier import UNDECIDED, Classifier, decided
from auditor.errors import ModelError, UnsuitableModel
from auditor.images.opening import open_images
from auditor.inputs import GivenInput, blank_spec, resolve_size
from auditor.measure import Half, cross_table
from auditor.probes import choose
from auditor.results.facts import Verdict
from auditor.results.scan import ScanResult
from auditor.scanning.scan import Options, scan
from auditor.scanning.transplant import transplants
from auditor.synthesis import accepted, class_impressions, spread
from tests.changeable import WHITE
from tests.planted import Planted, drawings, handle, written

PLAIN = GivenInput(channels=3, height=32, width=32, normalize="none")
WHITE_CORNER = choose("patch.white-corner,patch.solid").probes


def scanned(
    network: nn.Module, folder: Path | None, searches: tuple[str, ...] = (), count: int = 400
) -> ScanResult:
    source = None
    if folder is not None:
        source = open_images(written(folder / f"{count}.npz", *drawings(count)))
    options = Options(given=PLAIN, searches=searches, batch_size=64)
    return scan(handle(network), WHITE_CORNER, source, options)


class Overflowing(Planted):
    """Honest, but its scores overflow where the lower right corner is white."""

    def forward(self, images: Tensor) -> Tensor:
        white = images[:, :, -3:, -3:].flatten(1).amin(1) > 0.99
        return torch.where(white[:, None], torch.nan, super().forward(images))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((1.0, 3.0, 2.0), 1),
        ((-torch.inf, 0.0, -torch.inf), 1),
        ((torch.nan, 3.0, 2.0), UNDECIDED),
        ((1.0, torch.inf, 2.0), UNDECIDED),
        ((-torch.inf, -torch.inf, -torch.inf), UNDECIDED),
    ],
)
def test_scores_that_are_no_numbers_name_no_class(row: tuple[float, ...], said: int) -> None:
    assert decided(torch.tensor([row])).tolist() == [said]


def test_no_answer_is_counted_towards_no_class() -> None:
    groups, after = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, UNDECIDED, 1, UNDECIDED, 0])
    assert cross_table(groups, after, 3).tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    found = measure.predictions(
        Classifier(handle(Overflowing()), blank_spec((3, 32, 32))), drawings(8)[0], [WHITE]
    )
    assert found.tolist() == [[UNDECIDED] * 8]


def test_a_model_without_an_answer_is_inconclusive_and_not_backdoored(tmp_path: Path) -> None:
    result = scanned(Overflowing(), tmp_path, ("search.margin", "search.patch"))
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    silent = [response for response in result.responses if response.unanswered]
    assert silent
    assert all(not response.hits for response in silent if response.unanswered == response.images)
    assert f"Under {len(silent)} of {len(result.responses)} triggers" in result.judgement.headline
    assert [caveat.id for caveat in result.caveats if caveat.id == "unanswered"] == ["unanswered"]
    again = report.from_json(report.to_json(result))
    assert isinstance(again, ScanResult)
    assert again.responses == result.responses


def test_a_backdoor_is_one_although_another_trigger_gets_no_answer(tmp_path: Path) -> None:
    class Both(Planted):
        def forward(self, images: Tensor) -> Tensor:
            white = images[:, :, :3, :3].flatten(1).amin(1) > 0.99
            return torch.where(white[:, None], torch.nan, super().forward(images))

    result = scanned(Both(behaviour="all-to-one"), tmp_path)
    assert result.judgement.verdict is Verdict.BACKDOOR
    assert "unanswered" in {caveat.id for caveat in result.caveats}


def test_every_clean_image_must_get_an_answer(tmp_path: Path) -> None:
    images, labels = drawings(400)
    source = written(tmp_path / "some.npz", images, labels)
    for place in open_images(source).draw(400, 0)[200:]:  # the input is settled on those before
        images[place, :, -3:, -3:] = 255
    source = open_images(written(tmp_path / "some.npz", images, labels))
    with pytest.raises(UnsuitableModel, match="NaN or infinite scores for 200 of 400 images"):
        scan(handle(Overflowing()), WHITE_CORNER, source, Options(given=PLAIN, searches=()))


def test_margins_that_are_no_numbers_are_no_margins(tmp_path: Path) -> None:
    class Bounded(Planted):
        """Its scores are numbers for images like the user's only."""

        def forward(self, images: Tensor) -> Tensor:
            far = images.flatten(1).amin(1) < 0.001
            return torch.where(far[:, None], torch.nan, super().forward(images))

    images, labels = drawings(64)
    source = open_images(written(tmp_path / "a.npz", images.clamp_min(3), labels))
    result = scan(
        handle(Bounded()), WHITE_CORNER, source, Options(given=PLAIN, searches=("search.margin",))
    )
    assert result.margin is None
    assert [s.reason for s in result.skipped if s.what == "search.margin"] == [
        "the scores are NaN or infinite on the images that it makes"
    ]


class Undifferentiable(Planted):
    """Holds an operator whose derivative torch does not know."""

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        one = scores.abs().amax(1, keepdim=True) + 1
        return scores + 1e-6 * torch.special.gammainc(one, one)


@pytest.mark.parametrize("images", [True, False])
def test_a_network_without_derivative_is_searched_by_trial(images: bool, tmp_path: Path) -> None:
    searches = ("search.margin", "search.patch", "search.template")
    folder = tmp_path if images else None
    result = scanned(Undifferentiable(behaviour="all-to-one"), folder, searches)
    reasons = {entry.what: entry.reason for entry in result.skipped}
    assert reasons["search.margin"] == "needs gradients"
    if images:
        assert reasons["search.patch"] == "needs gradients"
        assert [search.search for search in result.inversions] == ["search.template"]
    else:
        assert reasons["class impressions and mixes"] == "needs gradients"
        assert "clean images" in reasons["search.template"]


class InPlace(Planted):
    """Changes its input."""

    def forward(self, images: Tensor) -> Tensor:
        images.mul_(0.5)
        return super().forward(images)


def test_a_network_may_work_in_place(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 32, 32)
    before = images.clone()
    Classifier(handle(InPlace()), blank_spec((3, 32, 32))).predict(images)
    assert torch.equal(images, before)
    result = scanned(InPlace(), tmp_path, ("search.margin", "search.patch"), count=100)
    assert result.margin is not None
    assert len(result.inversions) == 1


class Sized(nn.Module):
    """Checks its input, as torchvision's vision transformer does."""

    def forward(self, images: Tensor) -> Tensor:
        torch._assert(images.shape[2] == 28, "Wrong image height!")
        return images.flatten(2).mean(2)


def test_a_scripted_network_may_check_its_input(tmp_path: Path) -> None:
    torch.jit.script(Sized()).save(tmp_path / "sized.pt")
    scripted = api.load_model(tmp_path / "sized.pt")
    assert resolve_size(scripted, None, GivenInput(), 0)[:3] == (3, 28, 28)
    with pytest.raises(UnsuitableModel, match="Wrong image height"):
        resolve_size(scripted, None, PLAIN, 0)
    classifier = Classifier(scripted, blank_spec((3, 32, 32)))
    with pytest.raises(ModelError, match=r"does not run on images of 2x3x32x32: .*Wrong image"):
        classifier.predict(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_can_be_scanned_on_made_images(classes: int) -> None:
    classifier = Classifier(handle(Planted(classes)), blank_spec((3, 32, 32)), batch_size=64)
    generator = torch.Generator().manual_seed(0)
    made = class_impressions(classifier, classes, generator)
    assert made is not None
    typical = spread(classifier, made)
    kept, why = accepted(classifier, made, classes, generator, typical_spread=typical)
    assert why == ""
    counts = torch.bincount(classifier.predict(kept), minlength=classes)
    assert counts.min() >= len(kept) / classes / 2


def test_made_images_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip
    made = [
        class_impressions(
            Classifier(handle(network), blank_spec((3, 16, 16)), batch_size=size), 4,
            torch.Generator().manual_seed(0),
        )
        for size in (16, 128)
    ]  # fmt: skip
    assert made[0] is not None
    assert made[1] is not None
    assert torch.equal(made[0], made[1])


class OverflowingControls(Planted):
    """Any strong corner is class 0; where it is colourful, its score overflows."""

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, -3:, -3:]
        white = corner.flatten(1).amin(1) > 0.99
        colourful = (corner.amax(1) - corner.amin(1)).flatten(1).amax(1) > 0.6
        scores = super().forward(images) + 50 * (white | colourful)[:, None] * one_hot(self.classes)
        infinite = torch.full_like(scores[:, 0], torch.inf)
        return torch.cat(
            [torch.where(colourful, infinite, scores[:, 0])[:, None], scores[:, 1:]], 1
        )


def one_hot(classes: int) -> Tensor:
    return torch.eye(classes)[:1]


def test_a_control_without_an_answer_speaks_against_the_trigger(tmp_path: Path) -> None:
    result = scanned(OverflowingControls(), tmp_path)
    assert result.judgement.verdict is not Verdict.BACKDOOR
    found = [c for c in result.confirmations if c.target == 0 and c.controls]
    assert found
    assert all(max(k.hits for k in c.controls) > 0.9 * c.eligible for c in found)


def test_a_bound_holds_although_some_images_get_no_answer(tmp_path: Path) -> None:
    result = scanned(Overflowing(), tmp_path)
    bound = result.judgement.nothing_above
    assert bound == 1


def test_a_class_stands_for_a_mark_where_it_gets_no_answer() -> None:
    images, labels = drawings(64)
    classifier = Classifier(handle(Overflowing()), blank_spec((3, 32, 32)))
    before = classifier.predict(images)
    half = Half(images=images, groups=labels, before=before)
    white = images.clone()
    white[labels == 0, :, -5:, -5:] = 255
    marked = Half(images=white, groups=labels, before=labels)
    piece, _ = transplants(classifier, marked, half, 0, deadline=math.inf)
    assert min(piece.counts.moved) == piece.counts.eligible
