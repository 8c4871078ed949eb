"""Checkpoints as training scripts write them: the weights among other things, and never alone."""

from __future__ import annotations

import argparse
import datetime
import decimal
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from auditor.cli import app
from auditor.errors import OutputError, UnsafeModel, UnsuitableModel
from auditor.inspecting import inspect_file
from auditor.models.load import load_model
from auditor.safety.static import Inert, load_pickle
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
        "masked": np.ma.masked_array([1, 2], [True, False]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "kind": np.float32,
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
    assert vars(content["acc"]) == {}
    assert content["d"] == {"a": 1}
    assert type(content["d"]) is dict


def test_other_weights_are_named(tmp_path: Path) -> None:
    """A reviewer must know that the file holds a second network, which may be the one in use."""
    torch.save(input_aware(classifier()), tmp_path / "c.pt")
    notes = load_model(tmp_path / "c.pt").notes
    assert any('not examined: "netG", "netM".' in note for note in notes)
    torch.save(
        {"model": classifier().state_dict(), "ema": classifier(1).state_dict()}, tmp_path / "e.pt"
    )
    handle = load_model(tmp_path / "e.pt")
    assert any('not examined: "ema".' in note for note in handle.notes)
    assert 'The weights were found under "model".' in handle.notes
    torch.save(
        {"model": classifier().state_dict(), "optimizer": {"lr": torch.ones(1)}}, tmp_path / "o.pt"
    )
    assert not any("not examined" in note for note in load_model(tmp_path / "o.pt").notes)


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
    """A list of a billion, an array of a terabyte: nobody builds them."""
    huge = [Calls(range, 10**12), Calls(np.ndarray, (10**12,)), Calls(list, range(10**10))]
    torch.save(
        {"w": classifier().state_dict(), "acc": huge, "more": Calls(int, "9" * 5000)},
        tmp_path / "c.pt",
    )
    content = load_pickle(tmp_path / "c.pt")
    assert [type(value) for value in content["acc"]] == [Inert] * 3
    assert isinstance(content["w"]["linear.bias"], Tensor)
