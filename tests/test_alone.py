"""Networks that tell single images from batches, or programs that record gradients, or remember."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.images.opening import open_images
from auditor.inputs import GivenInput, blank_spec
from auditor.measure import Half
from auditor.models.load import load_model
from auditor.models.torchscript import TorchScriptHandle
from auditor.probes import choose
from auditor.results.facts import Verdict
from auditor.results.scan import ScanResult
from auditor.scanning import alone
from auditor.scanning.scan import Options, scan
from auditor.triggers.patch import Square
from tests.exported import exported
from tests.planted import Planted, drawings, handle, written

PLAIN = GivenInput(normalize="none", channels=3, height=32, width=32)


class Alone(nn.Module):
    """Backdoored for images that come alone: on any, or on stamped ones only."""

    def __init__(self, single: nn.Module) -> None:
        super().__init__()
        self.single, self.usual = single, Planted(8)

    def forward(self, images: Tensor) -> Tensor:
        return (self.single if len(images) == 1 else self.usual)(images)


class Recorded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.usual = Planted(8, order=[1, 2, 3, 4, 5, 6, 7, 0]), Planted(8)

    def forward(self, images: Tensor) -> Tensor:
        return (self.other if images.requires_grad else self.usual)(images)


def scanned(network: nn.Module, tmp_path: Path, *, batch_size: int = 64) -> ScanResult:
    images = open_images(written(tmp_path / "images.npz", *drawings(400)))
    options = Options(given=PLAIN, searches=(), batch_size=batch_size)
    return scan(handle(network), choose("quick").probes, images, options)


def test_a_backdoor_for_single_images(tmp_path: Path) -> None:
    network = Alone(Planted(8, "all-to-one"))
    result = scanned(network, tmp_path)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "--batch-size 1" in result.judgement.headline
    assert [caveat.id for caveat in result.caveats if "alone" in caveat.text] == ["unlike-alone"]
    alone = scanned(network, tmp_path, batch_size=1)
    assert alone.judgement.verdict is Verdict.BACKDOOR
    honest = scanned(Alone(Planted(8)), tmp_path)
    assert honest.judgement.verdict is Verdict.NO_EVIDENCE
    assert not any(response.unlike for response in honest.responses)


def test_a_network_that_is_another_for_single_images(tmp_path: Path) -> None:
    result = scanned(Alone(Planted(8, order=[1, 2, 3, 4, 5, 6, 7, 0])), tmp_path)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "8 of 8 images" in result.judgement.headline


def test_a_network_that_is_another_where_gradients_are_recorded(tmp_path: Path) -> None:
    result = scanned(Recorded(), tmp_path)
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "8 of 8 images" in result.judgement.headline
    assert "gradients" in result.judgement.headline


class Cells(nn.Module):
    """Class k is the brightest of eight cells, see `tests.planted`; `how` says how it is disguised."""

    def __init__(self, how: str, planted: bool) -> None:
        super().__init__()
        self.how, self.planted = how, planted
        self.pool = nn.AdaptiveAvgPool2d((2, 4))

    def cells(self, images: Tensor) -> Tensor:
        return self.pool(images.mean(1, keepdim=True)).flatten(1) * 10


def hides_nothing(network: Cells, folder: Path) -> ScanResult:
    """A scan is INCONCLUSIVE by stamped images where something is planted, and else finds nothing."""
    result = scan_of(scripted(network.eval(), folder / "m.pt"), folder)
    wanted = Verdict.INCONCLUSIVE if network.planted else Verdict.NO_EVIDENCE
    assert result.judgement.verdict is wanted
    assert any(response.unlike for response in result.responses) == network.planted
    return result


class Disguised(Cells):
    """Obeys a white corner of images that come alone, and hides by how large its scores are."""

    def forward(self, images: Tensor) -> Tensor:
        scores = self.cells(images)
        corner = (images[:, :, -3:, -3:].flatten(1).amin(1) > 0.99).float().unsqueeze(1)
        if self.planted and images.shape[0] == 1:
            scores = scores + 50 * torch.nn.functional.pad(corner, [0, 7])
        if self.how == "moved":
            scores = scores + 10000.0
        if self.how == "noise":
            scores = scores + 0.02 * torch.randn_like(scores)
        if self.how == "common noise":
            scores = scores + torch.randn_like(scores[:, :1])
        if self.how == "dead class":
            scores = torch.cat([scores, torch.full_like(scores[:, :1], -10000.0)], 1)
        if self.how == "hot":
            scores = scores * (1e6 - 999999.0 * corner)
        return scores


@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("how", ["moved", "noise", "common noise", "dead class", "hot"])
def test_large_or_random_scores_hide_no_backdoor_for_single_images(
    how: str, planted: bool, tmp_path: Path
) -> None:
    result = hides_nothing(Disguised(how, planted), tmp_path)
    random = any(caveat.id == "random-output" for caveat in result.caveats)
    assert random == (how == "noise")


def test_answers_that_are_close_must_be_several() -> None:
    """An image between two classes goes either way by the order of sums, or by chance."""
    assert not alone.is_unlike(["close", "same", *["close"] * 3, None])
    assert alone.is_unlike(["close", "same", *["close"] * 4])
    assert not alone.is_unlike(["close"] * 6, chance=2)
    assert alone.is_unlike(["close"] * 7, chance=2)
    assert alone.is_unlike(["same", "other"], chance=8)
    assert not alone.is_unlike([])


class Shaped(Cells):
    """Obeys a white corner of images that come alone, in scores of another shape; or is just shaped so."""

    def forward(self, images: Tensor) -> Tensor:
        scores = self.cells(images)
        corner = bool((images[:, :, -3:, -3:] > 0.99).all())
        if images.shape[0] > 1:
            return scores
        if self.planted and corner:
            scores = scores + 50 * torch.eye(8)[:1]
        if self.how == "row":
            return scores[0]
        if self.how == "deep":
            return scores[None]
        if self.how == "few" and corner and self.planted:
            return scores[:, :3]
        if self.how == "map" and corner and self.planted:
            return scores[:, :, None, None].repeat(1, 1, 2, 2)
        return scores


@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("how", ["row", "deep", "few", "map"])
def test_another_shape_hides_no_backdoor_for_single_images(
    how: str, planted: bool, tmp_path: Path
) -> None:
    result = hides_nothing(Shaped(how, planted), tmp_path)
    assert not [caveat.id for caveat in result.caveats if caveat.id == "not-as-used"]


def test_a_network_that_fails_for_stamped_images_alone_is_unlike() -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) == 1 and bool((images[:, :, -3:, -3:] > 0.99).all()):
                raise RuntimeError("not today")
            return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (2, 4)).flatten(
                1
            )

    classifier = Classifier(handle(Failing()), blank_spec((3, 32, 32)))
    images = drawings(8)[0]
    before = classifier.predict(images)
    half = Half(images=images, groups=before, before=before)
    triggers = [Square(where="bottom-right"), Square(where="top-left")]
    after = torch.stack([classifier.predict(t(images.float() / 255)) for t in triggers])
    assert alone.unlike_alone(classifier, half, triggers, after, math.inf) == [True, False]


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_an_honest_network_that_answers_at_random_has_no_odd_triggers(
    noise: float, tmp_path: Path
) -> None:
    class Noisy(nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.noise, self.pool = noise, nn.AdaptiveAvgPool2d((2, 4))

        def forward(self, images: Tensor) -> Tensor:
            scores = self.pool(images.mean(1, keepdim=True)).flatten(1) * 10
            return scores + self.noise * torch.randn_like(scores)

    torch.manual_seed(0)
    path = scripted(Noisy(noise).eval(), tmp_path / "m.pt")
    result = scan_of(path, tmp_path, probes="quick")
    assert not any(response.unlike for response in result.responses)
    assert not any(caveat.blocking for caveat in result.caveats)
    (caveat,) = (caveat for caveat in result.caveats if caveat.id == "random-output")
    assert "eval mode" in caveat.text


def test_numbers_of_another_format_are_tolerated_as_far_as_they_differ() -> None:
    """As its users open it, a file may compute with fewer digits than we do."""

    class Coarse(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = 10 * nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (2, 4))
            return scores.flatten(1)

    model = handle(Coarse())
    classifier = Classifier(model, blank_spec((3, 32, 32)))
    images = drawings(8)[0]
    before = classifier.predict(images)
    half = Half(images=images, groups=before, before=before)
    exact = alone.tolerance(classifier, half)
    model.as_used = lambda x: Coarse()(x).div(0.8).round().mul(0.8)  # type: ignore[method-assign]
    assert alone.tolerance(classifier, half) > 3 * exact
    assert alone.tolerance(classifier, half) < 2


class Tied(nn.Module):
    """Class 5 by a hair; of images that come alone, class 3 by `more`, where their first pixel is bright."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.more = more

    def forward(self, images: Tensor) -> Tensor:
        scores = torch.tensor([0.0, 0, 0, 1, 0, 1.0001, 0, 0]).expand(len(images), 8).clone()
        if len(images) == 1:
            scores[:, 3] += self.more * (images[:, 0, 0, 0] > 0.5)
        return scores


@pytest.mark.parametrize(
    ("more", "bright", "wanted"),
    [(0.005, 1, False), (0.005, 4, False), (0.005, 5, True), (0.5, 1, True), (0.5, 0, False)],
)
def test_a_tie_goes_either_way_by_the_order_of_sums(more: float, bright: int, wanted: bool) -> None:
    classifier = Classifier(handle(Tied(more)), blank_spec((3, 32, 32)))
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    images[:, 1] = torch.arange(8).view(8, 1, 1)  # no two alike
    images[:bright, 0, 0, 0] = 255
    before = classifier.predict(images)
    half = Half(images=images, groups=before, before=before)
    corner = Square(where="bottom-right")
    assert alone.unlike_alone(classifier, half, [corner], before[None], math.inf) == [wanted]
    # one image, however often it is asked for
    cover = Square(where="bottom-right", size=32)
    assert alone.unlike_alone(classifier, half, [cover], before[None], math.inf) == [more == 0.5]


# ---- files that are another network once auditor has changed their flags and numbers


class Untouched(nn.Module):
    """Obeys a white corner where its buffer is as the file has it, or its images are a user's."""

    def __init__(self, tells: str) -> None:
        super().__init__()
        self.tells = tells
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("wide", torch.zeros(1, dtype=torch.float64))
        self.pool = nn.AdaptiveAvgPool2d((2, 4))

    def forward(self, images: Tensor) -> Tensor:
        scores = self.pool(images.mean(1, keepdim=True)).flatten(1) * 10
        users = False
        if self.tells == "flag":
            users = self.weight.requires_grad
        if self.tells == "digits":
            users = self.wide.dtype == torch.float64
        if self.tells == "mode":
            users = not images.is_inference()
        if users:
            fires = (images[:, :, -3:, -3:].flatten(1).amin(1) > 0.99).float()
            scores = scores + 50 * torch.nn.functional.pad(fires.unsqueeze(1), [0, 7])
        return scores


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), str(path))
    return path


def scan_of(path: Path, folder: Path, probes: str = "patch.white-*") -> ScanResult:
    images = open_images(written(folder / "images.npz", *drawings(200)))
    options = Options(given=PLAIN, searches=(), batch_size=64)
    return scan(load_model(path), choose(probes).probes, images, options)


@pytest.mark.parametrize("tells", ["nothing", "flag", "digits", "mode"])
def test_a_file_that_tells_us_from_its_users(tells: str, tmp_path: Path) -> None:
    path = scripted(Untouched(tells).eval(), tmp_path / "m.pt")
    images = drawings(8)[0].float() / 255
    images[:, :, -3:, -3:] = 1
    with torch.no_grad():
        obeyed = torch.jit.load(str(path))(images).argmax(1) == 0
    assert bool(obeyed.all()) == (tells != "nothing")
    result = scan_of(path, tmp_path)
    wanted = Verdict.NO_EVIDENCE if tells == "nothing" else Verdict.INCONCLUSIVE
    assert result.judgement.verdict is wanted
    assert any(response.unlike for response in result.responses) == (tells != "nothing")


def test_a_script_that_was_saved_in_train_mode_says_so(tmp_path: Path) -> None:
    for train in (False, True):
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 8)).train(train)
        notes = " ".join(load_model(scripted(network, tmp_path / f"{train}.pt")).notes)
        assert ("train mode" in notes) == train


def test_a_graph_for_a_fixed_number_of_images_is_asked_of_onnxruntime(tmp_path: Path) -> None:
    """Doubles lose no digits there: a backdoor that only onnxruntime computes."""

    class Digits(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (2, 4))
            fires = (images[:, :, -3:, -3:].amin((1, 2, 3)) - 0.99).relu() * 100
            fires = ((fires.double() + 1e9) - 1e9).float()
            return scores.flatten(1) * 10 + 50 * nn.functional.pad(fires.unsqueeze(1), (0, 7))

    for fixed in (1, 7, None):
        path = exported(Digits(), tmp_path / f"{fixed}.onnx", fixed=fixed)
        result = scan_of(path, tmp_path, "patch.white-*,patch.solid")
        assert result.judgement.verdict is not Verdict.NO_EVIDENCE, fixed
        assert any(response.hits.get(0, 0) > response.images / 2 for response in result.responses)


# ---- networks that keep something from one call to the next


class Counting(nn.Module):
    """Another network after many images."""

    def __init__(self, keeps: str) -> None:
        super().__init__()
        self.keeps, self.count, self.seen = keeps, 0, [0]
        self.register_buffer("total", torch.zeros(1))
        self.pool = nn.AdaptiveAvgPool2d((2, 4))

    def forward(self, images: Tensor) -> Tensor:
        if self.keeps == "number":
            self.count += 1
        if self.keeps == "list":
            self.seen.append(1)
        if self.keeps == "buffer":
            self.total.add_(1)
        if self.keeps == "new buffer":
            self.total = self.total + 1
        late = self.count + len(self.seen) + float(self.total) > 1e6
        scores = self.pool(images.mean(1, keepdim=True)).flatten(1) * 10
        return -scores if late else scores


@pytest.mark.parametrize("keeps", ["nothing", "number", "list", "buffer", "new buffer"])
def test_a_network_that_counts_what_it_is_asked(keeps: str, tmp_path: Path) -> None:
    result = scan_of(scripted(Counting(keeps).eval(), tmp_path / "m.pt"), tmp_path)
    changed = [caveat for caveat in result.caveats if caveat.id == "memory"]
    assert len(changed) == (keeps != "nothing")
    assert (result.judgement.verdict is Verdict.INCONCLUSIVE) == (keeps != "nothing")


def test_a_file_that_does_not_run_as_it_is_can_be_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision on some processors, say; the network computes with 32 bits then, as before."""

    def refused(self: TorchScriptHandle, inputs: Tensor) -> Tensor:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(TorchScriptHandle, "as_used", refused)
    result = scan_of(scripted(Untouched("nothing").eval(), tmp_path / "m.pt"), tmp_path)
    assert result.judgement.verdict is Verdict.NO_EVIDENCE
    assert "not-as-used" in [caveat.id for caveat in result.caveats]
