"""What a file holds, made ready to run: its numbers as tensors, its nodes as steps.

The file is a suspect's, so nothing of it is trusted: operators are looked up in our own registry,
nothing is imported or compiled, and attributes and types that we do not know are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from auditor.onnx_graph.errors import HostileGraph, OperatorError, UnsupportedOperators
from auditor.onnx_graph.operators import OPERATORS, Operator
from auditor.onnx_graph.operators.elementwise import TYPES
from auditor.onnx_graph.operators.sizes import TooLarge

STANDARD = {"", "ai.onnx"}
"""Domains of the standard's own operators."""
MADE = {"to", "dtype", "output_dtype"}
"""Attributes that say the type of an output."""
QUANTISED = {
    getattr(onnx.TensorProto, name)
    for name in (
        *("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"),
        *("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    )
    if hasattr(onnx.TensorProto, name)
}
"""Types of weights that we can read, but not compute with."""
CONSTANTS: dict[str, type] = {
    "value": np.float32,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""How a Constant node may tell its value -> the type of numbers."""


@dataclass(frozen=True)
class Step:
    """One node, ready to run."""

    operator: Operator
    kind: str
    node: str
    inputs: tuple[str, ...]
    """Names of values; empty for an input that is left out."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The node's outputs by name, from the values of its inputs."""
        try:
            inputs = [values[name] if name else None for name in self.inputs]
            results = self.operator(inputs, self.attributes)
        except TooLarge as error:
            raise HostileGraph(f"{self.kind} (node {self.node!r}) {error}") from None
        except torch.OutOfMemoryError:
            raise  # callers try again with fewer images
        except Exception as error:  # whatever torch raises at sizes and types that do not fit
            reason = f"{type(error).__name__}: {error}"
            raise OperatorError(self.node, self.kind, reason) from error
        for name, result in zip(self.outputs, results, strict=False):
            if name and result is not None:
                yield name, result


def is_constant(node: onnx.NodeProto) -> bool:
    """Whether a node only holds a number or a tensor."""
    return node.op_type == "Constant" and node.domain in STANDARD


def _name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def _operator(node: onnx.NodeProto) -> Operator | None:
    return OPERATORS.get(("" if node.domain in STANDARD else node.domain, node.op_type))


def refuse_unsupported(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Name all operators, attributes and types of a graph that we cannot run.

    Args:
        graph: Its functions have been written out.
        nodes: All of its nodes but the constants.

    Raises:
        UnsupportedOperators: There are some.
    """
    missing = [name for node in nodes for name in _missing(node)]
    missing += [
        f"Constant with {attribute.name}"
        for node in graph.node
        if is_constant(node)
        for attribute in node.attribute
        if attribute.name not in CONSTANTS
    ]
    if graph.sparse_initializer:
        missing.append("sparse tensors")
    for entry in graph.input:
        if not entry.type.HasField("tensor_type"):
            missing.append("inputs that are no tensors")
        elif entry.type.tensor_type.elem_type not in TYPES:
            missing.append(f"inputs of type {_type_name(entry.type.tensor_type.elem_type)}")
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    missing += [
        f"tensors of type {_type_name(tensor.data_type)}"
        for tensor in _protos(graph)
        if tensor.data_type not in TYPES.keys() | QUANTISED
    ]
    # where numbers are quantised to is known by the type of the zero point alone
    missing += [
        f"{_name(node)} to {_type_name(stored[name])}"
        for node in nodes
        if node.op_type == "QuantizeLinear"
        for name in node.input[2:3]
        if stored.get(name) in QUANTISED
    ]
    if missing:
        raise UnsupportedOperators(missing)


def _missing(node: onnx.NodeProto) -> Iterator[str]:
    """What of a node we cannot run: all of it, some attribute, or a type that it makes."""
    operator = _operator(node)
    if operator is None:
        yield _name(node)
        return
    for attribute in node.attribute:
        if attribute.name not in operator.attributes:
            yield f"{_name(node)} with {attribute.name}"
        elif attribute.name in MADE and attribute.i and attribute.i not in TYPES:
            yield f"{_name(node)} to {_type_name(attribute.i)}"


def _type_name(element: int) -> str:
    names: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(element, f"number {element}")


def _protos(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def arrays(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every initialiser and every constant by the name of its value."""
    seen: set[str] = set()
    for tensor in graph.initializer:
        yield _once(tensor.name, seen), _array(tensor)
    for node in graph.node:
        if is_constant(node):
            if len(node.attribute) != 1 or len(node.output) != 1:
                raise HostileGraph(f"the constant {node.name!r} has no single value")
            (attribute,) = node.attribute
            value = _value(attribute)
            whole = attribute.name == "value"
            array = _array(value) if whole else np.asarray(value, CONSTANTS[attribute.name])
            yield _once(node.output[0], seen), array


def _value(attribute: onnx.AttributeProto) -> Any:
    try:
        return helper.get_attribute_value(attribute)
    except ValueError as error:  # of no type, or of a function that is not there
        raise HostileGraph(f"the attribute {attribute.name!r} has no value: {error}") from None


def _once(name: str, seen: set[str]) -> str:
    if name in seen:
        raise HostileGraph(f"the value {name!r} is written twice")
    seen.add(name)
    return name


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        # numpy_helper would open whatever file the suspect names
        raise HostileGraph(f"the data of {tensor.name!r} has not been loaded")
    try:
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
    except Exception as error:  # numpy's, for data that does not fit its shape
        raise HostileGraph(f"the tensor {tensor.name!r} is damaged: {error}") from None
    return array


def tensor_of(array: np.ndarray[Any, Any]) -> tuple[Tensor, bool]:
    """What we compute with, and whether it is a weight that gradients can change."""
    kind = array.dtype.name
    if kind in ("float16", "bfloat16", "float32", "float64"):
        return torch.from_numpy(np.array(array, np.float32)), True
    if kind.startswith("float"):  # eight bits or fewer, always quantised
        return torch.from_numpy(array.astype(np.float32)), False
    if kind in ("uint32", "uint64"):
        return torch.from_numpy(array.astype(np.int64)), False
    if kind in ("int2", "int4"):
        return torch.from_numpy(array.astype(np.int8)), False
    if kind in ("uint2", "uint4"):
        return torch.from_numpy(array.astype(np.uint8)), False
    return torch.from_numpy(np.array(array)), False


def step_of(node: onnx.NodeProto, versions: Mapping[str, int]) -> Step:
    """A node made ready to run.

    Args:
        node: One that `refuse_unsupported` lets pass.
        versions: Domain -> the operator set that the file is written for.
    """
    operator = _operator(node)
    if operator is None:
        raise UnsupportedOperators([_name(node)])
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = _value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, onnx.TensorProto):
            value = tensor_of(_array(value))[0]
        attributes[attribute.name] = value
    standard = node.domain in STANDARD
    newest = max((versions[domain] for domain in STANDARD & versions.keys()), default=1)
    facts = {
        "version": newest if standard else versions.get(node.domain, 1),
        "outputs": _count(node.output),
    }
    attributes |= {fact: facts[fact] for fact in operator.facts}
    return Step(
        operator,
        _name(node),
        node.name or (node.output[0] if node.output else ""),
        tuple(node.input),
        tuple(node.output),
        attributes,
    )


def _count(outputs: Collection[str]) -> int:
    """How many outputs a node must return, up to the last that has a name."""
    return max((place for place, name in enumerate(outputs, 1) if name), default=0)
