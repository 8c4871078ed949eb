"""Networks that tell images that come alone from batches, or programs that record gradients."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from auditor.images import open_images
from auditor.inputs import GivenInput
from auditor.probes import choose
from auditor.results import ScanResult, Verdict
from auditor.scan import Options, scan
from tests.planted import Planted, drawings, handle, written


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
    options = Options(
        given=GivenInput(normalize="none", channels=3, height=32, width=32),
        searches=(),
        batch_size=batch_size,
    )
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
