"""Which stored tensors are the parameters of which layer of an ONNX graph.

A graph knows nodes and names, no layers. Exporters put a layer's numbers into initialisers or
Constant nodes, and behind `Identity` (the legacy exporter stores equal tensors once), `Transpose`,
`Cast` (half precision) or `DequantizeLinear` (int8). Only shapes are read here, no numbers.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from auditor.anatomy import transposed_axis

Reader = tuple[int, int]
"""A place that reads a value: index of the node, and which of its inputs."""

NORMS = {
    "BatchNormalization": ("BatchNorm", (1, 2, 3, 4)),
    "LayerNormalization": ("LayerNorm", (1, 2)),
    "SkipLayerNormalization": ("LayerNorm", (2, 3, 4)),
    "InstanceNormalization": ("InstanceNorm", (1, 2)),
    "GroupNormalization": ("GroupNorm", (1, 2)),
    "GroupNorm": ("GroupNorm", (1, 2)),
    "SkipGroupNorm": ("GroupNorm", (1, 2)),
    "RMSNormalization": ("RMSNorm", (1,)),
    "SimplifiedLayerNormalization": ("RMSNorm", (1,)),
    "SkipSimplifiedLayerNormalization": ("RMSNorm", (2, 3)),
}
"""Operator -> kind, and which inputs are parameters; the scale is the first of them."""
WEIGHTED = {
    **dict.fromkeys(("Conv", "FusedConv"), "Conv"),
    "ConvTranspose": "ConvTranspose",
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), "Linear"),
}
"""Operator -> kind. The weight is input 1; a bias is input 2 or, after a MatMul, an Add."""
QUANTISED = {"QLinearConv": "Conv", "QGemm": "Linear", "QLinearMatMul": "Linear"}
"""Operator -> kind, of operators on int8. The weight is input 3, its scale input 4."""
DOMAINS = ("", "ai.onnx", "com.microsoft")
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
LONGEST = 16
"""Nodes between a stored tensor and its layer; exporters write four at most."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A stored tensor as a layer reads it."""

    tensor: str
    """Name of the initialiser, or of the output of the Constant node."""
    reader: Reader
    """What reads it. Naming another tensor there changes this layer (and those that share it)."""
    axis: int
    """Of the output channels, in the stored tensor."""
    channels: int
    kernel: bool = False
    """A weight of several axes: layers with equal ones are one layer, used several times."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node with parameters."""

    node: int
    kind: str
    """As in `MaskSite`."""
    weight: str
    """Name of the tensor that the layer is known by, where its node has no name."""
    masked: tuple[Parameter, ...] = ()
    """What a mask on the output channels multiplies; empty where no mask can."""
    others: tuple[Parameter, ...] = ()
    is_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A stored tensor, and what is between it and a layer."""

    tensor: Any
    name: str
    reader: Reader
    perms: tuple[tuple[int, ...], ...]
    """Of the transpositions on the way, the layer's side first."""
    dequantiser: int | None
    """Index of the DequantizeLinear on the way."""
    outer: int
    """How many of the transpositions come after it."""

    def axis(self, axis: int, count: int | None = None) -> int | None:
        """Where an axis that the layer sees is, `count` transpositions towards the tensor."""
        rank = len(self.tensor.dims)
        axis = axis % rank if rank else 0
        for perm in self.perms[:count]:
            if sorted(perm or range(rank)) != list(range(rank)):
                return None
            axis = perm[axis] if perm else rank - 1 - axis
        return axis


class Wiring:
    """Who computes, stores and reads every value of a graph; nested graphs are only readers."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.stored: dict[str, Any] = dict(_stored(graph))
        self.producers: dict[str, int] = {}
        self.readers: dict[str, list[Reader]] = defaultdict(list)
        self.held: set[str] = {output.name for output in graph.output}
        """Names that cannot be changed where they are read: the graph's outputs, nested graphs."""
        self._nested: list[set[str]] = []
        for index, node in enumerate(self.nodes):
            self.producers |= dict.fromkeys(filter(None, node.output), index)
            for place, name in enumerate(node.input):
                self.readers[name].append((index, place))
            self._nested.append(set(_nested_names(node)))
            self.held |= self._nested[-1]

    def names(self) -> set[str]:
        """Every name in use."""
        return {*self.stored, *self.producers, *self.readers, *self.held}

    def sources(self, index: int) -> Iterator[int]:
        """The nodes whose outputs a node reads, its nested graphs included."""
        for name in {*self.nodes[index].input, *self._nested[index]}:
            if name in self.producers:
                yield self.producers[name]

    def order(self) -> list[int]:
        """Nodes after all that they read; in the order of the file where it is such an order."""
        waiting = [set(self.sources(index)) for index in range(len(self.nodes))]
        followers = defaultdict(list)
        for index, sources in enumerate(waiting):
            for source in sources:
                followers[source].append(index)
        ready = [index for index, sources in enumerate(waiting) if not sources]
        ordered = []
        while ready:
            index = heapq.heappop(ready)
            ordered.append(index)
            for follower in followers[index]:
                waiting[follower].discard(index)
                if not waiting[follower]:
                    heapq.heappush(ready, follower)
        return ordered

    def has_input(self, index: int, place: int) -> bool:
        """True where a node has an input; those in the middle are left out by an empty name."""
        names = self.nodes[index].input
        return place < len(names) and bool(names[place])

    def is_read_beside(self, name: str, known: set[Reader]) -> bool:
        """True where something else than `known` reads a value, also through Identity nodes."""
        names, visited = [name], set()
        while names:
            name = names.pop()
            if name in visited:
                continue
            visited.add(name)
            if name in self.held:
                return True
            for reader in self.readers[name]:
                if reader in known:
                    continue
                node = self.nodes[reader[0]]
                if node.op_type != "Identity":
                    return True
                names += node.output
        return False

    def parameter(self, index: int, place: int, axis: int, **known: bool) -> Parameter | None:
        """The stored floats behind an input of a node, with an axis as the node sees it.

        Of an int8 tensor with one scale a channel, these are the scales: to multiply them is to
        multiply the channels, and the integers stay as they are. None where there is nothing that
        a mask could multiply: computed inputs, one scale for all channels.
        """
        reading = self._read(index, place)
        if reading is None:
            return None
        if reading.dequantiser is None:
            return _parameter(reading, reading.axis(axis), **known)
        inner = reading.axis(axis, reading.outer)
        rank, scale = len(reading.tensor.dims), self._read(reading.dequantiser, 1)
        along = attribute(self.nodes[reading.dequantiser], "axis", 1) % max(rank, 1)
        if inner != along or scale is None or list(scale.tensor.dims) != [_size(reading, inner)]:
            return None
        return _parameter(scale, 0)

    def shape(self, index: int, place: int) -> tuple[str, list[int]] | None:
        """Name of the stored tensor behind an input, and the shape that the node sees."""
        reading = self._read(index, place)
        if reading is None:
            return None
        sizes = [_size(reading, reading.axis(axis)) for axis in range(len(reading.tensor.dims))]
        return reading.name, sizes

    def _read(self, index: int, place: int) -> _Reading | None:
        if not self.has_input(index, place):
            return None
        name, reader = self.nodes[index].input[place], (index, place)
        perms: list[tuple[int, ...]] = []
        dequantiser, outer = None, 0
        for _ in range(LONGEST):
            if name in self.stored:
                return _Reading(
                    tensor=self.stored[name], name=name, reader=reader, perms=tuple(perms),
                    dequantiser=dequantiser, outer=outer,
                )  # fmt: skip
            producer = self.producers.get(name)
            if producer is None or not self.has_input(producer, 0):
                return None
            node = self.nodes[producer]
            match node.op_type:
                case "Identity":  # passed by: a layer's own copy is not for the others behind it
                    name = node.input[0]
                    continue
                case "Transpose":
                    perms.append(_perm(node))
                case "DequantizeLinear" if dequantiser is None:
                    dequantiser, outer = producer, len(perms)
                case "QuantizeLinear" if dequantiser is not None:
                    dequantiser = None  # trained with quantisation: the floats are stored after all
                case "Cast":
                    pass
                case _:
                    return None
            name, reader = node.input[0], (producer, 0)
        return None


def layers(wiring: Wiring) -> list[Layer]:
    """Every normalisation, convolution and linear layer, in the order of computation.

    Those without anything that a mask could act on are listed as well: the layer which gives the
    classes may be one of them. Decomposed normalisations (opset 11) are none; nor are those inside
    If, Loop, local functions, or `Attention` of com.microsoft.
    """
    found = []
    for index in wiring.order():
        node = wiring.nodes[index]
        if node.domain not in DOMAINS or not node.output:
            continue
        layer = None
        if node.op_type in NORMS:
            layer = _norm(wiring, index)
        elif node.op_type in WEIGHTED:
            layer = _weighted(wiring, index)
        elif node.op_type in QUANTISED:
            layer = _quantised(wiring, index)
        if layer is not None:
            found.append(layer)
    return found


def last_layers(wiring: Wiring, found: list[Layer]) -> set[int]:
    """The nodes of layers with weights that no other such layer comes after."""
    weighted = [layer.node for layer in found if not layer.is_norm]
    before: set[int] = set()
    stack = [source for index in weighted for source in wiring.sources(index)]
    while stack:
        index = stack.pop()
        if index not in before:
            before.add(index)
            stack += wiring.sources(index)
    return set(weighted) - before


def statistics(wiring: Wiring, found: list[Layer]) -> set[str]:
    """The running means and variances of BatchNorm layers."""
    names = set()
    for layer in found:
        for place in (3, 4) if layer.kind == "BatchNorm" else ():
            parameter = wiring.parameter(layer.node, place, 0)
            names |= set() if parameter is None else {parameter.tensor}
    return names


def attribute(node: Any, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _norm(wiring: Wiring, index: int) -> Layer | None:
    node = wiring.nodes[index]
    kind, places = NORMS[node.op_type]
    known = wiring.shape(index, places[0])
    scale = wiring.parameter(index, places[0], 0)
    # Over several axes a LayerNorm has no axis of channels. An InstanceNormalization of something
    # reshaped is how exporters write GroupNorm: its scale is a constant of ones, one a group.
    if known is None or len(known[1]) != 1 or scale is None or _is_group_norm(wiring, index):
        return None
    rest = [wiring.parameter(index, place, 0) for place in places[1:]]
    return Layer(
        node=index,
        kind=kind,
        weight=scale.tensor,
        masked=(scale,),
        others=tuple(parameter for parameter in rest if parameter is not None),
        is_norm=True,
    )


def _is_group_norm(wiring: Wiring, index: int) -> bool:
    node = wiring.nodes[index]
    source = wiring.producers.get(node.input[0])
    reshaped = source is not None and wiring.nodes[source].op_type == "Reshape"
    return node.op_type == "InstanceNormalization" and reshaped


def _weighted(wiring: Wiring, index: int) -> Layer | None:
    node = wiring.nodes[index]
    kind, known = WEIGHTED[node.op_type], wiring.shape(index, 1)
    if known is None:
        # two computed matrices, as in attention; other operators are layers also with a computed weight
        return None if "MatMul" in node.op_type else Layer(node=index, kind=kind, weight="")
    name, shape = known
    without_mask = Layer(node=index, kind=kind, weight=name)
    axis = _output_axis(node, shape)
    weight = None if axis is None else wiring.parameter(index, 1, axis, kernel=True)
    if weight is None:
        return without_mask
    if "MatMul" in node.op_type:
        bias = _added_bias(wiring, index, weight.channels)
    elif wiring.has_input(index, 2):
        bias = _bias(wiring, index, 2, weight.channels)
        if bias is None:
            return without_mask  # the mask would act on the weight, but not on the bias
    else:
        bias = None
    masked = (weight,) if bias is None else (weight, bias)
    return Layer(node=index, kind=kind, weight=name, masked=masked)


def _quantised(wiring: Wiring, index: int) -> Layer | None:
    """The int32 bias counts in steps of the input's times the weight's scale.

    Multiplying the weight's scale therefore multiplies the bias as well.
    """
    node = wiring.nodes[index]
    known = wiring.shape(index, 3)
    if known is None:
        return None
    name, shape = known
    axis = _output_axis(node, shape)
    scale, scales = wiring.parameter(index, 4, 0), wiring.shape(index, 4)
    per_channel = axis is not None and scales is not None and scales[1] == [shape[axis]]
    return Layer(
        node=index,
        kind=QUANTISED[node.op_type],
        weight=name,
        masked=(scale,) if scale is not None and per_channel else (),
    )


def _output_axis(node: Any, shape: list[int]) -> int | None:
    """The axis of output channels in the weight of a node, where there is one."""
    operator = node.op_type
    if "Conv" not in operator:
        transposed = operator != "MatMul" and attribute(node, "transB", 0) != 0
        return None if len(shape) != 2 else 0 if transposed else 1
    if len(shape) < 3:
        return None
    if operator != "ConvTranspose":
        return 0
    return transposed_axis(shape, attribute(node, "group", 1))


def _bias(wiring: Wiring, index: int, place: int, channels: int) -> Parameter | None:
    known = wiring.shape(index, place)
    if known is None or math.prod(known[1]) != channels or known[1][-1:] != [channels]:
        return None
    bias = wiring.parameter(index, place, -1)
    return bias if bias is not None and bias.channels == channels else None


def _added_bias(wiring: Wiring, index: int, channels: int) -> Parameter | None:
    """The bias of a MatMul: a vector in the Add that alone reads the product."""
    product = wiring.nodes[index].output[0]
    if product in wiring.held or len(wiring.readers[product]) != 1:
        return None
    ((follower, place),) = wiring.readers[product]
    if wiring.nodes[follower].op_type != "Add":
        return None
    return _bias(wiring, follower, 1 - place, channels)


def _parameter(reading: _Reading, axis: int | None, *, kernel: bool = False) -> Parameter | None:
    if axis is None or reading.tensor.data_type not in FLOATS or not reading.tensor.dims:
        return None
    return Parameter(
        tensor=reading.name,
        reader=reading.reader,
        axis=axis,
        channels=_size(reading, axis),
        kernel=kernel,
    )


def _size(reading: _Reading, axis: int | None) -> int:
    return -1 if axis is None else int(reading.tensor.dims[axis])


def _perm(node: Any) -> tuple[int, ...]:
    """Empty where the node reverses all axes."""
    return next((tuple(entry.ints) for entry in node.attribute if entry.name == "perm"), ())


def _stored(graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in DOMAINS and node.output:
            for entry in node.attribute:
                if entry.name == "value" and entry.HasField("t"):
                    yield node.output[0], entry.t


def _nested_names(node: Any) -> Iterator[str]:
    """Every name that the graphs inside a node mention; some may be of the graph around it."""
    for entry in node.attribute:
        for graph in [*([entry.g] if entry.HasField("g") else []), *entry.graphs]:
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from filter(None, inner.input)
                yield from filter(None, inner.output)
                yield from _nested_names(inner)
