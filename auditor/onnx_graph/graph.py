"""An ONNX graph as a torch computation: every node one torch expression, gradients everywhere.

The graph comes from a suspect, so nothing of it is trusted: operators are looked up in our own
registry and nothing is imported or compiled, attributes that we do not know are refused, and so are
sizes, cycles and recursions that no exporter writes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from auditor.onnx_graph.errors import (
    GraphError,
    HostileGraph,
    OperatorError,
    UnsupportedOperators,
)
from auditor.onnx_graph.functions import written_out
from auditor.onnx_graph.reading import (
    Step,
    arrays,
    is_constant,
    refuse_unsupported,
    step_of,
    tensor_of,
)

__all__ = ["Graph", "GraphError", "HostileGraph", "OperatorError", "UnsupportedOperators"]

FOLDED = 2**16
"""Elements that a value may have to be computed once instead of at every run."""


class Graph:
    """An ONNX graph, ready to run.

    Half precision and doubles are computed as float32. Integers that only say shapes stay on the
    CPU, whatever the device.
    """

    def __init__(self, model: onnx.ModelProto, device: torch.device | None = None) -> None:
        """Read a graph; the model is not needed afterwards, nor changed.

        Args:
            model: With its weights inside: external data has been loaded.
            device: Where to compute; the CPU by default.

        Raises:
            UnsupportedOperators: Names everything in the graph that we cannot run.
            HostileGraph: No exporter writes such a graph.
        """
        self.device = device or torch.device("cpu")
        model = written_out(model)
        versions = {entry.domain: entry.version for entry in model.opset_import}
        graph = model.graph
        nodes = [node for node in graph.node if not is_constant(node)]
        refuse_unsupported(graph, nodes)

        self.tensors: dict[str, Tensor] = {}
        """Every floating initialiser and constant by name, float32 on `device`."""
        self._constants: dict[str, Tensor] = {}
        for name, array in arrays(graph):
            self._store(name, array)
        known = self.tensors.keys() | self._constants.keys()
        self.inputs = [entry.name for entry in graph.input if entry.name not in known]
        """What `run` must be given."""
        self.outputs = [entry.name for entry in graph.output]
        """What `run` returns."""
        steps = [step_of(node, versions) for node in nodes]
        steps = _sorted(steps, known | set(self.inputs))
        self._steps = self._fold(steps)
        self._drops = self._last_uses()

    def _store(self, name: str, array: np.ndarray[Any, Any]) -> None:
        tensor, weight = tensor_of(array)
        if weight:
            self.tensors[name] = _laid_out(tensor.to(self.device))
        elif tensor.is_floating_point() or tensor.element_size() == 1:
            self._constants[name] = tensor.to(self.device)  # quantised weights
        else:
            self._constants[name] = tensor

    def _fold(self, steps: list[Step]) -> list[Step]:
        """Compute, once and for all, what depends on no weight and on no input.

        Returns:
            The steps that remain.
        """
        remaining = []
        for step in steps:
            if not all(not name or name in self._constants for name in step.inputs):
                remaining.append(step)
                continue
            try:
                results = dict(step.run(self._constants))
            except OperatorError:
                results = {}  # a run will meet it again, if it is needed at all
            if not results or any(value.numel() > FOLDED for value in results.values()):
                remaining.append(step)
                continue
            for name, value in results.items():
                floating = value.is_floating_point()
                self._constants[name] = value.to(self.device) if floating else value
        return remaining

    def _last_uses(self) -> list[tuple[str, ...]]:
        """For every step the values that no later step reads."""
        last: dict[str, int] = {}
        for position, step in enumerate(self._steps):
            for name in (*step.inputs, *step.outputs):
                last[name] = position
        drops: list[list[str]] = [[] for _ in self._steps]
        for name, position in last.items():
            if name and name not in self.outputs:
                drops[position].append(name)
        return [tuple(names) for names in drops]

    def run(
        self,
        inputs: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor] | None = None,
        *,
        keep: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Compute the graph; nothing of it changes.

        Args:
            inputs: A tensor for each of `inputs`. Float tensors may stand for integers (images of
                bytes), so that gradients reach them.
            tensors: Name as in `self.tensors` -> what stands in for it in this run. Gradients flow
                to them and to the inputs.
            keep: Names of further values to return: weights, features between two nodes.

        Returns:
            Name -> value of every output, in the order of `outputs`, then of everything in `keep`.
            Values that are quantised to integers are float tensors of whole numbers.

        Raises:
            KeyError: An input is missing, or there is no value of a name.
            OperatorError: A node cannot be computed on inputs of these shapes.
            HostileGraph: A node asks for a value of an absurd size.
        """
        given = tensors or {}
        for name in inputs.keys() ^ set(self.inputs):
            raise KeyError(f"the graph takes the inputs {self.inputs}; {name!r} does not match")
        for name in given.keys() - self.tensors.keys():
            raise KeyError(f"the graph has no tensor {name!r}")
        values = self._constants | self.tensors | dict(given)
        for name, value in inputs.items():
            if value.is_floating_point():
                value = value.float()
            elif value.dtype == torch.uint16:
                value = value.int()  # torch has no arithmetic for it
            values[name] = _laid_out(value.to(self.device))
        wanted = [*self.outputs, *keep]
        kept = set(wanted)
        for step, drops in zip(self._steps, self._drops, strict=True):
            values.update(step.run(values))
            for name in drops:
                if name not in kept:
                    values.pop(name, None)  # its memory is free for the next
        for name in wanted:
            if name not in values:
                raise KeyError(f"the graph has no value {name!r}")
        return {name: values[name] for name in wanted}


def _laid_out(tensor: Tensor) -> Tensor:
    """The same numbers with the channels of images last: convolutions are up to twice as fast."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _sorted(steps: list[Step], known: Collection[str]) -> list[Step]:
    """`steps` such that each one follows those whose values it reads; some tools write others.

    Raises:
        HostileGraph: A value is written twice, from nothing, or from itself.
    """
    writers: dict[str, int] = {}
    for position, step in enumerate(steps):
        for name in filter(None, step.outputs):
            if name in writers or name in known:
                raise HostileGraph(f"the value {name!r} is written twice")
            writers[name] = position
    readers: dict[int, list[int]] = {}
    waiting: Counter[int] = Counter()
    for position, step in enumerate(steps):
        for name in {name for name in step.inputs if name and name not in known}:
            if name not in writers:
                raise HostileGraph(
                    f"{step.kind} (node {step.node!r}) reads {name!r}: no such value"
                )
            readers.setdefault(writers[name], []).append(position)
            waiting[position] += 1
    ready = [position for position in range(len(steps)) if not waiting[position]]
    order = []
    while ready:
        position = heapq.heappop(ready)  # the first of the file, where there is a choice
        order.append(steps[position])
        for reader in readers.get(position, []):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(steps):
        raise HostileGraph("some values are computed from themselves")
    return order
