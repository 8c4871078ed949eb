"""Opening files: the right ones load with equal logits, hostile and broken ones are refused."""

from __future__ import annotations

import functools
import io
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from auditor.errors import UnreadableModel, UnsafeModel, UnsuitableModel, UsageError
from auditor.inspecting.file import inspect_file
from auditor.models.load import load_model, resolve_device
from auditor.safety.allowed import allowed_global
from tests.hostile import Payload


def network(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes)
    ).eval()


ARCH = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )

def wide():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.ReLU6()
    )

def broken():
    raise ValueError("no such thing")

def nothing():
    return 3
"""


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(ARCH)
    return f"{tmp_path}/arch.py"


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def logits(path: Path, arch: str | None = None) -> Tensor:
    with torch.inference_mode():
        return load_model(path, arch=arch).call(IMAGES)


@pytest.mark.parametrize(
    "save",
    [
        lambda net, path: torch.save(net, path),
        lambda net, path: torch.save({"epoch": 3, "model": net}, path),
        lambda net, path: torch.save(nn.DataParallel(net), path),
        lambda net, path: torch.jit.script(net).save(path),
        lambda net, path: torch.jit.trace(net, IMAGES).save(path),
        lambda net, path: torch.onnx.export(
            net, (IMAGES,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
        ),
    ],
    ids=["module", "nested module", "data parallel", "script", "trace", "onnx"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_that_carry_their_network(save: object, tmp_path: Path) -> None:
    net, path = network(), tmp_path / "model.bin"
    save(net, str(path))  # type: ignore[operator]
    with torch.inference_mode():
        assert torch.allclose(logits(path), net(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"net": state, "acc": 0.9, "epoch": 7},
        lambda state: {"a": {"b": {"state_dict": state}}, "optimizer": {"lr": torch.ones(1)}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"_orig_mod.module.{key}": v for key, v in state.items()}},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    ],
    ids=["bare", "nested", "deeply nested", "prefixed", "twice prefixed", "half"],
)  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts(wrap: object, legacy: bool, tmp_path: Path, arch: str) -> None:
    net, path = network(), tmp_path / "weights.pth"
    content = wrap(net.state_dict())  # type: ignore[operator]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with torch.inference_mode():
        assert torch.allclose(logits(path, f"{arch}:build"), net(IMAGES), atol=5e-3)


def test_torchvision_names_take_the_number_of_classes_from_the_weights(tmp_path: Path) -> None:
    net = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "m.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = load_model(tmp_path / "m.pth", arch="mobilenet_v3_small").call(images)
        assert torch.allclose(found, net(images), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "efficientnet_b0",
        pytest.param("vit_b_16", marks=pytest.mark.slow),  # 330 MB
        "convnext_tiny",
        "densenet121",
    ],
)
def test_pickled_torchvision_networks_need_nothing_else(name: str, tmp_path: Path) -> None:
    net = torchvision.models.get_model(name, weights=None).eval()
    torch.save(net, tmp_path / "m.pt")
    handle = load_model(tmp_path / "m.pt")
    assert handle.parameters == sum(p.numel() for p in net.parameters())


def test_wrong_architecture_lists_what_does_not_fit(tmp_path: Path, arch: str) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UnsuitableModel) as refused:
        load_model(tmp_path / "w.pth", arch=f"{arch}:wide")
    message = str(refused.value)
    assert "0.weight is 4×3×3×3 in the file, 8×3×3×3 in the network" in message
    torch.save({**network().state_dict(), "extra": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UnsuitableModel, match=r"Not in the network \(1\): extra"):
        load_model(tmp_path / "w.pth", arch=f"{arch}:build")


def test_weights_without_network_say_what_to_pass(tmp_path: Path) -> None:
    torch.save({"net": network().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UnsuitableModel, match=r"holds only weights.*--arch"):
        load_model(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("arch_text", "words"),
    [
        ("resnet81", 'did you mean "resnet'),
        ("none.py:build", "there is no file"),
        ("{arch}", "name the function"),
        ("{arch}:biuld", 'did you mean "build"'),
        ("{arch}:broken", "no such thing"),
        ("{arch}:nothing", "returned a int"),
    ],
)
def test_architectures_that_make_no_sense(
    arch_text: str, words: str, tmp_path: Path, arch: str
) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=words):
        load_model(tmp_path / "w.pth", arch=arch_text.format(arch=arch))


def _legacy_module(path: Path) -> None:
    torch.save(network(), path, _use_new_zipfile_serialization=False)


def _truncated(path: Path) -> None:
    torch.save(network(), path)
    path.write_bytes(path.read_bytes()[:-400])


def _flipped(path: Path) -> None:
    torch.save(network(), path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)


def _twice(path: Path) -> None:
    torch.save(network(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * (100 << 20))


def _plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x08"), "not a model file"),
        (lambda path: path.write_bytes(b" \n \n"), "text file"),
        (lambda path: path.write_bytes(b"\0\x10\0\0\0\0\0\0" + b'{"a":' * 2000), "safetensors"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "Git LFS pointer",
        ),
        (lambda path: path.write_text("<html>404 Not Found</html>"), "text file"),
        (lambda path: path.write_bytes(bytes(range(200, 256)) * 9), "not a model file"),
        (_legacy_module, "old file format"),
        (_truncated, "ends early"),
        (_flipped, "damaged"),
        (_plain_zip, "not one of PyTorch"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "plain Python pickle"),
    ],
)  # fmt: skip
def test_files_that_are_no_models(make: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    make(path)  # type: ignore[operator]
    with pytest.raises(UnreadableModel, match=words):
        load_model(path)


def test_an_old_whole_network_is_told_alike_by_inspect(tmp_path: Path) -> None:
    _legacy_module(tmp_path / "model.pt")
    with pytest.raises(UnreadableModel, match="old file format"):
        inspect_file(tmp_path / "model.pt")


@pytest.mark.parametrize(("make", "words"), [(_twice, "twice"), (_bomb, "bomb")])
def test_archives_that_deceive(make: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    make(path)  # type: ignore[operator]
    with pytest.raises(UnsafeModel, match=words):
        load_model(path)


def test_a_misspelt_file_name_names_the_nearest(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(UnreadableModel, match=r'Did you mean "model.pt"'):
        load_model(tmp_path / "modle.pt")
    with pytest.raises(UnreadableModel, match=r"no such file\.$"):
        load_model(tmp_path / "other.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(
        {"net": network().state_dict(), "extra": Payload(marker)},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(UnsafeModel, match=r"exec.*Ways out"):
        load_model(tmp_path / "m.pt")
    assert not marker.exists()


class OwnNetwork(nn.Module):
    """A class that torch does not have."""


def test_a_network_of_other_classes_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(OwnNetwork(), tmp_path / "m.pt")
    with pytest.raises(UnsafeModel, match=r"It wants: tests.test_models.OwnNetwork"):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.hub.load", "torch.nn.modules.module.torch",
     "torch.fx.graph_module.GraphModule", "torchvision.models.list_models", "torch.jit.load",
     "torch.nn.modules.utils.collections.OrderedDict", "torch.nn.modules.nonexistent.X"],
)  # fmt: skip
def test_the_allow_list_refuses(name: str) -> None:
    assert allowed_global(name) is None


def test_the_allow_list_allows_layers() -> None:
    assert allowed_global("torch.nn.modules.conv.Conv2d") is nn.Conv2d
    assert allowed_global("torchvision.models.resnet.BasicBlock") is not None


def test_a_pickled_partial_becomes_inert(tmp_path: Path) -> None:
    net = network()
    net.factory = functools.partial(print, "called")
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(UnsafeModel, match=r"It wants: builtins\.print"):
        load_model(tmp_path / "m.pt")
    net.factory = functools.partial(nn.LayerNorm, eps=1e-6)
    torch.save(net, tmp_path / "m.pt")
    module = load_model(tmp_path / "m.pt").module
    assert not callable(module.factory)  # type: ignore[union-attr]


def test_torchscript_that_writes_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    net = torch.jit.script(network())
    net.save(str(tmp_path / "fine.pt"))
    marker = tmp_path / "marker"
    hostile = tmp_path / "hostile.pt"
    with zipfile.ZipFile(tmp_path / "fine.pt") as source, zipfile.ZipFile(hostile, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if "container" in member.filename and member.filename.endswith(".py"):
                code = data.decode().replace(
                    "def forward(", f'def __setstate__(self, x: Tensor) -> NoneType:\n    torch.save(x, "{marker}")\n    return None\n  def forward(', 1
                )  # fmt: skip
                data = code.encode()
                assert b"torch.save" in data
            target.writestr(member.filename, data)
    with pytest.raises(UnsafeModel, match=r"torch\.save|__setstate__"):
        load_model(hostile)
    assert not marker.exists()


def _hostile_script(tmp_path: Path, name: str, line: str) -> Path:
    """A TorchScript archive with one more line of code in a member called `name`."""
    torch.jit.script(network()).save(str(tmp_path / "fine.pt"))
    hostile = tmp_path / "hostile.pt"
    with zipfile.ZipFile(tmp_path / "fine.pt") as source, zipfile.ZipFile(hostile, "w") as target:
        root = source.namelist()[0].split("/")[0]
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr(f"{root}/{name}", line)
    return hostile


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("code/x.py", 'getattr(torch, "save")(x, "f")', "it calls getattr"),
        ("code/x.py", "getattr(torch, name)(x)", "it calls getattr"),
        ("code/x.PY", "y = 1", "odd name"),
        ("CODE/x.pY", "y = 1", "odd name"),
        ("code/x.py", "ops.evil.run(x)", "operators of 'evil'"),
        ("code/x.py", "t = torch\nt.from_file(x)", "it calls t.from_file"),
        ("code/x.py", "y = " + "-" * 100_000 + "1", "unreadable code"),
    ],
)
def test_torchscript_ways_round_are_refused(
    name: str, line: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsafeModel, match=words):
        load_model(_hostile_script(tmp_path, name, line))


def test_archive_members_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/DATA.pkl", b"")
    with pytest.raises(UnsafeModel, match="twice"):
        load_model(tmp_path / "m.pt")


def _selfish() -> dict[str, object]:
    content: dict[str, object] = {}
    content.update({f"key{number}": content for number in range(60)})
    return content


def _hollow() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4))


def _shadowing() -> nn.Module:
    net = network()
    net.__dict__["parameters"] = 3
    return net


def _without_modules() -> nn.Module:
    net = network()
    net.__dict__["_modules"] = 3
    return net


@pytest.mark.parametrize("make", [_selfish, _hollow, _shadowing, _without_modules])
def test_pickles_with_odd_insides(make: object, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "m.pt")  # type: ignore[operator]
    begin = time.monotonic()
    with pytest.raises(UnsuitableModel):
        load_model(tmp_path / "m.pt")
    assert time.monotonic() - begin < 5


def test_a_claim_of_very_many_classes_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**12, 512)}, tmp_path / "m.pt")
    with pytest.raises(UnsuitableModel, match="1,000,000,000,000 rows"):
        load_model(tmp_path / "m.pt", arch="resnet18")


def test_onnx_external_data_stays_in_its_folder(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    inner = tmp_path / "inner"
    inner.mkdir()
    for location, words in (
        ("../secret", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("gone.bin", "it is not there"),
    ):
        tensor = onnx.TensorProto(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [tensor],
        )
        (inner / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        with pytest.raises((UnsafeModel, UnreadableModel), match=words):
            load_model(inner / "m.onnx")


def test_onnxruntime_telemetry_is_off() -> None:
    import os

    import auditor.models.onnx  # noqa: F401

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for text in ("gpu", "cuda:x", "meta"):
        with pytest.raises(UsageError, match="--device"):
            resolve_device(text)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cuda"):
            resolve_device("cuda")


def test_loading_keeps_to_the_file(tmp_path: Path) -> None:
    """The suspect's bytes are only read."""
    torch.save(network(), tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    handle = load_model(io_path := tmp_path / "m.pt")
    assert io_path.read_bytes() == before
    assert not any(p.requires_grad for p in handle.module.parameters())  # type: ignore[union-attr]
    assert isinstance(io.BytesIO(before), io.BytesIO)
