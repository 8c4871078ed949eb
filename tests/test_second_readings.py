"""Files that another reader takes for another model than ours."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from auditor.errors import UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.models.load import load_model
from auditor.safety import needed
from auditor.safety.needed import external_data
from tests.test_checkpoints import CLEAN, Opcodes, classifier, named

EVIL = OrderedDict((key, torch.full_like(value, 7)) for key, value in CLEAN.items())


# ---- archives of two kinds, with two folders, or compressed


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archived(path: Path, content: dict[str, bytes], root: str = "m") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def files_of_all_kinds(folder: Path) -> dict[str, dict[str, bytes]]:
    net, images = classifier().eval(), torch.rand(2, 3, 32, 32)
    torch.save(net.state_dict(), folder / "zip.pt")
    torch.jit.save(torch.jit.trace(net, images), str(folder / "script.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (images,)), folder / "program.pt2")
    return {path.stem: members(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return files_of_all_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("program", "data.pkl"),
        ("program", "DATA.PKL"),  # torch's reader ignores the case of names
        ("program", "constants.pkl"),
        ("program", "bytecode.pkl"),
        ("script", "models/model.json"),
        ("script", "archive_format"),
        ("script", "bytecode.pkl"),
        ("script", "model.json"),
        ("zip", "constants.pkl"),
        ("zip", "code/__torch__.py"),
    ],
)
def test_an_archive_is_of_one_kind(
    own: str, other: str, kinds: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    load_model(archived(tmp_path / "one.pt", kinds[own]))
    path = archived(tmp_path / "two.pt", {**kinds[own], other: b"{}"})
    with pytest.raises(UnsafeModel, match="another kind of model"):
        load_model(path)


@pytest.mark.parametrize("own", ["zip", "script", "program"])
def test_an_archive_has_one_folder(
    own: str, kinds: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    for name in ("z/data/0", "data.pkl"):
        path = archived(tmp_path / "two.pt", kinds[own])
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"1234")
        with pytest.raises(UnsafeModel, match="more than one folder"):
            load_model(path)


@pytest.mark.parametrize("own", ["zip", "script", "program"])
def test_numbers_are_not_compressed(
    own: str, kinds: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """`torch.load(..., mmap=True)` takes the compressed bytes for the numbers."""
    path = tmp_path / "small.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in kinds[own].items():
            archive.writestr(f"m/{name}", data)
    with pytest.raises(UnsafeModel, match="compressed"):
        load_model(path)


# ---- arguments of a torch.export program


class Clamped(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.clamp(images.mean((2, 3)), min=0.4, max=0.5)


def exported(path: Path) -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Clamped(), (torch.rand(2, 3, 8, 8),)), path)
    return members(path)


def without_min(inputs: list[Any]) -> list[Any]:
    return [entry for entry in inputs if entry["name"] != "min"]


def min_by_name(inputs: list[Any]) -> list[Any]:
    return [{**entry, "kind": 2} if entry["name"] == "min" else entry for entry in inputs]


def twice(inputs: list[Any]) -> list[Any]:
    return [*inputs, inputs[-1]]


def misnamed(inputs: list[Any]) -> list[Any]:
    return [*inputs, {**inputs[-1], "name": "more", "kind": 2}]


@pytest.mark.parametrize("change", [without_min, min_by_name, twice, misnamed])
def test_arguments_are_where_torch_takes_them_from(change: Any, tmp_path: Path) -> None:
    """torch counts the positional ones: without `min`, `max` is the lower bound."""
    content = exported(tmp_path / "a.pt2")
    document = json.loads(content["models/model.json"])
    (node,) = (n for n in document["graph_module"]["graph"]["nodes"] if "clamp" in n["target"])
    assert [entry["kind"] for entry in node["inputs"]] == [1, 1, 1]
    load_model(archived(tmp_path / "same.pt2", content))
    node["inputs"] = change(node["inputs"])
    content["models/model.json"] = json.dumps(document).encode()
    with pytest.raises(UnreadableModel, match="not in their places"):
        load_model(archived(tmp_path / "b.pt2", content))


# ---- safetensors


def test_safetensors_that_are_an_old_file_of_torch_as_well(tmp_path: Path) -> None:
    """The length of the header begins like a text of pickle, which the header's end ends."""
    torch.save(EVIL, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    old += b"\0" * (-len(old) % 8)
    data = safetensors.torch.save({key: value.contiguous() for key, value in CLEAN.items()})
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for entry in header.values():
        entry["data_offsets"] = [place + len(old) for place in entry["data_offsets"]]
    header["x.num_batches_tracked"] = {
        "dtype": "U8", "shape": [len(old)], "data_offsets": [0, len(old)],
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * ((ord("V") - len(text) - 1) % 256) + b"\n"
    path = tmp_path / "both.pth"
    path.write_bytes(struct.pack("<Q", len(text)) + text + old + data[8 + length :])
    assert torch.load(path, weights_only=False).keys() == EVIL.keys()
    with pytest.raises(UnsafeModel, match="a pickle as well"):
        load_model(path)


@pytest.mark.parametrize("count", [torch.zeros(9, dtype=torch.uint8), torch.tensor(3)])
@pytest.mark.parametrize("layer", ["zz", "conv1"])
def test_only_a_count_of_a_normalisation_may_be_too_many(
    count: Tensor, layer: str, tmp_path: Path
) -> None:
    torch.save({**CLEAN, f"{layer}.num_batches_tracked": count}, tmp_path / "c.pt")
    with pytest.raises(UnsuitableModel, match="num_batches_tracked"):
        load_model(tmp_path / "c.pt")


def test_metadata_ties_only_what_the_network_ties(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in CLEAN.items()}
    name = next(key for key in state if key.endswith("running_var"))
    state.pop(name)
    tie = {"format": "pt", name: name.replace("running_var", "weight")}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", metadata=tie)
    with pytest.raises(UnsuitableModel, match="which are not one tensor"):
        load_model(tmp_path / "m.safetensors")


# ---- pickles


def test_a_factory_of_weights(tmp_path: Path) -> None:
    content: Any = defaultdict(partial(OrderedDict, list(EVIL.items())))
    content |= {"model": CLEAN, "epoch": 3}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UnsafeModel, match=r"collections\.defaultdict"):
        load_model(tmp_path / "c.pt")


@pytest.mark.parametrize("kind", [torch.FloatTensor, torch.FloatStorage, torch.nn.Parameter])
def test_weights_without_numbers(kind: Any, tmp_path: Path) -> None:
    class Raw:
        def __reduce__(self) -> Any:
            return kind, (4, 4)

    torch.save({**CLEAN, "linear.bias": Raw()}, tmp_path / "c.pt")
    with pytest.raises(UnsafeModel, match=kind.__name__):
        load_model(tmp_path / "c.pt")


def test_nested_tuples_are_not_compared(tmp_path: Path) -> None:
    def nested(place: int) -> bytes:
        made = b"K\x01\x85q" + bytes([place])
        return made + (b"h" + bytes([place]) + b"\x86q" + bytes([place])) * 60

    partial_of = named("functools", "partial") + nested(200) + b"\x85R(" + nested(201)
    Opcodes(partial_of + b")}Ntb").save(tmp_path / "c.pt")
    with pytest.raises(UnsafeModel, match="partial"):
        load_model(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["weight", "_conv_forward", "extra_repr"])
def test_attributes_that_stand_before_weights_and_methods(name: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.save(net, tmp_path / "same.pt")
    load_model(tmp_path / "same.pt")
    net[0].__dict__[name] = torch.zeros(4, 3, 3, 3) if name == "weight" else nn.Parameter
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(UnsuitableModel, match="hides methods"):
        load_model(tmp_path / "m.pt")


def test_weights_of_64_bits_are_told(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.save(net.double(), tmp_path / "net.pt")
    torch.save(classifier().double().state_dict(), tmp_path / "state.pt")
    torch.save(classifier().half().state_dict(), tmp_path / "half.pt")
    told = {p.stem: "64 bits" in " ".join(load_model(p).notes) for p in tmp_path.glob("*.pt")}
    assert told == {"net": True, "state": True, "half": False}


def test_weights_that_are_negated_when_read_are_written(tmp_path: Path) -> None:
    negated = {**CLEAN, "linear.weight": torch._neg_view(CLEAN["linear.weight"].clone())}
    torch.save(negated, tmp_path / "c.pt")
    model = load_model(tmp_path / "c.pt")
    assert torch.equal(model.tensors()["linear.weight"], -CLEAN["linear.weight"])
    model.write({"linear.weight": torch.ones_like(CLEAN["linear.weight"])}, tmp_path / "d.pt")
    assert (torch.load(tmp_path / "d.pt")["linear.weight"] == 1).all()


# ---- what would take for ever


def test_a_long_chain_of_names_in_code(kinds: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    code = b"y = a" + b".b" * 400 + b".save(1)\n"
    path = archived(tmp_path / "m.pt", {**kinds["script"], "code/x.py": code})
    with pytest.raises(UnsafeModel, match="nested too deeply"):
        load_model(path)


def test_names_of_data_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entries(names: list[str]) -> bytes:
        return b"".join(b"\x0a\x08location\x12" + bytes([len(n)]) + n.encode() for n in names)

    asked: list[str] = []
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: bool(asked.append(path.name)) or is_file(path)
    )
    for name in ("w0", "w3"):
        (tmp_path / name).touch()
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x07" + entries(["w0"] * 500))
    assert [found.name for found in external_data(path)] == ["w0"]
    assert asked == ["w0"]
    monkeypatch.setattr(needed, "MOST_NAMED", 3)
    path.write_bytes(b"\x08\x07" + entries([f"w{n}" for n in range(6)]))
    assert [found.name for found in external_data(path)] == ["w0"]


def test_code_that_asks_for_the_time(kinds: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    code = b"def f(x: int) -> int:\n  return ops.prim.TimePoint()\n"
    path = archived(tmp_path / "m.pt", {**kinds["script"], "code/x.py": code})
    with pytest.raises(UnsafeModel, match="TimePoint"):
        load_model(path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"  print(x)\n  return x\n", "prints"),
        (b"  return torch.relu_backward(x, x)\n", "_backward"),
    ],
)
def test_code_that_prints_or_calls_what_autograd_calls(
    code: bytes, said: str, kinds: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    code = b"def f(x: Tensor) -> Tensor:\n" + code
    path = archived(tmp_path / "m.pt", {**kinds["script"], "code/x.py": code})
    with pytest.raises(UnsafeModel, match=said):
        load_model(path)


class Placed(nn.Module):
    """Reads a weight by its place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(3.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.as_strided(self.bias, (3,), (1,), 0)


def test_programs_that_read_memory_are_not_run(tmp_path: Path) -> None:
    """A file may put other numbers beside a weight, which a copy of it has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(Placed(), (torch.rand(2, 3, 8, 8),))
        torch.export.save(made, tmp_path / "m.pt2")
    with pytest.raises(UnsuitableModel, match="as_strided"):
        load_model(tmp_path / "m.pt2")


def test_statistics_are_as_long_as_there_are_channels(tmp_path: Path) -> None:
    """torch's operator reads on beyond their end."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(net, (torch.rand(2, 3, 8, 8),)).run_decompositions()
        torch.export.save(made, tmp_path / "m.pt2")
    content = members(tmp_path / "m.pt2")
    assert (
        load_model(archived(tmp_path / "a.pt2", content))
        .call(torch.rand(2, 3, 8, 8))
        .isfinite()
        .all()
    )
    table = json.loads(content["data/weights/model_weights_config.json"])
    meta = table["config"]["0.running_mean"]["tensor_meta"]
    meta["sizes"] = [{"as_int": 1}]
    content["data/weights/model_weights_config.json"] = json.dumps(table).encode()
    model = load_model(archived(tmp_path / "b.pt2", content))
    with pytest.raises(ValueError, match="another size"):
        model.call(torch.rand(2, 3, 8, 8))
