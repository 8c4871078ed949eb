"""Frozen TorchScript (`torch.jit.freeze`): no parameters, but constants in the code.

The graph that the file holds is turned into a function that takes the constants as arguments. Which
of the graph's constants is which record of the file, a second reading tells, of a copy in memory in
which the first number of each record is replaced by the record's number.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.anatomy import Layer
from auditor.models.graph_layers import Call, Value, graph_layers, layer_tensors
from auditor.models.script_file import stored_constants
from auditor.models.script_taps import Taps
from auditor.models.stored import StoredTensor, overwrite


@dataclass(frozen=True, kw_only=True)
class FrozenGraph:
    """A frozen network as a function of its constants."""

    taps: Taps
    """Its functions; called with the images, and then with the constants in the order of `names`."""
    names: tuple[str, ...]
    """Constants as the file's code names them: c0, c1 ..."""
    tensors: Mapping[str, Tensor]
    """The constants as the file stores them, on the network's device."""
    calls: tuple[Call, ...]

    def call(
        self, images: Tensor, overrides: Mapping[str, Tensor], keep: Sequence[str] = ()
    ) -> tuple[Any, ...]:
        """Run the network with other tensors in the places of some constants.

        Returns:
            What it returns, and then the values that `keep` names.
        """
        rounded = {name: t.to(self.tensors[name].dtype) for name, t in overrides.items()}
        tensors = {**self.tensors, **rounded}
        arguments = (images, *(tensors[name] for name in self.names))
        found: tuple[Any, ...] = self.taps.function(keep)(*arguments)
        return found

    def floats(self) -> dict[str, Tensor]:
        """The constants as float32."""
        return {name: tensor.float() for name, tensor in self.tensors.items()}

    def checked(self, changed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`changed`, whose names and shapes are those of constants.

        Raises:
            KeyError: There is no constant of that name.
            ValueError: It has another shape.
        """
        for name, values in changed.items():
            if values.shape != self.tensors[name].shape:
                raise ValueError(f"{name} is {tuple(self.tensors[name].shape)}: {values.shape}")
        return changed

    def weights(self) -> set[str]:
        """Constants that were parameters of a layer: weights and biases."""
        return layer_tensors(self.calls, self._values()) & self.tensors.keys()

    def layers(self) -> list[Layer]:
        """The layers whose numbers are constants."""
        return graph_layers(self.calls, self._values(), self.tensors)

    def _values(self) -> dict[str, str]:
        return {name: name for name in self.tensors}


def read_frozen(path: Path, network: Any, device: torch.device) -> FrozenGraph | None:
    """The frozen network in a file, or None where its constants cannot be told apart.

    Args:
        path: A TorchScript archive that was found to be safe.
        network: What `torch.jit.load` made of it.
        device: Where it runs.

    Raises:
        UNREADABLE: The archive is none that we understand.
    """
    stored = dict(enumerate(stored_constants(path)))
    floating = {n: t for n, t in stored.items() if t is not None and t.dtype.is_floating_point}
    graph = network.inlined_graph.copy()
    own, *images = graph.inputs()
    if not floating or len(images) != 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated helps no reviewer
        marked = torch.jit.load(_marked(path, floating), map_location="cpu")  # type: ignore[no-untyped-call]
    places = list(_constants(graph))
    numbers = [_number(node.t("value")) for node in _constants(marked.inlined_graph)]
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for node, number in zip(places, numbers, strict=True):
        value, expected = node.t("value"), floating.get(number)
        if expected is None or expected.size != tuple(value.shape):
            continue  # a constant of integers, or one that no record holds
        name = f"c{number}"
        tensors.setdefault(name, value.detach().to(device))
        if not torch.equal(tensors[name], value.to(device)):
            return None
        lifted = graph.addInput(f"lifted_{len(names)}")
        lifted.setType(node.output().type())
        node.output().replaceAllUsesWith(lifted)
        node.destroy()
        names.append(name)
    lifted_names = {f"lifted_{place}": name for place, name in enumerate(names)}
    calls = tuple(_calls(graph, lifted_names))
    needed = bool(own.uses())
    if not needed:
        graph.eraseInput(0)
    taps = Taps(graph, network._c) if needed else Taps(graph)
    return FrozenGraph(taps=taps, names=tuple(names), tensors=tensors, calls=calls)


def write_frozen(path: Path, changed: Mapping[str, Tensor]) -> None:
    """Write constants into a copy of a frozen archive; its checksums are wrong then.

    Raises:
        UNREADABLE: The archive is none that we understand, or other constants share the numbers.
    """
    stored = stored_constants(path)
    overwrite(
        path,
        [tensor for tensor in stored if tensor is not None],
        {_place(stored, name): values for name, values in changed.items()},
    )


def _place(stored: list[StoredTensor | None], name: str) -> StoredTensor:
    tensor = stored[int(name.removeprefix("c"))]
    if tensor is None:
        raise LookupError(name)
    return tensor


def _marked(path: Path, stored: Mapping[int, StoredTensor]) -> io.BytesIO:
    data = bytearray(path.read_bytes())
    for number, tensor in stored.items():
        begin = tensor.record.begin + tensor.offset * tensor.dtype.itemsize
        if begin + tensor.dtype.itemsize <= tensor.record.end:
            data[begin : begin + tensor.dtype.itemsize] = number.to_bytes(
                tensor.dtype.itemsize, "little"
            )
    return io.BytesIO(data)


def _number(marked: Tensor) -> int:
    if not marked.is_floating_point() or marked.numel() == 0:
        return -1
    first = marked.detach().cpu().reshape(-1)[:1].clone().view(torch.uint8)
    return int.from_bytes(first.numpy().tobytes(), "little")


def _constants(graph: Any) -> Iterator[Any]:
    for node in graph.findAllNodes("prim::Constant", True):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            yield node


def _calls(graph: Any, lifted: Mapping[str, str]) -> Iterator[Call]:
    """The graph's calls of torch's operators, arguments by the names of their schema."""
    stack = [graph]
    while stack:
        for node in stack.pop().nodes():
            stack += node.blocks()
            if not node.kind().startswith("aten::") or node.schema() == "(no schema)":
                continue
            names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
            values = [_argument(entry, lifted) for entry in node.inputs()]
            yield Call(
                operator=node.kind().replace("::", "."),
                named=dict(zip(names, values, strict=False)),
                outputs=tuple(output.debugName() for output in node.outputs()),
            )


def _argument(entry: Any, lifted: Mapping[str, str]) -> Any:
    name = entry.debugName()
    if name in lifted:
        return Value(lifted[name])
    if entry.node().kind() == "prim::Constant":
        return entry.toIValue()
    if entry.node().kind() == "prim::ListConstruct":
        return [_argument(inner, lifted) for inner in entry.node().inputs()]
    return Value(name)
