"""Everything that can be wrong with a graph."""

from __future__ import annotations

from collections.abc import Iterable


class GraphError(Exception):
    """Base of everything that can be wrong with a graph."""


class UnsupportedOperators(GraphError):
    """The graph has operators that we cannot run; onnxruntime may."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(set(names)))
        super().__init__(f"operators that cannot be differentiated: {', '.join(self.names)}")


class HostileGraph(GraphError):
    """The graph asks for what no exporter writes: absurd sizes, cycles, values written twice."""


class OperatorError(GraphError):
    """A node cannot be computed."""

    def __init__(self, node: str, operator: str, reason: str) -> None:
        self.node, self.operator, self.reason = node, operator, reason
        super().__init__(f"{operator} (node {node!r}): {reason}")
