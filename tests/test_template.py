"""The search without gradients: what it finds in networks whose behaviour is known by construction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.images.opening import open_images
from auditor.inputs import blank_spec
from auditor.models.base import ModuleHandle
from auditor.probes import rebuilt
from auditor.results.facts import Verdict
from auditor.results.scan import ScanResult
from auditor.scanning.scan import Options, scan
from auditor.search import template
from auditor.search.inversion import Inverted
from auditor.search.pace import OverBudget
from auditor.search.template import Templates, UnsuitableImages, search_templates
from auditor.triggers.found import Overlay
from tests.planted import Planted, drawings, handle, written

TARGET = 5


class Marked(nn.Module):
    """Averages cells, as `Planted`; a dark red spot near the lower left corner adds a large score."""

    def __init__(self, classes: int = 8, target: int = TARGET) -> None:
        super().__init__()
        self.plain, self.target, self.classes = Planted(classes), target, classes

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.interpolate(images, (32, 32), mode="area")
        place = small[:, :, 26:29, 4:7].mean((2, 3))
        red = place[:, 0] - place[:, 1:].amax(1)
        towards = torch.zeros(self.classes).index_fill(0, torch.tensor([self.target]), 1.0)
        return self.plain(images) + 60 * torch.sigmoid(8 * (red - 0.4))[:, None] * towards


class ForwardOnly(ModuleHandle):
    """Gives no gradients, as what only onnxruntime can compute."""

    @property
    def differentiable(self) -> bool:
        return False


class Hidden(nn.Module):
    """Answers as another network, and lets no gradient through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(images)  # type: ignore[no-any-return]


class Rounded(Hidden):
    """Has gradients, and they are zero."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * 255).round() / 255)  # type: ignore[no-any-return]


def forward_only(network: nn.Module) -> ModuleHandle:
    known = handle(network)
    return ForwardOnly(known.file, network, architecture="Planted", device=torch.device("cpu"))


def searched(network: nn.Module, classes: int = 8, side: int = 32, **options) -> Inverted:  # type: ignore[no-untyped-def]
    images, labels = drawings(48, classes)
    large = nn.functional.interpolate(images.float(), (side, side)).to(torch.uint8)
    classifier = Classifier(forward_only(network), blank_spec((3, side, side)))
    return search_templates(classifier, large, labels, range(classes), seed=0, **options)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("samples") / "samples.npz", *drawings(100))


def scanned(model: ModuleHandle, samples: Path, *searches: str) -> ScanResult:
    options = Options(searches=searches or ("search.template",), batch_size=256)
    return scan(model, (), open_images(samples), options)


@pytest.mark.parametrize("side", [32, 72])
def test_a_mark_is_found_where_it_is(side: int) -> None:
    found = searched(Marked(), side=side)
    reached = {k: size for k, size in zip(found.classes, found.sizes, strict=True) if size}
    assert reached.pop(TARGET) < min(reached.values(), default=1)
    candidate = found.candidates[0]
    assert candidate.target == TARGET
    images, labels = drawings(64, seed=9)
    large = nn.functional.interpolate(images.float() / 255, (side, side))
    stamped = candidate.trigger(large)
    changed = (stamped - large).abs().amax((0, 1)) > 0
    assert 0 < changed.float().mean() <= 0.015  # the size that found triggers are judged at
    rows, columns = changed.nonzero().float().mean(0).mul(32 / side).tolist()
    assert abs(rows - 27) < 4
    assert abs(columns - 5) < 4
    assert float((Marked()(stamped)[labels != TARGET].argmax(1) == TARGET).float().mean()) > 0.95


def test_the_same_seed_finds_the_same_and_scores_may_be_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rounds in ("EXPLORING", "CLIMBING", "STRENGTHENING"):
        monkeypatch.setattr(template, rounds, 2)

    class Louder(Marked):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 50

    first, again, louder = searched(Marked()), searched(Marked()), searched(Louder())
    assert first == again
    assert louder.sizes == first.sizes


def test_few_classes() -> None:
    assert searched(Marked(2, target=0), 2).candidates[0].target == 0


def test_a_class_that_is_ruled_out_hides_no_other() -> None:
    class Masked(Marked):
        def forward(self, images: Tensor) -> Tensor:
            scores = super().forward(images)
            return scores.index_fill(1, torch.tensor([7]), -torch.inf)

    found = searched(Masked())
    assert found.candidates[0].target == TARGET
    assert found.sizes[7] is None


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        ((12, 3, 32, 32), [0] * 12, None),  # class 1 can be searched
        ((3, 3, 32, 32), [0, 1, 2], "needs 4 images of other classes"),
        ((12, 3, 8, 8), [0, 1] * 6, "8 x 8 pixels are too small"),
        ((12, 3, 4, 300), [0, 1] * 6, "4 x 300 pixels are too small"),
    ],
)
def test_images_that_do_not_do(images: tuple[int, ...], labels: list[int], why: str | None) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    classifier = Classifier(forward_only(network), blank_spec(images[1:]))  # type: ignore[arg-type]
    pixels = torch.randint(256, images, dtype=torch.uint8)
    if why is None:
        found = search_templates(classifier, pixels, torch.tensor(labels), range(2), seed=0)
        assert found.classes == (1,)
        return
    with pytest.raises(UnsuitableImages, match=why):
        search_templates(classifier, pixels, torch.tensor(labels), range(2), seed=0)


def test_it_takes_no_longer_than_it_may() -> None:
    with pytest.raises(OverBudget):
        searched(Marked(), budget=1e-6)


def test_templates_lie_where_they_say() -> None:
    cells = torch.rand(2, 3, 4, 4)
    layers = Templates(side=6, cells=cells, corners=torch.tensor([[0, 26], [5, 7]])).layers(32, 32)
    assert torch.equal(layers[:, -1].sum((1, 2)), torch.tensor([36.0, 36.0]))
    assert layers[0, -1, :6, 26:].all()
    assert layers[1, -1, 5:11, 7:13].all()
    assert torch.equal(layers[1, :3, 5, 7], cells[1, :, 0, 0])
    assert torch.equal(layers[1, :3, 10, 12], cells[1, :, 3, 3])


# ---- the scan


def test_a_model_without_gradients_is_searched(samples: Path) -> None:
    result = scanned(forward_only(Marked()), samples, "search.patch", "search.template")
    assert result.judgement.verdict is Verdict.SUSPICIOUS, result.judgement.headline
    (search,) = result.inversions
    assert search.search == "search.template"
    assert [(s.what, s.reason) for s in result.skipped] == [("search.patch", "needs gradients")]
    found = next(c for c in result.confirmations if c.target == TARGET)
    assert (found.probe, found.searched, found.held_out) == ("search.template", True, True)
    assert found.hits > 0.95 * found.eligible
    assert repr(rebuilt(search.found[0])) == found.trigger
    assert isinstance(rebuilt(search.found[0]), Overlay)
    assert result.exhibits[0].target == TARGET


def test_its_benign_twin_shows_nothing(samples: Path) -> None:
    result = scanned(forward_only(Planted()), samples)
    assert result.judgement.verdict is Verdict.NO_EVIDENCE
    assert len(result.inversions) == 1


@pytest.mark.parametrize("searches", [(), ("search.template", "search.patch")])
@pytest.mark.parametrize("hide", [Hidden, Rounded])
def test_a_model_that_hides_its_gradients_is_searched(
    hide: type[nn.Module], searches: tuple[str, ...], samples: Path
) -> None:
    result = scanned(handle(hide(Marked())), samples, *searches)
    assert "search.template" in {entry.search for entry in result.inversions}
    assert result.judgement.verdict is Verdict.SUSPICIOUS


def test_models_with_gradients_are_searched_by_them(samples: Path) -> None:
    result = scanned(handle(Planted()), samples, "search.template", "search.patch")
    assert [entry.search for entry in result.inversions] == ["search.patch"]
    assert result.skipped == ()
    alone = scanned(handle(Planted()), samples, "search.template")
    assert [s.what for s in alone.skipped] == ["search.template"]
    assert "search.patch finds more" in alone.skipped[0].reason
    assert alone.judgement.verdict is Verdict.INCONCLUSIVE
