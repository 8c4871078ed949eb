"""What a TorchScript network computes on the way: its graph, with further outputs.

Hooks do nothing in compiled code. A copy of the graph that returns more values does, and gives the
same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from auditor.models.graph_layers import CONVOLUTIONS, TRANSPOSED

READS = {
    **{name.replace(".", "::"): 0 for name in (*CONVOLUTIONS, *TRANSPOSED)},
    "aten::linear": 0,
    "aten::addmm": 1,
}
"""Operators of layers -> the position of the argument that they compute on."""


class Taps:
    """The functions of a graph that return some of its values beside its output."""

    def __init__(self, graph: Any, *bound: Any) -> None:
        """Take a graph, which is not changed, and its first arguments."""
        self._graph, self._bound = graph, bound
        self._functions: dict[tuple[str, ...], Callable[..., Any]] = {}

    def names(self) -> list[str]:
        """The values that convolutions and linear layers read, in the order in which they do.

        Those inside branches and loops are left out: they need not be computed.
        """
        return list(dict.fromkeys(_read(node).debugName() for node in _readers(self._graph)))

    def function(self, names: Sequence[str]) -> Callable[..., Any]:
        """A function of the remaining arguments; it returns ``(output, *values)``."""
        chosen = tuple(names)
        if chosen not in self._functions:
            function: Any = torch._C._create_function_from_graph("forward", self._with(chosen))
            self._functions[chosen] = partial(function, *self._bound)
        return self._functions[chosen]

    def _with(self, names: Sequence[str]) -> Any:
        graph = self._graph.copy()
        copies = {}
        # a copied graph may have other names for its values, but has the same nodes
        for original, node in zip(_readers(self._graph), list(_readers(graph)), strict=True):
            name, value = _read(original).debugName(), _read(node)
            if name not in names or name in copies:
                continue
            # a copy, since a later operator may change the value in its place
            nothing = graph.create("prim::Constant")
            nothing.output().setType(torch._C.NoneType.get())
            copy = graph.create("aten::clone", [value, nothing.output()], 1)
            copy.output().setType(value.type())
            for made in (nothing, copy):
                made.insertBefore(node)
            copies[name] = copy.output()
        values = [*graph.outputs(), *(copies[name] for name in names)]
        together = graph.create("prim::TupleConstruct", values, 1)
        together.output().setType(torch._C.TupleType([value.type() for value in values]))
        together.insertBefore(graph.return_node())
        graph.eraseOutput(0)
        graph.registerOutput(together.output())
        return graph


def _readers(graph: Any) -> Iterator[Any]:
    """The nodes of layers, in the order of computation."""
    return (node for node in graph.nodes() if node.kind() in READS)


def _read(node: Any) -> Any:
    """The value that a layer computes on."""
    return list(node.inputs())[READS[node.kind()]]
