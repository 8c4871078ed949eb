"""Every layer gets vectors of its own: exporters store equal biases and scales only once.

A mask on one of the layers that share a tensor would act on all of them. Weights of several axes
are left alone: no two of them are equal by chance, so that layers which share one are one layer
that is used several times, and share their mask as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx

from auditor.onnx_graph.parameters import Reader, Wiring, layers


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A tensor for one layer, with the numbers of one that several share."""

    name: str
    original: str
    readers: tuple[Reader, ...]
    """The inputs of nodes that shall read the copy."""


def unshared(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A working copy of a model in which no two layers share a bias, a scale or statistics.

    Args:
        model: With or without its external data; is not changed.

    Returns:
        The copy, and the name of each new initialiser -> name of the tensor it is a copy of.
    """
    copies = copies_of(model)
    working = onnx.ModelProto()
    working.CopyFrom(model)
    give(working, copies)
    return working, {copy.name: copy.original for copy in copies}


def copies_of(model: onnx.ModelProto) -> list[Copy]:
    """Which copies it takes, always the same for one model. The first layer keeps the original."""
    wiring = Wiring(model.graph)
    owners: dict[str, dict[Any, list[Reader]]] = defaultdict(lambda: defaultdict(list))
    served: set[Reader] = set()
    for layer in layers(wiring):
        owner = layer.node if layer.is_norm else layer.weight
        for role, parameter in enumerate((*layer.masked, *layer.others)):
            if not parameter.kernel and parameter.reader not in served:
                served.add(parameter.reader)
                owners[parameter.tensor][owner, role].append(parameter.reader)
    taken = wiring.names() | {entry.name for entry in model.graph.input}
    copies = []
    for tensor, groups in owners.items():
        known = {reader for readers in groups.values() for reader in readers}
        spared = 0 if wiring.is_read_beside(tensor, known) else 1
        for readers in list(groups.values())[spared:]:
            node = wiring.nodes[readers[0][0]]
            name = _free_name(f"{tensor}.of.{node.name or node.output[0]}", taken)
            copies.append(Copy(name=name, original=tensor, readers=tuple(readers)))
    return copies


def give(model: onnx.ModelProto, copies: Iterable[Copy]) -> None:
    """Add copies to a model, in place, and let their layers read them."""
    stored = Wiring(model.graph).stored
    inputs = {entry.name: entry for entry in model.graph.input}
    for copy in copies:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(stored[copy.original])
        tensor.name = copy.name
        if copy.original in inputs:  # up to IR version 3 every initialiser is an input as well
            entry = model.graph.input.add()
            entry.CopyFrom(inputs[copy.original])
            entry.name = copy.name
        for node, place in copy.readers:
            model.graph.node[node].input[place] = copy.name


def _free_name(wish: str, taken: set[str]) -> str:
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}.{count}"
    taken.add(name)
    return name
