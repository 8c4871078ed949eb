"""The operators of ONNX graphs as torch functions, one file a family."""

import sys

from auditor.onnx_graph.operators.registry import OPERATORS, Operator
from auditor.registry import import_siblings

import_siblings(sys.modules[__name__])

__all__ = ["OPERATORS", "Operator"]
