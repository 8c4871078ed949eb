"""The gate of ONNX files: what the graph refers to, before anything runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from auditor.errors import UnreadableModel, UnsafeModel
from auditor.onnx_graph.errors import HostileGraph
from auditor.onnx_graph.external import all_tensors
from auditor.onnx_graph.functions import refuse_unfolding
from auditor.text import clean_text, listed

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
MAX_LISTED = 8


def read_graph(path: Path) -> Any:
    """Parse a graph without its external data, and check what it refers to.

    Raises:
        UnreadableModel: It is damaged, or its data is not there.
        UnsafeModel: It needs operators that an extension library defines, or its data is anywhere but in
            files of its own beside it.
    """
    name, model = clean_text(path.name), parsed(path)
    findings = list(dict.fromkeys(graph_findings(path, model)))
    if findings:
        raise UnsafeModel(
            f"{name} is an ONNX file that wants more than to compute: "
            f"{listed(findings, MAX_LISTED, '; ')}. auditor does not open it. Ways out: export the "
            "network with standard operators; copy data files beside it, not links to them.",
            findings,
        )
    for place in sorted({place for tensor in all_tensors(model) for place in locations(tensor)}):
        if not (path.parent / place).is_file():
            raise UnreadableModel(
                f"{name} needs {clean_text(place, limit=80)} next to it (external weights); it is not there."
            )
    return model


def parsed(path: Path) -> Any:
    """The graph as it stands in the file; external data is not opened.

    Raises:
        UnreadableModel: It is damaged, or no ONNX file.
    """
    name = clean_text(path.name)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf raises its own, undocumented types
        model = None
    if model is None or _is_garbled(model):
        raise UnreadableModel(
            f"{name} cannot be read as ONNX: it is damaged, or no ONNX file. Download it again."
        )
    if not model.graph.node:
        raise UnreadableModel(f"{name} is an ONNX file without any node. Download it again.")
    return model


def _is_garbled(model: Any) -> bool:
    """True where a text is none: protobuf then gives bytes, which nothing expects."""
    pending = [model]
    while pending:
        for field, value in pending.pop().ListFields():
            if field.type == field.TYPE_STRING:
                texts = [value] if isinstance(value, str | bytes) else value
                if any(isinstance(text, bytes) for text in texts):
                    return True
            elif field.message_type is not None:
                # repeated fields of every protobuf version are iterable, and messages are not
                pending.extend(value if hasattr(value, "__len__") else [value])
    return False


def graph_findings(path: Path, model: Any) -> Iterator[str]:
    """What a graph wants besides numbers of its own: operators of others, files elsewhere, all time."""
    local = {function.domain for function in model.functions}
    used = {node.domain for node in all_nodes(model)}
    for domain in sorted(used - KNOWN_DOMAINS - local):
        yield f"it uses operators of a library of {clean_text(domain, limit=60)}, native code"
    try:
        refuse_unfolding(model)  # onnxruntime would unfold them without end
    except HostileGraph as error:
        yield clean_text(str(error), limit=160)
    for tensor in all_tensors(model):
        for place in locations(tensor):
            if finding := _place_finding(path, place):
                yield finding


def locations(tensor: Any) -> list[str]:
    """The files that a tensor says its numbers are in."""
    return [str(entry.value) for entry in tensor.external_data if entry.key == "location"]


def all_nodes(message: Any) -> Iterator[Any]:
    """Every node of a model: of nested graphs and functions as well."""
    pending = [message.graph, *message.functions]
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def _place_finding(path: Path, place: str) -> str | None:
    shown, folder = clean_text(place, limit=80), path.parent.resolve()
    data = folder / place
    try:
        if Path(place).is_absolute() or not data.resolve().is_relative_to(folder):
            return f"it reads a file outside its folder: {shown}"
        if data.is_symlink() or (data.is_file() and data.stat().st_nlink > 1):
            return f"its external data {shown} is a link to another file"
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte in it, links in a circle
        return f"it names a file that cannot be: {shown}"
    return None
