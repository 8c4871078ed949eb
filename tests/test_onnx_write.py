"""Masks find their tensors in an ONNX graph, and changed numbers go into a copy of its file."""

from __future__ import annotations

import os
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from auditor.anatomy import find_layers
from auditor.errors import OutputError
from auditor.masks import MaskSite, find_sites, folded
from auditor.onnx_graph import wire, write
from auditor.onnx_graph.anatomy import find_layers as onnx_layers
from auditor.onnx_graph.numbers import TYPES
from auditor.onnx_graph.unshare import unshared
from auditor.onnx_graph.write import side_files, write_changed
from auditor.safety.structure import identify

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Networks, and the files that others make of them


class Plain(nn.Module):
    """Every layer with weights, and no normalisation; defined in the order of computation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.tokens = nn.Linear(6, 7)
        self.hidden = nn.Linear(7, 9)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.up(self.conv(x).relu()).relu()).relu()
        x = self.tokens(x.flatten(2).transpose(1, 2)).relu().mean(1)
        return self.head(self.hidden(x).relu())


class Normed(nn.Module):
    """Normalisations that no exporter folds away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.batch = nn.BatchNorm2d(8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.batch(self.conv(x).relu()).relu())
        return self.head(self.layer(x.relu().flatten(2).transpose(1, 2)).mean(1))


class Twins(nn.Module):
    """Two layers with equal biases, which the legacy exporter stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def noisy(make: Callable[[], nn.Module]) -> nn.Module:
    """Always the same network. Fresh ones hide mistakes: scales of one, biases and means of zero."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 + 0.2 * torch.rand_like(tensor))
    return net.eval()


def export(net: nn.Module, path: Path, opset: int, images: Tensor = IMAGES, **options: Any) -> Path:
    options = {"dynamo": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (images,), path, opset_version=opset, verbose=False, **options)
    return path


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Plain`, by the exporter that stores external data; once, because it takes seconds."""
    path = tmp_path_factory.mktemp("dynamo") / "m.onnx"
    return export(noisy(Plain), path, 20, dynamo=True, external_data=True)


# Doing it


def run(path: Path, images: np.ndarray | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return session.run(None, {entry.name: IMAGES.numpy() if images is None else images})[0]


def tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    """All floating tensors of a graph with its data."""
    found = {entry.name: entry for entry in model.graph.initializer}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    found |= {n.output[0]: n.attribute[0].t for n in constants if n.attribute[0].name == "value"}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}
    floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in floats.items()}


def some_masks(sites: list[MaskSite]) -> dict[str, Tensor]:
    """In [0.6, 1], and every fiftieth a zero."""
    generator = torch.Generator().manual_seed(2)
    drawn = {}
    for place, site in enumerate(sites):
        mask = 1 - 0.4 * torch.rand(site.channels, generator=generator)
        mask[torch.rand(site.channels, generator=generator) < 0.02] = 0
        if place == 0:
            mask[1] = 0
        drawn[site.layer] = mask
    return drawn


def write_masked(path: Path, out: Path) -> list[MaskSite]:
    """Fold `some_masks` into a copy of an ONNX file."""
    before = {entry: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    working, copies = unshared(onnx.load(path))
    sites = find_sites(onnx_layers(working))
    assert sites
    changed = folded(tensors(working), sites, some_masks(sites))
    write_changed(identify(path), out, changed, copies)
    assert all(entry.read_bytes() == data for entry, data in before.items())
    return sites


def masked_output(net: nn.Module, *, biased: bool = False) -> np.ndarray:
    """The network's own output with the same masks, by the means of `auditor.masks`."""
    sites = find_sites(find_layers(net))
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    changed = folded(own, sites, some_masks(sites))
    if biased:  # folded into the convolution before it, a BatchNorm is masked as a whole
        biases = [
            MaskSite(
                **{**vars(site), "tensors": ((site.tensors[0][0].replace("weight", "bias"), 0),)}
            )
            for site in sites
        ]
        changed |= folded(own, biases, some_masks(sites))
    with torch.inference_mode():
        return torch.func.functional_call(net, changed, (IMAGES.float(),)).numpy()


def skeleton(path: Path) -> dict[str, Any]:
    """Everything of a model but its numbers."""
    model = onnx.load(path, load_external_data=False)
    return {
        "nodes": [
            node.SerializeToString() for node in model.graph.node if node.op_type != "Constant"
        ],
        "names": [(t.name, list(t.dims), t.data_type) for t in model.graph.initializer],
        "opsets": [(entry.domain, entry.version) for entry in model.opset_import],
        "metadata": [(entry.key, entry.value) for entry in model.metadata_props],
        "ends": [e.SerializeToString() for e in (*model.graph.input, *model.graph.output)],
        "producer": (model.producer_name, model.producer_version, model.ir_version),
    }


def differing(path: Path, out: Path) -> set[int]:
    old, new = path.read_bytes(), out.read_bytes()
    assert len(old) == len(new)
    return {place for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}


def raw_ranges(path: Path, names: set[str]) -> set[int]:
    """The bytes of some tensors in a model file, found by searching for them."""
    data, places = path.read_bytes(), set()
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in names:
            assert data.count(tensor.raw_data) == 1
            begin = data.index(tensor.raw_data)
            places |= set(range(begin, begin + len(tensor.raw_data)))
    return places


# What comes out computes what the masked network computes


@pytest.mark.parametrize(
    ("make", "opset"),
    [(Plain, 11), (Plain, 17), (Normed, 17), (Twins, 11), (Twins, 17)],
    ids=lambda entry: getattr(entry, "__name__", entry),
)
def test_written_files_compute_what_the_masked_network_does(
    tmp_path: Path, make: Callable[[], nn.Module], opset: int
) -> None:
    net = noisy(make)
    path, out = export(net, tmp_path / "m.onnx", opset), tmp_path / "out.onnx"
    sites = write_masked(path, out)
    reference = find_sites(find_layers(net))
    assert [(s.kind, s.channels) for s in sites] == [(s.kind, s.channels) for s in reference]
    expected = masked_output(net)
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(run(path) - expected).max() > 1e-2 * np.abs(expected).max()

    assert skeleton(out) == skeleton(path)
    names = {name for site in sites for name, _ in site.tensors}
    assert differing(path, out) <= raw_ranges(path, names)
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.onnx", "out.onnx"}


def test_folded_batch_norms_are_masked_as_a_whole(tmp_path: Path) -> None:
    net = noisy(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5),
        )
    )  # fmt: skip
    path, out = export(net, tmp_path / "m.onnx", 17), tmp_path / "out.onnx"
    sites = write_masked(path, out)
    assert [site.kind for site in sites] == ["Conv", "Conv"]
    expected = masked_output(net, biased=True)
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()


def test_half_precision(tmp_path: Path) -> None:
    net = noisy(Plain)
    path = export(net.half(), tmp_path / "m.onnx", 17, IMAGES.half())
    out = tmp_path / "out.onnx"
    sites = write_masked(path, out)
    expected = masked_output(net.float())
    assert np.abs(run(out, IMAGES.half().numpy()) - expected).max() < 5e-3 * np.abs(expected).max()
    assert {tensor.data_type for tensor in onnx.load(out).graph.initializer} >= {
        TensorProto.FLOAT16
    }
    names = {name for site in sites for name, _ in site.tensors}
    assert differing(path, out) <= raw_ranges(path, names)


KINDS = ["Conv", "ConvTranspose", "Conv", "Linear", "Linear"]
"""Of the masks of `Plain`."""


@pytest.mark.parametrize("opset", [13, 17])
def test_int8_weights_keep_their_integers(tmp_path: Path, opset: int) -> None:
    path = quantised(tmp_path, "QDQ", opset)
    out = tmp_path / "out.onnx"
    sites = write_masked(path, out)
    model = onnx.load(path)
    assert [site.kind for site in sites] == KINDS
    before, after = ({t.name: t for t in onnx.load(p).graph.initializer} for p in (path, out))
    integers = {name for name, tensor in before.items() if tensor.data_type != TensorProto.FLOAT}
    assert all(before[name].raw_data == after[name].raw_data for name in integers)
    assert skeleton(out) == skeleton(path)

    # the same masks as Mul nodes behind the layers, before anything is rounded
    masks = some_masks(sites)
    nodes = {node.name: node for node in model.graph.node}
    for site in sites:
        node, mask = nodes[site.layer], masks[site.layer].numpy()
        shape = (-1, 1, 1) if "Conv" in site.kind else (-1,)
        insert_mul(model, node.output[0], mask.reshape(shape))
    onnx.save(model, tmp_path / "reference.onnx")
    expected, found = run(tmp_path / "reference.onnx"), run(out)
    step = np.abs(np.diff(np.unique(expected))).min()
    assert np.abs(found - expected).max() <= 1.01 * step  # one step of the output's quantiser
    assert np.abs(run(path) - expected).max() > 2 * step


def test_operators_on_integers_do_what_dequantised_weights_do(tmp_path: Path) -> None:
    outputs = []
    for form in ("QDQ", "QOperator"):
        (tmp_path / form).mkdir()
        path, out = quantised(tmp_path / form, form, 17), tmp_path / form / "out.onnx"
        assert [site.kind for site in write_masked(path, out)] == KINDS
        assert skeleton(out) == skeleton(path)
        outputs.append(run(out))
    assert {node.op_type for node in onnx.load(out).graph.node} > {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
    }
    step = np.abs(np.diff(np.unique(outputs[0]))).min()
    assert np.abs(outputs[0] - outputs[1]).max() <= 1.01 * step


def quantised(folder: Path, form: str, opset: int) -> Path:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": IMAGES.numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    export(noisy(Plain), folder / "floats.onnx", opset, input_names=["x"])
    path = folder / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            folder / "floats.onnx", path, Reader(), quant_format=QuantFormat[form],
            per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QInt8,
        )  # fmt: skip
    return path


def insert_mul(model: onnx.ModelProto, name: str, mask: np.ndarray) -> None:
    for node in model.graph.node:
        for place, source in enumerate(node.input):
            if source == name:
                node.input[place] = f"{name} masked"
    model.graph.initializer.append(numpy_helper.from_array(mask, f"{name} mask"))
    model.graph.node.append(helper.make_node("Mul", [name, f"{name} mask"], [f"{name} masked"]))


def test_integer_convolutions_mask_their_implied_bias_scale(tmp_path: Path) -> None:
    """In numpy: the bias of a QLinearConv counts in steps of x_scale times w_scale."""
    random = np.random.default_rng(0)
    weight = random.integers(-100, 100, (4, 3, 1, 1), np.int8)
    bias = random.integers(-500, 500, 4, np.int32)
    scales = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    arrays = {
        "x_scale": np.float32(0.01), "x_zero": np.uint8(0), "w": weight, "w_scale": scales,
        "w_zero": np.zeros(4, np.int8), "y_scale": np.float32(0.05), "y_zero": np.uint8(128), "b": bias,
    }  # fmt: skip
    nodes = [
        helper.make_node("QLinearConv", ["x", *arrays], ["y"], name="conv"),
        helper.make_node(
            "QLinearConv",
            ["y", "y_scale", "y_zero", "w2", "w_scale", "w_zero", "y_scale", "y_zero"],
            ["z"],
        ),
    ]
    arrays["w2"] = random.integers(-100, 100, (4, 4, 1, 1), np.int8)
    model = build(
        nodes,
        arrays,
        input_type=TensorProto.UINT8,
        outputs=("y", "z"),
        output_type=TensorProto.UINT8,
    )
    onnx.save(model, tmp_path / "m.onnx")
    (site,) = find_sites(onnx_layers(unshared(model)[0]))
    assert (site.layer, site.kind, site.tensors) == ("conv", "Conv", (("w_scale", 0),))
    sites = write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    mask = some_masks(sites)["conv"].numpy()
    images = (IMAGES.numpy() * 255).astype(np.uint8)
    sums = (
        np.einsum("oihw,nixy->noxy", weight.astype(int), images.astype(int)) + bias[:, None, None]
    )
    steps = (0.01 * scales * mask / 0.05)[:, None, None]
    expected = np.clip(np.round(sums * steps) + 128, 0, 255)
    found = run(tmp_path / "out.onnx", images).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found[:, mask == 0] == 128).all()


# Which tensors are masked, along which axis


def build(
    nodes: list[Any], arrays: Mapping[str, Any], *, outputs: tuple[str, ...] = ("y",),
    input_type: int = TensorProto.FLOAT, output_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    stored = [
        array
        if isinstance(array, TensorProto)
        else numpy_helper.from_array(np.asarray(array), name)
        for name, array in arrays.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", input_type, [None, 3, 8, 8])],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        stored,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def some(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    array = np.random.default_rng(sum(shape)).normal(size=shape) * (100 if dtype == np.int8 else 1)
    return array.astype(dtype)


N = helper.make_node
HEAD = N("Gemm", ["end", "head.w"], ["y"], transB=1, name="head")
"""What gives the classes comes after all of these."""
GRAPHS: dict[str, tuple[list[Any], dict[str, Any], Any]] = {
    "gemm": (
        [N("Gemm", ["x", "w", "b"], ["end"])], {"w": some(4, 6), "b": some(6)}, ("Linear", [("w", 1), ("b", 0)]),
    ),
    "gemm transposed": (
        [N("Gemm", ["x", "w", "b"], ["end"], transB=1)], {"w": some(6, 4), "b": some(1, 6)},
        ("Linear", [("w", 0), ("b", 1)]),
    ),
    "gemm with a scalar bias": (
        [N("Gemm", ["x", "w", "b"], ["end"])], {"w": some(4, 6), "b": some(1)}, None,
    ),
    "gemm with a computed bias": (
        [N("Gemm", ["x", "w", "x"], ["end"])], {"w": some(4, 6)}, None,
    ),
    "matmul and its bias": (
        [N("MatMul", ["x", "w"], ["p"]), N("Add", ["b", "p"], ["end"])], {"w": some(4, 6), "b": some(6)},
        ("Linear", [("w", 1), ("b", 0)]),
    ),
    "matmul and a residual": (
        [N("MatMul", ["x", "w"], ["p"]), N("Add", ["p", "x"], ["end"])], {"w": some(4, 6)},
        ("Linear", [("w", 1)]),
    ),
    "product read twice": (
        [N("MatMul", ["x", "w"], ["p"]), N("Add", ["b", "p"], ["q"]), N("Mul", ["p", "q"], ["end"])],
        {"w": some(4, 6), "b": some(6)}, ("Linear", [("w", 1)]),
    ),
    "attention": ([N("MatMul", ["x", "x"], ["end"])], {}, None),
    "transposed weight": (
        [N("Transpose", ["w"], ["t"], perm=[1, 0]), N("MatMul", ["x", "t"], ["end"])], {"w": some(6, 4)},
        ("Linear", [("w", 0)]),
    ),
    "weight reversed by default": (
        [N("Transpose", ["w"], ["t"]), N("Conv", ["x", "t"], ["end"])], {"w": some(3, 3, 2, 8)},
        ("Conv", [("w", 3)]),
    ),
    "permuted kernel": (
        [N("Transpose", ["w"], ["t"], perm=[3, 2, 0, 1]), N("Conv", ["x", "t"], ["end"])],
        {"w": some(3, 3, 2, 8)}, ("Conv", [("w", 3)]),
    ),
    "hostile permutation": (
        [N("Transpose", ["w"], ["t"], perm=[7, 1]), N("MatMul", ["x", "t"], ["end"])], {"w": some(6, 4)}, None,
    ),
    "behind identity and cast": (
        [N("Identity", ["w"], ["i"]), N("Cast", ["i"], ["c"], to=1), N("Conv", ["x", "c"], ["end"])],
        {"w": some(8, 3, 3, 3, dtype=np.float16)}, ("Conv", [("w", 0)]),
    ),
    "constant node": (
        [
            N("Constant", [], ["w"], value=numpy_helper.from_array(some(8, 3, 3, 3))),
            N("Conv", ["x", "w", ""], ["end"]),
        ], {}, ("Conv", [("w", 0)]),
    ),
    "sparse": ([N("Conv", ["x", "nowhere"], ["end"])], {}, None),
    "fused": (
        [N("FusedConv", ["x", "w", "b"], ["end"], domain="com.microsoft")], {"w": some(8, 3, 3, 3), "b": some(8)},
        ("Conv", [("w", 0), ("b", 0)]),
    ),
    "somebody's own Conv": (
        [N("Conv", ["x", "w"], ["end"], domain="custom")], {"w": some(8, 3, 3, 3)}, None,
    ),
    "transposed convolution": (
        [N("ConvTranspose", ["x", "w"], ["end"])], {"w": some(3, 8, 2, 2)}, ("ConvTranspose", [("w", 1)]),
    ),
    "depthwise transposed convolution": (
        [N("ConvTranspose", ["x", "w"], ["end"], group=3)], {"w": some(3, 1, 2, 2)}, ("ConvTranspose", [("w", 0)]),
    ),
    "grouped transposed convolution": (
        [N("ConvTranspose", ["x", "w"], ["end"], group=3)], {"w": some(6, 2, 2, 2)}, None,
    ),
    "int8, a scale a channel": (
        [
            N("DequantizeLinear", ["w", "s"], ["d"], axis=0), N("DequantizeLinear", ["b", "t"], ["e"], axis=0),
            N("Conv", ["x", "d", "e"], ["end"]),
        ],
        {"w": some(8, 3, 3, 3, dtype=np.int8), "s": some(8), "b": np.arange(8, dtype=np.int32), "t": some(8) + 1},
        ("Conv", [("s", 0), ("t", 0)]),
    ),
    "int8, transposed after its scale": (
        [
            N("DequantizeLinear", ["w", "s"], ["d"], axis=-2), N("Transpose", ["d"], ["t"]),
            N("MatMul", ["x", "t"], ["end"]),
        ],
        {"w": some(8, 3, dtype=np.int8), "s": some(8)}, ("Linear", [("s", 0)]),
    ),
    "int8, scales along the inputs": (
        [N("DequantizeLinear", ["w", "s"], ["d"], axis=1), N("Conv", ["x", "d"], ["end"])],
        {"w": some(3, 3, 3, 3, dtype=np.int8), "s": some(3)}, None,
    ),
    "int8, one scale": (
        [N("DequantizeLinear", ["w", "s"], ["d"]), N("Conv", ["x", "d"], ["end"])],
        {"w": some(8, 3, 3, 3, dtype=np.int8), "s": np.float32(0.1)}, None,
    ),
    "int8, a scale a channel, but one for the bias": (
        [
            N("DequantizeLinear", ["w", "s"], ["d"], axis=0), N("DequantizeLinear", ["b", "t"], ["e"]),
            N("Conv", ["x", "d", "e"], ["end"]),
        ],
        {"w": some(8, 3, 3, 3, dtype=np.int8), "s": some(8), "b": np.arange(8, dtype=np.int32), "t": np.float32(1)},
        None,
    ),
    "trained with quantisation": (
        [
            N("QuantizeLinear", ["w", "s"], ["q"], axis=0), N("DequantizeLinear", ["q", "s"], ["d"], axis=0),
            N("Conv", ["x", "d"], ["end"]),
        ],
        {"w": some(8, 3, 3, 3), "s": some(8)}, ("Conv", [("w", 0)]),
    ),
    "QGemm": (
        [
            N("QGemm", ["x", "a", "z", "w", "s", "z", "", "a", "z"], ["end"], transB=1, domain="com.microsoft"),
        ],
        {"w": some(8, 3, dtype=np.int8), "s": some(8), "a": np.float32(1), "z": np.int8(0)}, ("Linear", [("s", 0)]),
    ),
    "batch norm": (
        [N("Conv", ["x", "w"], ["c"]), N("BatchNormalization", ["c", "s", "b", "m", "v"], ["end"])],
        {"w": some(8, 3, 3, 3), "s": some(8), "b": some(8) + 1, "m": some(8) + 2, "v": some(8) ** 2},
        ("BatchNorm", [("s", 0)]),
    ),
    "layer norm over several axes": (
        [N("LayerNormalization", ["x", "s"], ["end"])], {"s": some(3, 8, 8)}, None,
    ),
    "skip layer norm": (
        [N("SkipLayerNormalization", ["x", "x", "s", "b"], ["end"], domain="com.microsoft")],
        {"s": some(8), "b": some(8) + 1}, ("LayerNorm", [("s", 0)]),
    ),
    "group norm": (
        [N("GroupNormalization", ["x", "s", "b"], ["end"], num_groups=1)], {"s": some(3), "b": some(3) + 1},
        ("GroupNorm", [("s", 0)]),
    ),
    "group norm as arithmetic": (
        [N("Reshape", ["x", "shape"], ["r"]), N("InstanceNormalization", ["r", "s", "b"], ["end"])],
        {"shape": np.array([0, 1, -1]), "s": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}, None,
    ),
    "rms norm": ([N("SimplifiedLayerNormalization", ["x", "s"], ["end"])], {"s": some(8)}, ("RMSNorm", [("s", 0)])),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_sites(name: str) -> None:
    nodes, arrays, expected = GRAPHS[name]
    model = build([*nodes, HEAD], {**arrays, "head.w": some(5, 6)})
    sites = find_sites(onnx_layers(unshared(model)[0]))
    assert [(site.kind, list(site.tensors)) for site in sites] == ([expected] if expected else [])


def chain(*, names: tuple[str, ...] = ("", "", "")) -> onnx.ModelProto:
    nodes = [
        N("Conv", ["x", "w0"], ["a"], name=names[0]),
        N("Conv", ["a", "w1"], ["b"], name=names[1]),
        N("Conv", ["b", "w2"], ["y"], name=names[2]),
    ]
    return build(nodes, {f"w{place}": some(3, 3, 1, 1) + place for place in range(3)})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("one", "two", "three"), ["one", "two"]),
        (("", "two", ""), ["w0", "two"]),
        (("same", "same", "three"), ["w0", "w1"]),
        (("w1", "", ""), ["w1", "w1'"]),
    ],
)
def test_layers_have_unique_names(names: tuple[str, ...], expected: list[str]) -> None:
    assert [site.layer for site in find_sites(onnx_layers(chain(names=names)))] == expected


def test_sites_are_in_the_order_of_computation() -> None:
    model = chain(names=("one", "two", "three"))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [site.layer for site in find_sites(onnx_layers(model))] == ["one", "two"]


def test_every_layer_that_gives_classes_is_spared() -> None:
    model = chain(names=("one", "two", "three"))
    model.graph.node[2].input[0] = "a"  # two heads behind the first layer
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    assert [site.layer for site in find_sites(onnx_layers(model))] == ["one"]


def test_the_spared_layer_may_have_no_mask_itself() -> None:
    model = chain(names=("one", "two", "three"))
    model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(some(3, 3, 1, 1, dtype=np.int8), "q")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "scale"))
    model.graph.node.insert(0, N("DequantizeLinear", ["q", "scale"], ["w2"]))
    assert [site.layer for site in find_sites(onnx_layers(model))] == ["one", "two"]


def test_nested_graphs_have_no_sites_and_keep_what_they_read() -> None:
    inner = helper.make_graph(
        [N("Conv", ["a", "w1", "bias"], ["inner"])], "then", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        N("Conv", ["x", "w0", "bias"], ["a"], name="one"),
        N("If", ["yes"], ["b"], then_branch=inner, else_branch=inner),
        N("Conv", ["b", "w2"], ["y"], name="last"),
    ]
    arrays = {f"w{place}": some(3, 3, 1, 1) for place in range(3)}
    model = build(nodes, {**arrays, "bias": some(3), "yes": np.array(True)})
    working, copies = unshared(model)
    (site,) = find_sites(onnx_layers(working))
    assert site.tensors == (("w0", 0), ("bias.of.one", 0))
    assert copies == {"bias.of.one": "bias"}


def test_cyclic_and_endless_graphs_end() -> None:
    nodes = [N("Identity", ["a"], ["b"]), N("Identity", ["b"], ["a"]), N("Conv", ["x", "a"], ["y"])]
    assert find_sites(onnx_layers(unshared(build(nodes, {}))[0])) == []
    nodes = [N("Identity", [f"{i}"], [f"{i + 1}"]) for i in range(5000)]
    model = build([*nodes, N("Conv", ["x", "5000"], ["end"]), HEAD], {"0": some(8, 3, 1, 1)})
    assert find_sites(onnx_layers(unshared(model)[0])) == []


# Shared tensors


def twins(folder: Path) -> tuple[nn.Module, Path]:
    net = noisy(Twins)
    net.second.bias.data.copy_(net.first.bias)
    path = export(net, folder / "m.onnx", 17)
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node].count("Identity") == 1
    return net, path


def test_shared_biases_get_copies_where_they_differ(tmp_path: Path) -> None:
    net, path = twins(tmp_path)
    out = tmp_path / "out.onnx"
    write_masked(path, out)
    expected = masked_output(net)
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()
    before, after = skeleton(path), skeleton(out)
    (new,) = [entry for entry in after["names"] if entry not in before["names"]]
    assert new[0] == "first.bias.of./second/Conv" or new[0] == "second.bias.of./first/Conv"
    del before["nodes"], before["names"], after["nodes"], after["names"]
    assert before == after
    old, added = (onnx.load(entry).graph.node for entry in (path, out))
    assert [(n.op_type, n.name, n.output) for n in old] == [
        (n.op_type, n.name, n.output) for n in added
    ]
    moved = [
        b.input[p]
        for a, b in zip(old, added, strict=True)
        for p, i in enumerate(a.input)
        if i != b.input[p]
    ]
    assert moved == [new[0]]


def test_equal_copies_are_written_in_place(tmp_path: Path) -> None:
    _, path = twins(tmp_path)
    working, copies = unshared(onnx.load(path))
    ((copy, original),) = copies.items()
    halved = tensors(working)[original] / 2
    write_changed(
        identify(path), tmp_path / "a.onnx", {original: halved, copy: halved.clone()}, copies
    )
    assert skeleton(tmp_path / "a.onnx") == skeleton(path)
    assert 0 < len(differing(path, tmp_path / "a.onnx")) <= len(raw_ranges(path, {original}))


def test_unchanged_values_change_no_byte(tmp_path: Path) -> None:
    _, path = twins(tmp_path)
    working, copies = unshared(onnx.load(path))
    write_changed(identify(path), tmp_path / "a.onnx", tensors(working), copies)
    assert (tmp_path / "a.onnx").read_bytes() == path.read_bytes()


def test_a_layer_keeps_the_old_values_when_only_its_twin_changes(tmp_path: Path) -> None:
    net, path = twins(tmp_path)
    working, copies = unshared(onnx.load(path))
    ((copy, original),) = copies.items()
    for name, owner in ((original, 0), (copy, 1)):
        out = tmp_path / f"{owner}.onnx"
        write_changed(identify(path), out, {name: tensors(working)[name] / 2}, copies)
        twin = [net.first, net.second][owner]
        if original != "first.bias":
            twin = [net.second, net.first][owner]
        halved = {f"{'first' if twin is net.first else 'second'}.bias": twin.bias / 2}
        with torch.inference_mode():
            expected = torch.func.functional_call(net, halved, (IMAGES,)).numpy()
        assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_layer_used_twice_is_one_layer(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.first(x).relu()).relu()).mean((2, 3)))

    net = noisy(Twice)
    path, out = export(net, tmp_path / "m.onnx", 17), tmp_path / "out.onnx"
    assert unshared(onnx.load(path))[1] == {}
    assert len(write_masked(path, out)) == 2
    expected = masked_output(net)
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()
    assert skeleton(out) == skeleton(path)


def test_one_tensor_in_two_roles_is_two(tmp_path: Path) -> None:
    """An untrained BatchNorm: its scale and its variance are the same ones."""
    nodes = [
        N("BatchNormalization", ["x", "ones", "zeros", "zeros", "ones"], ["end"], name="bn"),
        N("Conv", ["end", "w"], ["y"]),
    ]
    arrays = {
        "ones": np.ones(3, np.float32),
        "zeros": np.zeros(3, np.float32),
        "w": some(5, 3, 1, 1),
    }
    model = build(nodes, arrays)
    working, copies = unshared(model)
    assert copies == {"zeros.of.bn": "zeros", "ones.of.bn": "ones"}
    assert list(working.graph.node[0].input) == ["x", "ones", "zeros", "zeros.of.bn", "ones.of.bn"]
    onnx.save(model, tmp_path / "m.onnx")
    write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    assert found["ones.of.bn"].tolist() == [1, 1, 1]
    assert found["ones"].min() == 0


def test_initialisers_that_are_inputs_are_copied_as_inputs(tmp_path: Path) -> None:
    _, path = twins(tmp_path)
    model = onnx.load(path)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    working, copies = unshared(model)
    assert set(copies) < {entry.name for entry in working.graph.input}
    assert len(working.graph.input) == len(working.graph.initializer) + 1


# Where the numbers are


FORMS: dict[str, Callable[[np.ndarray], TensorProto]] = {
    "raw": lambda a: numpy_helper.from_array(a, "w"),
    "float_data": lambda a: helper.make_tensor("w", TensorProto.FLOAT, a.shape, a.ravel()),
    "double_data": lambda a: helper.make_tensor("w", TensorProto.DOUBLE, a.shape, a.ravel()),
    "raw double": lambda a: numpy_helper.from_array(a.astype(np.float64), "w"),
    "raw half": lambda a: numpy_helper.from_array(a.astype(np.float16), "w"),
    "half in int32_data": lambda a: helper.make_tensor("w", TensorProto.FLOAT16, a.shape, a.ravel()),
    "bfloat16 in int32_data": lambda a: helper.make_tensor("w", TensorProto.BFLOAT16, a.shape, a.ravel()),
    "raw bfloat16": lambda a: TensorProto(
        name="w", dims=a.shape, data_type=TensorProto.BFLOAT16,
        raw_data=torch.from_numpy(a).bfloat16().view(torch.int16).numpy().tobytes(),
    ),
}  # fmt: skip
IN_PLACE = set(FORMS) - {"half in int32_data", "bfloat16 in int32_data"}


@pytest.mark.parametrize("constant", [False, True], ids=["initialiser", "constant"])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_in_every_field(tmp_path: Path, form: str, constant: bool) -> None:
    stored = FORMS[form](some(8, 3, 1, 1))
    nodes = [N("Conv", ["x", "w"], ["y"])]
    if constant:
        model = build([N("Constant", [], ["w"], value=stored), *nodes], {})
    else:
        model = build(nodes, {"w": stored})
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    values = torch.from_numpy(some(8, 3, 1, 1)) * 0.7
    write_changed(identify(path), out, {"w": values}, {})
    graph = onnx.load(out).graph
    found = graph.node[0].attribute[0].t if constant else graph.initializer[0]
    assert found.data_type == stored.data_type
    dtype = TYPES[stored.data_type]
    expected = values.to(dtype).float().numpy()
    assert (numpy_helper.to_array(found).astype(np.float32) == expected).all()
    if form in IN_PLACE:
        data = path.read_bytes()
        size = values.numel() * dtype.itemsize
        places = differing(path, out)
        assert 0 < len(places) <= size
        assert max(places) - min(places) < size
        assert len(data) == out.stat().st_size


def test_unpacked_floats(tmp_path: Path) -> None:
    """Old writers store a tag before every single number."""
    values = [1.5, 2.5, 3.5]
    floats = b"".join(b"\x25" + struct.pack("<f", value) for value in values)
    tensor = b"\x08\x03\x10\x01" + floats + b"\x42\x01w"
    parsed = TensorProto.FromString(tensor)
    assert list(parsed.float_data) == values
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    data = b"\x08\x08\x3a" + bytes([len(graph)]) + graph
    (tmp_path / "m.onnx").write_bytes(data)
    write_changed(identify(tmp_path / "m.onnx"), tmp_path / "o.onnx", {"w": torch.ones(3)}, {})
    expected = data.replace(floats, (b"\x25" + struct.pack("<f", 1.0)) * 3)
    assert (tmp_path / "o.onnx").read_bytes() == expected


def test_fields_that_nobody_knows_stay(tmp_path: Path) -> None:
    model = chain()
    model.metadata_props.add(key="note", value="keep")
    data = model.SerializeToString() + b"\xfa\x7f\x03abc"  # field 2047
    (tmp_path / "m.onnx").write_bytes(data)
    sites = write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes().endswith(b"\xfa\x7f\x03abc")
    names = {name for site in sites for name, _ in site.tensors}
    assert differing(tmp_path / "m.onnx", tmp_path / "out.onnx") <= raw_ranges(
        tmp_path / "m.onnx", names
    )


def test_models_with_nan_are_written(tmp_path: Path) -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.array([np.nan], np.float32), "nan"))
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [0, 0, 0, 0]))
    model.graph.node.append(N("Constant", [], ["c"], value_float=float("nan")))
    onnx.save(model, tmp_path / "m.onnx")
    write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size == (tmp_path / "m.onnx").stat().st_size


def test_the_wire_reader_refuses_every_truncated_model() -> None:
    """Its top level may end after any whole field, so that some prefixes are models as well."""
    data = chain().SerializeToString()
    whole = wire.number_spans(data)
    assert {name: data[begin:end] for name, ((begin, end),) in whole.items()} == {
        tensor.name: tensor.raw_data
        for tensor in onnx.ModelProto.FromString(data).graph.initializer
    }
    for length in range(len(data)):
        try:
            assert wire.number_spans(data[:length]) in ({}, whole)
        except wire.Malformed:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a", b"\x3a\x05ab", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x3b\x00", b"\x08" + b"\x80" * 11,
        b"\x00\x00", b"\x3a\x02\x2a\x05", b"\x3a\x03\x2a\x01\x4a",
    ],
)  # fmt: skip
def test_the_wire_reader_refuses_what_is_not_protobuf(data: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.number_spans(data)


# Data files


def with_external(
    folder: Path, name: str, *, location: str | None = None, one: bool = True
) -> Path:
    model = onnx.load(export(noisy(Plain), folder / "inline.onnx", 17))
    (folder / "inline.onnx").unlink()
    onnx.save(
        model, folder / name, save_as_external_data=True, all_tensors_to_one_file=one,
        location=location, size_threshold=0,
    )  # fmt: skip
    return folder / name


def test_external_data_of_the_new_exporter(dynamo: Path, tmp_path: Path) -> None:
    assert [entry.name for entry in dynamo.parent.iterdir() if entry != dynamo] == ["m.onnx.data"]
    out = tmp_path / "m.onnx"
    sites = write_masked(dynamo, out)
    expected = masked_output(noisy(Plain))
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()
    assert (
        out.with_name("m.onnx.data").stat().st_size
        == dynamo.with_name("m.onnx.data").stat().st_size
    )

    # of the same name in another folder: the same model file, but for what it holds itself
    model = onnx.load(dynamo, load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    names = {name for site in sites for name, _ in site.tensors}
    assert outside & names
    assert not outside >= names
    assert len(differing(dynamo, out)) <= 4 * sum(
        int(np.prod(t.dims)) for t in model.graph.initializer if t.name in names - outside
    )


@pytest.mark.parametrize("one", [True, False], ids=["one file", "a file a tensor"])
def test_external_data_beside_the_suspect(tmp_path: Path, one: bool) -> None:
    path = with_external(tmp_path, "m.onnx", location="weights.bin" if one else None, one=one)
    out = tmp_path / "m.purified.onnx"
    before = set(tmp_path.iterdir())
    sites = write_masked(path, out)
    expected = masked_output(noisy(Plain))
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()
    beside = side_files(identify(path), out)
    assert set(tmp_path.iterdir()) - before == {out, *beside}
    assert beside[0].name == "m.purified.onnx.data"
    assert one == (len(beside) == 1)
    assert skeleton(out) == skeleton(path)

    # moved together, as those do who write under another name first, it works elsewhere
    folder = tmp_path / "moved"
    folder.mkdir()
    for entry in (out, *beside):
        entry.rename(folder / entry.name)
    assert np.abs(run(folder / out.name) - expected).max() < 1e-5 * np.abs(expected).max()
    changed = {name for site in sites for name, _ in site.tensors}
    old, new = (onnx.load(entry).graph.initializer for entry in (path, folder / out.name))
    for one_, other in zip(old, new, strict=True):
        assert (one_.raw_data == other.raw_data) == (one_.name not in changed)


def test_data_files_differ_in_the_numbers_only(tmp_path: Path) -> None:
    path = with_external(tmp_path, "m.onnx", location="m.onnx.data")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "m.onnx"
    sites = write_masked(path, out)
    assert out.read_bytes() == path.read_bytes()
    names = {name for site in sites for name, _ in site.tensors}
    places = set()
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name in names:
            begin = int(entries["offset"])
            places |= set(range(begin, begin + int(entries["length"])))
    assert differing(tmp_path / "m.onnx.data", tmp_path / "out" / "m.onnx.data") <= places


def test_the_suspects_data_file_is_never_the_new_one(tmp_path: Path) -> None:
    path = with_external(tmp_path, "a.onnx", location="b.onnx.data")
    (tmp_path / "out").mkdir()
    assert side_files(identify(path), tmp_path / "b.onnx") == [tmp_path / "b.onnx.2.data"]
    write_masked(path, tmp_path / "out" / "b.onnx")
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"b.onnx", "b.onnx.2.data"}


def test_models_without_data_files_have_none_beside_them(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    assert side_files(identify(tmp_path / "m.onnx"), tmp_path / "out.onnx") == []


def test_copies_of_external_tensors_are_in_the_model_file(tmp_path: Path) -> None:
    net, inline = twins(tmp_path)
    (tmp_path / "in").mkdir()
    path, out = tmp_path / "in" / "m.onnx", tmp_path / "out.onnx"
    onnx.save(
        onnx.load(inline), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    write_masked(path, out)
    expected = masked_output(net)
    assert np.abs(run(out) - expected).max() < 1e-5 * np.abs(expected).max()


# Refusals leave nothing behind


def tampered(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer[:1]:
        entries = {entry.key: entry for entry in tensor.external_data}
        if key in entries:
            entries[key].value = value
        else:
            tensor.external_data.add(key=key.strip(), value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("location", "../secret", "no file of its own in the model's folder"),
        ("location", "/etc/passwd", "no file of its own in the model's folder"),
        ("location", "gone.bin", "no file of its own in the model's folder"),
        ("location", "link.bin", "no file of its own in the model's folder"),
        ("location", "hard.bin", "no file of its own in the model's folder"),
        ("location", "", "no file of its own in the model's folder"),
        ("location", "w\0bin", "no file of its own in the model's folder"),
        ("location", "w" * 5000, "no file of its own in the model's folder"),
        ("location", ".", "no file of its own in the model's folder"),
        ("offset", "-4", "offset or length"),
        ("offset", "1e3", "offset or length"),
        ("offset", "9" * 30, "offset or length"),
        ("offset", "9" * 15, "claims bytes"),
        ("length", "9" * 15, "claims bytes"),
        ("length", "4", "as many numbers as its shape"),
        ("offset", "4", "share bytes"),
        ("offset ", "4", "in two ways"),
    ],
)
def test_hostile_external_data(tmp_path: Path, key: str, value: str, words: str) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 10000)
    folder = tmp_path / "in"
    folder.mkdir()
    path = with_external(folder, "m.onnx", location="w.bin")
    working, copies = unshared(onnx.load(path))
    sites = find_sites(onnx_layers(working))
    changed = folded(tensors(working), sites, some_masks(sites))
    shutil.copyfile(folder / "w.bin", tmp_path / "w.bin")
    (folder / "link.bin").symlink_to(folder / "w.bin")
    (tmp_path / "elsewhere").write_bytes((folder / "w.bin").read_bytes())
    (folder / "hard.bin").hardlink_to(tmp_path / "elsewhere")
    tampered(path, key, value)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputError, match=words):
        write_changed(identify(path), out / "m.onnx", changed, copies)
    assert list(out.iterdir()) == []
    assert (tmp_path / "secret").read_bytes() == b"\0" * 10000


def test_data_files_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    path = with_external(tmp_path, "m.onnx", location="w.bin")
    (tmp_path / "out.onnx.data").write_text("thesis")
    with pytest.raises(OutputError, match="exists already"):
        write_masked(path, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_text() == "thesis"
    assert not (tmp_path / "out.onnx").exists()


def test_truncated_files(tmp_path: Path) -> None:
    path = with_external(tmp_path, "m.onnx", location="w.bin")
    facts = identify(path)
    working, copies = unshared(onnx.load(path))
    sites = find_sites(onnx_layers(working))
    changed = folded(tensors(working), sites, some_masks(sites))
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(OutputError, match="claims bytes"):
        write_changed(facts, tmp_path / "out.onnx", changed, copies)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OutputError, match="changed since it was opened"):
        write_changed(facts, tmp_path / "out.onnx", changed, copies)
    with pytest.raises(OutputError, match="cannot be read as ONNX"):
        write_changed(identify(path), tmp_path / "out.onnx", changed, copies)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"nothing": torch.ones(3)}, OutputError, "does not hold nothing"),
        ({"q": torch.ones(3)}, OutputError, "holds int8 numbers"),
        ({"w0": torch.ones(9)}, ValueError, "w0 is"),
        ({"short": torch.ones(4)}, OutputError, "as many numbers as its shape"),
    ],
)
def test_values_that_do_not_fit(
    tmp_path: Path, changed: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int8), "q"))
    model.graph.initializer.append(
        TensorProto(name="short", dims=[4], data_type=TensorProto.FLOAT, raw_data=b"1234")
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(error, match=words):
        write_changed(identify(tmp_path / "m.onnx"), tmp_path / "out.onnx", changed, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(some(3, 3, 1, 1), "w0"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OutputError, match="two tensors of one name"):
        write_changed(
            identify(tmp_path / "m.onnx"), tmp_path / "o.onnx", {"w0": torch.ones(3, 3, 1, 1)}, {}
        )
    assert not (tmp_path / "o.onnx").exists()


def test_files_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    (tmp_path / "out.onnx").write_text("thesis")
    with pytest.raises(OutputError, match="exists already"):
        write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "thesis"


def test_copies_of_another_model(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="not those of this model"):
        write_changed(identify(tmp_path / "m.onnx"), tmp_path / "o.onnx", {}, {"w0.of.y": "w0"})
    assert not (tmp_path / "o.onnx").exists()


def test_wrong_places_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the reader of the wire format wrong, the file would be serialised as a whole."""
    onnx.save(chain(), tmp_path / "m.onnx")
    right = wire.number_spans((tmp_path / "m.onnx").read_bytes())
    shifted = {name: [(b + 1, e + 1) for b, e in spans] for name, spans in right.items()}
    write_masked(tmp_path / "m.onnx", tmp_path / "right.onnx")
    monkeypatch.setattr(write, "number_spans", lambda data: shifted)
    write_masked(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(tmp_path / "right.onnx")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_external(tmp_path, "m.onnx", location="w.bin")

    def full(*paths: Path) -> None:
        paths[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_masked(path, tmp_path / "out.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


def test_a_write_that_went_wrong_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_external(tmp_path, "m.onnx", location="w.bin")
    monkeypatch.setattr(write, "_same", lambda *arguments: False)
    with pytest.raises(OutputError, match="not what should have been"):
        write_masked(path, tmp_path / "out.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "w.bin"]
