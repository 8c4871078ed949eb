"""The gate of ONNX files: what the graph refers to, before anything runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from auditor.errors import UnreadableModel, UnsuitableModel
from auditor.onnx_graph.external import all_tensors
from auditor.text import clean_text

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def read_graph(path: Path) -> Any:
    """Parse a graph without its external data, and check what it refers to.

    Raises:
        UnreadableModel: It is damaged, or its data is anywhere but in files of its own beside it.
        UnsuitableModel: It needs operators that an extension library defines.
    """
    name = clean_text(path.name)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:
        raise UnreadableModel(
            f"{name} cannot be read as ONNX: it is damaged, or no ONNX file. Download it again."
        ) from None
    if not model.graph.node:
        raise UnreadableModel(f"{name} is an ONNX file without any node. Download it again.")
    domains = {node.domain for node in model.graph.node} - KNOWN_DOMAINS
    local = {function.domain for function in model.functions}
    if domains - local:
        shown = ", ".join(clean_text(domain, limit=40) for domain in sorted(domains - local))
        raise UnsuitableModel(
            f"{name} uses custom operators ({shown}); auditor loads no operator libraries."
        )
    for tensor in all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                _check_external(path, entry.value)
    return model


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
