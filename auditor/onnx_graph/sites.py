"""Where masks can act on an ONNX graph."""

from __future__ import annotations

from collections import Counter

import onnx

from auditor.masks import MaskSite
from auditor.onnx_graph.parameters import Layer, Wiring, last_layers, layers


def find_sites(model: onnx.ModelProto) -> list[MaskSite]:
    """The masks of a graph, in the order of computation.

    One on every normalisation's scale. Where there is none, which is usual, because exporters fold
    BatchNorm into the convolution before it: on the output channels of every convolution and linear
    layer, weight and bias together, except those after which no other comes: they give the classes.
    Of int8 weights with one scale a channel the scales are masked, and the integers stay. A tensor
    that two layers share is masked once.

    No mask: weights with one scale for all channels (only to be changed all at once), with a bias
    that is computed or quantised with one scale, or computed themselves; layers inside If, Loop and
    local functions; normalisations written out as their arithmetic.

    Args:
        model: As `unshare.unshared` returns it; its tensors' numbers are not looked at.
    """
    wiring = Wiring(model.graph)
    found = layers(wiring)
    last = last_layers(wiring, found)
    kept = [layer for layer in found if layer.is_norm]
    masked: set[str] = set()
    if not kept:
        kept = [layer for layer in found if layer.node not in last]
        masked = {p.tensor for layer in found if layer.node in last for p in layer.masked}
    names = Counter(node.name for node in wiring.nodes)
    taken: set[str] = set()
    sites = []
    for layer in kept:
        own = {parameter.tensor for parameter in layer.masked}
        if not own or own & masked or not layer.masked[0].channels:
            continue
        masked |= own
        node = wiring.nodes[layer.node].name
        name = _free_name(node if node and names[node] == 1 else layer.weight, taken)
        sites.append(_site(layer, name))
    return sites


def _site(layer: Layer, name: str) -> MaskSite:
    return MaskSite(
        layer=name,
        kind=layer.kind,
        tensors=tuple((parameter.tensor, parameter.axis) for parameter in layer.masked),
        channels=layer.masked[0].channels,
    )


def _free_name(wish: str, taken: set[str]) -> str:
    """A node may have the name of another layer's weight."""
    name = wish
    while name in taken:
        name += "'"
    taken.add(name)
    return name
