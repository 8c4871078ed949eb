"""What an ONNX file says of itself. It is parsed, and its external data is not opened."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auditor.errors import UnreadableModel
from auditor.inspection import Content
from auditor.models.onnx_gate import KNOWN_DOMAINS
from auditor.text import clean_text

# onnx alone sends nothing, but whoever imports it may import onnxruntime next
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx

MAX_ENTRIES = 12


def onnx_content(path: Path) -> Content:
    """What the file holds.

    Raises:
        UnreadableModel: It is damaged, or no ONNX file.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf raises its own, undocumented types
        raise UnreadableModel(
            f"{clean_text(path.name)} cannot be read as ONNX: it is damaged, or no ONNX file. "
            "Download it again."
        ) from None
    graph = model.graph
    if not graph.node:
        raise UnreadableModel(
            f"{clean_text(path.name)} is an ONNX file without any node. Download it again."
        )
    types = onnx.TensorProto.DataType
    tensors = list(graph.initializer)
    names = Counter(types.Name(t.data_type).lower() for t in tensors)
    opsets = ", ".join(
        f"{clean_text(entry.domain or 'ai.onnx', limit=40)} {entry.version}"
        for entry in model.opset_import
    )
    initial = {tensor.name for tensor in tensors}
    inputs = [entry for entry in graph.input if entry.name not in initial]
    shape = _shape(inputs[0]) if inputs else ()
    outputs = [_shape(entry) for entry in graph.output]
    return Content(
        what=f"An ONNX graph of {len(graph.node)} nodes, operators of {opsets}.",
        entries=tuple(_entries(model, inputs, tensors)),
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        dtypes=dict(sorted(names.items())),
        classes=outputs[0][-1] if outputs and len(outputs[0]) == 2 else None,
        carries_network=True,
        findings=tuple(dict.fromkeys(_findings(path, model))),
        input_size=(shape[1], shape[2], shape[3]) if len(shape) == 4 else (None, None, None),
    )


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
    places = sorted({_location(tensor) for tensor in tensors} - {""})
    for place in places[:MAX_ENTRIES]:
        yield f"numbers in {clean_text(place, limit=80)}, beside it"
    for prop in list(model.metadata_props)[:MAX_ENTRIES]:
        yield f"{clean_text(prop.key, limit=40)}: {clean_text(prop.value, limit=60)}"


def _location(tensor: Any) -> str:
    entries = {entry.key: str(entry.value) for entry in tensor.external_data}
    return entries.get("location", "")


def _findings(path: Path, model: Any) -> Iterator[str]:
    local = {function.domain for function in model.functions}
    nodes = list(_nodes(model.graph))
    for domain in sorted({node.domain for node in nodes} - KNOWN_DOMAINS - local):
        yield f"it uses operators of a library of {clean_text(domain, limit=60)}, native code"
    folder = path.parent.resolve()
    for tensor in _tensors(model.graph, nodes):
        place = _location(tensor)
        if not place:
            continue
        shown, data = clean_text(place, limit=80), folder / place
        if Path(place).is_absolute() or not data.resolve().is_relative_to(folder):
            yield f"it reads a file outside its folder: {shown}"
        elif data.is_file() and (data.is_symlink() or data.stat().st_nlink > 1):
            yield f"its external data {shown} is a link to another file"


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node, those of nested graphs included."""
    pending = [graph]
    while pending:
        current = pending.pop()
        for node in current.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def _tensors(graph: Any, nodes: list[Any]) -> Iterator[Any]:
    """Initialisers and constants."""
    yield from graph.initializer
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from attribute.g.initializer
