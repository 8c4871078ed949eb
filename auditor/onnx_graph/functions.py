"""Functions that a graph defines, written out into the nodes that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner

from auditor.onnx_graph.errors import HostileGraph

NODES = 2**20
"""Nodes that a graph may have once its functions are written out."""

_Key = tuple[str, str, str]

INNER: _Key = ("", "", "")
"""Stands for a nested graph among the callers of a function."""
DEPTH = 100
"""How deep functions may call one another."""


def refuse_unfolding(model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, or that stand for more nodes than anybody can hold.

    Raises:
        HostileGraph: They do.
    """
    bodies = {
        (function.domain, function.name, function.overload): function
        for function in model.functions
    }
    total = _length(model.graph.node, bodies, {}, ())
    if total > NODES:
        raise HostileGraph(f"its functions write out to {total} nodes")


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the nodes of its functions in the place of their calls."""
    if not model.functions:
        return model
    refuse_unfolding(model)
    own = next((f for f in model.functions if f.domain in ("", "ai.onnx")), None)
    if own is not None:
        raise HostileGraph(f"it has a function of its own under ONNX's name {own.name!r}")
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # of the C++ library, without a common type
        raise HostileGraph(f"its functions cannot be written out: {error}") from None


def _length(
    nodes: Iterable[onnx.NodeProto],
    bodies: Mapping[_Key, onnx.FunctionProto],
    lengths: dict[_Key, int],
    callers: tuple[_Key, ...],
) -> int:
    """How many nodes there are once all calls are written out: few lines can stand for billions."""
    total = 0
    for node in nodes:
        key = (node.domain, node.op_type, node.overload)
        total += 1
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                total += _length(inner.node, bodies, lengths, (*callers, INNER))
        if key not in bodies:
            continue
        if key in callers or len(callers) > DEPTH:
            raise HostileGraph(f"the function {key[1]!r} calls itself, or calls too deep")
        if key not in lengths:
            lengths[key] = _length(bodies[key].node, bodies, lengths, (*callers, key))
        total += lengths[key]
    return total
