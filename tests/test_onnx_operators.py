"""Our ONNX operators answer like the ONNX project's own test cases, one case a behaviour."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import auditor.models.onnx  # tells onnxruntime to send no telemetry
from auditor.onnx_graph.graph import Graph, OperatorError, UnsupportedOperators
from auditor.onnx_graph.operators import OPERATORS
from auditor.onnx_graph.operators.quantisation import quantised, rounded
from auditor.onnx_graph.operators.sizes import TooLarge

onnxruntime = auditor.models.onnx.onnxruntime

RANDOM = "our random numbers are others, and repeat"
TRAINING = "we never drop anything"
KNOWN = {
    "test_bernoulli": RANDOM,
    "test_bernoulli_double": RANDOM,
    "test_bernoulli_double_expanded": RANDOM,
    "test_bernoulli_expanded": RANDOM,
    "test_bernoulli_seed": RANDOM,
    "test_bernoulli_seed_expanded": RANDOM,
    "test_bitwise_not_3d": "uint16 is computed as int32, which has more bits to flip",
    "test_col2im_5d": "torch folds images only",
    "test_quantizelinear_uint16": "the type of a zero point that is an input is not known",
    "test_training_dropout": TRAINING,
    "test_training_dropout_default": TRAINING,
    "test_training_dropout_default_mask": TRAINING,
    "test_training_dropout_mask": TRAINING,
}
"""The cases that fail although we have all their operators, and why."""

# of half precision, which we compute as float32, the expected values are rounded
TOLERANCES = {"float16": 2e-3, "bfloat16": 1e-2}


def array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def tensor(value: Any) -> Tensor:
    content = array(value)
    if content.dtype.name == "bfloat16":
        content = content.astype(np.float32)
    elif content.dtype.name in ("uint32", "uint64"):
        content = content.astype(np.int64)
    return torch.from_numpy(np.array(content))


def failure(graph: Graph, case: Any) -> str | None:
    """What is wrong with our answers to a case, if anything."""
    for inputs, outputs in case.data_sets:
        given = {
            entry.name: tensor(value)
            for entry, value in zip(case.model.graph.input, inputs, strict=True)
        }
        try:
            answers = graph.run(given)
            for found, wanted in zip(answers.values(), map(array, outputs), strict=True):
                assert tuple(found.shape) == wanted.shape
                np.testing.assert_allclose(
                    found.double().numpy(),
                    wanted.astype(np.float64),
                    rtol=TOLERANCES.get(wanted.dtype.name, case.rtol),
                    atol=max(case.atol, 1e-6),
                )
        except (AssertionError, OperatorError) as error:
            return str(error)
    return None


QUICK = [
    "attention",
    "batch_normalization",
    "clip",
    "compress",
    "concat",
    "conv",
    "convtranspose",
    "depthtospace",
    "dequantizelinear",
    "einsum",
    "expand",
    "gather",
    "gathernd",
    "gelu",
    "gemm",
    "globalaveragepool",
    "gridsample",
    "groupnormalization",
    "hardmax",
    "instance_normalization",
    "layernormalization",
    "lppool",
    "matmul",
    "matmulinteger",
    "maxunpool",
    "onehot",
    "pad",
    "prelu",
    "qlinearconv",
    "qlinearmatmul",
    "quantizelinear",
    "rangeop",
    "reducel2",
    "reducemax",
    "reshape",
    "resize",
    "scatterelements",
    "scatternd",
    "slice",
    "softmax",
    "split",
    "squeeze",
    "tile",
    "topk",
    "transpose",
    "trilu",
    "unsqueeze",
    "upsample",
    "where",
]
"""Modules of cases that are made in a moment; those of pooling take seconds."""


def ran_and_failed(cases: Sequence[Any]) -> tuple[int, dict[str, str]]:
    failed, ran = {}, 0
    for case in cases:
        try:
            graph = Graph(case.model)
        except UnsupportedOperators:
            continue
        ran += 1
        if reason := failure(graph, case):
            failed[case.name] = reason
    return ran, failed


@pytest.mark.filterwarnings("ignore")
def test_cases_of_the_onnx_project() -> None:
    import onnx.backend.test.case.node as node

    for name in QUICK:
        importlib.import_module(f"{node.__name__}.{name}")
    ran, failed = ran_and_failed(node._NodeTestCases)
    assert not {name: reason for name, reason in failed.items() if name not in KNOWN}
    assert ran > 400


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_cases_of_the_onnx_project() -> None:
    """Those whose operators and types we have: more than 1300; they take half a minute to make."""
    from onnx.backend.test.case.node import collect_testcases

    cases = [case for case in collect_testcases(None) if case.model is not None]
    ran, failed = ran_and_failed(cases)
    assert not {name: reason for name, reason in failed.items() if name not in KNOWN}
    assert failed.keys() == KNOWN.keys(), "these pass now: take them from the list"
    assert ran > 1300
    assert len(failed) < 0.05 * ran


# What the project's cases do not have, against onnxruntime.


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def byte(*shape: int, seed: int = 0, signed: bool = False) -> np.ndarray:
    # seven bits: without VNNI onnxruntime saturates sums of pairs of products of eight
    numbers = np.random.default_rng(seed).integers(0, 127, shape)
    return (numbers - 64).astype(np.int8) if signed else numbers.astype(np.uint8)


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def zero(value: int, signed: bool = False) -> np.ndarray:
    return np.array(value, np.int8 if signed else np.uint8)


def one_node(
    kind: str,
    inputs: Sequence[np.ndarray | None],
    attributes: dict[str, Any],
    *,
    domain: str = "",
    opset: int = 17,
    outputs: int = 1,
) -> onnx.ModelProto:
    """A graph of one node, whose first input is the graph's and whose others are stored."""
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    made = [f"o{place}" for place in range(outputs)]
    node = helper.make_node(kind, names, made, domain=domain, **attributes)
    first = inputs[0]
    assert first is not None
    element = helper.np_dtype_to_tensor_dtype(first.dtype)
    stored = [
        numpy_helper.from_array(value, name)
        for name, value in zip(names[1:], inputs[1:], strict=True)
        if value is not None
    ]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("i0", element, first.shape)],
        [onnx.ValueInfoProto(name=name) for name in made],
        stored,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(8, opset))


X, W, B = rand(2, 4, 9, 9), rand(6, 2, 3, 3, seed=1), rand(6, seed=2)
IMAGE, TOKENS = rand(1, 2, 7, 6), rand(2, 5, 8)
Q, QW = byte(2, 4, 9, 9), byte(6, 4, 3, 3, seed=1, signed=True)
LAST = np.ascontiguousarray(Q.transpose(0, 2, 3, 1))
STEPS = np.linspace(0.01, 0.02, 6, dtype=np.float32)
BIAS = np.arange(6, dtype=np.int32) * 50
MS = {"domain": "com.microsoft"}
WINDOW = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}

NODES: list[tuple[str, Sequence[np.ndarray | None], dict[str, Any], dict[str, Any]]] = [
    ("MaxPool", [X], {**WINDOW, "ceil_mode": 1}, {"outputs": 2}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "dilations": [2, 3], "pads": [1, 1, 1, 1]}, {}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, {}),
    ("MaxPool", [byte(1, 2, 6, 6)], {"kernel_shape": [2, 2]}, {}),
    ("AveragePool", [X], {**WINDOW, "count_include_pad": 1}, {"opset": 19}),
    ("AveragePool", [X], {**WINDOW, "ceil_mode": 1}, {"opset": 19}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "dilations": [2, 2]}, {"opset": 19}),
    ("AveragePool", [rand(1, 2, 8)], {"kernel_shape": [3], "auto_pad": "SAME_UPPER"}, {}),
    ("Conv", [X, W, B], {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}, {}),
    ("Conv", [X, W], {"group": 2, "pads": [0, 1, 2, 3], "dilations": [2, 1]}, {"opset": 11}),
    ("ConvTranspose", [X, rand(4, 3, 3, 3), B], {"group": 2, "strides": [2, 2], "pads": [0, 1, 1, 0]}, {}),
    ("ConvTranspose", [X, rand(4, 3, 3, 3), rand(3)], {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]}, {}),
    ("ConvTranspose", [X, rand(4, 3, 3, 3)], {"strides": [2, 2], "output_shape": [18, 18]}, {}),
    ("Softmax", [TOKENS], {"axis": 1}, {"opset": 11}),
    ("Softmax", [TOKENS], {}, {"opset": 12}),
    ("LogSoftmax", [TOKENS], {"axis": -2}, {"opset": 12}),
    ("Clip", [X], {"min": -0.5, "max": 0.25}, {"opset": 6}),
    ("Pad", [IMAGE], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}, {"opset": 9}),
    ("Slice", [X], {"starts": [1, -3], "ends": [3, 1000], "axes": [1, 3]}, {"opset": 9}),
    ("Unsqueeze", [TOKENS], {"axes": [0, -1]}, {"opset": 11}),
    ("ReduceSum", [TOKENS], {"axes": [-1], "keepdims": 0}, {"opset": 11}),
    ("ReduceMean", [TOKENS], {}, {"opset": 13}),
    ("Split", [X], {"axis": 1, "split": [1, 3]}, {"opset": 11, "outputs": 2}),
    ("TopK", [TOKENS, np.array([3])], {"axis": 1}, {"opset": 10, "outputs": 2}),
    ("Upsample", [IMAGE, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, {"opset": 9}),
    ("Upsample", [IMAGE], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, {"opset": 7}),
    ("Resize", [IMAGE, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, {"opset": 10}),
    ("Resize", [IMAGE, None, np.array([1, 1, 0.6, 1.7], np.float32)], {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, {"opset": 13}),
    ("Resize", [IMAGE, None, None, np.array([1, 2, 11, 4])], {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, {"opset": 13}),
    ("Resize", [IMAGE, None, None, np.array([1, 2, 3, 4])], {"mode": "linear", "antialias": 1}, {"opset": 18}),
    ("Gemm", [rand(3, 4), rand(5, 4), rand(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, {}),
    ("Gemm", [rand(3, 4), rand(5, 4), rand(3, 1)], {"transB": 1}, {"opset": 9}),
    ("BatchNormalization", [X, rand(4), rand(4), rand(4), np.abs(rand(4))], {"epsilon": 1e-3}, {"opset": 9}),
    ("LayerNormalization", [TOKENS, rand(8), rand(8)], {}, {"outputs": 3}),
    ("QLinearConv", [Q, scale(0.02), zero(60), QW, STEPS, np.zeros(6, np.int8), scale(0.3), zero(90), BIAS], {"pads": [1, 1, 1, 1]}, {}),
    ("QuantizeLinear", [X, np.linspace(0.01, 0.04, 4, dtype=np.float32), np.array([0, 3, 7, -9], np.int8)], {"axis": 1}, {}),
    ("DynamicQuantizeLinear", [X], {}, {"outputs": 3}),
    ("QLinearConv", [LAST, scale(0.02), zero(60), QW, STEPS, np.zeros(6, np.int8), scale(0.3), zero(90), BIAS], {"channels_last": 1, "strides": [2, 2]}, MS),
    ("QLinearAdd", [Q, scale(0.02), zero(60), byte(4, 1, 1), scale(0.03), zero(9), scale(0.04), zero(70)], {}, MS),
    ("QLinearMul", [Q, scale(0.02), zero(60), byte(9), scale(0.03), zero(9), scale(0.04), zero(70)], {}, MS),
    ("QLinearSigmoid", [Q, scale(0.05), zero(60), scale(1 / 256), zero(0)], {}, MS),
    ("QLinearLeakyRelu", [Q, scale(0.05), zero(60), scale(0.03), zero(20)], {"alpha": 0.2}, MS),
    ("QLinearSoftmax", [byte(3, 10), scale(0.05), zero(60), scale(1 / 256), zero(0)], {"opset": 13, "axis": -1}, MS),
    ("QLinearGlobalAveragePool", [LAST, scale(0.05), zero(60), scale(0.03), zero(20)], {"channels_last": 1}, MS),
    ("QLinearAveragePool", [Q, scale(0.05), zero(60), scale(0.03), zero(20)], {**WINDOW, "count_include_pad": 1}, MS),
    ("QLinearConcat", [scale(0.04), zero(70), byte(1, 2, 3), scale(0.02), zero(9), byte(1, 4, 3), scale(0.05), zero(60)], {"axis": 1}, MS),
    ("QLinearWhere", [np.array([True, False, True]), byte(2, 3), scale(0.02), zero(9), byte(3), scale(0.05), zero(60), scale(0.04), zero(70)], {}, MS),
    ("NhwcMaxPool", [LAST], {**WINDOW}, MS),
    ("QGemm", [byte(3, 8), scale(0.05), zero(60), byte(6, 8, signed=True), STEPS, np.zeros(6, np.int8), BIAS, scale(0.1), zero(100)], {"transB": 1}, MS),
    ("QGemm", [byte(3, 8), scale(0.05), zero(60), byte(8, 6, signed=True), scale(0.02), zero(3, True)], {"alpha": 0.5}, MS),
    ("MatMulIntegerToFloat", [byte(3, 8), byte(8, 6, signed=True), scale(0.05), STEPS, zero(60), None, B], {}, MS),
    ("DynamicQuantizeMatMul", [rand(3, 8), byte(8, 6, signed=True), STEPS, None, B], {}, MS),
    ("FusedConv", [X, W, B], {"group": 2, "activation": "LeakyRelu", "activation_params": [0.1]}, MS),
    ("FusedConv", [X, W, B], {"group": 2, "activation": "Clip", "activation_params": [0.0, 6.0]}, MS),
    ("FusedConv", [X, W, B, rand(2, 6, 7, 7)], {"group": 2, "activation": "Relu"}, MS),
    ("FusedMatMul", [TOKENS, rand(2, 3, 8)], {"transB": 1, "alpha": 0.25}, MS),
    ("FusedMatMul", [rand(5, 2, 8), rand(2, 8, 3)], {"transBatchA": 1}, MS),
    ("FusedGemm", [rand(3, 4), rand(4, 5), rand(5)], {"activation": "Relu"}, MS),
    ("Gelu", [X], {}, MS),
    ("BiasGelu", [TOKENS, rand(8)], {}, MS),
    ("FastGelu", [TOKENS, rand(8)], {}, MS),
    ("QuickGelu", [TOKENS], {"alpha": 1.702}, MS),
    ("SkipLayerNormalization", [TOKENS, rand(2, 5, 8, seed=3), rand(8), rand(8, seed=1), rand(8, seed=2)], {"epsilon": 1e-5}, MS),
    ("SkipSimplifiedLayerNormalization", [TOKENS, rand(2, 5, 8, seed=3), rand(8)], {"epsilon": 1e-5}, MS),
    ("Attention", [TOKENS, rand(8, 24, seed=1), rand(24, seed=2)], {"num_heads": 2}, MS),
    ("MultiHeadAttention", [TOKENS, rand(2, 5, 8, seed=1), rand(2, 5, 8, seed=2), rand(24)], {"num_heads": 4}, MS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "options"),
    NODES,
    ids=[f"{place}-{kind}" for place, (kind, *_) in enumerate(NODES)],
)
def test_nodes_against_onnxruntime(
    kind: str,
    inputs: Sequence[np.ndarray | None],
    attributes: dict[str, Any],
    options: dict[str, Any],
) -> None:
    model = one_node(kind, inputs, attributes, **options)
    session_options = onnxruntime.SessionOptions()
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options)
    wanted = session.run(None, {"i0": inputs[0]})
    graph = Graph(model)
    answers = graph.run({"i0": torch.from_numpy(inputs[0])})
    for found, expected in zip(answers.values(), wanted, strict=True):
        # rounding may fall on the other side of a half: one step of the grid
        steps = 1 if expected.dtype in (np.uint8, np.int8) and kind != "NhwcMaxPool" else 0
        difference = np.abs(found.double().numpy() - expected.astype(np.float64))
        assert found.shape == expected.shape
        assert difference.max() <= steps + 2e-5 * max(1, np.abs(expected).max())
        assert (difference > 1e-3).mean() <= 0.02


def test_a_node_on_two_devices_runs_on_the_accelerator() -> None:
    # the meta device stands for one: it computes shapes only, but refuses mixtures all the same
    far = torch.empty(2, 3, device="meta")
    for kind in ("Add", "Where", "Concat", "MatMul"):
        near = torch.zeros(3, 3) if kind == "MatMul" else torch.zeros(2, 3)
        inputs = [near.bool(), far, near] if kind == "Where" else [far, near]
        attributes = {"axis": 0} if kind == "Concat" else {}
        (result,) = OPERATORS["", kind](inputs, attributes)
        assert result is not None
        assert result.device.type == "meta"
    (shape,) = OPERATORS["", "Shape"]([far], {})
    (flat,) = OPERATORS["", "Reshape"]([far, torch.tensor([-1])], {})
    assert (shape.device.type, flat.shape) == ("cpu", (6,))


def test_rounding_passes_gradients_and_clipping_none() -> None:
    x = torch.tensor([-9.0, 0.4, 0.5, 1.5, 300.0], requires_grad=True)
    step = torch.tensor(1.0, requires_grad=True)
    grid = quantised(x, step, torch.tensor(0, dtype=torch.uint8))
    assert grid.tolist() == [0, 0, 0, 2, 255]
    grid.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert step.grad is not None
    assert torch.equal(rounded(x.detach()), x.detach().round())


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("ConstantOfShape", [np.array([2**20, 2**20])], {}),
        ("Expand", [rand(1, 1), np.array([2**20, 2**20])], {}),
        ("Tile", [rand(1, 1), np.array([2**20, 2**20])], {}),
        ("Pad", [rand(1, 1), np.array([0, 0, 2**20, 2**20])], {}),
        ("Resize", [rand(1, 1, 1, 1), None, None, np.array([1, 1, 2**20, 2**20])], {}),
        ("OneHot", [np.array([0]), np.array(2**40), rand(2)], {}),
        ("Range", [np.array(0), np.array(2**50), np.array(1)], {}),
        ("Add", [rand(2**16, 1), rand(1, 2**16)], {}),
        ("MatMul", [rand(2**16, 1), rand(1, 2**16)], {}),
        ("Gemm", [rand(2**16, 1), rand(1, 2**16)], {}),
        ("Einsum", [rand(2**16), rand(2**16)], {"equation": "i,j->ij"}),
        ("Conv", [rand(1, 1, 1, 1), rand(1, 1, 1, 1)], {"pads": [2**20] * 4}),
        ("ConvTranspose", [rand(1, 1, 1, 1), rand(1, 1, 1, 1)], {"output_shape": [2**20, 2**20]}),
        ("AveragePool", [rand(1, 1, 4, 4)], {"kernel_shape": [2**20, 2**20], "pads": [2**20] * 4}),
        ("Gather", [rand(1, 2**20), np.zeros(2**20, np.int64)], {}),
        ("RandomNormal", [], {"shape": [2**20, 2**20]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bombs_are_refused(
    kind: str, inputs: Sequence[np.ndarray | None], attributes: dict[str, Any]
) -> None:
    operator = OPERATORS["", kind]
    facts = {fact: {"version": 17, "outputs": 1}[fact] for fact in operator.facts}
    tensors = [None if value is None else torch.from_numpy(value) for value in inputs]
    with pytest.raises(TooLarge, match="shape"):
        operator(tensors, attributes | facts)


@pytest.mark.parametrize("indices", [[3], [-4]])
def test_indices_outside_are_refused(indices: list[int]) -> None:
    with pytest.raises(IndexError):
        OPERATORS["", "Gather"]([torch.zeros(3), torch.tensor(indices)], {})
