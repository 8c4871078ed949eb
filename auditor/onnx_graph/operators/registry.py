"""Every operator that we can run, by the domain and name under which ONNX knows it.

An operator is a function that reads like its specification: tensors by position (None for one that
a node leaves out), attributes by keyword with the defaults of the standard. Two keywords are no
attributes but facts of the node: `version` is the operator set's that it was written for, and
`outputs` the number of values it must return.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

FACTS = frozenset({"version", "outputs"})


@dataclass(frozen=True)
class Operator:
    """One operator of one domain."""

    function: Callable[..., Any]
    """Tensors in, one tensor or several out."""
    attributes: frozenset[str]
    """The attributes that the function knows."""
    facts: frozenset[str]
    """Which of `FACTS` the function wants to be told."""
    host: frozenset[int]
    """Positions of the inputs that say sizes and indices of axes: they stay where they are."""

    def __call__(
        self, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any]
    ) -> Sequence[Tensor | None]:
        """Run it on tensors that may lie on different devices."""
        result = self.function(*self._together(inputs), **attributes)
        return (result,) if isinstance(result, Tensor) else result

    def _together(self, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """`inputs` on one device: the accelerator's as soon as one of them is there.

        What only computes with shapes never meets a tensor from there, so it stays on the CPU.
        """
        devices = {
            tensor.device
            for position, tensor in enumerate(inputs)
            if tensor is not None and position not in self.host
        }
        if len(devices) < 2:
            return inputs
        device = next(device for device in devices if device.type != "cpu")
        return [
            tensor if tensor is None or position in self.host else tensor.to(device)
            for position, tensor in enumerate(inputs)
        ]


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(
    name: str,
    domain: str = "",
    host: Collection[int] = (),
    like: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as the operator `name` of `domain`; may be stacked.

    Args:
        name: As ONNX writes it, such as "Conv".
        domain: Empty for the standard's own.
        host: Positions of inputs that the function reads as plain numbers.
        like: Another operator's function, whose attributes this one takes besides its own, as
            `**attributes`, and passes on.
    """

    def register(function: Function) -> Function:
        if (domain, name) in OPERATORS:
            raise ValueError(f"the operator {domain}.{name} is registered twice")
        keywords = _keywords(function) | (frozenset() if like is None else _keywords(like))
        OPERATORS[domain, name] = Operator(
            function, keywords - FACTS, FACTS & keywords, frozenset(host)
        )
        return function

    return register


def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
