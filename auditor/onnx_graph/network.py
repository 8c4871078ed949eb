"""An ONNX graph as a network: its computation, its weights, its layers, and where to look inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch

from auditor.anatomy import Layer
from auditor.onnx_graph.anatomy import find_layers
from auditor.onnx_graph.graph import Graph
from auditor.onnx_graph.parameters import Wiring, layers, statistics
from auditor.onnx_graph.unshare import unshared

HALVES = {
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
"""Operators after which a difference in the last digit can be a whole step."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What can be done with a graph beside running it."""

    graph: Graph
    weights: frozenset[str]
    """Those of `graph.tensors` that layers are trained by; no running statistics, no constants."""
    layers: tuple[Layer, ...]
    features: tuple[str, ...]
    """The values that convolutions and linear layers read, in the order of computation."""
    copies: Mapping[str, str]
    """Tensor that the file does not have -> the one that several layers share in it."""
    rounds: bool
    """True where it rounds to integers on the way (int8)."""
    halves: Mapping[str, torch.dtype]
    """Those of `graph.tensors` that are stored in 16 bits, and how; the graph has float32."""

    def rounded(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`tensors` as the file would store them; gradients pass."""
        return {
            name: tensor.to(self.halves[name]).to(tensor.dtype) if name in self.halves else tensor
            for name, tensor in tensors.items()
        }


def read_network(model: onnx.ModelProto, device: torch.device) -> Network:
    """Read a graph whose weights are inside it.

    Raises:
        GraphError: It cannot be computed by us, or is none that an exporter writes.
    """
    working, copies = unshared(model)
    graph = Graph(working, device)
    wiring = Wiring(working.graph)
    found = layers(wiring)
    trained = {parameter.tensor for layer in found for parameter in (*layer.masked, *layer.others)}
    trained |= {layer.weight for layer in found}
    computing = [wiring.nodes[layer.node] for layer in found if not layer.is_norm]
    return Network(
        graph=graph,
        weights=frozenset((trained & graph.tensors.keys()) - statistics(wiring, found)),
        layers=tuple(layer for layer in find_layers(working) if _is_held(layer, graph)),
        features=tuple(dict.fromkeys(node.input[0] for node in computing)),
        copies=copies,
        halves={
            name: HALVES[entry.data_type]
            for name, entry in wiring.stored.items()
            if name in graph.tensors and entry.data_type in HALVES
        },
        rounds=any(node.op_type in ROUNDING or "QLinear" in node.op_type for node in wiring.nodes),
    )


def _is_held(layer: Layer, graph: Graph) -> bool:
    """True where the graph's numbers include the layer's."""
    places = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(name in graph.tensors for name, _ in places)
