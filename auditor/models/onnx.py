"""ONNX files, run by onnxruntime: forward only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auditor.errors import UnreadableModel, UnsuitableModel
from auditor.models.base import ModelHandle
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

# Recent onnxruntime wheels upload telemetry unless this is set before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
import onnxruntime

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


class OnnxHandle(ModelHandle):
    """An ONNX graph behind an onnxruntime session."""

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="ONNX graph", device=device)
        graph = _read(file.path)
        self._parameters = sum(
            int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.dims
        )
        producer = clean_text(f"{graph.producer_name} {graph.producer_version}".strip(), limit=60)
        opset = max(
            (entry.version for entry in graph.opset_import if entry.domain == ""), default=0
        )
        self.architecture = f"ONNX graph, {len(graph.graph.node)} nodes, opset {opset}"
        if producer:
            self.notes.append(f"Exported by {producer}.")
        self._session = _session(file.path, device)
        self._read_signature()

    def _read_signature(self) -> None:
        name = clean_text(self.file.path.name)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(clean_text(entry.name, limit=40) for entry in inputs)
            raise UnsuitableModel(
                f"{name} takes {len(inputs)} inputs ({names}). auditor tests image classifiers "
                "with one image input."
            )
        (entry,) = inputs
        if entry.type not in INPUT_TYPES or len(entry.shape) != 4:
            raise UnsuitableModel(
                f"{name} takes {clean_text(entry.type)} of shape {entry.shape}, not a batch of "
                "images (N, C, H, W)."
            )
        self._input = entry.name
        self._dtype = INPUT_TYPES[entry.type]
        batch, *sizes = [size if isinstance(size, int) else None for size in entry.shape]
        self._batch = batch
        self._channels_last = sizes[2] in (1, 3) and sizes[0] not in (1, 3)
        if self._channels_last:
            sizes = [sizes[2], sizes[0], sizes[1]]
        self._sizes = (sizes[0], sizes[1], sizes[2])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        if overrides or train:
            raise NotImplementedError("onnxruntime computes with the file's own tensors only")
        images = inputs.detach().cpu().numpy()
        if self._channels_last:
            images = images.transpose(0, 2, 3, 1)
        if self._dtype is np.uint8:
            images = images.round().clip(0, 255)
        images = np.ascontiguousarray(images, dtype=self._dtype)
        try:
            outputs = self._session.run(self._outputs, {self._input: images})
        except Exception as error:  # onnxruntime raises its own, undocumented types
            raise UnsuitableModel(
                f"{clean_text(self.file.path.name)}: onnxruntime cannot run it on an input of shape "
                f"{images.shape}: {clean_text(str(error), limit=200)}"
            ) from None
        # float32 first: some devices have no doubles
        tensors = [
            torch.from_numpy(output).float().to(self.device)
            if isinstance(output, np.ndarray) and output.dtype.kind in "fiu"
            else output
            for output in outputs
        ]
        return tensors[0] if len(tensors) == 1 else tensors

    @property
    def parameters(self) -> int:
        return self._parameters

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        return self._sizes

    @property
    def batch(self) -> int | None:
        return self._batch


def _read(path: Path) -> Any:
    """Parse the graph without its external data, and check what it refers to."""
    name = clean_text(path.name)
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except Exception:
        raise UnreadableModel(
            f"{name} cannot be read as ONNX: it is damaged, or no ONNX file. Download it again."
        ) from None
    if not graph.graph.node:
        raise UnreadableModel(f"{name} is an ONNX file without any node. Download it again.")
    domains = {node.domain for node in graph.graph.node} - KNOWN_DOMAINS
    local = {function.domain for function in graph.functions}
    if domains - local:
        shown = ", ".join(clean_text(domain, limit=40) for domain in sorted(domains - local))
        raise UnsuitableModel(
            f"{name} uses custom operators ({shown}); auditor loads no operator libraries."
        )
    for tensor in _tensors(graph.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                _check_external(path, entry.value)
    return graph


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph holds: initialisers, constants, and those of nested graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from _tensors(inner)


def _check_external(path: Path, location: str) -> None:
    name, shown = clean_text(path.name), clean_text(location, limit=80)
    folder = path.parent.resolve()
    data = folder / location
    if Path(location).is_absolute() or not data.resolve().is_relative_to(folder):
        raise UnreadableModel(
            f"{name}: its external data points outside its folder ({shown}); refused."
        )
    if not data.is_file():
        raise UnreadableModel(
            f"{name} needs {shown} next to it (external weights); it is not there."
        )
    if data.is_symlink() or data.stat().st_nlink > 1:
        raise UnreadableModel(
            f"{name}: its external data {shown} is a link; refused. Copy the real file there."
        )


def _session(path: Path, device: torch.device) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises its own, undocumented types
        raise UnreadableModel(
            f"{clean_text(path.name)}: onnxruntime refuses it: {clean_text(str(error), limit=200)}"
        ) from None
