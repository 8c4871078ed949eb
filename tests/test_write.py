"""Changed numbers go into a copy of the user's file, and nothing else changes in it."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from auditor.errors import OutputError
from auditor.masks import effective, folded
from auditor.models.archive import repair_checksums
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.safety.static import load_pickle
from auditor.safety.structure import identify

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))

ARCH = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )

def tied():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 5)
    )
    net[4].weight = net[2].weight
    return net
"""
names: dict[str, Any] = {}
exec(ARCH, names)  # noqa: S102 - ours
Make = Callable[[nn.Module], Any]


def network(kind: str = "build") -> nn.Module:
    torch.manual_seed(0)
    return noisy(names[kind]().eval())


def noisy(net: nn.Module) -> nn.Module:
    """Fresh networks hide mistakes: scales of one, biases of zero."""
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return net


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(ARCH)
    return f"{tmp_path}/arch.py"


def some_masks(handle: ModelHandle) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    sites = handle.mask_sites()
    assert sites
    return {s.layer: 1 - 0.4 * torch.rand(s.channels, generator=generator) for s in sites}


def fold_and_reload(path: Path, arch: str | None = None, *, tolerance: float = 1e-5) -> Path:
    """Fold masks into a copy: it does what the masked suspect did, and the suspect is untouched."""
    before, digest = path.read_bytes(), hashlib.sha256(path.read_bytes()).hexdigest()
    handle = load_model(path, arch=arch)
    sites, masks = handle.mask_sites(), some_masks(handle)
    changed = folded(handle.tensors(), sites, masks)
    out = path.with_name(f"purified-{path.name}")
    handle.write(changed, out)

    assert path.read_bytes() == before
    assert identify(path).sha256 == digest
    assert identify(out).kind is identify(path).kind
    again = load_model(out, arch=arch)
    with torch.inference_mode():
        masked = handle.call(IMAGES, effective(handle.tensors(), sites, masks))
        found, plain = again.call(IMAGES), handle.call(IMAGES)
    assert torch.allclose(found, masked, atol=tolerance)
    assert not torch.allclose(found, plain, atol=tolerance)
    for name, tensor in handle.tensors().items():
        wanted = changed.get(name, tensor)
        assert torch.allclose(again.tensors()[name], wanted, atol=tolerance), name
    return out


def layout(path: Path) -> list[tuple[zipfile.ZipInfo, int]]:
    """Members of an archive, and where their content begins."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return [
            (info, info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26)))
            for info in archive.infolist()
        ]  # fmt: skip


def changed_members(path: Path, out: Path) -> set[str]:
    """Members that differ; checks that everything outside them and their checksums is equal."""
    old, new = bytearray(path.read_bytes()), bytearray(out.read_bytes())
    assert len(old) == len(new)
    differing = set()
    members = layout(path)
    for info, begin in members:
        end = begin + info.compress_size
        if old[begin:end] != new[begin:end]:
            differing.add(info.filename.partition("/")[2])
            new[begin:end] = old[begin:end]
            new[end + 4 : end + 8] = old[end + 4 : end + 8]
    with zipfile.ZipFile(path) as archive:
        position = archive.start_dir
    for info, _ in members:
        if info.filename.partition("/")[2] in differing:
            new[position + 16 : position + 20] = old[position + 16 : position + 20]
        position += 46 + sum(struct.unpack_from("<HHH", old, position + 28))
    assert old == new
    return differing


STATE_DICTS: dict[str, Make] = {
    "bare": lambda net: net.state_dict(),
    "nested": lambda net: {
        "epoch": 7, "net": net.state_dict(), "name": "a network", "classes": ["a", "b"],
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict(),
        "grid": torch.arange(12.0).reshape(3, 4).T,
    },
    "deeply nested": lambda net: {"a": {"b.c": {0: net.state_dict()}}},
    "prefixed": lambda net: {f"module.{key}": value for key, value in net.state_dict().items()},
    "twice prefixed": lambda net: {
        "model": {f"_orig_mod.module.{key}": v for key, v in net.state_dict().items()}
    },
    "double": lambda net: net.double().state_dict(),
    "half": lambda net: net.half().state_dict(),
    "bfloat16": lambda net: net.bfloat16().state_dict(),
    "channels last": lambda net: net.to(memory_format=torch.channels_last).state_dict(),
    "parameters": lambda net: dict(net.named_parameters()) | dict(net.named_buffers()),
    "one flat storage": lambda net: flat(net.state_dict()),
}  # fmt: skip


def flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All floating tensors as slices of one storage, every second number of it unused."""
    storage = torch.zeros(2 * sum(t.numel() for t in state.values()))
    place, views = 0, {}
    for key, tensor in state.items():
        if tensor.is_floating_point():
            view = storage[place : place + 2 * tensor.numel() : 2].view(tensor.shape)
            views[key], place = view.copy_(tensor), place + 2 * tensor.numel()
    return {**state, **views}


def equal_entries(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal_entries(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal_entries, one, other))
    return bool(one == other)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", STATE_DICTS)
def test_state_dicts(kind: str, legacy: bool, tmp_path: Path, arch: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE_DICTS[kind](network()), path, _use_new_zipfile_serialization=not legacy)
    tolerance = {"half": 5e-3, "bfloat16": 4e-2}.get(kind, 1e-5)
    out = fold_and_reload(path, f"{arch}:build", tolerance=tolerance)
    old, new = load_pickle(path), load_pickle(out)
    if not legacy:
        assert len(changed_members(path, out)) == 1, "the scale of one BatchNorm layer"
    if kind == "nested":
        del old["net"]["1.weight"], new["net"]["1.weight"]
        assert equal_entries(old, new)


def as_module(net: nn.Module) -> Any:
    return net


MODULES: dict[str, Make] = {
    "module": as_module,
    "nested": lambda net: {"epoch": 3, "model": net},
    "data parallel": nn.DataParallel,
    "nested data parallel": lambda net: {"net": nn.DataParallel(net)},
    "half": lambda net: net.half(),
    "train mode, channels last": lambda net: net.train().to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("with_arch", [False, True], ids=["", "arch"])
@pytest.mark.parametrize("kind", MODULES)
def test_pickled_networks(kind: str, with_arch: bool, tmp_path: Path, arch: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(MODULES[kind](network()), path)
    out = fold_and_reload(
        path, f"{arch}:build" if with_arch else None, tolerance=5e-3 if kind == "half" else 1e-5
    )
    assert len(changed_members(path, out)) == 1


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(noisy(torchvision.models.mobilenet_v3_small(num_classes=5)), path)
    out = fold_and_reload(path)
    assert len(changed_members(path, out)) == len(load_model(out).mask_sites()) == 34


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("apart", [False, True], ids=["one storage", "two storages"])
def test_tied_weights_stay_tied(apart: bool, legacy: bool, tmp_path: Path, arch: str) -> None:
    state = network("tied").state_dict()
    if apart:
        state = {key: value.clone() for key, value in state.items()}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    out = fold_and_reload(tmp_path / "w.pth", f"{arch}:tied")
    new = load_pickle(out)
    assert torch.equal(new["2.weight"], new["4.weight"])
    assert not torch.equal(new["2.weight"], state["2.weight"])
    assert apart == (new["2.weight"].data_ptr() != new["4.weight"].data_ptr())


def test_tied_weights_of_a_pickled_network(tmp_path: Path) -> None:
    torch.save(network("tied"), tmp_path / "m.pt")
    new = load_pickle(fold_and_reload(tmp_path / "m.pt"))
    assert new[2].weight is new[4].weight


@pytest.mark.parametrize(
    "copied", [lambda s: s, dict, lambda s: {k: v.detach() for k, v in s.items()}]
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_another_entry_that_shares_the_numbers_keeps_its_own(
    copied: Make, legacy: bool, tmp_path: Path, arch: str
) -> None:
    state = network().state_dict()
    content = {"model": state, "epoch": 3, "ema": copied(state)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    new = load_pickle(fold_and_reload(tmp_path / "w.pth", f"{arch}:build"))
    assert list(new) == ["model", "epoch", "ema"]
    assert equal_entries(dict(new["ema"]), dict(state))
    assert not torch.equal(new["model"]["1.weight"], state["1.weight"])
    assert new["model"]["4.weight"].data_ptr() == new["ema"]["4.weight"].data_ptr()


def test_two_layers_of_the_file_that_share_what_the_network_does_not(
    tmp_path: Path, arch: str
) -> None:
    state = network().state_dict()
    state["1.bias"] = state["1.weight"]  # one changes, the other must not
    torch.save(state, tmp_path / "w.pth")
    new = load_pickle(fold_and_reload(tmp_path / "w.pth", f"{arch}:build"))
    assert torch.equal(new["1.bias"], state["1.bias"])
    handle = load_model(tmp_path / "w.pth", arch=f"{arch}:build")
    changed = {"1.weight": torch.full((4,), 3.0), "1.bias": torch.full((4,), 5.0)}
    handle.write(changed, tmp_path / "both.pth")
    assert equal_entries({**state, **changed}, dict(load_pickle(tmp_path / "both.pth")))
    state["1.weight"] = torch.ones(1).expand(4)  # one number of the file for four
    torch.save(state, tmp_path / "x.pth")
    fold_and_reload(tmp_path / "x.pth", f"{arch}:build")


def refused(path: Path, words: str, arch: str | None = None) -> None:
    handle = load_model(path, arch=arch)
    changed = folded(handle.tensors(), handle.mask_sites(), some_masks(handle))
    with pytest.raises(OutputError, match=words):
        handle.write(changed, path.with_name("out.pt"))


def test_a_pickled_network_is_never_pickled_anew(tmp_path: Path) -> None:
    net = network()
    torch.save({"model": net, "ema": net}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "state_dict")
    torch.save({"model": net, "best": [net[1].weight]}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "state_dict")


def test_a_tensor_that_the_file_lacks(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "w.pth"
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, path)
    handle = load_model(path, arch=f"{arch}:build")
    changed = {"1.num_batches_tracked": torch.tensor(9), "1.weight": torch.zeros(4)}
    handle.write(changed, tmp_path / "out.pth")
    assert load_pickle(tmp_path / "out.pth")["1.weight"].eq(0).all()
    with pytest.raises(KeyError, match="typo"):
        handle.write({"typo": torch.zeros(4)}, tmp_path / "out2.pth")
    with pytest.raises(ValueError, match=r"1\.weight"):
        handle.write({"1.weight": torch.zeros(1)}, tmp_path / "out2.pth")


def test_a_file_that_changed_in_the_meantime(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(network(), path)
    handle = load_model(path)
    torch.save(network().double(), path)
    with pytest.raises(OutputError, match="changed since"):
        handle.write({}, tmp_path / "out.pt")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "m.pt")
    with pytest.raises(OutputError, match="cannot be written"):
        load_model(tmp_path / "m.pt").write({}, tmp_path / "none" / "out.pt")


def repack(path: Path, out: Any, compression: int) -> None:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compression) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))


@pytest.mark.parametrize("descriptor", [False, True])
def test_archives_written_by_others(descriptor: bool, tmp_path: Path, arch: str) -> None:
    """Python's zipfile puts checksums into the local headers; or behind, where it cannot seek."""
    torch.save(network().state_dict(), tmp_path / "torch.pth")

    class Pipe:
        def __init__(self, stream: Any) -> None:
            self.write, self.flush = stream.write, stream.flush

    path = tmp_path / "w.pth"
    with path.open("wb") as stream:
        repack(tmp_path / "torch.pth", Pipe(stream) if descriptor else stream, zipfile.ZIP_STORED)
    fold_and_reload(path, f"{arch}:build")


def test_only_numbers_may_have_changed(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    info, begin = next(
        entry for entry in layout(tmp_path / "m.pt") if "data.pkl" in entry[0].filename
    )
    data[begin + info.file_size // 2] ^= 1
    (tmp_path / "out.pt").write_bytes(data)
    with pytest.raises(OutputError, match="beyond the records"):
        repair_checksums(tmp_path / "m.pt", tmp_path / "out.pt")


def save_script(net: nn.Module, path: Path, *, trace: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(net, IMAGES) if trace else torch.jit.script(net)
        torch.jit.save(made, str(path), _extra_files={"labels.txt": "cat\ndog", "meta.json": "{}"})


@pytest.mark.parametrize("kind", ["build", "tied"])
@pytest.mark.parametrize("trace", [False, True], ids=["script", "trace"])
def test_torchscript(trace: bool, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    save_script(network(kind), path, trace=trace)
    out = fold_and_reload(path)
    assert len(changed_members(path, out)) == (1 if kind == "build" else 4)
    extra = {"labels.txt": "", "meta.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(out), _extra_files=extra)
    assert extra == {"labels.txt": b"cat\ndog", "meta.json": b"{}"}


def test_torchscript_whose_tensors_share_numbers_is_refused(tmp_path: Path) -> None:
    net = network()
    net[1].weight = nn.Parameter(net[1].bias.data)
    save_script(net, tmp_path / "m.pt", trace=False)
    refused(tmp_path / "m.pt", "share their numbers")


def test_every_tensor_can_be_written(tmp_path: Path, arch: str) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    torch.save(network(), tmp_path / "m.pt")
    save_script(network(), tmp_path / "s.pt", trace=False)
    for path, build in (("w.pth", f"{arch}:build"), ("m.pt", None), ("s.pt", None)):
        handle = load_model(tmp_path / path, arch=build)
        changed = {name: tensor + 1 for name, tensor in handle.tensors().items()}
        handle.write(changed, tmp_path / f"out-{path}")
        again = load_model(tmp_path / f"out-{path}", arch=build).tensors()
        assert list(again) == list(changed)
        assert all(torch.equal(again[name], tensor) for name, tensor in changed.items())
        handle.write({}, tmp_path / f"same-{path}")
        assert (tmp_path / f"same-{path}").read_bytes() == (tmp_path / path).read_bytes()
