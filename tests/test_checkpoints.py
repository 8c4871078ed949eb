"""Checkpoints as training scripts write them: the weights among other things, and never alone."""

from __future__ import annotations

import argparse
import datetime
import decimal
import math
import sys
import time
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torchvision
from numpy._core.multiarray import scalar
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from auditor.classifier import Classifier
from auditor.cli import app
from auditor.errors import OutputError, UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.inputs import blank_spec
from auditor.inspecting.file import inspect_file
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.safety import opcodes
from auditor.safety.allowed import Inert
from auditor.safety.static import load_pickle
from tests.field_networks import Basic, FourStages
from tests.test_architectures import trained

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return trained(lambda: FourStages(Basic, [1, 1, 1, 1], 8, 10))


def generator() -> nn.Module:
    """What makes triggers: more tensors than the classifier has, and no classifier."""
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(60)))


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    made = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(IMAGES).sum().backward()
    made.step()
    return made


def backdoorbench(net: nn.Module) -> dict[str, Any]:
    """`attack_result.pt`, whose images are kept as paths and arrays."""
    return {
        "model_name": "resnet18",
        "num_classes": 10,
        "model": net.state_dict(),
        "img_size": (32, 32, 3),
        "bd_train": {
            "bd_data_container": {
                "data_dict": {3: {"path": "3.png", "other_info": (np.int64(3), 0)}}
            },
            "poison_indicator": np.zeros(9, dtype=np.int64),
        },
        "bd_test": None,
    }


def input_aware(net: nn.Module) -> dict[str, Any]:
    """A classifier and two generators, which have more tensors than it."""
    return {
        "netG": generator().state_dict(),
        "netM": generator().state_dict(),
        "netC": net.state_dict(),
        "optimizerC": optimizer(net).state_dict(),
        "best_acc_clean": np.float64(93.5),
        "opt": argparse.Namespace(dataset="cifar10", lr=0.1),
    }


def whole_objects(net: nn.Module) -> dict[str, Any]:
    made = optimizer(net)
    return {
        "state_dict": net.state_dict(),
        "optimizer": made,
        "scheduler": torch.optim.lr_scheduler.StepLR(made, 3),
        "history": defaultdict(list, {"acc": [np.float32(0.5), 0.7]}),
        "when": [datetime.datetime(2026, 1, 2), datetime.timedelta(3)],
        "seen": (frozenset([1]), range(3), slice(1, 2), Counter("ab"), {4}),
        "path": Path("runs/1"),
        "cost": decimal.Decimal("0.1"),
        "recent": deque([0.5, 0.6], maxlen=9),
        "dates": np.array(["2026-01-02"], dtype="datetime64[D]"),
        "names": np.array(["a", "bc"]),
        "torch": torch.torch_version.TorchVersion("2.9.0"),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "kind": np.float32,
        "empty": [np.zeros((0, 3)), b"", np.str_("")],
        "orders": [
            np.asfortranarray(np.ones((2, 3))),
            np.ones(2, ">f8"),
            np.array(3.0),
            np.bool_(True),
        ],
        "step": partial(int, base=2),
    }


@pytest.mark.parametrize("make", [backdoorbench, input_aware, whole_objects])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_network_is_found_and_nothing_else_is_built(
    make: Any, legacy: bool, tmp_path: Path
) -> None:
    net, path = classifier(), tmp_path / "checkpoint.pt"
    content = make(net)
    key = next(k for k, v in content.items() if isinstance(v, OrderedDict) and "linear.bias" in v)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    handle = load_model(path)
    with torch.inference_mode():
        assert torch.allclose(handle.call(IMAGES), net.eval()(IMAGES), atol=1e-5)
    assert f'The weights were found under "{key}".' in handle.notes
    found = inspect_file(path)
    assert not found.dangerous
    assert found.content.what == f"Weights without a network under {key}."
    assert found.content.fits[0].exact
    shown = CliRunner().invoke(app, ["inspect", str(path)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert "OPENING IT RUNS NOTHING" in shown.output
    assert "Inert" not in shown.output


class AttributeDict(dict[str, Any]):
    """As Lightning keeps the settings of a run."""


def test_checkpoints_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lightning_fabric.utilities.data")
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    for name in ("lightning_fabric", "lightning_fabric.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(AttributeDict, "__module__", module.__name__)
    state = {f"model.{key}": value for key, value in classifier().state_dict().items()}
    settings = AttributeDict(lr=0.1, milestones=[3, 4])
    callbacks = {"EarlyStopping{'monitor': 'val'}": {"best_score": torch.tensor(0.9)}}
    content = {"state_dict": state, "hyper_parameters": settings, "callbacks": callbacks}
    torch.save(content, tmp_path / "last.ckpt")
    assert 'The weights were found under "state_dict".' in load_model(tmp_path / "last.ckpt").notes
    read = load_pickle(tmp_path / "last.ckpt")["hyper_parameters"]
    assert type(read) is dict
    assert read == settings


def test_values_are_not_built(tmp_path: Path) -> None:
    torch.save(
        {"w": torch.ones(2), "acc": np.float64(3), "d": defaultdict(int, {"a": 1})},
        tmp_path / "c.pt",
    )
    content = load_pickle(tmp_path / "c.pt")
    assert type(content["acc"]) is Inert
    assert not content["acc"].holds_tensors
    assert content["d"] == {"a": 1}
    assert type(content["d"]) is dict


def noted(handle: ModelHandle) -> list[str]:
    """All that is noted of a file."""
    return [*handle.notes, *handle.rivals]


def test_other_weights_are_named(tmp_path: Path) -> None:
    """A reviewer must know that the file holds a second network, which may be the one in use."""
    torch.save(input_aware(classifier()), tmp_path / "c.pt")
    notes = noted(load_model(tmp_path / "c.pt"))
    assert any('not examined: "netG", "netM".' in note for note in notes)
    torch.save(
        {"model": classifier().state_dict(), "ema": classifier(1).state_dict()}, tmp_path / "e.pt"
    )
    handle = load_model(tmp_path / "e.pt")
    assert any('not examined: "ema".' in note for note in handle.rivals)
    scaled = {
        "state": {"exp_avg": torch.ones(5000)},
        "param_groups": [],
        "loss_scale": torch.ones(1),
    }
    torch.save({"model": classifier().state_dict(), "optimizer": scaled}, tmp_path / "s.pt")
    assert load_model(tmp_path / "s.pt").rivals == []
    assert 'The weights were found under "model".' in handle.notes
    torch.save(
        {"model": classifier().state_dict(), "optimizer": {"lr": torch.ones(1)}}, tmp_path / "o.pt"
    )
    assert not any("not examined" in note for note in noted(load_model(tmp_path / "o.pt")))


def test_the_named_network_is_looked_for_among_all(tmp_path: Path) -> None:
    torch.save(input_aware(classifier()), tmp_path / "c.pt")
    handle = load_model(tmp_path / "c.pt", arch="cifar:resnet10")
    assert 'The weights were found under "netC".' in handle.notes
    with pytest.raises(UnsuitableModel, match="120 weights in the file"):
        load_model(tmp_path / "c.pt", arch="vgg11")  # what is said is said of the largest
    torch.save({"netG": generator().state_dict()}, tmp_path / "g.pt")
    with pytest.raises(UnsuitableModel, match='under "netG"'):
        load_model(tmp_path / "g.pt")


@pytest.mark.parametrize("make", [backdoorbench, input_aware, whole_objects])
def test_changed_weights_go_back_to_where_they_were(make: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "c.pt", tmp_path / "out.pt"
    torch.save(make(classifier()), path)
    handle = load_model(path)
    name, old = next((n, t) for n, t in handle.tensors().items() if n.endswith("linear.weight"))
    handle.write({name: old + 1}, out)
    torch.testing.assert_close(load_model(out).tensors()[name], old + 1)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out) as after:
        pickled = next(n for n in before.namelist() if n.endswith("data.pkl"))
        assert before.read(pickled) == after.read(pickled)
        changed = [n for n in before.namelist() if before.read(n) != after.read(n)]
    assert len(changed) == 1
    again = torch.load(out, weights_only=False)  # ours, and what its author would do
    assert list(again) == list(torch.load(path, weights_only=False))
    if make is backdoorbench:
        assert again["bd_train"]["poison_indicator"].shape == (9,)


def test_what_is_not_built_cannot_be_saved_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(backdoorbench(classifier()), path, _use_new_zipfile_serialization=False)
    handle = load_model(path)
    name, old = next((n, t) for n, t in handle.tensors().items() if n.endswith("linear.weight"))
    with pytest.raises(OutputError, match="holds a value beside its weights"):
        handle.write({name: old + 1}, tmp_path / "out.pt")


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "hidden",
    [
        Calls(np.load, "x.npy"),
        Calls(np.fromfile, "x"),
        Calls(np.memmap, "x"),
        Calls(torch.optim.Optimizer.__init__, 1),
        Calls(torch.optim.lr_scheduler.warnings.warn, "x"),
        Calls(getattr, 1, "real"),
        Calls(map, str, [1]),
    ],
    ids=lambda hidden: getattr(hidden.call[0], "__name__", "map"),
)
def test_what_does_something_stays_refused(hidden: Calls, tmp_path: Path) -> None:
    """Names of the same modules, in the places of data."""
    torch.save({"w": classifier().state_dict(), "acc": hidden}, tmp_path / "c.pt")
    with pytest.raises(UnsafeModel):
        load_model(tmp_path / "c.pt")
    assert inspect_file(tmp_path / "c.pt").dangerous


def test_calls_of_what_is_allowed_do_nothing(tmp_path: Path) -> None:
    """A range of a billion is not counted, an odd time not told."""
    odd = [Calls(range, 10**12), Calls(frozenset, [3]), Calls(datetime.timedelta, 10**6)]
    torch.save({"w": classifier().state_dict(), "acc": odd}, tmp_path / "c.pt")
    content = load_pickle(tmp_path / "c.pt")
    assert [type(value) for value in content["acc"]] == [Inert] * 3
    assert isinstance(content["w"]["linear.bias"], Tensor)


# ---- what a review found: entries that auditor does not see, and everybody else does


class Key:
    """Pickled as a call, it is text for everybody who makes it."""

    def __init__(self, text: str, how: str) -> None:
        self.text, self.how = text, how

    def __reduce__(self) -> Any:
        return (str, (self.text,)) if self.how == "str" else np.str_(self.text).__reduce__()


CLEAN, BAD = classifier(0).state_dict(), classifier(1).state_dict()


def refused(content: Any, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises((UnsafeModel, UnsuitableModel, UnreadableModel)) as error:
        load_model(path)
    shown = CliRunner().invoke(app, ["inspect", str(path)], env={"COLUMNS": "200"})
    assert not isinstance(shown.exception, Exception) or shown.exit_code in (1, 2), shown.output
    assert "with its weights" not in shown.output
    assert "fits  what" not in shown.output
    return str(error.value)


@pytest.mark.parametrize("how", ["str", "numpy"])
def test_keys_that_are_made_hide_no_weights(how: str, tmp_path: Path) -> None:
    twice = OrderedDict(CLEAN)
    twice.update({Key(name, how): value for name, value in BAD.items()})
    refused({"net": twice}, tmp_path / "a.pt")
    refused({"net": CLEAN, Key("net", how): BAD}, tmp_path / "b.pt")
    refused({"net": CLEAN, "deep": {Key("x", how): [{"y": BAD}]}}, tmp_path / "c.pt")
    if how == "numpy":  # beside the weights it is a record
        torch.save({"net": CLEAN, "seen": {Key("x", how): 3, np.int64(3): 4}}, tmp_path / "d.pt")
        assert noted(load_model(tmp_path / "d.pt"))


@pytest.mark.parametrize("key", [np.int64(3), float("nan"), torch.ones(3), (1, 2)], ids=str)
def test_keys_that_are_not_plain(key: Any, tmp_path: Path) -> None:
    assert "not all text" in refused({key: CLEAN, "x": 1}, tmp_path / "k.pt")


def nested(depth: int) -> Any:
    key: Any = ()
    for _ in range(depth):
        key = (key,)
    return key


def test_a_key_that_is_nested_is_no_traceback(tmp_path: Path) -> None:
    torch.save({"w": CLEAN, "x": {nested(300): 1}}, tmp_path / "k.pt")
    assert noted(load_model(tmp_path / "k.pt"))
    refused({nested(300): CLEAN}, tmp_path / "n.pt")


@pytest.mark.parametrize(
    "hidden",
    [
        Calls(dict, BAD),
        Calls(defaultdict, None, BAD),
        Calls(deque, [BAD]),
        Calls(list, [BAD]),
        Calls(str, "x"),
    ],
    ids=["dict", "defaultdict", "deque", "list", "str"],
)
def test_weights_among_the_arguments_of_a_call(hidden: Any, tmp_path: Path) -> None:
    refused({"net": hidden, "zz": CLEAN}, tmp_path / "c.pt")


def test_tensors_in_what_is_not_built_are_said(tmp_path: Path) -> None:
    few = argparse.Namespace(weights=torch.ones(3))
    torch.save({"net": CLEAN, "args": few}, tmp_path / "c.pt")
    assert any("keeps tensors in values" in note for note in noted(load_model(tmp_path / "c.pt")))
    assert "args: not read; holds tensors" in inspect_file(tmp_path / "c.pt").content.entries
    torch.save({"net": CLEAN, "args": argparse.Namespace(net=BAD)}, tmp_path / "d.pt")
    assert any("tensors in other places" in note for note in noted(load_model(tmp_path / "d.pt")))
    torch.save(whole_objects(classifier()), tmp_path / "o.pt")  # optimizers hold what they moved
    notes = noted(load_model(tmp_path / "o.pt"))
    assert not any("keeps tensors" in note or "keeps " in note for note in notes), notes


class Dtype:
    def __init__(self, code: str, flags: int, size: int = -1, alignment: int = -1) -> None:
        self.code, self.numbers = code, (size, alignment, flags)

    def __reduce__(self) -> Any:
        return np.dtype, (self.code, False, True), (3, "<", None, None, None, *self.numbers)


@pytest.mark.parametrize(
    "forged",
    [
        Calls(scalar, Dtype("O8", 0), b"AAAAAAAA"),
        Calls(scalar, Dtype("f8", 63), b"AAAAAAAA"),
        Calls(scalar, Dtype("f8", 1), b"AAAAAAAA"),
        Calls(scalar, Dtype("U8", 8, -(2**31), 4), b"abc"),
        Calls(scalar, Dtype("S8", 0, 2**20, 1), b"abc"),
        Calls(scalar, Dtype("f8", 0, 2**20, 1), b"abc"),
        Calls(np.ndarray, (1,), Dtype("O8", 63), b"AAAAAAAA"),
        Calls(np.dtype, [("a", "O8"), ("b", "i8")]),
        Calls(np.dtype, "O8", False, True, 3),
    ],
    ids=["object", "number", "counted", "text", "bytes", "wide", "array", "structured", "odd"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_forged_arrays_are_findings(forged: Any, legacy: bool, tmp_path: Path) -> None:
    """With flags of its own, NumPy takes bytes of the file for addresses: plain torch.load crashes."""
    if forged.call[1][1:] == (False, True, 3):
        forged = Calls(scalar, Calls(np.dtype, "O8,i4"), b"A")
    torch.save(
        {"net": CLEAN, "acc": forged}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(UnsafeModel, match="numpy"):
        load_model(tmp_path / "c.pt")
    assert inspect_file(tmp_path / "c.pt").dangerous


def test_values_that_a_network_computes_with(tmp_path: Path) -> None:
    """What is not built is true, and would make another network of it."""
    net = torchvision.models.resnet18(num_classes=4)
    net.bn1.eps = np.float64(1e-5)
    assert "does not build" in refused(net, tmp_path / "m.pt")
    net.bn1.eps = 1e-5
    net.flags = {"deep": [np.bool_(False)]}
    assert "does not build" in refused(net, tmp_path / "n.pt")


class State:
    """Made by a call, and then given attributes."""

    def __init__(self, function: Any, arguments: Any, state: Any, entries: Any = ()) -> None:
        self.parts = function, arguments, state, None, iter(entries)

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("attribute", ["items", "keys", "values", "get"])
def test_dictionaries_with_attributes(attribute: str, tmp_path: Path) -> None:
    """`load_state_dict` copies the entries; who asks the attribute sees others."""
    odd = State(OrderedDict, (), {attribute: set}, BAD.items())
    refused({"net": odd, "zz": CLEAN}, tmp_path / "a.pt")
    refused(odd, tmp_path / "b.pt")
    refused(State(OrderedDict, (), {attribute: 3}, BAD.items()), tmp_path / "c.pt")
    net = torchvision.models.resnet18(num_classes=4)
    net.fc.__dict__["_buffers"] = State(OrderedDict, (), {attribute: set})
    refused(net, tmp_path / "d.pt")


class Opcodes:
    """Marks the place of opcodes that pickle does not write."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def save(self, path: Path, *, legacy: bool = False) -> None:
        mark = "the place of the opcodes"
        torch.save({"net": CLEAN, "x": mark}, path, _use_new_zipfile_serialization=not legacy)
        spelled = b"X" + len(mark).to_bytes(4, "little") + mark.encode()
        if legacy:
            data = path.read_bytes()
            assert spelled in data
            path.write_bytes(data.replace(spelled, self.data))
            return
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(
                    name, data.replace(spelled, self.data) if name.endswith(".pkl") else data
                )


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


ARRAY = (
    named("numpy._core.multiarray", "_reconstruct")
    + named("numpy", "ndarray")
    + b"K\x00\x85"
    + text("b")
    + b"\x87R"
)
OBJECTS = named("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
IDENTITY, SEQUENTIAL = (
    named("torch.nn.modules." + module, kind)
    for module, kind in (("linear", "Identity"), ("container", "Sequential"))
)
SETSTATE = b"}" + text("__setstate__") + SEQUENTIAL + b"sb"
TWICE = {
    "namespace": named("argparse", "Namespace") + b")\x81" + SETSTATE + b"K\x08b",
    "ordered": named("collections", "OrderedDict") + b")R" + SETSTATE + b"}b",
    "layer": IDENTITY + b")\x81" + SETSTATE + b"}b",
    "partial": named("functools", "partial") + IDENTITY + b"\x85R" + SETSTATE,
    "other function": named("functools", "partial") + IDENTITY + b"\x85R(" + SEQUENTIAL + b")}Ntb",
    "deep": b"((((("
    + named("collections", "OrderedDict")
    + b")R}"
    + text("items")
    + SEQUENTIAL
    + b"sbttttt",
    "more places than objects": ARRAY + b"(K\x01K\x05\x85" + OBJECTS + b"\x89](NNetb",
    "objects without a list": ARRAY + b"(K\x01K\x05\x85" + OBJECTS + b"\x89" + text("AAAA") + b"tb",
    "object number": named("numpy._core.multiarray", "scalar") + OBJECTS + b"K\x03\x86R",
    "a state of a list": b"]K\x01b",
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_states_that_pickle_does_not_write(name: str, legacy: bool, tmp_path: Path) -> None:
    """Python looks for `__setstate__` in the attributes, too; NumPy trusts what it is told."""
    Opcodes(TWICE[name]).save(tmp_path / "c.pt", legacy=legacy)
    with pytest.raises(UnsafeModel, match="loading it calls"):
        load_model(tmp_path / "c.pt")
    assert inspect_file(tmp_path / "c.pt").dangerous


def test_what_is_too_long_to_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "MAX_OPCODES", 10_000)
    Opcodes(b"(" + b"N" * 20_000 + b"t").save(tmp_path / "c.pt", legacy=True)
    with pytest.raises(UnreadableModel, match="too long to be checked"):
        load_model(tmp_path / "c.pt")
    Opcodes(b"(" + b"N" * 20_000 + b"t").save(tmp_path / "z.pt")
    with pytest.raises(UnsafeModel, match="followed to the end"):
        load_model(tmp_path / "z.pt")


def test_a_deque_that_drops_what_it_is_given(tmp_path: Path) -> None:
    """The first of two is gone for everybody else."""
    torch.save({"ema": deque([CLEAN], maxlen=3), "acc": deque([1, 2], maxlen=2)}, tmp_path / "a.pt")
    assert 'The weights were found under "ema.0".' in load_model(tmp_path / "a.pt").notes
    dropping = named("collections", "deque") + b")K\x01\x86R(K\x01K\x02e"
    Opcodes(dropping).save(tmp_path / "b.pt")
    with pytest.raises(UnsafeModel, match="deque"):
        load_model(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)]),
        torch.quantize_per_channel(
            torch.rand(10, 64), torch.ones(10), torch.zeros(10), 0, torch.qint8
        ),
    ],
    ids=["nested", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_among_the_weights(tensor: Tensor, tmp_path: Path) -> None:
    refused_or_read = tmp_path / "c.pt"
    torch.save({**CLEAN, "linear.weight": tensor}, refused_or_read)
    with pytest.raises((UnsuitableModel, UnreadableModel, UnsafeModel)):
        load_model(refused_or_read)
    shown = CliRunner().invoke(app, ["inspect", str(refused_or_read)])
    assert "Traceback" not in shown.output
    assert shown.exception is None or isinstance(shown.exception, SystemExit)


def test_layers_that_ask_for_their_version(tmp_path: Path) -> None:
    net = torchvision.models.mnasnet0_5(num_classes=4)
    torch.save(net.state_dict(), tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", arch="mnasnet0_5").tensors()


@pytest.mark.parametrize(
    "made",
    [
        Calls(torch.optim.SGD, [CLEAN["linear.bias"]], 0.1),
        Calls(torch.optim.lr_scheduler.ConstantLR, 1),
        Calls(nn.Linear, 3, 4),
        Calls(nn.Identity),
        Calls(partial, len, [1]),
        Calls(partial(partial, len)),
        Calls(torchvision.ops.misc.Conv2dNormActivation, 3, 4),
        State(torchvision.transforms.InterpolationMode, ("bilinear",), {"_value_": "nearest"}),
    ],
    ids=[
        "optimizer",
        "scheduler",
        "layer",
        "layer of nothing",
        "partial",
        "own",
        "block",
        "member",
    ],
)
def test_only_what_pickle_writes_is_called(made: Any, tmp_path: Path) -> None:
    """A constructor may move the weights, run what it is given, or change the user's program."""
    torch.save({"net": CLEAN, "extra": made}, tmp_path / "c.pt")
    with pytest.raises(UnsafeModel):
        load_model(tmp_path / "c.pt")
    assert inspect_file(tmp_path / "c.pt").dangerous


def test_layers_that_no_network_names(tmp_path: Path) -> None:
    """Not among its modules, a layer is not set to inference, and its values are not looked at."""
    net = torchvision.models.resnet18(num_classes=4)
    net.__dict__["bn1"] = net._modules.pop("bn1")
    assert "hides" in refused(net, tmp_path / "m.pt")


@pytest.mark.parametrize(
    "hidden",
    [
        list(BAD.values()),
        dict(enumerate(BAD.values())),
        list(BAD.items()),
        {"a": {"b": {"c": {"d": {"e": BAD}}}}},
        torch.cat([value.flatten().float() for value in BAD.values()]),
        [torchvision.models.resnet18(num_classes=4)],
        {"net": torchvision.models.resnet18(num_classes=4)},
    ],
    ids=["list", "numbered", "pairs", "deep", "flat", "network in a list", "network deeper"],
)
def test_weights_in_other_places_are_said(hidden: Any, tmp_path: Path) -> None:
    torch.save({"x": hidden, "zz": CLEAN}, tmp_path / "c.pt")
    notes = noted(load_model(tmp_path / "c.pt"))
    assert any("tensors in other places" in note for note in notes), notes
    torch.save({**CLEAN, "more": {"x": hidden}}, tmp_path / "d.pt")
    assert any("tensors in other places" in note for note in noted(load_model(tmp_path / "d.pt")))


def test_many_values_that_share_one_take_no_longer(tmp_path: Path) -> None:
    """Each is asked for tensors, and the list in all of them is long."""
    shared = [0.5] * 100_000
    many = [argparse.Namespace(a=shared) for _ in range(400)]
    torch.save({"net": CLEAN, "runs": many}, tmp_path / "c.pt")
    begin = time.process_time()
    load_model(tmp_path / "c.pt")
    assert time.process_time() - begin < 10


def test_a_network_beside_tensors_is_found(tmp_path: Path) -> None:
    net = torchvision.models.resnet18(num_classes=4)
    made = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(IMAGES).sum().backward()
    made.step()
    content = {"best": torch.tensor(0.9), "loss": nn.CrossEntropyLoss(), "model": net}
    torch.save({**content, "optimizer": made.state_dict()}, tmp_path / "m.pt")
    handle = load_model(tmp_path / "m.pt")
    assert handle.notes[0] == 'The network was found under "model".'
    assert not any("not examined" in note for note in noted(handle))
    assert inspect_file(tmp_path / "m.pt").content.carries_network
    torch.save({**content, "zz": CLEAN}, tmp_path / "z.pt")
    assert any('not examined: "zz"' in note for note in noted(load_model(tmp_path / "z.pt")))


def test_other_weights_are_named_by_their_numbers_too(tmp_path: Path) -> None:
    few = torchvision.models.alexnet(num_classes=3).state_dict()
    many = torchvision.models.mobilenet_v3_small(num_classes=3).state_dict()
    torch.save({"net": few, "other": many, "list": [dict(few), (1, dict(many))]}, tmp_path / "r.pt")
    handle = load_model(tmp_path / "r.pt")
    assert 'The weights were found under "other".' in handle.notes
    assert any('not examined: "list.1.1", "net", "list.0".' in note for note in noted(handle))


def test_inspect_names_what_is_opened(tmp_path: Path) -> None:
    """Of those that fit the most; a number that no layer has does not make others fit."""
    count = next(key for key in CLEAN if key.endswith("num_batches_tracked"))
    fewer = {key: value for key, value in BAD.items() if key != count}
    more = {**BAD, "zz.num_batches_tracked": torch.tensor(3)}
    for content, name in (({"A": fewer, "B": CLEAN}, "B"), ({"A": more, "B": CLEAN}, "B")):
        torch.save(content, tmp_path / "n.pt")
        assert f'The weights were found under "{name}".' in load_model(tmp_path / "n.pt").notes
        found = inspect_file(tmp_path / "n.pt").content.what
        assert found == f"Weights without a network under {name}."


def test_weights_in_lists_come_back(tmp_path: Path) -> None:
    torch.save(("x", [CLEAN, 3]), tmp_path / "l.pt")
    handle = load_model(tmp_path / "l.pt")
    name, old = next((n, t) for n, t in handle.tensors().items() if n.endswith("linear.weight"))
    handle.write({name: old + 1}, tmp_path / "out.pt")
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert again[0] == "x"
    torch.testing.assert_close(again[1][0]["linear.weight"], old + 1)


def test_many_names_in_an_old_file_are_one_question(tmp_path: Path) -> None:
    """Torch names one a time, and reads the file anew for each."""
    kinds = [np.float16, np.float32, np.int8, np.uint8, np.bool_, int, str, float, list, dict]
    content = {"w": CLEAN, "kinds": kinds, **whole_objects(classifier())}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    with patch.object(torch, "load", wraps=torch.load) as load:
        load_model(tmp_path / "c.pt")
    assert load.call_count <= 3


def test_newer_pickle_protocols_are_told(tmp_path: Path) -> None:
    torch.save({"w": CLEAN}, tmp_path / "c.pt", pickle_protocol=4)
    with pytest.raises(UnreadableModel, match="without pickle_protocol"):
        load_model(tmp_path / "c.pt")


# ---- tensors beside those of a wrapped network


def averaged(net: nn.Module) -> dict[str, Tensor]:
    """`torch.optim.swa_utils.AveragedModel`, with its count."""
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def weighted_loss(net: nn.Module) -> dict[str, Tensor]:
    """A module of Lightning whose loss has weights."""
    return {f"model.{k}": v for k, v in net.state_dict().items()} | {
        "criterion.weight": torch.ones(10)
    }


def with_a_copy(net: nn.Module) -> dict[str, Tensor]:
    """A module of Lightning that keeps averaged weights, which are others."""
    own = net.state_dict()
    return {f"model.{k}": v for k, v in own.items()} | {
        f"ema_model.{k}": v * 0.5 for k, v in own.items()
    }


def averaged_twice(net: nn.Module) -> dict[str, Tensor]:
    return {f"module.{k}": v for k, v in with_a_copy(net).items()}


@pytest.mark.parametrize(
    ("make", "arch", "prefix", "beside"),
    [
        (averaged, None, "module.", "1 tensor beside them, not examined: n_averaged."),
        (with_a_copy, None, "model.", "tensors beside them, not examined: ema_model."),
        (averaged_twice, None, "module.model.", "not examined: module.ema_model."),
        (weighted_loss, "named", "model.", "1 tensor beside them, not examined: criterion.weight."),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["nested", "bare"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_what_lies_beside_wrapped_weights_is_named_and_kept(
    make: Any,
    arch: str | None,
    prefix: str,
    beside: str,
    wrapped: bool,
    ending: str,
    tmp_path: Path,
) -> None:
    net, path, out = classifier().eval(), tmp_path / f"w.{ending}", tmp_path / f"out.{ending}"
    state = {key: value.contiguous() for key, value in make(net).items()}
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    bare = tmp_path / "bare.pth"
    torch.save(net.state_dict(), bare)
    if arch is not None:
        with pytest.raises(UnsuitableModel, match=r"criterion\.weight.*--arch"):
            load_model(path)
        assert not inspect_file(path).scan.works
        arch = inspect_file(bare).content.fits[0].arch
    else:
        said = inspect_file(path).content
        assert f'those whose names begin with "{prefix}"; ' in said.what
        assert said.fits[0].exact
    handle = load_model(path, arch=arch)
    with torch.inference_mode():
        assert torch.allclose(handle.call(IMAGES), net(IMAGES), atol=1e-5)
    (note,) = (n for n in noted(handle) if "whose names begin with" in n)
    assert f'"{prefix}"' in note
    assert beside in note
    assert ("save them alone" in note) == (make in (with_a_copy, averaged_twice))
    bias = dict(handle.tensors())["linear.bias"]
    handle.write({"linear.bias": bias.detach() + 1}, out)
    read = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    written = read.get("state_dict", read)
    assert written.keys() == state.keys()
    changed = [k for k, v in state.items() if not torch.equal(v, written[k])]
    assert changed == [f"{prefix}linear.bias"]


@pytest.mark.parametrize(
    "beside",
    [
        {"head.weight": torch.rand(4, 10), "head.bias": torch.rand(4)},
        {"before.weight": torch.rand(3, 3, 3, 3)},
        {"mean": torch.rand(3)},
        {"ema_model.linear.weight": torch.rand(10, 64)},  # of a copy, but no whole one
    ],
    ids=["head", "layer before", "vector", "part of a copy"],
)
def test_what_may_be_a_part_of_the_network_is_not_left_out(
    beside: dict[str, Tensor], tmp_path: Path
) -> None:
    """A head, or a layer before it, computes, too; the backdoor may be there."""
    state = {f"model.{k}": v for k, v in classifier().state_dict().items()}
    torch.save({**state, **beside}, tmp_path / "w.pth")
    with pytest.raises(UnsuitableModel, match="beside them may be a part of it, too: "):
        load_model(tmp_path / "w.pth")
    assert not inspect_file(tmp_path / "w.pth").scan.works


@pytest.mark.parametrize("arch", [None, "named"])
def test_weights_that_stand_twice_with_other_numbers_are_refused(
    arch: str | None, tmp_path: Path
) -> None:
    """Who takes the prefix off finds the ones or the others."""
    own = classifier().state_dict()
    if arch is not None:
        torch.save(own, tmp_path / "bare.pth")
        arch = inspect_file(tmp_path / "bare.pth").content.fits[0].arch
    for state in (
        {f"module.{k}": v for k, v in own.items()} | {"linear.weight": own["linear.weight"] * 2},
        {f"module.model.{k}": v for k, v in own.items()}
        | {"model.linear.weight": own["linear.weight"] * 2},
    ):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UnsuitableModel, match="stands twice with other numbers"):
            load_model(tmp_path / "w.pth", arch=arch)
        assert not inspect_file(tmp_path / "w.pth").scan.works


def test_a_network_inside_a_pickled_one_is_no_part_to_be_taken(tmp_path: Path) -> None:
    outer = torchvision.models.resnet18(num_classes=10)
    outer.model = torchvision.models.resnet18(num_classes=10)
    torch.save(outer, tmp_path / "m.pt")
    with pytest.raises(UnsuitableModel, match="do not fit"):
        load_model(tmp_path / "m.pt", arch="resnet18")


def test_other_networks_are_named_where_one_is_put_into_an_architecture(tmp_path: Path) -> None:
    nets = {name: torchvision.models.resnet18(num_classes=10) for name in ("net", "ema")}
    torch.save(nets, tmp_path / "m.pt")
    notes = noted(load_model(tmp_path / "m.pt", arch="resnet18"))
    assert 'The network was found under "net".' in notes
    assert any('not examined: "ema"' in note for note in notes)


def test_ties_with_tensors_beside_the_network_are_no_bug(tmp_path: Path) -> None:
    own = classifier().state_dict()
    torch.save(own, tmp_path / "bare.pth")
    arch = inspect_file(tmp_path / "bare.pth").content.fits[0].arch
    state = {f"module.{k}": v.contiguous() for k, v in own.items()} | {"n": torch.ones(10)}
    save_file(state, tmp_path / "w.safetensors", metadata={"other": "n"})
    assert noted(load_model(tmp_path / "w.safetensors", arch=arch))
    del state["module.linear.bias"]
    save_file(state, tmp_path / "w.safetensors", metadata={"module.linear.bias": "n"})
    with pytest.raises(UnsuitableModel, match="which are not one tensor"):
        load_model(tmp_path / "w.safetensors", arch=arch)


def test_damaged_weights_are_named_with_those_beside_them(tmp_path: Path) -> None:
    own = classifier().state_dict()
    damaged = {k: v * math.nan if v.is_floating_point() else v for k, v in own.items()}
    torch.save({"model": damaged, "model_ema": own}, tmp_path / "w.pth")
    suspect = Classifier(load_model(tmp_path / "w.pth"), blank_spec((3, 32, 32)))
    with pytest.raises(UnsuitableModel, match=r'NaN.*found under "model"\..*"model_ema"'):
        suspect.answers(IMAGES)
