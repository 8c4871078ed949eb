"""One law for every format: masked, folded, written and opened again, a file is a drop-in.

What a round trip checks is in `bench/formats.py`, whose readers are the formats' own.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from auditor.changing import staged
from auditor.classifier import Classifier
from auditor.errors import OutputError
from auditor.inputs import blank_spec
from auditor.masks import effective, folded
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.models.onnx import OnnxHandle
from bench.formats import FORMATS, Row, drawn_masks, made, round_trip, trained_like

pytestmark = pytest.mark.filterwarnings("ignore")

ARCH = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=4, bias=False), nn.BatchNorm2d(32), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""
names: dict[str, object] = {}
exec(ARCH, names)  # noqa: S102 - ours


def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network: nn.Module = names["build"]()  # type: ignore[operator]
    return trained_like(network, torch.rand(16, 3, 16, 16)), torch.rand(3, 3, 16, 16)


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(ARCH)
    return f"{tmp_path / 'arch.py'}:build"


def done(
    title: str, network: nn.Module, images: Tensor, folder: Path, arch: str | None = None
) -> Row:
    folder.mkdir()
    row = round_trip(title, network, images, folder, arch)
    assert row.problems == []
    assert row.sites
    return row


@pytest.mark.parametrize("title", [title for title in FORMATS if title != "ONNX dynamo"])
def test_every_format(title: str, tmp_path: Path, arch: str) -> None:
    weights = title in ("state dict", "nested checkpoint", "state dict, legacy", "safetensors")
    row = done(title, *small(), tmp_path / "files", arch if weights else None)
    assert row.outside == ("saved anew" if title == "state dict, legacy" else "equal")
    assert row.copies == 0


@pytest.mark.slow
@pytest.mark.parametrize("title", FORMATS)
def test_a_network_of_torchvision(title: str, tmp_path: Path) -> None:
    done(title, *made("resnet18"), tmp_path / "files")


def stage(path: Path, arch: str | None = None) -> float:
    """Fold masks, write, and let the written file be compared, as a purification does."""
    handle = load_model(path, arch=arch)
    sites = handle.mask_sites()
    changed = folded(handle.tensors(), sites, drawn_masks(sites))
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    classifier = Classifier(handle, blank_spec((3, 16, 16)))
    output = path.with_name(f"out-{path.name}")
    with staged(classifier, changed, images, output, made="changed", arch=arch) as file:
        return file.facts.largest_difference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("script", [False, True], ids=["weights", "script"])
def test_files_of_other_precisions_are_kept(
    dtype: torch.dtype, script: bool, tmp_path: Path, arch: str
) -> None:
    network, images = small()
    network.to(dtype)
    if script:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, images.to(dtype), check_trace=False)
        torch.jit.save(traced, str(tmp_path / "m.pt"))
    else:
        torch.save(network.state_dict(), tmp_path / "m.pt")
    assert stage(tmp_path / "m.pt", None if script else arch) < 1e-5


def test_int8_files_are_kept_although_their_last_step_is_a_matter_of_luck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxHandle._by_session

    def rounded_otherwise(self: OnnxHandle, inputs: Tensor) -> list[Tensor]:
        return [scores * 1.01 for scores in real(self, inputs)]

    for title in ("ONNX int8", "ONNX legacy exporter"):
        FORMATS[title].save(*small(), tmp_path / f"{title}.onnx")
    monkeypatch.setattr(OnnxHandle, "_by_session", rounded_otherwise)
    assert stage(tmp_path / "ONNX int8.onnx") > 0
    opened = load_model(tmp_path / "ONNX legacy exporter.onnx")
    assert not opened.differentiable


@pytest.mark.slow  # `test_every_format` has half precision
def test_a_transformer_in_half_precision_does_not_end_the_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64,
        num_classes=10,
    )  # fmt: skip
    images = torch.rand(2, 3, 16, 16)
    path = tmp_path / "m.onnx"
    FORMATS["ONNX fp16"].save(trained_like(network, images), images, path)
    code = (
        "import sys, torch; from pathlib import Path; from auditor.models.load import load_model; "
        "print(load_model(Path(sys.argv[1])).call(torch.rand(2, 3, 16, 16)).shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torch.Size([2, 10])\n"


def test_half_precision_onnx_is_computed_as_it_will_be_stored(tmp_path: Path) -> None:
    """What a purifier sees is what the file computes, and gradients pass the rounding."""
    network, images = small()
    path, written = tmp_path / "m.onnx", tmp_path / "out.onnx"
    FORMATS["ONNX fp16"].save(network, images, path)
    handle = load_model(path)
    sites = handle.mask_sites()
    draw = torch.Generator().manual_seed(0)
    masks = {site.layer: torch.rand(site.channels, generator=draw) for site in sites}
    for mask in masks.values():
        mask.requires_grad_()
    changed = effective(handle.tensors(), sites, masks)
    expected = handle.call(images, changed)
    handle.write({name: tensor.detach() for name, tensor in changed.items()}, written)
    after = load_model(written)
    found = after.call(images, dict(after.weights()))
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, handle.call(images, dict(handle.weights())), atol=1e-2)
    slopes = torch.autograd.grad(expected.sum(), list(masks.values()))
    assert all(float(slope.abs().sum()) > 0 for slope in slopes)


def test_a_file_with_other_numbers_is_not_kept(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(small()[0].state_dict(), tmp_path / "m.pt")
    handle = load_model(tmp_path / "m.pt", arch=arch)
    real = type(handle).write

    def wrong(self: ModelHandle, changed: dict[str, Tensor], path: Path) -> None:
        real(self, {name: values * 1.05 for name, values in changed.items()}, path)

    monkeypatch.setattr(type(handle), "write", wrong)
    with pytest.raises(OutputError, match="does not compute what was changed"):
        stage(tmp_path / "m.pt", arch)


def test_the_bench_tells_wrong_files_apart(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle_type = type(load_model(_saved(tmp_path / "m.pt"), arch=arch))
    real = handle_type.write

    def wrong(self: ModelHandle, changed: dict[str, Tensor], path: Path) -> None:
        real(self, changed | {"8.bias": self.tensors()["8.bias"] + 1}, path)

    monkeypatch.setattr(handle_type, "write", wrong)
    (tmp_path / "files").mkdir()
    problems = " ".join(round_trip("state dict", *small(), tmp_path / "files", arch).problems)
    assert "folded: logits differ" in problems
    assert "other tensors than the masked ones" in problems


def _saved(path: Path) -> Path:
    torch.save(small()[0].state_dict(), path)
    return path
