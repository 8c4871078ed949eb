"""Does every format survive masking, folding, writing and opening, and is a purified file a drop-in?

Round trips of four torchvision networks through every format that auditor opens, with random weights
and statistics as training leaves them; nothing is downloaded:

    python bench/formats.py round-trips [--network resnet18] [--format "ONNX int8"]

Published suspects (with their network file and triggers; `purify_suspects.py` says more) as they come
and exported, scanned and purified side by side, judged by the true triggers on the test images:

    python bench/formats.py suspects --suspects DIR --clean DIR --test DIR [--only badnets]

Masks are drawn from [0.6, 1] at all sites, with 2% zeros. A round trip passes if the file that they
were folded into, opened again and computed in the same way, gives what the masked suspect did to 1e-4 of
the largest logit, if the format's own loader computes that from it (float32 to 1e-4; fp16 and int8 to
one step of the grid that their outputs lie on, or what onnxruntime differs from itself by), if everything
but numbers is equal, if exactly the masked tensors differ, and if no byte outside of them does (where
a file has to be serialised anew, the row says so).
"""

# ruff: noqa: D102 - formats have the docstrings of `Format`

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import os
import platform
import sys
import tempfile
import time
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from auditor import api
from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.masks import MaskSite, effective, folded
from auditor.measure import Stamped, all_to_one
from auditor.models.base import ModelHandle
from auditor.purifiers.base import Known, measured

CLASSES = 10
SIDES = {"resnet18": 64, "mobilenet_v3_large": 64, "vit_b_16": 224, "convnext_tiny": 64}
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit."""
STEPS = 1.01
"""The same for int8, in steps of the output: one, and what float32 adds to it."""
HALF_STEP = 2.0**-10
"""The same for fp16, which has no more numbers between a power of two and the next: where onnxruntime
rounds to it between two operators, no other computation comes closer."""
JITTER = 1e-7
"""Images are moved by so little to see how far onnxruntime's fp16 is from itself."""
GRAPH_NAMES = {"input_names": ["images"], "output_names": ["scores"]}
ALL = "ORT_ENABLE_ALL"
COPY = "\0"
"""Stands for an initialiser that the original does not have."""


# ---- networks


def trained_like(network: nn.Module, images: Tensor) -> nn.Module:
    """Fresh networks hide mistakes: scales of one, means of zero, heads of zero.

    Args:
        network: Changed in place.
        images: ``(N, C, H, W)``, for the running statistics.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("layer_scale"):  # ConvNeXt's: 1e-6 hides all blocks
                parameter.uniform_(0.1, 0.5)
            elif parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif parameter.ndim == 1:
                scale = name.endswith("weight")
                parameter.uniform_(0.5, 1.5) if scale else parameter.normal_(std=0.2)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
            norm.train()
        if norms:
            network(images)
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A network of torchvision, and images to compare it on."""
    torch.manual_seed(0)
    side = SIDES[name]
    network = torchvision.models.get_model(name, num_classes=CLASSES).eval()
    trained_like(network, torch.rand(16, 3, side, side))
    return network, torch.rand(2 if side > 64 else 4, 3, side, side)


# ---- formats: how others write and read them


@dataclass(frozen=True)
class Content:
    """What a file holds, by the format's own reader."""

    frame: Any
    """Everything but numbers."""
    tensors: Mapping[str, bytes]
    """Name as in the network -> numbers."""
    copies: int = 0
    """Tensors that the file has and its original shared."""


class Format(ABC):
    """A format as its users know it; nothing of it is auditor's."""

    file: str
    tolerance = TOLERANCE
    named = True
    """False where the file has no names for its tensors."""

    @abstractmethod
    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        """Write a network that takes `images`, any number of them."""

    @abstractmethod
    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        """The logits, by the user's own loader.

        Args:
            path: The file.
            network: Of the same kind, with any weights; for files that hold weights only.
            images: What to run it on.
        """

    @abstractmethod
    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        """What a file and its purified copy hold."""

    def outside(self, old: Path, new: Path, changed: set[str]) -> bool | None:
        """Are all bytes equal outside of the tensors `changed`? None where they cannot be."""
        return _equal_outside_records(old, new)

    def unit(self, path: Path, logits: Tensor) -> float:
        """What a difference of logits is measured in."""
        return float(logits.abs().max())

    def noise(self, path: Path, images: Tensor) -> float:
        """How far the format's own loader is from itself, another way; none by default."""
        return 0.0


def _equal_outside_records(old: Path, new: Path) -> bool:
    """Do two archives differ in records of numbers, and checksums of these, only?"""
    before, after = (np.fromfile(path, np.uint8) for path in (old, new))
    if len(before) != len(after):
        return False
    same = before == after
    with zipfile.ZipFile(old) as archive:
        central = archive.start_dir
        for member in archive.infolist():
            lengths = before[member.header_offset + 26 : member.header_offset + 30].view("<u2")
            begin = member.header_offset + 30 + int(lengths.sum())
            end = begin + member.compress_size
            folder = member.filename.partition("/")[2].partition("/")[0]
            if folder in ("data", "constants") and not same[begin:end].all():
                same[begin:end] = True
                same[central + 16 : central + 20] = True
                checksum = end + 4 if member.flag_bits & 8 else member.header_offset + 14
                same[checksum : checksum + 4] = True
            central += 46 + int(before[central + 28 : central + 34].view("<u2").sum())
    return bool(same.all())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _content(state: Mapping[str, Tensor], *frame: object, prefix: str = "") -> Content:
    described = [(key, t.dtype, tuple(t.shape), t.stride()) for key, t in state.items()]
    return Content(
        frame=(described, *frame),
        tensors={key.removeprefix(prefix): _bytes(tensor) for key, tensor in state.items()},
    )


@dataclass(frozen=True)
class Weights(Format):
    """A state dict, bare or nested, by `torch.save`."""

    file: str = "weights.pth"
    nested: bool = False
    legacy: bool = False

    @property
    def prefix(self) -> str:
        return "module." if self.nested else ""

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        content: dict[str, Any] = {self.prefix + k: v for k, v in network.state_dict().items()}
        if self.nested:
            content = {"net": content, "acc": 91.25, "epoch": 7}
        torch.save(content, path, _use_new_zipfile_serialization=not self.legacy)

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        content = torch.load(path, weights_only=True)
        state = content["net"] if self.nested else content
        network.load_state_dict({k.removeprefix(self.prefix): v for k, v in state.items()})
        return cast(Tensor, network(images))

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        return self._content(old), self._content(new)

    def _content(self, path: Path) -> Content:
        content = torch.load(path, weights_only=True)
        rest = [(k, v) for k, v in content.items() if k != "net"] if self.nested else []
        state = content["net"] if self.nested else content
        return _content(state, list(content), rest, prefix=self.prefix)

    def outside(self, old: Path, new: Path, changed: set[str]) -> bool | None:
        return None if self.legacy else _equal_outside_records(old, new)


@dataclass(frozen=True)
class Pickled(Format):
    """A network by `torch.save`."""

    file: str = "network.pt"

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        torch.save(network, path)

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        return cast(Tensor, torch.load(path, weights_only=False)(images))  # made above

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        networks = [torch.load(path, weights_only=False) for path in (old, new)]
        first, second = (_content(net.state_dict(), repr(net)) for net in networks)
        return first, second


@dataclass(frozen=True)
class Safetensors(Format):
    """A state dict by `safetensors.torch.save_file`."""

    file: str = "weights.safetensors"

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        safetensors.torch.save_file(state, path, metadata={"format": "pt", "epoch": "7"})

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        network.load_state_dict(safetensors.torch.load_file(path))
        return cast(Tensor, network(images))

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        first, second = (
            _content(safetensors.torch.load_file(path), path.read_bytes()[: self._begin(path)])
            for path in (old, new)
        )
        return first, second

    @staticmethod
    def _begin(path: Path) -> int:
        return 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def outside(self, old: Path, new: Path, changed: set[str]) -> bool | None:
        # header and names are in the frame, and the numbers of all other tensors are compared:
        # the library refuses files with anything else
        return old.stat().st_size == new.stat().st_size


@dataclass(frozen=True)
class Script(Format):
    """TorchScript by `torch.jit.save`."""

    file: str = "script.pt"
    trace: bool = False
    frozen: bool = False

    @property
    def named(self) -> bool:  # type: ignore[override]
        return not self.frozen

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        if self.trace:
            script = torch.jit.trace(network, images, check_trace=False)
        else:
            script = torch.jit.script(network)
        script = torch.jit.freeze(script) if self.frozen else script
        torch.jit.save(script, str(path), _extra_files={"classes.txt": "cat\ndog"})

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        return cast(Tensor, torch.jit.load(str(path))(images))

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        return self._content(old), self._content(new)

    def _content(self, path: Path) -> Content:
        with zipfile.ZipFile(path) as archive:
            members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
        code = {n: d for n, d in members.items() if not n.startswith(("data/", "constants/"))}
        if not self.frozen:
            return _content(torch.jit.load(str(path)).state_dict(), code, list(members))
        numbers = {n: d for n, d in members.items() if n.startswith("constants/")}
        return Content(
            frame=(code, list(members)),
            tensors=numbers,
        )


@dataclass(frozen=True)
class Exported(Format):
    """A program by `torch.export.save`."""

    file: str = "program.pt2"

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        shapes = ({0: torch.export.Dim("n")},)
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), path)

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        return cast(Tensor, torch.export.load(path).module()(images))

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        programs = [torch.export.load(path) for path in (old, new)]
        first, second = (
            _content({**p.state_dict, **p.constants}, p.graph_module.code, str(p.graph_signature))
            for p in programs
        )
        return first, second


@dataclass(frozen=True)
class Onnx(Format):
    """An ONNX graph by one of torch's exporters, converted further or not."""

    file: str = "graph.onnx"
    dynamo: bool = False
    external: bool = False
    half: bool = False
    integers: bool = False
    tolerance: float = TOLERANCE

    def save(self, network: nn.Module, images: Tensor, path: Path) -> None:
        if self.dynamo:
            shapes = ({0: torch.export.Dim("n")},)
            torch.onnx.export(
                network, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False,
                external_data=self.external, **GRAPH_NAMES,
            )  # fmt: skip
            return
        floats = path.with_name(f"floats-{path.name}")
        torch.onnx.export(
            network, (images,), floats, dynamo=False, opset_version=17,
            dynamic_axes={"images": {0: "n"}, "scores": {0: "n"}}, **GRAPH_NAMES,
        )  # fmt: skip
        if self.half:
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(onnx.load(floats), keep_io_types=True), path)
        elif self.integers:
            _quantise(floats, path, images)
        else:
            floats.rename(path)

    def run(self, path: Path, network: nn.Module, images: Tensor) -> Tensor:
        # onnxruntime 1.31 dies of transformers in float16 with all of its optimisations
        return _onnxruntime(path, images, "ORT_ENABLE_EXTENDED" if self.half else ALL)

    def noise(self, path: Path, images: Tensor) -> float:
        """Of fp16 and int8, where a sum falls to the next step, and layers add to that."""
        if self.half:
            generator = torch.Generator().manual_seed(3)
            moved = images + JITTER * torch.randn(images.shape, generator=generator)
            first, second = (self.run(path, nn.Identity(), batch) for batch in (images, moved))
            return float((first - second).abs().max())
        if not self.integers:
            return 0.0
        other = _onnxruntime(path, images, "ORT_DISABLE_ALL")
        return float((_onnxruntime(path, images) - other).abs().max())

    def contents(self, old: Path, new: Path) -> tuple[Content, Content]:
        before, after = (onnx.load(str(path)) for path in (old, new))
        own = {tensor.name for tensor in before.graph.initializer}
        first, second = _graph_content(before, own), _graph_content(after, own)
        # where a layer got a copy of a tensor that it shared, it reads that instead
        for one, other in zip(first.frame["inputs"], second.frame["inputs"], strict=False):
            other[:] = [a if b is COPY else b for a, b in zip(one, other, strict=False)]
        return first, second

    def outside(self, old: Path, new: Path, changed: set[str]) -> bool | None:
        before, after = (onnx.load(str(path), load_external_data=False) for path in (old, new))
        stored = {tensor.name: tensor for tensor in before.graph.initializer}
        if len(stored) < len(after.graph.initializer):
            return None
        for tensor in after.graph.initializer:
            if tensor.external_data or tensor.name in changed:
                tensor.CopyFrom(stored[tensor.name])
        if after.SerializeToString() != old.read_bytes():
            return False
        if not self.external:
            return old.stat().st_size == new.stat().st_size
        return _equal_outside_places(old, new, [stored[name] for name in changed])

    def unit(self, path: Path, logits: Tensor) -> float:
        """For int8 the step of the output."""
        if not self.integers:
            return super().unit(path, logits)
        model = onnx.load(str(path))
        (last,) = (node for node in model.graph.node if "scores" in node.output)
        numbers = {tensor.name: tensor for tensor in model.graph.initializer}
        return float(onnx.numpy_helper.to_array(numbers[last.input[1]]))


def _onnxruntime(path: Path, images: Tensor, level: str = ALL) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def _quantise(floats: Path, path: Path, images: Tensor) -> None:
    """To int8 with a scale a channel, calibrated on the images themselves."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"images": images.numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        floats, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QUInt8,
        # 7 bits: where the processor has no VNNI, onnxruntime's sums of products of 8 saturate
        reduce_range=True,
    )  # fmt: skip


def _graph_content(model: onnx.ModelProto, own: set[str]) -> Content:
    """Of a graph whose original had the tensors `own`."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    made = {name for node in graph.node for name in node.output}
    made |= own | {entry.name for entry in graph.input} | {""}
    initializers = list(graph.initializer)
    constants = [
        n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"
    ]
    tensors = {t.name: t for t in initializers} | {n.output[0]: n.attribute[0].t for n in constants}
    frame: dict[str, Any] = {
        "nodes": [
            (n.op_type, n.domain, n.name, tuple(n.output), [a.SerializeToString() for a in n.attribute])
            for n in nodes
        ],
        "constants": [(n.name, tuple(n.output)) for n in constants],
        "tensors": [(t.name, tuple(t.dims), t.data_type) for t in initializers if t.name in own],
        "opsets": [(entry.domain, entry.version) for entry in model.opset_import],
        "metadata": [(entry.key, entry.value) for entry in model.metadata_props],
        "ends": [e.SerializeToString() for e in (*graph.input, *graph.output, *graph.value_info)],
        "producer": (model.producer_name, model.producer_version, model.ir_version, graph.name),
    }  # fmt: skip
    frame["inputs"] = [[name if name in made else COPY for name in node.input] for node in nodes]
    return Content(
        frame=frame,
        tensors={name: onnx.numpy_helper.to_array(t).tobytes() for name, t in tensors.items()},
        copies=sum(tensor.name not in own for tensor in initializers),
    )


def _equal_outside_places(old: Path, new: Path, changed: Sequence[onnx.TensorProto]) -> bool:
    """Do the data files of two graphs differ in the numbers of `changed` only?"""
    before, after = (np.fromfile(f"{path}.data", np.uint8) for path in (old, new))
    if len(before) != len(after):
        return False
    same = before == after
    for tensor in changed:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            begin = int(place.get("offset", 0))
            same[begin : begin + int(place["length"])] = True
    return bool(same.all())


FORMATS: dict[str, Format] = {
    "state dict": Weights(),
    "nested checkpoint": Weights("checkpoint.pth", nested=True),
    "pickled network": Pickled(),
    "state dict, legacy": Weights("legacy.pth", legacy=True),
    "safetensors": Safetensors(),
    "TorchScript scripted": Script(),
    "TorchScript traced": Script(trace=True),
    "TorchScript frozen": Script(frozen=True),
    "torch.export": Exported(),
    "ONNX legacy exporter": Onnx(),
    "ONNX dynamo": Onnx(dynamo=True),
    "ONNX dynamo, external": Onnx(dynamo=True, external=True),
    "ONNX fp16": Onnx(half=True, tolerance=HALF_STEP),
    "ONNX int8": Onnx(integers=True, tolerance=STEPS),
}


# ---- round trips


@dataclass
class Row:
    """One round trip."""

    format: str
    sites: int = 0
    channels: int = 0
    opened: float = 0.0
    """Largest difference of a logit between auditor's and the user's reading of the suspect."""
    effect: float = 0.0
    """Between the masked suspect and the suspect."""
    folded: float = 0.0
    """Between the masked suspect and the written file, opened again and computed in the same way."""
    masked: float = 0.0
    """The same as the file is computed: for ONNX by onnxruntime."""
    noise: float = 0.0
    """Between the format's own loader and itself, where that is not zero."""
    loaded: float = 0.0
    """Between auditor's and the user's reading of the written file."""
    changed: int = 0
    copies: int = 0
    outside: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    peak: float | None = None
    """Megabytes that opening, masking, writing and opening again added at most."""
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def drawn_masks(sites: Sequence[MaskSite]) -> dict[str, Tensor]:
    """In [0.6, 1], and 2% of them zeros."""
    generator = torch.Generator().manual_seed(2)
    masks = {}
    for site in sites:
        mask = 1 - 0.4 * torch.rand(site.channels, generator=generator)
        masks[site.layer] = mask * (torch.rand(site.channels, generator=generator) >= 0.02)
    return masks


def round_trip(
    title: str, network: nn.Module, images: Tensor, folder: Path, arch: str | None = None
) -> Row:
    """Mask, fold, write, open again; everything that is wrong is in the row's problems.

    Args:
        title: One of `FORMATS`.
        network: In eval mode.
        images: ``(N, C, H, W)``, what the logits are compared on.
        folder: Empty.
        arch: As given to `load_model`; None lets it find out.
    """
    row, form, other = Row(title), FORMATS[title], copy.deepcopy(network)
    path, out = folder / form.file, folder / f"purified-{form.file}"
    form.save(network, images, path)
    row.bytes = sum(entry.stat().st_size for entry in folder.glob(f"{path.name}*"))
    before = {entry: entry.read_bytes() for entry in folder.iterdir()}
    with torch.no_grad(), peak_of(row):
        with timed(row, "open"):
            handle = api.load_model(path, arch=arch)
        row.notes = handle.notes
        sites = handle.mask_sites()
        masks = drawn_masks(sites)
        row.sites, row.channels = len(sites), sum(site.channels for site in sites)
        plain = handle.call(images)
        overrides = effective(handle.tensors(), sites, masks)
        with timed(row, "call"):
            masked = handle.call(images, overrides)
        with timed(row, "write"):
            handle.write(folded(handle.tensors(), sites, masks), out)
        known = arch or next(iter(handle.alternatives), None)
        with timed(row, "again"):
            again = api.load_model(out, arch=known)
            found = again.call(images)
    with torch.no_grad():
        # a graph has no train mode, but overrides and train mode are computed by auditor itself
        same = again.call(images, train=True) if isinstance(form, Onnx) else found
        results = {"plain": plain, "masked": masked, "same": same, "found": found}
        _compare_logits(row, form, (path, out), (other, images), results)
    _compare_content(row, form, path, out, handle)
    if any(entry.read_bytes() != data for entry, data in before.items()):
        row.problems.append("the suspect's file changed")
    return row


def _compare_logits(
    row: Row,
    form: Format,
    files: tuple[Path, Path],
    by: tuple[nn.Module, Tensor],
    results: Mapping[str, Tensor],
) -> None:
    """Args: the suspect and the written file, what `Format.run` needs, what auditor computed."""
    path, out = files
    plain, masked, found = (results[name] for name in ("plain", "masked", "found"))
    unit = form.unit(path, plain)

    def difference(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().max()) / unit

    row.opened = difference(plain, form.run(path, *by))
    row.effect = difference(masked, plain)
    row.folded = difference(masked, results["same"])
    row.masked = difference(masked, found)
    row.loaded = difference(found, form.run(out, *by))
    row.noise = max(form.noise(file, by[1]) for file in files) / unit
    for what in ("opened", "folded", "masked", "loaded"):
        allowed = TOLERANCE if what == "folded" else max(form.tolerance, row.noise)
        if not getattr(row, what) <= allowed:
            row.problems.append(f"{what}: logits differ by {getattr(row, what):.1e}")
    if not row.effect > 10 * form.tolerance:
        row.problems.append("the masks do next to nothing")


def _compare_content(row: Row, form: Format, path: Path, out: Path, handle: ModelHandle) -> None:
    masked = {name for site in handle.mask_sites() for name, _ in site.tensors}
    old, new = form.contents(path, out)
    if old.frame != new.frame:
        row.problems.append("more than numbers changed")
    row.copies = new.copies
    if not old.tensors.keys() <= new.tensors.keys():
        row.problems.append("a tensor is missing")
    differing = {name for name in old.tensors if new.tensors.get(name) != old.tensors[name]}
    added = new.tensors.keys() - old.tensors.keys()
    if form.named:
        wrong = not differing <= masked or bool(masked - differing - added)
    else:
        wrong = len(differing) != len(masked)
    if wrong:
        row.problems.append("other tensors than the masked ones changed")
    row.changed = len(differing | added)
    outside = form.outside(path, out, differing)
    row.outside = {True: "equal", False: "differ", None: "saved anew"}[outside]
    if outside is False:
        row.problems.append("bytes outside of the masked tensors changed")


@contextmanager
def timed(row: Row, what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    row.seconds[what] = time.perf_counter() - begin


@contextmanager
def peak_of(row: Row) -> Iterator[None]:
    """Measure how far the resident size rises; on Linux, whose kernel can forget the highest."""
    gc.collect()
    with suppress(OSError, AttributeError):  # else memory that was freed is used again, unseen
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        begin = _resident("VmRSS")
        yield
        row.peak = _resident("VmHWM") - begin
    except OSError:
        yield


def _resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


HEAD = """\
| format | sites (channels) | opened | folded | masked | own loader | masks change | tensors changed \
| bytes outside | open, call, write, again (s) | file, peak (MB) | |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def print_row(row: Row) -> None:
    steps = isinstance(FORMATS[row.format], Onnx) and "int8" in row.format

    def said(difference: float) -> str:
        if steps:
            return f"{difference:.0f} steps"
        return f"{difference:.1e}" if difference else "0"

    print(
        f"| {row.format} | {row.sites} ({row.channels:,}) | {said(row.opened)} | {said(row.folded)} | "
        f"{said(row.masked)}{f' (own noise {said(row.noise)})' if row.noise else ''} | "
        f"{said(row.loaded)} | {said(row.effect) if steps else f'{row.effect:.0%}'} | {row.changed}"
        f"{f', {row.copies} copies' if row.copies else ''} | {row.outside} | "
        f"{', '.join(f'{seconds:.1f}' for seconds in row.seconds.values())} | "
        f"{row.bytes / 2**20:.0f}, {'–' if row.peak is None else f'{row.peak:.0f}'} | "
        f"{'**FAIL**: ' + '; '.join(row.problems) if row.problems else 'pass'} |",
        flush=True,
    )


def round_trips(networks: Sequence[str], formats: Sequence[str]) -> int:
    failed = 0
    for name in networks:
        network, images = made(name)
        count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(f"\n{name}, {count:.1f} M parameters, {len(images)} images of {SIDES[name]} px\n")
        print(HEAD, flush=True)
        for title in formats:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    row = round_trip(title, network, images, Path(folder))
                except Exception as error:
                    row = Row(title, problems=[f"{type(error).__name__}: {str(error)[:200]}"])
            print_row(row)
            failed += bool(row.problems)
    return failed


# ---- published suspects


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A published suspect, or an export of it."""

    title: str
    path: Path
    arch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a published suspect."""

    target: int
    trigger: api.Probe
    evidence: tuple[api.Probe, ...]
    """What a scan tries."""


EXPORTS = ("ONNX legacy exporter", "ONNX dynamo", "torch.export", "TorchScript traced")


def white_square(folder: Path) -> Path:
    """The true trigger of badnets as a picture: rows and columns 27 to 30."""
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (27, 27, 31, 31))
    picture.save(folder / "trigger_badnets.png")
    return folder / "trigger_badnets.png"


def exported(suspect: Suspect, folder: Path, titles: Sequence[str]) -> list[Suspect]:
    """The suspect itself, and its exports."""
    network = api.load_model(suspect.path, arch=suspect.arch).module
    assert network is not None
    network.to(memory_format=torch.contiguous_format).requires_grad_(True)
    files = [suspect]
    for title in titles:
        form = FORMATS[title]
        path = folder / f"{title.replace(' ', '-')}-{form.file}"
        form.save(network, torch.zeros(2, 3, 32, 32), path)
        files.append(Suspect(title=title, path=path))
    return files


def scan_options() -> api.ScanOptions:
    given = api.GivenInput(normalize="none")
    return api.ScanOptions(given=given, max_images=100, searches=(), seed=0)


def scanned(suspect: Suspect, facts: Facts, clean: Any, original: Any) -> Any:
    """Scan, and print how far the counts are from those of the original file."""
    begin = time.perf_counter()
    model = api.load_model(suspect.path, arch=suspect.arch)
    result = api.scan(model, facts.evidence, clean, scan_options())
    seconds = time.perf_counter() - begin
    same, largest = _count_differences(original or result, result)
    judgement = result.judgement
    print(
        f"| {suspect.title} | {judgement.verdict.value}: {judgement.headline} | "
        f"{len(result.responses)} | {same} | {largest} | {seconds:.0f} |",
        flush=True,
    )
    return result


def _count_differences(one: Any, other: Any) -> tuple[int, int]:
    """How many responses have the same counts, and the largest difference of a count in images."""
    worst = []
    for first, second in zip(one.responses, other.responses, strict=True):
        assert first.trigger == second.trigger
        classes = first.hits.keys() | second.hits.keys()
        hits = [abs(first.hits.get(k, 0) - second.hits.get(k, 0)) for k in classes]
        worst.append(max([abs(first.flips - second.flips), *hits]))
    return sum(difference == 0 for difference in worst), max(worst, default=0)


def purified(suspect: Suspect, facts: Facts, clean: Any, test: Any, folder: Path) -> None:
    """Purify, and print what is left of the true trigger in the written file, opened again."""
    model = api.load_model(suspect.path, arch=suspect.arch)
    output = folder / f"purified-{suspect.path.name}"
    begin = time.perf_counter()
    options = api.PurifyOptions(
        arch=suspect.arch, baseline=False, write_anyway=True, scan=scan_options()
    )
    result = api.purify(model, facts.evidence, clean, output, options, judge=test)
    seconds = time.perf_counter() - begin
    spec = result.preprocessing.spec
    judge = test.load(range(test.count), blank_spec((spec.channels, spec.height, spec.width)))
    known = Known(
        stamped=Stamped(probe="true", title="the true trigger", trigger=facts.trigger.triggers[0]),
        mapping=all_to_one(facts.target, CLASSES).mapping,
    )

    def judged(opened: ModelHandle) -> str:
        accuracy, (rate,) = measured(Classifier(opened, spec), judge.images, judge.labels, [known])
        return f"{rate:.1%} / {accuracy:.1%}"

    if result.method is None:
        print(f"| {suspect.title} | {judged(model)} | nothing found | | | {seconds:.0f} |")
        return
    kept = "+".join(stage.what for stage in result.method.stages if stage.kept)
    after = judged(api.load_model(output, arch=suspect.arch))
    difference = "–" if result.written is None else f"{result.written.largest_difference:.1e}"
    print(
        f"| {suspect.title} | {judged(model)} | {after} | {kept} | {difference} | {seconds:.0f} |",
        flush=True,
    )


def suspects(arguments: argparse.Namespace) -> None:
    folder, only = arguments.suspects, arguments.only
    missing = [p for p in (folder, arguments.clean, arguments.test) if not p.exists()]
    if missing:
        print(f"Skipped: {', '.join(map(str, missing))} is not there.")
        return
    images, judge = api.open_images(arguments.clean), api.open_images(arguments.test)
    quick = tuple(api.choose_probes("quick").probes)
    for name, target in (("badnets", 8), ("l2inv", 0)):
        path = folder / f"cifar10_vgg_{name}.pth"
        if only not in (None, name) or not path.exists():
            print(f"{name}: skipped, {'not asked for' if path.exists() else 'not there'}.")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            picture = folder / "trigger_l2inv.png" if name == "l2inv" else white_square(root)
            trigger = api.probe_from_image(picture)
            evidence = (trigger, *quick) if name == "l2inv" else quick
            facts = Facts(target=target, trigger=trigger, evidence=evidence)
            original = Suspect(title="original", path=path, arch=f"{folder / 'small_vgg.py'}:build")
            files = exported(original, root, arguments.export or EXPORTS)
            if arguments.part != "purify":
                scan_all(name, files, facts, images)
            if arguments.part != "scan":
                purify_all(name, files, facts, images, judge, root)


def scan_all(name: str, files: Sequence[Suspect], facts: Facts, images: Any) -> None:
    print(f"\n{name}, scan of 100 images\n")
    print("| file | verdict | triggers | same counts as original | off by | s |")
    print("|---|---|---|---|---|---|", flush=True)
    original = None
    for file in files:
        result = scanned(file, facts, images, original)
        original = original or result


def purify_all(
    name: str, files: Sequence[Suspect], facts: Facts, images: Any, judge: Any, folder: Path
) -> None:
    print(f"\n{name}, purified with {images.count} images, judged on {judge.count}\n")
    print("| file | before: ASR / ACC | after | by | file off by | s |")
    print("|---|---|---|---|---|---|", flush=True)
    for file in files:
        purified(file, facts, images, judge, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trips = commands.add_parser("round-trips")
    trips.add_argument("--network", choices=SIDES, action="append")
    trips.add_argument("--format", choices=FORMATS, action="append")
    published = commands.add_parser("suspects")
    published.add_argument("--suspects", type=Path, required=True)
    published.add_argument("--clean", type=Path, required=True)
    published.add_argument("--test", type=Path, required=True)
    published.add_argument("--only", choices=("badnets", "l2inv"))
    published.add_argument("--export", choices=EXPORTS, action="append", help="beside the original")
    published.add_argument("--part", choices=("scan", "purify"), help="both, if left out")
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    if arguments.command == "suspects":
        suspects(arguments)
        return 0
    failed = round_trips(arguments.network or list(SIDES), arguments.format or list(FORMATS))
    print(f"\n{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
