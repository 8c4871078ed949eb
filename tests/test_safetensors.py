"""safetensors: weights that need a network, changed in place, everything else as it was."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from auditor.errors import UnreadableModel, UnsuitableModel
from auditor.masks import effective
from auditor.models.load import load_model
from tests.test_write import ARCH, IMAGES, fold_and_reload, network, some_masks


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(
        ARCH + "\n\ndef untied():\n    net = tied()\n    net[4].weight = nn.Parameter(net[4].weight.clone())\n"
        "    return net\n"
    )  # fmt: skip
    return f"{tmp_path}/arch.py"


def header(path: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """The entries of a file, and where the numbers begin."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def changed_entries(path: Path, out: Path) -> set[str]:
    """Keys whose numbers differ; checks that everything before the numbers is equal."""
    old, new = path.read_bytes(), out.read_bytes()
    entries, begin = header(path)
    assert old[:begin] == new[:begin]
    assert len(old) == len(new)
    return {
        key
        for key, entry in entries.items()
        if key != "__metadata__"
        and old[slice(*(begin + o for o in entry["data_offsets"]))]
        != new[slice(*(begin + o for o in entry["data_offsets"]))]
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip(
    dtype: torch.dtype, tolerance: float, prefix: str, tmp_path: Path, arch: str
) -> None:
    net, path = network(), tmp_path / "m.safetensors"
    state = {
        prefix + key: value.to(dtype) if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }
    save_file(state, path, metadata={"format": "pt", "made on": "a Tuesday, after lunch" * 40})
    with torch.inference_mode():
        found = load_model(path, arch=f"{arch}:build").call(IMAGES)
        assert torch.allclose(found, net(IMAGES), atol=tolerance)
    out = fold_and_reload(path, f"{arch}:build", tolerance=tolerance)
    assert changed_entries(path, out) == {f"{prefix}1.weight"}
    again = load_file(out)
    assert again.keys() == state.keys()
    assert all(again[key].dtype == tensor.dtype for key, tensor in state.items())
    assert torch.equal(again[f"{prefix}4.weight"], state[f"{prefix}4.weight"])


def test_gradients_reach_every_mask(tmp_path: Path, arch: str) -> None:
    save_file(network().state_dict(), tmp_path / "m.safetensors")
    handle = load_model(tmp_path / "m.safetensors", arch=f"{arch}:build")
    masks = {name: mask.requires_grad_() for name, mask in some_masks(handle).items()}
    overrides = effective(handle.tensors(), handle.mask_sites(), masks)
    handle.call(IMAGES, overrides).square().sum().backward()
    assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for mask in masks.values())


def test_every_tensor_can_be_written(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file(network().state_dict(), path)
    handle = load_model(path, arch=f"{arch}:build")
    changed = {name: tensor + 1 for name, tensor in handle.tensors().items()}
    handle.write(changed, tmp_path / "out.safetensors")
    again = load_model(tmp_path / "out.safetensors", arch=f"{arch}:build").tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in changed.items())
    handle.write({}, tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(KeyError, match="typo"):
        handle.write({"typo": torch.zeros(4)}, tmp_path / "out2.safetensors")
    with pytest.raises(ValueError, match=r"1\.weight"):
        handle.write({"1.weight": torch.zeros(1)}, tmp_path / "out3.safetensors")


def test_the_metadata_is_shown_and_cleaned(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "m.safetensors"
    said = {"format": "pt", "a name": "\x1b[31m" + 900 * "x", **{f"key {n}": "" for n in range(9)}}
    save_file(network().state_dict(), path, metadata=said)
    (note,) = load_model(path, arch=f"{arch}:build").notes
    assert "says a name: ␛[31mxx" in note
    assert note.endswith("and 6 more.")
    assert len(note) < 300


def test_a_tied_tensor_that_is_stored_once(tmp_path: Path, arch: str) -> None:
    net, path = network("tied"), tmp_path / "m.safetensors"
    save_model(net, str(path))
    assert len(load_file(path)) == len(net.state_dict()) - 1
    out = fold_and_reload(path, f"{arch}:tied")
    assert changed_entries(path, out) <= {"1.weight", "1.bias", "2.bias", "4.bias"} | {
        "2.weight", "4.weight"
    }  # fmt: skip
    # other readers find one missing
    with pytest.raises(UnsuitableModel, match="not one tensor in"):
        load_model(path, arch=f"{arch}:untied")


def test_weights_without_a_network_say_what_to_pass(tmp_path: Path) -> None:
    save_file({"an.odd.name": torch.zeros(3, 5)}, tmp_path / "m.safetensors")
    with pytest.raises(UnsuitableModel, match="--arch"):
        load_model(tmp_path / "m.safetensors")


def test_weights_of_another_network(tmp_path: Path, arch: str) -> None:
    save_file(nn.Linear(3, 5).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UnsuitableModel, match="do not fit"):
        load_model(tmp_path / "m.safetensors", arch=f"{arch}:build")


def damaged(begin: int, end: int) -> bytes:
    entry = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [begin, end]}}
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "data",
    [damaged(0, 400), damaged(0, 12), damaged(4, 20), damaged(0, 16)[:-3], damaged(0, 16) + b"more"],
    ids=["beyond the end", "another size", "a hole", "truncated", "more than it says"],
)  # fmt: skip
def test_damaged_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(UnreadableModel, match="cannot be read as safetensors"):
        load_model(tmp_path / "m.safetensors")


def test_types_that_torch_does_not_know(tmp_path: Path) -> None:
    text = json.dumps({"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises((UnreadableModel, UnsuitableModel)):
        load_model(tmp_path / "m.safetensors")
