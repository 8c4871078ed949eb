"""What an ONNX file says of itself. It is parsed, and its external data is not opened."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from auditor.inspecting.record import MOST_NUMBERS, Content
from auditor.models.onnx_gate import graph_findings, locations, parsed
from auditor.onnx_graph.external import all_tensors, is_external
from auditor.text import clean_text, counted

# onnx alone sends nothing, but whoever imports it may import onnxruntime next
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx

MAX_ENTRIES = 12
INPUT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8)
IMAGES_ARE = "float, float16 or uint8"


def onnx_content(path: Path) -> Content:
    """What the file holds.

    Raises:
        UnreadableModel: It is damaged, or no ONNX file.
    """
    model = parsed(path)
    graph = model.graph
    tensors = list(graph.initializer)
    names = Counter(_type_name(tensor.data_type) for tensor in tensors)
    opsets = ", ".join(
        f"{clean_text(entry.domain or 'ai.onnx', limit=40)} {entry.version}"
        for entry in model.opset_import
    )
    initial = {tensor.name for tensor in tensors}
    inputs = [entry for entry in graph.input if entry.name not in initial]
    shape = _shape(inputs[0]) if inputs else ()
    outputs = [_shape(entry) for entry in graph.output]
    findings = tuple(dict.fromkeys(graph_findings(path, model)))
    return Content(
        what=f"An ONNX graph of {len(graph.node)} nodes, operators of {opsets}.",
        entries=tuple(_entries(model, inputs, tensors)),
        tensors=len(tensors),
        parameters=min(sum(max(math.prod(tensor.dims), 0) for tensor in tensors), MOST_NUMBERS),
        dtypes=dict(sorted(names.items())),
        classes=outputs[0][-1] if outputs and len(outputs[0]) == 2 else None,
        carries_network=True,
        findings=findings,
        input_size=(shape[1], shape[2], shape[3]) if len(shape) == 4 else (None, None, None),
        obstacle="" if findings else _obstacle(path, inputs, outputs, list(all_tensors(model))),
    )


def _obstacle(
    path: Path,
    inputs: list[Any],
    outputs: Sequence[tuple[int | None, ...]],
    tensors: list[Any],
) -> str:
    """Why it cannot be tested, as far as that can be read."""
    if len(inputs) != 1:
        return (
            f"It takes {len(inputs)} inputs; auditor tests image classifiers with one image input."
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in INPUT_TYPES:
        return f"It takes {_type_name(kind.elem_type)}; auditor gives {IMAGES_ARE}."
    if len(kind.shape.dim) != 4:
        return f"Its input has {len(kind.shape.dim)} dimensions, and a batch of images four."
    if len(outputs) != 1:
        return f"It has {len(outputs)} outputs; auditor needs one score a class and nothing else."
    size = outputs[0]
    if size and not (len(size) == 2 or (len(size) == 4 and size[2:] in ((1, 1), (None, None)))):
        return f"Its output has {counted(len(size), 'dimension')}; auditor needs one score a class."
    places = {place for tensor in tensors if is_external(tensor) for place in locations(tensor)}
    absent = sorted(place for place in places if not (path.parent / place).is_file())
    if absent:
        return f"It needs {clean_text(absent[0], limit=80)} beside it, which is not there."
    return ""


def _type_name(number: int) -> str:
    known = onnx.TensorProto.DataType
    return known.Name(number).lower() if number in known.values() else f"type {number}"


def _shape(entry: Any) -> tuple[int | None, ...]:
    sizes = entry.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)


def _entries(model: Any, inputs: list[Any], tensors: list[Any]) -> Iterator[str]:
    """Producer, inputs, outputs, external data, metadata: a line each."""
    producer = clean_text(f"{model.producer_name} {model.producer_version}".strip(), limit=60)
    if producer:
        yield f"made by {producer}"
    for word, entries in (("input", inputs), ("output", list(model.graph.output))):
        for entry in entries[:MAX_ENTRIES]:
            sizes = "×".join("?" if size is None else str(size) for size in _shape(entry))
            yield f"{word} {clean_text(entry.name, limit=60)}: {sizes or 'of unknown shape'}"
    places = sorted({place for tensor in tensors for place in locations(tensor)})
    for place in places[:MAX_ENTRIES]:
        yield f"numbers in {clean_text(place, limit=80)}, beside it"
    for prop in list(model.metadata_props)[:MAX_ENTRIES]:
        yield f"{clean_text(prop.key, limit=40)}: {clean_text(prop.value, limit=60)}"
