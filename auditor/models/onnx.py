"""ONNX files: probed by onnxruntime, searched and changed through our own reading of the graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auditor.anatomy import Layer
from auditor.errors import ModelError, UnreadableModel, UnsuitableModel
from auditor.memory import is_out_of_memory
from auditor.models.base import GraphHandle
from auditor.models.onnx_gate import read_graph
from auditor.onnx_graph.external import all_tensors, is_external
from auditor.onnx_graph.graph import GraphError, UnsupportedOperators
from auditor.onnx_graph.network import Network, read_network
from auditor.onnx_graph.write import side_files, write_changed
from auditor.safety.structure import FileFacts
from auditor.text import clean_text, listed

# Recent onnxruntime wheels upload telemetry unless this is set before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
import onnxruntime

INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
SIDES = (224, 32, 64, 28, 16, 299, 384)
"""Of the images that the two readings of a graph are compared on, where it takes any."""
AGREEMENT = 1e-3
"""Largest difference of a score between the two, relative to the largest score."""
ROUNDED_AGREEMENT = 0.1
"""The same for int8 graphs, in which a rounding that falls the other way is a whole step."""
MAX_LISTED = 5


class OnnxHandle(GraphHandle):
    """An ONNX graph: a session of onnxruntime, and the same graph as a torch computation.

    The session is faster, and the judge of what the file computes; plain forward passes go there.
    Gradients, other numbers and features take the torch computation. It is used only where the two
    agree; otherwise the file can be probed, but neither searched by gradient nor changed.

    A graph has no train mode: `call(train=True)` does what eval mode does.
    """

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="ONNX graph", device=device)
        model = read_graph(file.path)
        self._parameters = sum(
            int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.dims
        )
        self._external = any(is_external(tensor) for tensor in all_tensors(model))
        producer = clean_text(f"{model.producer_name} {model.producer_version}".strip(), limit=60)
        opset = max(
            (entry.version for entry in model.opset_import if entry.domain == ""), default=0
        )
        self.architecture = f"ONNX graph, {len(model.graph.node)} nodes, opset {opset}"
        if producer:
            self.notes.append(f"Exported by {producer}.")
        self._session = _session(file.path, device, half=_is_half(model))
        self._read_signature()
        self._network: Network | None = None
        self._together: Together = _at_once
        try:
            whole = _with_data(file.path) if self._external else model
            self._network = read_network(whole, device)
            self._compare(self._network)
        except (GraphError, ModelError, _Disagreement) as error:
            self._network = None
            self.notes.append(
                f"It can be tested, but neither searched by gradient nor purified: {_why(error)}."
            )

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
        if entry.type not in INPUT_TYPES:
            raise UnsuitableModel(
                f"{name} takes {clean_text(entry.type)}; auditor gives images as float, float16 or uint8. "
                "Export it with such an input, and let the graph convert it."
            )
        if len(entry.shape) != 4:
            raise UnsuitableModel(
                f"{name} takes an input of shape {entry.shape}, not a batch of images (N, C, H, W)."
            )
        self._input = entry.name
        self._dtype = INPUT_TYPES[entry.type]
        batch, *sizes = [size if isinstance(size, int) else None for size in entry.shape]
        self._fixed = batch
        self._channels_last = sizes[2] in (1, 3) and sizes[0] not in (1, 3)
        if self._channels_last:
            sizes = [sizes[2], sizes[0], sizes[1]]
        self._sizes = (sizes[0], sizes[1], sizes[2])
        self._outputs = [output.name for output in self._session.get_outputs()]

    @torch.no_grad()
    def _compare(self, network: Network) -> None:
        """Let both compute the same images; and the graph more than the file fixes, somehow.

        Raises:
            ModelError: One of the two cannot.
            _Disagreement: They come to different scores.
        """
        images, expected = self._some_scores()
        tolerance = ROUNDED_AGREEMENT if network.rounds else AGREEMENT
        found = self._by_graph(network, images)
        difference = _difference(expected, found)
        if not difference <= tolerance:
            raise _Disagreement(
                f"what its operators should compute differs from onnxruntime's by {difference:.2g}"
            )
        if self._fixed is None:
            return
        for together in (_at_once, _side_by_side, _one_by_one):
            self._together = together
            try:
                twice = self._by_graph(network, torch.cat([images, images.flip(0)]))
            except ModelError:
                continue  # shapes in the graph depend on the number of images
            if _difference(expected, [part[: len(images)] for part in twice]) <= tolerance:
                return
        raise _Disagreement("it computes other scores for more images than it was exported for")

    def _some_scores(self) -> tuple[Tensor, list[Tensor]]:
        """Random images, and what the session makes of them.

        Raises:
            UnsuitableModel: It takes images of none of the usual sizes.
        """
        channels, height, width = self._sizes
        for side in SIDES:
            shape = (self._fixed or 2, channels or 3, height or side, width or side)
            images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
            # whole numbers, where the session would round them and the graph would not
            images = ((images * 255).round() if self._dtype is np.uint8 else images).to(self.device)
            try:
                return images, self._by_session(images)
            except UnsuitableModel as error:
                refused = error
            if height and width:
                break
        raise refused

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        by_gradient = torch.is_grad_enabled() and inputs.requires_grad
        special = bool(overrides or train or by_gradient or self._taps)
        if self._network is None:
            if special:
                raise NotImplementedError("onnxruntime computes with the file's own tensors only")
            outputs = self._by_session(inputs)
        elif special:
            outputs = self._by_graph(self._network, inputs, overrides)
        else:
            outputs = self._in_lots(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _in_lots(self, inputs: Tensor) -> list[Any]:
        """By the session, as many images at once as the file fixes."""
        if self._fixed in (None, len(inputs)):
            return self._by_session(inputs)
        parts = [self._by_session(lot) for lot in _lots(inputs, self._fixed)]
        whole = list(zip(*parts, strict=True))
        if not all(isinstance(part, Tensor) for output in whole for part in output):
            return [output[0] for output in whole]  # no scores, as is said elsewhere
        return [torch.cat(output)[: len(inputs)] for output in whole]

    def _by_session(self, inputs: Tensor) -> list[Any]:
        images = self._arranged(inputs.detach()).cpu().numpy()
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
        return [
            torch.from_numpy(output).float().to(self.device)
            if isinstance(output, np.ndarray) and output.dtype.kind in "fiu"
            else output
            for output in outputs
        ]

    def _by_graph(
        self, network: Network, inputs: Tensor, overrides: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        def run(images: Tensor) -> tuple[Tensor, ...]:
            found = network.graph.run({self._input: images}, changed, keep=self._taps)
            return tuple(found[name] for name in wanted)

        changed = network.rounded(overrides or {})
        wanted = [*self._outputs, *self._taps]
        try:
            values = self._together(run, self._arranged(inputs), self._fixed or len(inputs))
        except GraphError as error:
            raise UnsuitableModel(
                f"{clean_text(self.file.path.name)} cannot be computed on an input of shape "
                f"{tuple(inputs.shape)}: {clean_text(str(error), limit=200)}"
            ) from None
        outputs, features = values[: len(self._outputs)], values[len(self._outputs) :]
        self._kept += features
        return [output.float() for output in outputs]

    def _arranged(self, inputs: Tensor) -> Tensor:
        return inputs.permute(0, 2, 3, 1) if self._channels_last else inputs

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._network is None else dict(self._network.graph.tensors)

    def weights(self) -> dict[str, Tensor]:
        if self._network is None:
            return {}
        own = self._network.graph.tensors
        return {name: own[name] for name in own if name in self._network.weights}

    def anatomy(self) -> list[Layer]:
        return [] if self._network is None else list(self._network.layers)

    def layers(self, inputs: Tensor) -> list[str]:
        return [] if self._network is None else list(self._network.features)

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        if self._network is None:
            super().write(changed, path)
            return
        write_changed(self.file, path, changed, self._network.copies)

    def side_files(self, path: Path) -> list[Path]:
        return side_files(self.file, path) if self._external else []

    @property
    def differentiable(self) -> bool:
        return self._network is not None

    @property
    def rounding(self) -> float:
        rounds = self._network is not None and self._network.rounds
        return ROUNDED_AGREEMENT if rounds else 0.0

    @property
    def parameters(self) -> int:
        return self._parameters

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        return self._sizes

    @property
    def batch(self) -> int | None:
        return self._fixed if self._network is None else None


Run = Callable[[Tensor], tuple[Tensor, ...]]
Together = Callable[[Run, Tensor, int], Sequence[Tensor]]
"""Computes any number of images with a graph that was exported for a number of them."""


def _at_once(run: Run, images: Tensor, fixed: int) -> Sequence[Tensor]:
    """Nothing in the graph depends on their number after all."""
    return run(images)


def _side_by_side(run: Run, images: Tensor, fixed: int) -> Sequence[Tensor]:
    """Each lot as if it were alone, computed together."""
    lots = _lots(images, fixed)
    try:
        values = torch.vmap(run)(torch.stack(lots))
    except RuntimeError as error:  # an operator that asks for a value, or changes one in place
        if is_out_of_memory(error):
            raise
        raise GraphError(str(error)) from None
    return [value.flatten(0, 1)[: len(images)] for value in values]


def _one_by_one(run: Run, images: Tensor, fixed: int) -> Sequence[Tensor]:
    """One lot after the other: slow, and always right."""
    values = zip(*(run(lot) for lot in _lots(images, fixed)), strict=True)
    # an export for one image may leave out its dimension
    return [torch.cat(list(map(torch.atleast_1d, parts)))[: len(images)] for parts in values]


def _lots(images: Tensor, fixed: int) -> list[Tensor]:
    """As many images each as the file fixes; the last lot is filled up."""
    missing = -len(images) % fixed
    filled = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing else images
    return list(torch.split(filled, fixed))


class _Disagreement(Exception):
    """The torch computation is not what the file computes."""


def _with_data(path: Path) -> Any:
    """The graph with the weights that are in other files.

    Raises:
        UnreadableModel: They are damaged.
    """
    try:
        return onnx.load(str(path))
    except Exception as error:  # onnx's own checks, and protobuf's
        raise UnreadableModel(
            f"{clean_text(path.name)}: its external data cannot be read "
            f"({clean_text(str(error), limit=160)})."
        ) from None


def _why(error: Exception) -> str:
    if isinstance(error, UnsupportedOperators):
        names = [clean_text(name, limit=40) for name in error.names]
        return f"auditor has no derivative for {listed(names, MAX_LISTED)}"
    return clean_text(str(error), limit=300).rstrip(".")


def _difference(expected: Sequence[Any], found: Sequence[Tensor]) -> float:
    """Largest difference of a number, relative to the largest; infinite for other shapes."""
    worst = 0.0
    for wanted, have in zip(expected, found, strict=True):
        if not isinstance(wanted, Tensor) or wanted.shape != have.shape:
            return float("inf")
        if wanted.numel():
            scale = max(1.0, float(wanted.abs().max()))
            worst = max(worst, float((wanted - have).abs().max()) / scale)
    return worst


def _is_half(model: Any) -> bool:
    """True where weights are in half precision."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def _session(path: Path, device: torch.device, *, half: bool) -> Any:
    options = onnxruntime.SessionOptions()
    if half:
        # with all of its optimisations onnxruntime 1.31 dies (SIGSEGV) of transformers in float16
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
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
