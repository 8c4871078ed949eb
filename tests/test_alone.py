"""Networks that tell single images from batches, or programs that record gradients, or remember."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor.images import open_images
from auditor.inputs import GivenInput
from auditor.models.load import load_model
from auditor.probes import choose
from auditor.results import ScanResult, Verdict
from auditor.scan import Options, scan
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
    assert "gradients" in result.judgement.headline


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Counting(keeps).eval()), str(tmp_path / "m.pt"))
    images = open_images(written(tmp_path / "images.npz", *drawings(200)))
    options = Options(given=PLAIN, searches=(), batch_size=64)
    result = scan(load_model(tmp_path / "m.pt"), choose("patch.white-*").probes, images, options)
    changed = [caveat for caveat in result.caveats if caveat.id == "memory"]
    assert len(changed) == (keeps != "nothing")
    assert (result.judgement.verdict is Verdict.INCONCLUSIVE) == (keeps != "nothing")
