"""Hostile model files, made by our own code: all that a payload does is to create a marker file.

`CORPUS` names each, how to make it, and the naive loader that runs it, if one does.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torchvision.models.feature_extraction import DualGraphModule

from tests.changeable import classifier


@dataclass(frozen=True)
class Hostile:
    """A kind of hostile file."""

    kind: str
    """Family: pickle, script, pt2, zip, onnx, safetensors."""
    make: Callable[[Path, Path], Path]
    """Folder and marker -> the file."""
    naive: str | None
    """The loader of `NAIVE` that runs it, as its victims do."""
    apart: bool = False
    """To be opened by a worker only: it may fill the memory, or crash a library."""


CORPUS: dict[str, Hostile] = {}


def hostile(
    kind: str, naive: str | None = None, *, apart: bool = False
) -> Callable[[Callable[[Path, Path], Path]], Callable[[Path, Path], Path]]:
    """Put what a generator makes into the corpus, under its name."""

    def put(make: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        CORPUS[f"{kind}: {make.__name__.strip('_').replace('_', ' ')}"] = Hostile(
            kind, make, naive, apart
        )
        return make

    return put


NAIVE = """
import json, os, sys, warnings
import torch
warnings.simplefilter("ignore")

def plain(path): torch.load(path, weights_only=False)
def script(path): torch.jit.load(path)(torch.zeros(2, 3, 32, 32))
def export(path): torch.export.load(path).module()(torch.zeros(2, 3, 32, 32))

for line in sys.stdin:
    how, path, here = json.loads(line)
    if here:
        globals()[how](path)
        continue
    child = os.fork()
    if not child:
        try:
            globals()[how](path)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    print("done", flush=True)
"""
"""A program that opens files as they should not be opened.

One line of JSON for each: loader, path, and whether to open it without a process of its own, which is
for harmless ones: what they make it import, the others need not.
"""


# ---- files to start from


@functools.cache
def benign(kind: str) -> bytes:
    """A tiny file of a kind that auditor can scan: torch, weights, legacy, script, pt2, safetensors, onnx."""
    network = classifier()
    buffer = io.BytesIO()
    images = torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "torch":
            torch.save(network, buffer)
        elif kind == "weights":
            torch.save({"net": network.state_dict(), "acc": 0.9}, buffer)
        elif kind == "legacy":
            torch.save(network.state_dict(), buffer, _use_new_zipfile_serialization=False)
        elif kind == "script":
            torch.jit.save(torch.jit.script(network), buffer)
        elif kind == "frozen":
            torch.jit.save(torch.jit.freeze(torch.jit.script(network)), buffer)
        elif kind == "pt2":
            torch.export.save(torch.export.export(network, (images,)), buffer)
        elif kind == "safetensors":
            from safetensors.torch import save

            buffer.write(save(dict(network.state_dict())))
        elif kind == "onnx":
            torch.onnx.export(
                network, (images,), buffer, dynamo=False, input_names=["images"],
                output_names=["scores"],
                dynamic_axes={"images": {0: "n"}, "scores": {0: "n"}},
            )  # fmt: skip
        else:
            raise KeyError(kind)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    """The members of an archive, by their names without the root."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archived(content: dict[str, bytes], root: str = "m") -> bytes:
    """An archive of members under a root."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"{root}/{name}", data)
    return buffer.getvalue()


# ---- pickles


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').write('executed')"


class Payload(Calls):
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        super().__init__(exec, code(marker))


class Shell(Calls):
    """Runs a shell command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        super().__init__(os.system, f"touch {marker}")


def _weights_and(payload: object, folder: Path, **options: Any) -> Path:
    content = {"net": classifier().state_dict(), "extra": payload}
    return put(folder / "m.pt", saved(content, **options))


def _with_pickle(folder: Path, data: bytes) -> Path:
    """An archive of torch.save with another pickle."""
    return put(folder / "m.pt", archived(members(benign("weights")) | {"data.pkl": data}))


@hostile("pickle", "plain")
def os_system(folder: Path, marker: Path) -> Path:
    return _weights_and(Shell(marker), folder)


@hostile("pickle", "plain")
def subprocess_call(folder: Path, marker: Path) -> Path:
    return _weights_and(Calls(subprocess.call, ["touch", str(marker)]), folder)


@hostile("pickle", "plain")
def eval_(folder: Path, marker: Path) -> Path:
    return _weights_and(Calls(eval, code(marker)), folder)


@hostile("pickle", "plain")
def exec_(folder: Path, marker: Path) -> Path:
    return _weights_and(Payload(marker), folder)


@hostile("pickle", "plain")
def getattr_chain(folder: Path, marker: Path) -> Path:
    import importlib

    system = Calls(getattr, Calls(importlib.import_module, "os"), "system")
    return _with_pickle(folder, _applied(system, f"touch {marker}"))


def _applied(function: Calls, argument: str) -> bytes:
    """A pickle that calls what another call returns."""
    inner = pickle.dumps(function, 2)[:-1]
    text = argument.encode()
    return inner + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


@hostile("pickle", "plain")
def partial(folder: Path, marker: Path) -> Path:
    function = functools.partial(os.system, f"touch {marker}")
    return _with_pickle(folder, pickle.dumps(function, 2)[:-1] + b")R.")


@hostile("pickle", "plain")
def torch_hub(folder: Path, marker: Path) -> Path:
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(code(marker))
    return _weights_and(Calls(torch.hub._load_local, str(folder / "hub"), "model"), folder)


@hostile("pickle", "plain")
def cpp_extension(folder: Path, marker: Path) -> Path:
    """Protocol 4 reaches through a module: what torch's own modules import is theirs to call."""
    names = b"\x8c\x19torch.utils.cpp_extension\x8c\x0fsubprocess.call\x93"
    text = str(marker).encode()
    command = b"]\x94(\x8c\x05touchX" + struct.pack("<I", len(text)) + text + b"e"
    return _with_pickle(folder, b"\x80\x04" + names + command + b"\x85R.")


@hostile("pickle", "plain")
def numpy_load(folder: Path, marker: Path) -> Path:
    import numpy as np

    array = np.empty(1, object)
    array[0] = Payload(marker)
    np.save(folder / "inner.npy", array, allow_pickle=True)
    return _weights_and(Calls(np.load, str(folder / "inner.npy"), None, True), folder)


@hostile("pickle", "plain")
def joblib_load(folder: Path, marker: Path) -> Path:
    import joblib

    (folder / "inner.joblib").write_bytes(pickle.dumps(Payload(marker)))
    return _weights_and(Calls(joblib.load, str(folder / "inner.joblib")), folder)


@hostile("pickle", "plain")
def torch_load(folder: Path, marker: Path) -> Path:
    (folder / "inner.pt").write_bytes(saved(Payload(marker)))
    function = functools.partial(torch.load, str(folder / "inner.pt"), weights_only=False)
    return _with_pickle(folder, pickle.dumps(function, 2)[:-1] + b")R.")


@hostile("pickle", "plain")
def in_a_network(folder: Path, marker: Path) -> Path:
    network = classifier()
    network[0].note = Payload(marker)
    return put(folder / "m.pt", saved(network))


@hostile("pickle", "plain")
def as_a_hook(folder: Path, marker: Path) -> Path:
    network = classifier()
    network._forward_hooks[0] = Payload(marker)  # type: ignore[assignment]
    return put(folder / "m.pt", saved({"model": network}))


@hostile("pickle", "plain")
def legacy(folder: Path, marker: Path) -> Path:
    return _weights_and(Shell(marker), folder, _use_new_zipfile_serialization=False)


@hostile("pickle", "plain")
def legacy_network(folder: Path, marker: Path) -> Path:
    network = classifier()
    network[0].note = Payload(marker)
    return put(folder / "m.pt", saved(network, _use_new_zipfile_serialization=False))


@hostile("pickle", "plain")
def legacy_magic(folder: Path, marker: Path) -> Path:
    """Where torch.load expects its magic number, a call."""
    return put(folder / "m.pt", pickle.dumps(Shell(marker), 2))


@hostile("pickle", "plain")
def legacy_as_text(folder: Path, marker: Path) -> Path:
    return put(folder / "m.pt", pickle.dumps(Shell(marker), 0))


@hostile("pickle", "plain")
def legacy_with_a_harmless_archive_behind(folder: Path, marker: Path) -> Path:
    """Python's zipfile finds an archive at the end; torch looks at the first bytes."""
    evil = saved(Shell(marker), _use_new_zipfile_serialization=False)
    return put(folder / "m.pt", evil + benign("weights"))


@hostile("pickle", "plain")
def protocol_4(folder: Path, marker: Path) -> Path:
    return _weights_and(Shell(marker), folder, pickle_protocol=4)


def _bare(**attributes: object) -> nn.Module:
    network = nn.Module()
    network.__dict__.update(attributes)
    return network


@hostile("pickle", "plain")
def module_that_makes_code(folder: Path, marker: Path) -> Path:
    """A class of torchvision's own, whose constructor copies attributes along paths that it is given."""
    source = f"\nopen({str(marker)!r}, 'w').write('executed')\ndef forward(self): pass\n"
    parts = ("src", "globals", "_lineno_map", "_prologue_start", "_tracer_cls")
    targets = [
        "eval_graph.recompile.__code__", *(f"train_graph.k.{part}" for part in parts),
        "train_graph.b.graph.fget.__code__", "_graph",
    ]  # fmt: skip
    nodes, method = [_bare(op="get_attr", target=target) for target in targets], _bare()
    train = _bare(nodes=nodes, _tracer_cls=None, k=nn.Identity, b=DualGraphModule)
    evaluated = _bare(nodes=[], _tracer_cls=None, recompile=method)
    made = _bare(**{**dict.fromkeys(parts), "globals": {}, "src": source})
    root = _bare(
        eval_graph=DualGraphModule,
        train_graph=_bare(k=made, b=_bare(graph=_bare(fget=method))),
        _graph=_bare(_codegen=None, python_code=nn.Identity),
    )
    return _weights_and(Calls(DualGraphModule, root, train, evaluated), folder)


@hostile("pickle", "plain")
def as_safetensors(folder: Path, marker: Path) -> Path:
    """Its header's length is an opcode that skips a line, and its numbers go on with the pickle."""
    payload = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    payload += b" " * (-len(payload) % 8)
    data = safetensors.torch.save(classifier().state_dict())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [at + len(payload) for at in entry["data_offsets"]]
    header["pad"] = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps(header).encode()
    text += b" " * ((ord("V") - len(text) - 1) % 256) + b"\n"
    return put(folder / "m.pt", struct.pack("<Q", len(text)) + text + payload + data[8 + length :])


@hostile("pickle", "plain")
def names_from_the_memo(folder: Path, marker: Path) -> Path:
    text = f"touch {marker}".encode()
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93X"
    return _with_pickle(folder, data + struct.pack("<I", len(text)) + text + b"\x85R.")


@hostile("pickle", "plain")
def old_opcodes(folder: Path, marker: Path) -> Path:
    return _with_pickle(folder, f"(S'touch {marker}'\nios\nsystem\n.".encode())


@hostile("pickle", "plain")
def broken_after_the_call(folder: Path, marker: Path) -> Path:
    return _with_pickle(folder, pickle.dumps(Shell(marker), 2)[:-1] + b"\xff\xff")


@hostile("pickle")
def another_record(folder: Path, marker: Path) -> Path:
    """For whoever unpacks the archive: torch does not read it."""
    more = {"extra/notes.pkl": pickle.dumps(Payload(marker))}
    return put(folder / "m.pt", archived(members(benign("weights")) | more))


@hostile("pickle")
def nested_lists(folder: Path, marker: Path) -> Path:
    return _with_pickle(folder, b"\x80\x02" + b"(" * 10_000 + b"l" * 10_000 + b".")


# ---- TorchScript


class Writer(nn.Module):
    """Writes a file of the attacker's choice while it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, str]:
        return self.training, self.path

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, str]) -> None:
        self.training = state[0]
        self.path = state[1]
        torch.save([torch.ones(1)], state[1])


class Saves(nn.Module):
    """Writes a file when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        torch.save([images], self.path)
        return images.mean((2, 3))


class Maps(nn.Module):
    """Maps a file into memory, and makes it where there is none."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.from_file(self.path, shared=True, size=3).sum()


def scripted(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), buffer)
    return buffer.getvalue()


def _with_code(folder: Path, name: str, text: str) -> Path:
    return put(folder / "m.pt", archived(members(benign("script")) | {name: text.encode()}))


@hostile("script", "script")
def setstate(folder: Path, marker: Path) -> Path:
    return put(folder / "m.pt", scripted(Writer(str(marker))))


@hostile("script", "script")
def torch_save(folder: Path, marker: Path) -> Path:
    return put(folder / "m.pt", scripted(Saves(str(marker))))


@hostile("script", "script")
def from_file(folder: Path, marker: Path) -> Path:
    return put(folder / "m.pt", scripted(Maps(str(marker))))


@hostile("script")
def foreign_operators(folder: Path, marker: Path) -> Path:
    return _with_code(folder, "code/x.py", "ops.evil.run(x)")


@hostile("script")
def getattr_of_a_name(folder: Path, marker: Path) -> Path:
    return _with_code(folder, "code/x.py", f'getattr(torch, "save")([x], "{marker}")')


@hostile("script")
def odd_member(folder: Path, marker: Path) -> Path:
    return _with_code(folder, "CODE/x.pY", f'torch.save([x], "{marker}")')


@hostile("script")
def deep_code(folder: Path, marker: Path) -> Path:
    return _with_code(folder, "code/x.py", "y = " + "-" * 100_000 + "1")


# ---- torch.export

PROGRAM = "models/model.json"
CONFIG = "data/weights/model_weights_config.json"


def tampered(path: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members; `edit` changes them, by their names without the root."""
    content = members(path.read_bytes())
    edit(content)
    return put(path.with_name("hostile.pt2"), archived(content))


def edited(path: Path, change: Callable[[Any], None], member: str = PROGRAM) -> Path:
    """The archive with other JSON."""

    def edit(content: dict[str, bytes]) -> None:
        document = json.loads(content[member])
        change(document)
        content[member] = json.dumps(document).encode()

    return tampered(path, edit)


def graph(document: Any) -> Any:
    return document["graph_module"]["graph"]


def hostile_inputs(path: Path, marker: Path) -> Path:
    payload = saved(((torch.rand(1), Payload(marker)), {}))
    return tampered(path, lambda content: content.update({"data/sample_inputs/model.pt": payload}))


def hostile_weight(path: Path, marker: Path) -> Path:
    def edit(content: dict[str, bytes]) -> None:
        config = json.loads(content[CONFIG])
        config["config"]["0.bias"]["use_pickle"] = True
        content[CONFIG] = json.dumps(config).encode()
        content["data/weights/weight_1"] = saved(Payload(marker))

    return tampered(path, edit)


def hostile_expression(path: Path, marker: Path) -> Path:
    def change(document: Any) -> None:
        size = graph(document)["tensor_values"]["input"]["sizes"]
        size[0] = {"as_expr": {"expr_str": code(marker), "hint": None}}

    return edited(path, change)


def hostile_guard(path: Path, marker: Path) -> Path:
    return edited(path, lambda document: document.update(guards_code=[code(marker)]))


def hostile_object(path: Path, marker: Path) -> Path:
    def edit(content: dict[str, bytes]) -> None:
        config = {"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}  # fmt: skip
        content["data/constants/model_constants_config.json"] = json.dumps(config).encode()
        content["data/constants/opaque_obj_0"] = pickle.dumps(Payload(marker))

    return tampered(path, edit)


def hostile_name(path: Path, marker: Path) -> Path:
    """Names of inputs become Python source."""

    def change(document: Any) -> None:
        name = f"input={code(marker)}"
        text = json.dumps(document).replace('"name": "input"}', f'"name": {json.dumps(name)}}}')
        document.update(json.loads(text.replace('"input": {"dtype"', f'{json.dumps(name)}: {{"dtype"')))  # fmt: skip

    return edited(path, change)


HOSTILE_PT2: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "example inputs": (hostile_inputs, r"example inputs are a pickle that runs (builtins|__builtin__)\.exec"),
    "pickled weights": (hostile_weight, "use_pickle"),
    "expression": (hostile_expression, r"evaluates .open\("),
    "guard": (hostile_guard, r"evaluates .open\("),
    "object": (hostile_object, "unpickles an object"),
    "name": (hostile_name, "hides code in the name"),
}  # fmt: skip
"""Ways in which torch.export.load executes text of the file, and what auditor says of them."""


def _pt2(make: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    def made(folder: Path, marker: Path) -> Path:
        return make(put(folder / "fine.pt2", benign("pt2")), marker)

    return made


for _name, (_make, _) in HOSTILE_PT2.items():
    CORPUS[f"pt2: {_name}"] = Hostile("pt2", _pt2(_make), "export")


# ---- zip archives


def _zip(folder: Path, write: Callable[[zipfile.ZipFile], None], *, start: str = "torch") -> Path:
    """A benign archive to which something is appended."""
    path = put(folder / "m.pt", benign(start))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(archive)
    return path


def _root(archive: zipfile.ZipFile) -> str:
    return archive.namelist()[0].partition("/")[0]


@hostile("zip")
def duplicate(folder: Path, marker: Path) -> Path:
    """Python takes the last one."""
    evil = pickle.dumps(Payload(marker), 2)
    return _zip(folder, lambda archive: archive.writestr(f"{_root(archive)}/data.pkl", evil))


@hostile("zip", "plain")
def duplicate_first(folder: Path, marker: Path) -> Path:
    """torch takes the first one."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("m/data.pkl", pickle.dumps(Payload(marker), 2))
        for name, content in members(benign("torch")).items():
            archive.writestr(f"m/{name}", content)
    return put(folder / "m.pt", data.getvalue())


@hostile("zip")
def case_variant(folder: Path, marker: Path) -> Path:
    evil = pickle.dumps(Payload(marker), 2)
    return _zip(folder, lambda archive: archive.writestr(f"{_root(archive)}/DATA.PKL", evil))


@hostile("zip")
def two_roots(folder: Path, marker: Path) -> Path:
    evil = pickle.dumps(Payload(marker), 2)
    return _zip(folder, lambda archive: archive.writestr("other/data.pkl", evil))


@hostile("zip")
def prefix(folder: Path, marker: Path) -> Path:
    return put(folder / "m.pt", b"#!/bin/sh\n" + benign("torch"))


@hostile("zip")
def two_archives(folder: Path, marker: Path) -> Path:
    """One behind the other: readers from the front and from the end see different ones."""
    evil = archived(members(benign("torch")) | {"data.pkl": pickle.dumps(Payload(marker), 2)})
    return put(folder / "m.pt", evil + benign("torch"))


@hostile("zip", "plain")
def two_directories(folder: Path, marker: Path) -> Path:
    """Python's reader looks for the directory before the end, torch's where the end says that it is."""
    honest = members(benign("weights"))
    behind = bytes(len(honest["data.pkl"]))  # so that no header comes before the file
    evil = archived(honest | {"data.pkl": pickle.dumps(Payload(marker), 2) + behind})
    good = archived(honest)
    end = struct.Struct("<4s4H2LH")
    size, at = end.unpack(evil[-end.size :])[5:7]
    other_size, other_at = end.unpack(good[-end.size :])[5:7]
    assert size == other_size
    directory, place = bytearray(good[other_at : other_at + size]), 0
    while place < size:
        lengths = struct.unpack_from("<3H", directory, place + 28)
        (header,) = struct.unpack_from("<L", directory, place + 42)
        # what Python corrects: everything is further back than it should be
        struct.pack_into("<L", directory, place + 42, header + at + size - (size + other_at))
        place += 46 + sum(lengths)
    ending = end.pack(b"PK\5\6", 0, 0, *end.unpack(evil[-end.size :])[3:5], size, at, 0)
    return put(folder / "m.pt", evil[: at + size] + good[:other_at] + bytes(directory) + ending)


@hostile("zip")
def bomb(folder: Path, marker: Path) -> Path:
    def write(archive: zipfile.ZipFile) -> None:
        name = f"{_root(archive)}/data/99"
        archive.writestr(name, bytes(100 << 20), zipfile.ZIP_DEFLATED)

    return _zip(folder, write)


@hostile("zip")
def bomb_of_code(folder: Path, marker: Path) -> Path:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr(f"{_root(archive)}/code/x.py", b" " * (100 << 20), zipfile.ZIP_DEFLATED)

    return _zip(folder, write, start="script")


def _patched(path: Path, edit: Callable[[bytearray, int], None]) -> Path:
    """Change every entry of the central directory; `edit` gets the data and where an entry begins."""
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        edit(data, place)
        place = data.find(b"PK\x01\x02", place + 4)
    path.write_bytes(data)
    return path


@hostile("zip")
def encrypted(folder: Path, marker: Path) -> Path:
    def edit(data: bytearray, place: int) -> None:
        data[place + 8] |= 1

    return _patched(put(folder / "m.pt", benign("torch")), edit)


@hostile("zip")
def absurd_sizes(folder: Path, marker: Path) -> Path:
    def edit(data: bytearray, place: int) -> None:
        data[place + 20 : place + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)

    return _patched(put(folder / "m.pt", benign("torch")), edit)


@hostile("zip")
def paths_upwards(folder: Path, marker: Path) -> Path:
    return _zip(folder, lambda archive: archive.writestr(f"../../{marker.name}", b"x"))


@hostile("zip")
def storage_viewed_larger(folder: Path, marker: Path) -> Path:
    state = dict(classifier().state_dict())
    state["0.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)
    return put(folder / "m.pt", saved(state))


@hostile("zip")
def storage_that_is_short(folder: Path, marker: Path) -> Path:
    content = members(benign("weights"))
    content["data/0"] = content["data/0"][:4]
    return put(folder / "m.pt", archived(content))


@hostile("zip")
def odd_names(folder: Path, marker: Path) -> Path:
    return _zip(folder, lambda archive: archive.writestr("\x1b[31m\u202e\n" * 40, b"x"))


# ---- ONNX


def onnx_model(
    nodes: list[Any],
    tensors: list[Any] | None = None,
    functions: list[Any] | None = None,
    **more: Any,
) -> Any:
    """A graph from `x`, images, to `y`."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors or [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(
        made, opset_imports=opsets, ir_version=8, functions=functions or [], **more
    )


def _external(folder: Path, **entries: str) -> Path:
    model = onnx.load_from_string(benign("onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    return put(inner / "m.onnx", model.SerializeToString())


@hostile("onnx")
def data_outside(folder: Path, marker: Path) -> Path:
    (folder / "secret").write_bytes(bytes(1 << 16))
    return _external(folder, location="../secret")


@hostile("onnx")
def data_of_the_system(folder: Path, marker: Path) -> Path:
    return _external(folder, location="/etc/passwd")


@hostile("onnx")
def data_in_a_link(folder: Path, marker: Path) -> Path:
    path = _external(folder, location="weights")
    (folder / "secret").write_bytes(bytes(1 << 16))
    (path.parent / "weights").symlink_to(folder / "secret")
    return path


@hostile("onnx")
def data_in_a_hard_link(folder: Path, marker: Path) -> Path:
    path = _external(folder, location="weights")
    (folder / "secret").write_bytes(bytes(1 << 16))
    (path.parent / "weights").hardlink_to(folder / "secret")
    return path


@hostile("onnx")
def data_with_an_overlong_name(folder: Path, marker: Path) -> Path:
    return _external(folder, location="x" * 5000)


@hostile("onnx")
def data_with_a_zero_in_its_name(folder: Path, marker: Path) -> Path:
    return _external(folder, location="weights\0/../../secret")


@hostile("onnx")
def data_in_two_places(folder: Path, marker: Path) -> Path:
    path = _external(folder, location="../secret")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="weights")
    (path.parent / "weights").write_bytes(bytes(1 << 16))
    return put(path, model.SerializeToString())


@hostile("onnx")
def data_before_its_file(folder: Path, marker: Path) -> Path:
    path = _external(folder, location="weights", offset="-8", length="99999999999999999999")
    (path.parent / "weights").write_bytes(bytes(64))
    return path


@hostile("onnx")
def data_that_is_a_pipe(folder: Path, marker: Path) -> Path:
    path = _external(folder, location="weights")
    os.mkfifo(path.parent / "weights")
    return path


@hostile("onnx")
def custom_operators(folder: Path, marker: Path) -> Path:
    nodes = [helper.make_node("Run", ["x"], ["y"], domain="evil.ops")]
    return put(folder / "m.onnx", onnx_model(nodes).SerializeToString())


def _branch(node: Any) -> Any:
    return helper.make_graph(
        [node], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )


@hostile("onnx")
def custom_operators_inside(folder: Path, marker: Path) -> Path:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [1])),
        helper.make_node(
            "If", ["c"], ["y"],
            then_branch=_branch(helper.make_node("Run", ["x"], ["z"], domain="evil.ops")),
            else_branch=_branch(helper.make_node("Identity", ["x"], ["z"])),
        ),
    ]  # fmt: skip
    return put(folder / "m.onnx", onnx_model(nodes).SerializeToString())


def _function(name: str, inner: str, times: int) -> Any:
    nodes = [
        helper.make_node(
            inner, ["a" if not place else f"t{place}"], [f"t{place + 1}"], domain="own"
        )
        for place in range(times)
    ]
    return helper.make_function(
        "own", name, ["a"], [f"t{times}"], nodes, [helper.make_opsetid("own", 1)]
    )


@hostile("onnx")
def recursive_functions(folder: Path, marker: Path) -> Path:
    nodes = [helper.make_node("F", ["x"], ["y"], domain="own")]
    functions = [_function("F", "G", 1), _function("G", "F", 1)]
    return put(folder / "m.onnx", onnx_model(nodes, functions=functions).SerializeToString())


@hostile("onnx")
def laughing_functions(folder: Path, marker: Path) -> Path:
    nodes = [helper.make_node("F0", ["x"], ["y"], domain="own")]
    functions = [_function(f"F{place}", f"F{place + 1}", 10) for place in range(12)]
    last = helper.make_function(
        "own", "F12", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return put(
        folder / "m.onnx", onnx_model(nodes, functions=[*functions, last]).SerializeToString()
    )


def _sized(folder: Path, nodes: list[Any], size: list[int]) -> Path:
    tensors = [helper.make_tensor("s", TensorProto.INT64, [len(size)], size)]
    rest = [
        helper.make_node("ReduceMax", ["big"], ["m"], keepdims=0),
        helper.make_node("ReduceMean", ["x"], ["f"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["f", "m"], ["y"]),
    ]
    return put(folder / "m.onnx", onnx_model([*nodes, *rest], tensors).SerializeToString())


@hostile("onnx", apart=True)
def constant_of_shape(folder: Path, marker: Path) -> Path:
    return _sized(folder, [helper.make_node("ConstantOfShape", ["s"], ["big"])], [1 << 18, 1 << 18])


@hostile("onnx", apart=True)
def expand(folder: Path, marker: Path) -> Path:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "s"], ["big"]),
    ]
    return _sized(folder, nodes, [1 << 18, 1 << 18])


@hostile("onnx")
def deep_nesting(folder: Path, marker: Path) -> Path:
    """Deeper than protobuf reads; made by hand, for it writes no deeper either."""

    def field(number: int, data: bytes) -> bytes:
        return bytes(_varint(number << 3 | 2)) + bytes(_varint(len(data))) + data

    inner = b""
    for _ in range(2000):
        inner = field(1, field(5, field(6, inner)))  # node, attribute, g
    return put(folder / "m.onnx", b"\x08\x08" + field(7, inner))


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number


@hostile("onnx")
def huge_dimensions(folder: Path, marker: Path) -> Path:
    model = onnx.load_from_string(benign("onnx"))
    model.graph.initializer[0].dims[:] = [2**62, 2**62, 2**62]
    return put(folder / "m.onnx", model.SerializeToString())


@hostile("onnx")
def odd_texts(folder: Path, marker: Path) -> Path:
    """Harmless, but for whoever prints it."""
    model = onnx.load_from_string(benign("onnx"))
    model.producer_name = '\x1b]0;owned\x07"><script>alert(1)</script>'
    model.graph.input[0].name = model.graph.node[0].input[0] = "\x1b[2J\u202eevil\n"
    helper.set_model_props(model, {"\x1b[31mk": "v\n## heading", "x" * 9999: "<img src=x>"})
    return put(folder / "m.onnx", model.SerializeToString())


# ---- safetensors


def _safetensors(
    folder: Path, header: bytes, data: bytes = bytes(64), length: int | None = None
) -> Path:
    size = struct.pack("<Q", len(header) if length is None else length)
    return put(folder / "m.safetensors", size + header + data)


def _entry(begin: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [16] if shape is None else shape, "data_offsets": [begin, end]}


@hostile("safetensors")
def header_beyond_the_file(folder: Path, marker: Path) -> Path:
    return _safetensors(folder, b"{}", length=2**63)


@hostile("safetensors")
def header_bomb(folder: Path, marker: Path) -> Path:
    return _safetensors(folder, b'{"a":' * 200_000)


@hostile("safetensors")
def header_of_many(folder: Path, marker: Path) -> Path:
    entries = {f"a{number}": _entry(0, 0, [0]) for number in range(5_000)}
    return _safetensors(folder, json.dumps(entries).encode(), b"")


@hostile("safetensors")
def overlapping_offsets(folder: Path, marker: Path) -> Path:
    return _safetensors(folder, json.dumps({"a": _entry(0, 64), "b": _entry(0, 64)}).encode())


@hostile("safetensors")
def huge_shape(folder: Path, marker: Path) -> Path:
    shape = [2**32, 2**32, 2**32]
    return _safetensors(folder, json.dumps({"a": _entry(0, 64, shape)}).encode())


@hostile("safetensors")
def offsets_backwards(folder: Path, marker: Path) -> Path:
    return _safetensors(folder, json.dumps({"a": _entry(64, 0), "b": _entry(-8, 2**63)}).encode())


@hostile("safetensors")
def name_twice(folder: Path, marker: Path) -> Path:
    entry = json.dumps(_entry(0, 64))
    return _safetensors(folder, f'{{"a": {entry}, "a": {entry}}}'.encode())


@hostile("safetensors")
def odd_metadata(folder: Path, marker: Path) -> Path:
    from safetensors.torch import save

    metadata = {"\x1b[2J": '"><script>alert(1)</script>', "arch": "\u202e" * 3000, "a\nb": "c\nd"}
    return put(folder / "m.safetensors", save(dict(classifier().state_dict()), metadata))
