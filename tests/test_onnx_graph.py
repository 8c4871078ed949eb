"""ONNX graphs compute what the networks did that they were exported from, gradients included."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import auditor.models.onnx  # tells onnxruntime to send no telemetry
from auditor.onnx_graph.graph import Graph, HostileGraph, OperatorError, UnsupportedOperators
from auditor.onnx_graph.operators import OPERATORS, Operator

onnxruntime = auditor.models.onnx.onnxruntime

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Vit(nn.Module):
    """Patches, one block of attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.before = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.after = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 7)
        for norm in (self.before, self.after):  # exporters store equal tensors once
            nn.init.normal_(norm.weight, 1.0, 0.1)
            nn.init.normal_(norm.bias, 0.0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(images.shape[0], -1, -1), patches], 1)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.after(x)))[:, 0])


def cnn(*, normalised: bool) -> nn.Module:
    norm = nn.BatchNorm2d if normalised else lambda _: nn.Identity()
    return nn.Sequential(
        norm(3),  # before any convolution: no exporter can fold it into one
        nn.Conv2d(3, 16, 3, padding=1),
        norm(16),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, groups=4, bias=False),
        norm(16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 7),
    )


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """`net` in eval mode with running statistics of its own, so that no layer shrinks the signal."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": functools.partial(cnn, normalised=True),
    "no norm": functools.partial(cnn, normalised=False),
    "ViT": Vit,
}


def network(name: str) -> nn.Module:
    # its parameters keep their gradients: without, attention takes a path that nobody can export
    torch.manual_seed(0)
    return settled(NETWORKS[name](), torch.rand(32, 3, 16, 16))


def export(
    net: nn.Module, path: Path, *, dynamo: bool, images: Tensor = IMAGES, opset: int | None = None
) -> onnx.ModelProto:
    axes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")},), "external_data": False}
        if dynamo
        else {"dynamic_axes": {"x": {0: "n"}}}
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (images,),
            str(path),
            dynamo=dynamo,
            input_names=["x"],
            opset_version=opset,
            **axes,
        )
    return onnx.load(path)


def answer(
    path: Path, images: Tensor, level: str = "ORT_DISABLE_ALL", written: Path | None = None
) -> Tensor:
    """What onnxruntime computes; `written` gets the graph as it has optimised it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if written:
        options.optimized_model_filepath = str(written)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output)


def logits(graph: Graph, images: Tensor, tensors: dict[str, Tensor] | None = None) -> Tensor:
    (output,) = graph.run({graph.inputs[0]: images}, tensors).values()
    return output


WEIGHTED = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "FusedConv": (1, 2),
    "FusedMatMul": (1,),
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (1,),
    "SkipLayerNormalization": (2, 3, 4),
}
"""Operator -> the inputs where its weights are."""


def weights(model: onnx.ModelProto) -> set[str]:
    """The stored tensors that layers use as weights, directly or through reshaping."""
    origins = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type in ("Identity", "Transpose", "Reshape", "DequantizeLinear", "Squeeze")
    }
    stored = {tensor.name for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        for place in WEIGHTED.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            while name in origins:
                name = origins[name]
            if name in stored:
                found.add(name)
    return found


def gradients(graph: Graph, images: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Of the sum of squared logits, with respect to the images and to every stored tensor."""
    images = images.clone().requires_grad_()
    tensors = {name: value.clone().requires_grad_() for name, value in graph.tensors.items()}
    logits(graph, images, tensors).square().sum().backward()
    assert images.grad is not None
    return images.grad, {name: value.grad for name, value in tensors.items()}


def agrees(
    model: onnx.ModelProto,
    net: nn.Module,
    images: Tensor,
    expected: Tensor,
    *,
    tolerance: float = 1e-4,
) -> float:
    """Check everything that must be equal; the largest difference to onnxruntime's logits.

    `tolerance` is of the norm of gradients: in deep networks some ReLU is so near to its kink that
    it falls on the other side once BatchNorm is part of the convolution.
    """
    graph = Graph(model)
    found = logits(graph, images)
    difference = (found - expected).abs().max().item()
    assert difference <= 1e-4 * max(1.0, expected.abs().max().item())
    of_images, of_tensors = gradients(graph, images)
    own = images.clone().requires_grad_()
    net(own).square().sum().backward()
    assert own.grad is not None
    assert (of_images - own.grad).norm() <= tolerance * own.grad.norm()
    named = weights(model)
    assert named
    unreached = [name for name in named if (g := of_tensors[name]) is None or not g.abs().sum() > 0]
    assert not unreached
    return difference


EXPORTS = [
    pytest.param(
        name,
        dynamo,
        marks=[pytest.mark.slow] if dynamo and name != "BatchNorm" else [],
        id=f"{name}-{'dynamo' if dynamo else 'legacy'}",
    )
    for name in NETWORKS
    for dynamo in (False, True)
]
"""The new exporter takes seconds for each."""


@pytest.mark.parametrize(("name", "dynamo"), EXPORTS)
def test_exported_networks(name: str, dynamo: bool, tmp_path: Path) -> None:
    net = network(name)
    model = export(net, tmp_path / "m.onnx", dynamo=dynamo)
    agrees(model, net, IMAGES, answer(tmp_path / "m.onnx", IMAGES))
    if (name, dynamo) != ("ViT", False):  # whose batch size is part of the file
        assert torch.allclose(logits(Graph(model), IMAGES[:1]), net(IMAGES[:1]), atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_older_operator_sets(opset: int, tmp_path: Path) -> None:
    net = network("BatchNorm")
    model = export(net, tmp_path / "m.onnx", dynamo=False, opset=opset)
    agrees(model, net, IMAGES, answer(tmp_path / "m.onnx", IMAGES))


@functools.cache
def legacy(name: str) -> onnx.ModelProto:
    """An export to share between tests, which must not change it."""
    with tempfile.TemporaryDirectory() as folder:
        return export(network(name), Path(folder, "m.onnx"), dynamo=False, opset=17)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_that_onnxruntime_has_optimised(name: str, tmp_path: Path) -> None:
    onnx.save(legacy(name), tmp_path / "m.onnx")
    written = tmp_path / "optimised.onnx"
    expected = answer(tmp_path / "m.onnx", IMAGES, "ORT_ENABLE_EXTENDED", written)
    model = onnx.load(written)
    assert any(node.domain == "com.microsoft" for node in model.graph.node)
    agrees(model, network(name), IMAGES, expected)


def test_layouts_of_one_processor_are_named(tmp_path: Path) -> None:
    """What onnxruntime itself says to use on the same machine only."""
    onnx.save(legacy("no norm"), tmp_path / "m.onnx")
    answer(tmp_path / "m.onnx", IMAGES, "ORT_ENABLE_ALL", tmp_path / "all.onnx")
    model = onnx.load(tmp_path / "all.onnx")
    if any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        with pytest.raises(UnsupportedOperators) as caught:
            Graph(model)
        assert "com.microsoft.nchwc.Conv" in caught.value.names


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_half_precision(name: str, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.ModelProto()
    model.CopyFrom(legacy(name))
    half = convert_float_to_float16(model, keep_io_types=True)
    graph = Graph(half)
    assert all(value.dtype == torch.float32 for value in graph.tensors.values())
    onnx.save(half, tmp_path / "half.onnx")
    expected = answer(tmp_path / "half.onnx", IMAGES)
    assert torch.allclose(logits(graph, IMAGES), expected, atol=5e-3)
    of_images, _ = gradients(graph, IMAGES)
    assert of_images.abs().sum() > 0


class Calibration:
    """One batch for onnxruntime's quantiser."""

    def __init__(self) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"x": IMAGES.numpy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["a tensor", "a channel"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("name", ["no norm", "ViT"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_networks(
    name: str, form: str, per_channel: bool, level: str, tmp_path: Path
) -> None:
    from onnxruntime import quantization

    onnx.save(legacy(name), tmp_path / "m.onnx")
    path = tmp_path / "int8.onnx"
    quantization.quantize_static(
        tmp_path / "m.onnx",
        path,
        Calibration(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        weight_type=quantization.QuantType.QInt8,
        reduce_range=True,
    )
    written = tmp_path / "optimised.onnx"
    answer(path, IMAGES, level, written)
    # Where the processor has no VNNI, onnxruntime's sums of products of eight bits saturate: hence
    # the weights of seven above, and no use of its optimised graph, which is as bad for attention.
    expected = answer(path, IMAGES)
    graph = Graph(onnx.load(written))
    found = logits(graph, IMAGES)
    # the grid of the output, as far as the few logits show it
    levels = expected.unique()
    step = (levels[1:] - levels[:-1]).min().item()
    assert (found - expected).abs().max() <= step * 1.01
    of_images, of_tensors = gradients(graph, IMAGES)
    assert of_images.abs().sum() > 0
    scales = [name for name in graph.tensors if "weight" in name and name.endswith("scale")]
    assert scales
    for scale in scales:
        reached = of_tensors[scale]
        assert reached is not None
        assert reached.abs().sum() > 0


def test_stand_ins_change_one_run() -> None:
    graph = Graph(legacy("no norm"))
    (name,) = [name for name, value in graph.tensors.items() if value.shape == (7,)]
    before = logits(graph, IMAGES)
    shift = torch.arange(7.0)
    shifted = logits(graph, IMAGES, {name: graph.tensors[name] + shift})
    assert torch.allclose(shifted, before + shift, atol=1e-6)
    assert torch.equal(logits(graph, IMAGES), before)


def test_features_are_kept() -> None:
    model = legacy("no norm")
    last = model.graph.node[-1]
    assert last.op_type == "Gemm"
    graph = Graph(model)
    values = graph.run({"x": IMAGES}, keep=[last.input[0], last.input[1]])
    logits_name, features, weight = values
    assert logits_name == model.graph.output[0].name
    assert values[features].shape == (4, 16)
    own = values[features] @ values[weight].T + graph.tensors[last.input[2]]
    assert torch.allclose(own, values[logits_name], atol=1e-5)


def test_names_that_do_not_exist() -> None:
    graph = Graph(legacy("no norm"))
    for wrong in (
        lambda: graph.run({}),
        lambda: graph.run({"x": IMAGES, "y": IMAGES}),
        lambda: graph.run({"x": IMAGES}, {"nothing": IMAGES}),
        lambda: graph.run({"x": IMAGES}, keep=["nothing"]),
    ):
        with pytest.raises(KeyError):
            wrong()


def graph_of(
    nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray] | None = None, **options: Any
) -> onnx.ModelProto:
    """From ``x`` of shape ``(2, 3)`` to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(
        nodes,
        "g",
        [x],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in (stored or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, **options)


node = helper.make_node
X = torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, -5.0]])


def test_nodes_in_any_order() -> None:
    nodes = [node("Neg", ["b"], ["y"]), node("Abs", ["a"], ["b"]), node("Neg", ["x"], ["a"])]
    assert torch.equal(logits(Graph(graph_of(nodes)), X), -X.abs())


def test_values_are_freed_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(x: Tensor) -> Tensor:
        alive.append(sum(value() is not None for value in made))
        result = -x
        made.append(weakref.ref(result))
        return result

    operator = Operator(watch, frozenset(), frozenset(), frozenset())
    monkeypatch.setitem(OPERATORS, ("own", "Watch"), operator)
    names = ["x", *"abcdefgh", "y"]
    graph = Graph(
        graph_of([node("Watch", [a], [b], domain="own") for a, b in itertools.pairwise(names)])
    )
    assert torch.equal(logits(graph, X), -X)
    assert alive == [0] + [1] * 8


def test_functions_are_written_out() -> None:
    twice = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        node("Twice", ["x"], ["t"], domain="own"),
        node("Twice", ["t"], ["y"], domain="own"),
    ]
    assert torch.equal(logits(Graph(graph_of(nodes, functions=[twice])), X), 4 * X)


def test_initialisers_that_are_inputs_too_need_not_be_given() -> None:
    model = graph_of([node("Mul", ["x", "w"], ["y"])], {"w": np.full(3, 2, np.float32)})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    graph = Graph(model)
    assert graph.inputs == ["x"]
    assert torch.equal(logits(graph, X), 2 * X)


def test_everything_unsupported_is_named() -> None:
    body = helper.make_graph([node("Identity", ["x"], ["z"])], "body", [], [])
    nodes = [
        node("Loop", ["", "c"], ["a"], body=body),
        node("If", ["c"], ["b"], then_branch=body, else_branch=body),
        node("Strange", ["a"], ["d"], domain="own"),
        node("Relu", ["x"], ["e"], slope=0.5),
        node("Cast", ["x"], ["f"], to=TensorProto.STRING),
        node("Relu", ["x"], ["y"]),
    ]
    model = graph_of(nodes, {"c": np.array(True)})
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"text"]))
    with pytest.raises(UnsupportedOperators) as caught:
        Graph(model)
    assert caught.value.names == (
        "Cast to STRING",
        "If",
        "Loop",
        "Relu with slope",
        "own.Strange",
        "tensors of type STRING",
    )


def test_a_node_that_fails_is_named() -> None:
    graph = Graph(graph_of([node("MatMul", ["x", "x"], ["y"], name="product")]))
    with pytest.raises(OperatorError, match=r"MatMul .node 'product'.: RuntimeError") as caught:
        logits(graph, X)
    assert (caught.value.node, caught.value.operator) == ("product", "MatMul")


def calls(name: str, inner: str, count: int) -> onnx.FunctionProto:
    values = ["a", *(f"v{place}" for place in range(count - 1)), "b"]
    nodes = [
        node(inner, [before], [after], domain="own") for before, after in itertools.pairwise(values)
    ]
    return helper.make_function("own", name, ["a"], ["b"], nodes, [helper.make_opsetid("own", 1)])


def external() -> onnx.ModelProto:
    model = graph_of([node("Mul", ["x", "w"], ["y"])], {"w": np.ones(3, np.float32)})
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="/etc/passwd")
    return model


def damaged() -> onnx.ModelProto:
    model = graph_of([node("Mul", ["x", "w"], ["y"])], {"w": np.ones(3, np.float32)})
    model.graph.initializer[0].dims[0] = 2**40
    return model


SQUARE = {"s": np.array([2**20, 2**20])}
HOSTILE: dict[str, Callable[[], onnx.ModelProto]] = {
    "bomb": lambda: graph_of(
        [node("ConstantOfShape", ["s"], ["a"]), node("Add", ["a", "x"], ["y"])], SQUARE
    ),
    "cycle": lambda: graph_of([node("Add", ["x", "b"], ["y"]), node("Neg", ["y"], ["b"])]),
    "from nothing": lambda: graph_of([node("Neg", ["nothing"], ["y"])]),
    "written twice": lambda: graph_of([node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])]),
    "stored twice": lambda: graph_of(
        [node("Constant", [], ["s"], value_float=1.0), node("Neg", ["x"], ["y"])], SQUARE
    ),
    "recursion": lambda: graph_of(
        [node("F", ["x"], ["y"], domain="own")], functions=[calls("F", "F", 2)]
    ),
    "laughs": lambda: graph_of(
        [node("F19", ["x"], ["y"], domain="own")],
        functions=[calls(f"F{place + 1}", f"F{place}", 10) for place in range(19)],
    ),
    "external data": external,
    "damaged": damaged,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_graphs_are_refused(kind: str) -> None:
    with pytest.raises(HostileGraph):
        Graph(HOSTILE[kind]())


def test_a_bomb_of_the_input_is_refused_when_it_runs() -> None:
    nodes = [
        node("ArgMax", ["x"], ["a"], axis=1, keepdims=0),
        node("Mul", ["a", "s"], ["b"]),
        node("Expand", ["one", "b"], ["y"]),
    ]
    graph = Graph(graph_of(nodes, SQUARE | {"one": np.ones((1, 1), np.float32)}))
    with pytest.raises(HostileGraph, match="Expand"):
        logits(graph, X)


TORCHVISION = (
    *("resnet18", "mobilenet_v3_large", "vit_b_16", "convnext_tiny", "efficientnet_b0"),
    *("regnet_y_400mf", "swin_t", "densenet121", "shufflenet_v2_x0_5"),
)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(
    name: str, dynamo: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    size = {"image_size": 64} if name == "vit_b_16" else {}
    built = torchvision.models.get_model(name, num_classes=10, **size)
    for parameter in built.parameters():
        if parameter.ndim > 1 and not parameter.abs().sum() > 0:
            nn.init.normal_(parameter, std=0.02)  # heads that begin at zero pass no gradient
    net = settled(built, torch.rand(16, 3, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    model = export(net, tmp_path / "m.onnx", dynamo=dynamo, images=images)
    expected = answer(tmp_path / "m.onnx", images)
    difference = agrees(model, net, images, expected, tolerance=2e-2)
    record_property("difference", difference)
    print(f"{name} {'dynamo' if dynamo else 'legacy'}: {difference:.1e}")
