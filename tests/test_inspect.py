"""`auditor inspect` says what a file is and would do, and does none of it; `best_fitting` chooses."""

from __future__ import annotations

import io
import json
import pickle
import resource
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from auditor.architectures.infer import candidates
from auditor.choosing import best_fitting
from auditor.cli import app
from auditor.errors import ModelError, UnreadableModel
from auditor.images.opening import open_images
from auditor.inspecting.file import inspect_file
from auditor.inspecting.record import Inspection
from auditor.models.load import load_model
from auditor.safety.opcodes import walk
from auditor.scores import scores_of
from tests.field_networks import Basic, FourStages, PreBasic
from tests.hostile import Shell
from tests.test_architectures import quarter_resnet, trained


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()


def small() -> nn.Module:
    return trained(lambda: FourStages(Basic, [1, 1, 1, 1], 8, 10))


def run(path: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["inspect", str(path), *options], env={"COLUMNS": "120"})
    return done.exit_code, done.output


@pytest.mark.filterwarnings("ignore")  # that torch.ao is deprecated
def test_a_network_that_pytorch_quantised_is_told_its_way(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    torch.save(quantised, tmp_path / "q.pt")
    code, said = run(tmp_path / "q.pt")
    assert code == 1
    assert "torch.jit.script(model.eval()).save" in " ".join(said.split())
    torch.jit.script(quantised.eval()).save(tmp_path / "s.pt")
    assert run(tmp_path / "s.pt")[0] == 0


@pytest.mark.filterwarnings("ignore")
def test_a_convolution_that_pytorch_quantised_has_no_way_as_torchscript(tmp_path: Path) -> None:
    quantisation = torch.ao.quantization
    network = nn.Sequential(
        quantisation.QuantStub(), nn.Conv2d(3, 4, 3), quantisation.DeQuantStub()
    )
    network.eval().qconfig = quantisation.default_qconfig  # type: ignore[assignment]
    prepared = quantisation.prepare(network)
    prepared(torch.rand(2, 3, 8, 8))
    quantised = quantisation.convert(prepared)
    torch.save(quantised, tmp_path / "q.pt")
    said = " ".join(run(tmp_path / "q.pt")[1].split())
    assert "scan the network before quantisation. " in said
    assert "jit.script" not in said
    torch.jit.script(quantised).save(tmp_path / "s.pt")
    assert run(tmp_path / "s.pt")[0] == 1  # as it is said


def test_other_networks_are_told_nothing_of_quantisation(tmp_path: Path) -> None:
    torch.save({"a": Path}, tmp_path / "p.pt")
    code, said = run(tmp_path / "p.pt")
    assert code == 1
    assert "quantis" not in said


def test_a_network_that_was_scripted_is_a_network_still(tmp_path: Path) -> None:
    """`torch.jit.script` leaves a table in every layer of what it was given."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    torch.jit.script(network)
    assert "__overloads__" in vars(network)
    torch.save(network, tmp_path / "m.pt")
    code, said = run(tmp_path / "m.pt")
    assert code == 0, said
    assert "OPENING IT RUNS NOTHING" in said


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_weights(legacy: bool, tmp_path: Path) -> None:
    content = {"net": small().state_dict(), "acc": 84.5, "name": "\x1b[31mred"}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    code, shown = run(tmp_path / "m.pth")
    assert code == 0, shown
    for words in ("Weights without a network under net", "10 classes", "acc: 84.5", "cifar:resnet10",
                  "ResNet-10, width 8", "OPENING IT RUNS NOTHING", "made for images of 32×32"):  # fmt: skip
        assert words in shown
    assert "\x1b" not in shown
    found = inspect_file(tmp_path / "m.pth").content
    assert found.tensors == len(small().state_dict())
    assert found.parameters == sum(t.numel() for t in small().state_dict().values())


def test_what_is_carried_with_its_network(tmp_path: Path) -> None:
    torch.save({"model": network()}, tmp_path / "m.pt")
    torch.jit.script(network()).save(str(tmp_path / "s.pt"))
    for name, kind in (("m.pt", "PyTorch zip"), ("s.pt", "TorchScript")):
        found = inspect_file(tmp_path / name)
        assert found.kind == kind
        assert found.content.carries_network
        assert found.scan.works
        assert found.purify.works
        assert found.content.classes == 5
        assert not found.dangerous
    assert "network of class Sequential" in inspect_file(tmp_path / "m.pt").content.what


def test_weights_of_nobody_name_the_nearest(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "m.pth")
    found = inspect_file(tmp_path / "m.pth")
    assert not found.scan.works
    assert "--arch" in found.scan.why
    state = dict(small().state_dict())
    state["layer1.0.extra"] = torch.ones(3)
    torch.save(state, tmp_path / "n.pth")
    (fit, *_) = inspect_file(tmp_path / "n.pth").content.fits
    assert fit.arch == "cifar:resnet10"
    assert not fit.exact
    assert fit.differences == ("layer1.0.extra is too much",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_is_a_finding_and_is_not_run(legacy: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(
        {"net": network().state_dict(), "extra": Shell(marker)},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    code, shown = run(tmp_path / "m.pt")
    assert code == 1
    flat = " ".join(shown.split())
    assert "UNSAFE FILE" in shown
    assert "Loading it calls posix.system('touch" in flat or "nt.system" in flat
    assert "not allowed" in shown
    assert "refuses it" in shown
    assert not marker.exists()


def _archive(path: Path, data: bytes) -> Path:
    torch.save(network().state_dict(), path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(buffer, "w") as target:
        for member in source.infolist():
            ours = member.filename.endswith("/data.pkl")
            target.writestr(member.filename, data if ours else source.read(member))
    path.write_bytes(buffer.getvalue())
    return path


STACK = b"\x80\x04"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps(Shell(Path("x")), 4), "system('touch x')"),
        (pickle.dumps(Shell(Path("x")), 0), "system('touch x')"),
        # a name out of the memo, one that a call makes, one of the extension registry
        (
            STACK + b"\x8c\x02os\x94\x8c\x06system\x94\x30\x30h\x00h\x01\x93\x8c\x01x\x85R.",
            "os.system('x')",
        ),
        (STACK + b"\x8c\x02os]\x93.", "a name that is computed"),
        (STACK + b"\x82\x01.", "extension 1"),
        (b"(S'touch y'\nios\nsystem\n.", "os.system('touch y')"),
        (b"(cos\nsystem\nS'touch z'\no.", "os.system('touch z')"),
        (b"cos\nsystem\n\xff\xff", "os.system"),
        (b"\x80\x02}q\x00(X", "cannot be followed"),
    ],
)
def test_opcodes_are_followed(data: bytes, words: str, tmp_path: Path) -> None:
    found = inspect_file(_archive(tmp_path / "m.pt", data))
    assert found.dangerous
    assert any(words in finding for finding in found.content.findings), found.content.findings


def test_every_layer_of_torchvision_is_harmless(tmp_path: Path) -> None:
    from torchvision.models import get_model

    for name in ("resnet18", "mobilenet_v3_small"):
        torch.save(get_model(name), tmp_path / "m.pt")
        assert not walk(tmp_path / "m.pt").refused
        assert not inspect_file(tmp_path / "m.pt").dangerous


def _twice(path: Path) -> None:
    torch.save(network(), path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        archive.writestr(name, pickle.dumps(Shell(Path("x")), 2))


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * (100 << 20))


@pytest.mark.parametrize(("make", "words"), [(_twice, "twice"), (_bomb, "decompression bomb")])
def test_deceptive_archives_are_findings(make: object, words: str, tmp_path: Path) -> None:
    make(tmp_path / "m.pt")  # type: ignore[operator]
    code, shown = run(tmp_path / "m.pt")
    assert code == 1
    assert words in " ".join(shown.split())
    assert "UNSAFE FILE" in shown


def test_a_claim_of_too_many_numbers_is_a_finding(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    state["layer1.0.conv1.weight"] = torch.zeros(1).expand(1 << 15, 1 << 15, 3, 3)
    torch.save(state, tmp_path / "m.pth")
    code, shown = run(tmp_path / "m.pth")
    assert code == 1
    assert "far more than the file holds" in " ".join(shown.split())


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", bytes(range(200, 256)) * 9, b"PK\x03\x04" + b"\0" * 50],
)
def test_what_is_no_model_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    code, shown = run(tmp_path / "m.pt")
    assert code == 2, shown
    with pytest.raises(UnreadableModel):
        inspect_file(tmp_path / "missing.pt")


def test_json_is_the_record(tmp_path: Path) -> None:
    import msgspec

    torch.save({"net": small().state_dict(), "note": "x\u202ey"}, tmp_path / "m.pth")
    code, shown = run(tmp_path / "m.pth", "--json")
    assert code == 0
    assert "\u202e" not in shown
    record = msgspec.convert(json.loads(shown), Inspection)
    assert record == inspect_file(tmp_path / "m.pth")
    assert record.content.fits[0].exact


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(
        network(), (torch.rand(1, 3, 8, 8),), tmp_path / "m.onnx", dynamo=False, input_names=["x"]
    )
    found = inspect_file(tmp_path / "m.onnx")
    assert found.content.input_size == (3, 8, 8)
    assert found.content.classes == 5
    assert not found.dangerous
    graph = onnx.load(str(tmp_path / "m.onnx"))
    graph.graph.node[0].domain = "evil.ops"
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "bad.onnx").write_bytes(graph.SerializeToString())
    code, shown = run(tmp_path / "bad.onnx")
    flat = " ".join(shown.split())
    assert code == 1
    assert "library of evil.ops" in flat
    assert "reads a file outside its folder: ../../etc/passwd" in flat


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.inner(x)
        return scores, scores.softmax(1)


class OfIntegers(TwoHeads):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.inner(x.float())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("net", "image", "inspected", "loaded"),
    [
        (TwoHeads(), torch.rand(1, 3, 8, 8), "2 outputs", "2 outputs"),
        (OfIntegers(), torch.ones(1, 3, 8, 8, dtype=torch.int32), "takes int32", "int32"),
    ],
    ids=["two outputs", "integers"],
)
def test_a_graph_that_cannot_be_scanned_is_not_promised(
    net: nn.Module, image: torch.Tensor, inspected: str, loaded: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    torch.onnx.export(net.eval(), (image,), path, dynamo=False, input_names=["x"])
    found = inspect_file(path)
    assert not found.dangerous
    assert not found.scan.works
    assert not found.purify.works
    assert inspected in found.scan.why
    with pytest.raises(ModelError, match=loaded):
        scores_of(load_model(path).call(image.float()), "m.onnx")


def test_one_score_is_said_where_it_shows(tmp_path: Path) -> None:
    one = trained(lambda: FourStages(Basic, [1, 1, 1, 1], 8, 1))
    torch.save(one.state_dict(), tmp_path / "w.pth")
    code, shown = run(tmp_path / "w.pth")
    assert code == 0
    assert "one number an image (two classes)" in " ".join(shown.split())
    assert inspect_file(tmp_path / "w.pth").scan.works


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_numbers_that_do_not_lie_beside_a_graph_are_missed(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "m.onnx"
    torch.onnx.export(network(), (torch.rand(1, 3, 8, 8),), path, dynamo=False)
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="n.bin",
        size_threshold=0,
    )
    assert inspect_file(path).scan.works
    (tmp_path / "n.bin").unlink()
    assert inspect_file(path).scan.why == "It needs n.bin beside it, which is not there."
    with pytest.raises(ModelError, match=r"n\.bin"):
        load_model(path)


def test_torchscript_that_writes_files(tmp_path: Path) -> None:
    torch.jit.script(network()).save(str(tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/code/x.py", 'torch.save(x, "f")')
    code, shown = run(tmp_path / "m.pt")
    assert code == 1
    assert "torch.save" in shown


def test_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(small().state_dict(), tmp_path / "m.safetensors", metadata={"author": "x"})
    found = inspect_file(tmp_path / "m.safetensors")
    assert found.content.fits[0].arch == "cifar:resnet10"
    assert any("author: x" in entry for entry in found.content.entries)


def test_large_files_take_seconds_and_no_memory(tmp_path: Path) -> None:
    state = {f"layer{n}.weight": torch.zeros(1024, 1024) for n in range(64)}
    torch.save(state, tmp_path / "m.pth")
    del state
    inspect_file(tmp_path / "m.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    found = inspect_file(tmp_path / "m.pth")
    assert time.process_time() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert found.content.parameters == 64 << 20


# ---- choosing among the networks that weights fit


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(96, 3, 8, 8, generator=generator)
    images = nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")
    return (images * 255).round().to(torch.uint8)


def undecided(network: nn.Module, head: nn.Linear) -> nn.Module:
    """The network with a head that is of many minds: images get all kinds of answers."""
    with torch.no_grad():
        head.bias -= network(pixels().float() / 255).mean(0)
    return network


def labelled(tmp_path: Path, network: nn.Module) -> Path:
    """Images that the network classifies without error, by definition."""
    with torch.inference_mode():
        truth = network(pixels().float() / 255).argmax(1)
    images = pixels().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "clean.npz", images=images, labels=truth.numpy())
    return tmp_path / "clean.npz"


@pytest.mark.parametrize("pooling", [False, True])
def test_clean_images_choose_the_network(pooling: bool, tmp_path: Path) -> None:
    def make() -> nn.Module:
        made = quarter_resnet()
        made.maxpool = nn.MaxPool2d(3, 2, 1) if pooling else nn.Identity()
        return made

    net = trained(make)
    net = undecided(net, net.fc)
    torch.save(net.state_dict(), tmp_path / "m.pth")
    handle = load_model(tmp_path / "m.pth")
    assert len(handle.alternatives) > 1
    chosen = best_fitting(handle, open_images(labelled(tmp_path, net)))
    expected = "cifar:resnet18,stem=maxpool" if pooling else "cifar:resnet18"
    assert chosen.alternatives[0] == expected
    assert set(chosen.alternatives) == set(handle.alternatives)
    assert any(f"{expected} has the highest clean accuracy" in note for note in chosen.notes)


def test_without_images_the_others_are_named(tmp_path: Path) -> None:
    net = trained(lambda: FourStages(PreBasic, [1, 1, 1, 1], 8, 10))
    torch.save(net.state_dict(), tmp_path / "m.pth")
    handle = load_model(tmp_path / "m.pth")
    assert best_fitting(handle, None) is handle
    assert any("also fit cifar:preact_resnet10,shortcut=raw" in note for note in handle.notes)


def test_images_that_tell_nothing_apart_are_said_to(tmp_path: Path) -> None:
    net = FourStages(PreBasic, [1, 1, 1, 1], 8, 10).eval()
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.copy_(torch.arange(10.0))
    torch.save(net.state_dict(), tmp_path / "m.pth")
    chosen = best_fitting(load_model(tmp_path / "m.pth"), open_images(labelled(tmp_path, net)))
    assert any("no clear choice" in note for note in chosen.notes)


def test_no_further_network_is_tried_once_the_time_is_up(tmp_path: Path) -> None:
    net = trained(lambda: FourStages(PreBasic, [1, 1, 1, 1], 8, 10))
    torch.save(net.state_dict(), tmp_path / "m.pth")
    images = open_images(labelled(tmp_path, net))
    handle = load_model(tmp_path / "m.pth")
    chosen = best_fitting(handle, images, deadline=time.monotonic())
    assert chosen.alternatives == handle.alternatives
    (said,) = (note for note in chosen.notes if "without another to compare" in note)
    assert said.endswith(f"No time was left to try {handle.alternatives[1]}.") or " and " in said


def test_a_single_candidate_is_left_alone(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "m.pth")
    handle = load_model(tmp_path / "m.pth")
    assert handle.alternatives == ("cifar:resnet10",)
    assert len(candidates(small().state_dict())) == 1
    assert best_fitting(handle, None) is handle
