"""The layers of an ONNX graph, in the words that all formats share."""

from __future__ import annotations

from collections import Counter

import onnx

from auditor.anatomy import Layer
from auditor.onnx_graph import parameters
from auditor.onnx_graph.parameters import Parameter, Wiring, last_layers, layers


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph, in the order of computation; as `anatomy.find_layers`.

    Exporters usually fold BatchNorm into the convolution before it. After the layers that give the
    classes no other with weights comes. Of int8 weights with one scale a channel the scales stand
    for the weights, whose integers stay. A tensor that two layers share belongs to the first.

    Left out: weights with one scale for all channels (only to be changed all at once), with a bias
    that is computed or quantised with one scale, or computed themselves; layers inside If, Loop and
    local functions; normalisations written out as their arithmetic.

    Args:
        model: As `unshare.unshared` returns it; its tensors' numbers are not looked at.
    """
    wiring = Wiring(model.graph)
    found = layers(wiring)
    last = last_layers(wiring, found)
    names = Counter(node.name for node in wiring.nodes)
    taken: set[str] = set()
    read = []
    for layer in found:
        if not layer.masked or not layer.masked[0].channels:
            continue
        node = wiring.nodes[layer.node].name
        name = _free_name(node if node and names[node] == 1 else layer.weight, taken)
        read.append(_read(wiring, layer, name, is_last=layer.node in last))
    return read


def _read(wiring: Wiring, layer: parameters.Layer, name: str, *, is_last: bool) -> Layer:
    weight, *rest = layer.masked
    bias = next(iter(rest), None)
    variance = None
    if layer.is_norm:
        _, *places = parameters.NORMS[wiring.nodes[layer.node].op_type][1]
        beside = [wiring.parameter(layer.node, place, 0) for place in places]
        bias = next(iter(beside), None)
        variance = beside[2] if layer.kind == "BatchNorm" else None
    return Layer(
        name=name,
        kind=layer.kind,
        channels=weight.channels,
        weight=_place(weight),
        bias=None if bias is None else _place(bias),
        variance=None if variance is None else variance.tensor,
        is_last=is_last,
    )


def _place(parameter: Parameter) -> tuple[str, int]:
    return parameter.tensor, parameter.axis


def _free_name(wish: str, taken: set[str]) -> str:
    """A node may have the name of another layer's weight."""
    name = wish
    while name in taken:
        name += "'"
    taken.add(name)
    return name
