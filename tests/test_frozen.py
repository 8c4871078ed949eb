"""Frozen TorchScript: constants in the code, lifted out of it for masks, changed in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditor.errors import UnsuitableModel
from auditor.models.load import load_model
from tests.test_pt2 import Attention, sites_with_gradients, without_norms
from tests.test_write import IMAGES, changed_members, fold_and_reload, network, noisy


class Branching(nn.Module):
    """A condition that stays in the graph, constants in both branches, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, 5)
        self.norm = nn.GroupNorm(1, 3)
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        x = self.first(x) * 2 if x.shape[0] > 100 else self.norm(self.first(x))
        return self.last(x.flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": network,
    "attention": lambda: noisy(Attention()),
    "no norms": lambda: noisy(without_norms()),
    "branching": lambda: noisy(Branching()),
    "zeros": lambda: _zeros(network()),
}


def _zeros(net: nn.Module) -> nn.Module:
    """Constants of the same values, which only their records tell apart."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return net


def freeze(net: nn.Module, path: Path, *, trace: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(net, IMAGES, check_trace=False) if trace else torch.jit.script(net)
        frozen = torch.jit.freeze(made.eval())
        assert not list(frozen.parameters())
        frozen.save(str(path))
    return path


@pytest.mark.parametrize("trace", [False, True], ids=["script", "trace"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip(kind: str, trace: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETWORKS[kind]().eval()
    path = freeze(net, tmp_path / "m.pt", trace=trace)
    handle = load_model(path)
    with torch.inference_mode():
        assert torch.allclose(handle.call(IMAGES), net(IMAGES), atol=1e-5)
    sites = sites_with_gradients(handle)
    out = fold_and_reload(path)
    touched = {name for site in sites for name, _ in site.tensors}
    own = torch.jit.load(str(out))  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        assert torch.allclose(own(IMAGES), load_model(out).call(IMAGES), atol=1e-6)
    assert changed_members(path, out) <= {f"constants/{name.removeprefix('c')}" for name in touched}


def test_every_constant_can_be_written(tmp_path: Path) -> None:
    path = freeze(network(), tmp_path / "m.pt", trace=False)
    handle = load_model(path)
    assert list(handle.tensors()) == ["c3", "c2", "c1", "c0"]
    assert handle.weights().keys() == handle.tensors().keys()
    assert handle.parameters == 4 * 27 + 4 + 144 * 5 + 5
    changed = {name: tensor + 1 for name, tensor in handle.tensors().items()}
    handle.write(changed, tmp_path / "out.pt")
    again = load_model(tmp_path / "out.pt").tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in changed.items())
    handle.write({}, tmp_path / "same.pt")
    assert (tmp_path / "same.pt").read_bytes() == path.read_bytes()
    with pytest.raises(KeyError, match="typo"):
        handle.call(IMAGES, {"typo": torch.zeros(4)})
    with pytest.raises(KeyError, match="typo"):
        handle.write({"typo": torch.zeros(4)}, tmp_path / "out2.pt")
    with pytest.raises(ValueError, match="c1"):
        handle.write({"c1": torch.zeros(1)}, tmp_path / "out3.pt")


def test_constants_that_are_no_weights_are_not_trained(tmp_path: Path) -> None:
    handle = load_model(freeze(noisy(Branching()).eval(), tmp_path / "m.pt", trace=False))
    trained = {tuple(tensor.shape) for tensor in handle.weights().values()}
    assert trained == {(3,), (3, 3, 3, 3), (5,), (5, 192)}
    assert (3, 1, 1) in {tuple(tensor.shape) for tensor in handle.tensors().values()}


def test_what_was_optimised_for_one_processor_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.optimize_for_inference(torch.jit.script(network()))
        made.save(str(tmp_path / "m.pt"))
    with pytest.raises(UnsuitableModel, match=r"optimize_for_inference.*before that step"):
        load_model(tmp_path / "m.pt")
