"""The layers of a graph that has none: read from its operators, whatever the names are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from auditor.anatomy import Layer, transposed_axis

NORMS = {
    "aten.batch_norm": "BatchNorm",
    "aten.native_batch_norm": "BatchNorm",
    "aten._native_batch_norm_legit": "BatchNorm",
    "aten._native_batch_norm_legit_no_training": "BatchNorm",
    "aten.layer_norm": "LayerNorm",
    "aten.native_layer_norm": "LayerNorm",
    "aten.rms_norm": "RMSNorm",
    "aten._fused_rms_norm": "RMSNorm",
    "aten.group_norm": "GroupNorm",
    "aten.native_group_norm": "GroupNorm",
    "aten.instance_norm": "InstanceNorm",
}
CONVOLUTIONS = {f"aten.conv{n}d" for n in (1, 2, 3)} | {"aten.convolution", "aten._convolution"}
TRANSPOSED = {f"aten.conv_transpose{n}d" for n in (1, 2, 3)}
MATRICES = {"aten.addmm": ("mat2", "self"), "aten.mm": ("mat2", ""), "aten.matmul": ("other", "")}
"""Products with a matrix whose columns are the output channels: its argument, and the bias's."""
READS = {"aten.addmm": "mat1", "aten.mm": "self", "aten.matmul": "self"}
"""The argument that a layer computes on, where it is not `input`."""
SAME = {"aten.alias", "aten.detach", "aten.contiguous", "aten.lift_fresh_copy"}


@dataclass(frozen=True)
class Value:
    """An argument that is computed: an input, or the result of an earlier call."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operator."""

    operator: str
    """Such as `aten.conv2d`."""
    named: Mapping[str, Any]
    """Arguments by the names of the operator's schema: plain values, and `Value` for others."""
    outputs: tuple[Any, ...]
    """Names of the results (None where nobody needs one); one list of names for a list."""


Origins = dict[str, tuple[str, bool]]
"""Value -> the stored tensor that it is, and whether its two axes are exchanged."""


def graph_layers(
    calls: Sequence[Call], stored: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> list[Layer]:
    """The layers of a graph, in the order in which it computes; as `anatomy.find_layers`.

    Args:
        calls: What the graph does.
        stored: Value -> name of the tensor of the file that it is.
        tensors: Every tensor of the file by name.
    """
    origins = _origins(calls, stored)
    found: list[Layer] = []
    last: int | None = None
    for call in calls:
        layer = _norm(call, origins, tensors)
        if layer is None:
            layer = _weighted(call, origins, tensors)
            last = last if layer is None else len(found)
        found += [] if layer is None else [layer]
    return [replace(layer, is_last=place == last) for place, layer in enumerate(found)]


def features(calls: Sequence[Call], stored: Mapping[str, str]) -> list[str]:
    """The values that convolutions and linear layers read, in the order in which they do.

    Args:
        calls: What the graph does.
        stored: Value -> name of the tensor of the file that it is.
    """
    origins = _origins(calls, stored)
    names = []
    for call in calls:
        _, weight, _ = _kind(call)
        name = read_by(call)
        if name is not None and _stored(call.named.get(weight), origins) is not None:
            names.append(name)
    return list(dict.fromkeys(names))


def read_by(call: Call) -> str | None:
    """The value that a call computes on, if it computes what layers do."""
    argument = call.named.get(READS.get(call.operator, "input"))
    return argument.name if _kind(call)[0] is not None and isinstance(argument, Value) else None


def layer_tensors(calls: Sequence[Call], stored: Mapping[str, str]) -> set[str]:
    """Names of the tensors that layers have as weight or bias; arguments as of `graph_layers`."""
    origins = _origins(calls, stored)
    names = set()
    for call in calls:
        _, *keys = ("Norm", "weight", "bias") if call.operator in NORMS else _kind(call)
        if call.operator in NORMS or _kind(call)[0] is not None:
            found = [_stored(call.named.get(key), origins) for key in keys]
            names |= {origin[0] for origin in found if origin is not None}
    return names


def _origins(calls: Sequence[Call], stored: Mapping[str, str]) -> Origins:
    origins: Origins = {value: (name, False) for value, name in stored.items()}
    for call in calls:
        source = call.named.get("self")
        if not isinstance(source, Value) or source.name not in origins or len(call.outputs) != 1:
            continue
        name, exchanged = origins[source.name]
        if call.operator in SAME:
            origins[call.outputs[0]] = name, exchanged
        elif _exchanges(call):
            origins[call.outputs[0]] = name, not exchanged
    return origins


def _exchanges(call: Call) -> bool:
    """True for the transposition of a matrix."""
    match call.operator:
        case "aten.t" | "aten.numpy_T" | "aten.mT":
            return True
        case "aten.permute":
            return call.named["dims"] in ([1, 0], [-1, -2], [1, -2], [-1, 0])
        case "aten.transpose" | "aten.swapaxes":
            axes = [v for key, v in call.named.items() if key != "self"]
            return sorted(axis % 2 for axis in axes) == [0, 1] and -2 <= min(axes) <= max(axes) <= 1
    return False


def _stored(argument: Any, origins: Origins) -> tuple[str, bool] | None:
    return origins.get(argument.name) if isinstance(argument, Value) else None


def _norm(call: Call, origins: Origins, tensors: Mapping[str, Tensor]) -> Layer | None:
    found = _stored(call.named.get("weight"), origins)
    if call.operator not in NORMS or found is None:
        return None
    scale = tensors[found[0]]
    if scale.ndim != 1 or not scale.is_floating_point():
        return None
    beside = [_stored(call.named.get(key), origins) for key in ("bias", "running_var")]
    bias, variance = (
        entry[0] if entry is not None and tensors[entry[0]].shape == scale.shape else None
        for entry in beside
    )
    return Layer(
        name=_layer(found[0]),
        kind=NORMS[call.operator],
        channels=len(scale),
        weight=(found[0], 0),
        bias=None if bias is None else (bias, 0),
        variance=variance,
    )


def _weighted(call: Call, origins: Origins, tensors: Mapping[str, Tensor]) -> Layer | None:
    kind, weight_key, bias_key = _kind(call)
    found = _stored(call.named.get(weight_key), origins)
    if kind is None or found is None:
        return None
    name, exchanged = found
    weight = tensors[name]
    if not weight.is_floating_point() or (weight.ndim == 2) != (kind == "Linear"):
        return None
    axis: int | None = 0
    if call.operator in MATRICES:
        axis = 0 if exchanged else 1
    elif exchanged:
        return None
    elif kind == "ConvTranspose":
        axis = transposed_axis(weight.shape, call.named.get("groups", 1))
    if axis is None:
        return None
    biased = _stored(call.named.get(bias_key), origins)
    fits = biased is not None and tensors[biased[0]].shape == (weight.shape[axis],)
    return Layer(
        name=_layer(name),
        kind=kind,
        channels=weight.shape[axis],
        weight=(name, axis),
        bias=(biased[0], 0) if biased is not None and fits else None,
    )


def _kind(call: Call) -> tuple[str | None, str, str]:
    """Kind of layer, and the arguments that are its weight and its bias."""
    if call.operator in MATRICES:
        return "Linear", *MATRICES[call.operator]
    if call.operator == "aten.linear":
        return "Linear", "weight", "bias"
    if call.operator in TRANSPOSED or call.named.get("transposed") is True:
        return "ConvTranspose", "weight", "bias"
    return ("Conv" if call.operator in CONVOLUTIONS else None), "weight", "bias"


def _layer(name: str) -> str:
    """`layer1.0.bn1` for `layer1.0.bn1.weight`; whole names that end otherwise stay unique."""
    return name.removesuffix(".weight")
