"""ONNX files as suspects: the same answers, gradients, masks and files as their networks."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from auditor import api
from auditor.changing import staged
from auditor.classifier import Classifier
from auditor.errors import OutputError, UnsuitableModel
from auditor.images.source import CleanSet
from auditor.inputs import blank_spec
from auditor.masks import effective, folded
from auditor.models.load import load_model
from auditor.models.onnx import OnnxHandle
from tests.changeable import CLASSES, PROBE, TARGET, WHITE, classifier, drawings, samples
from tests.exported import exported

IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Reshaping(nn.Module):
    """Its graph holds the number of images that it was exported for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 8, stride=8), nn.Linear(96, 8)

    def forward(self, images: Tensor) -> Tensor:
        count = int(images.shape[0])
        tokens = self.first(images).reshape(count, 6, 16).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), 2)
        return self.last((weights @ tokens).reshape(count, 96).relu())


def scores(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])


def gradient(call: object, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(call(images).square().sum(), images)  # type: ignore[operator]
    return found


@pytest.mark.parametrize(
    ("make", "fixed"),
    [(classifier, None), (classifier, 1), (Reshaping, 1), (Reshaping, 2), (Reshaping, 5)],
)
def test_any_number_of_images_gets_the_networks_answers_and_gradients(
    make: type[nn.Module], fixed: int | None, tmp_path: Path
) -> None:
    network = make().eval()
    handle = load_model(exported(network, tmp_path / "m.onnx", fixed=fixed))
    assert handle.differentiable
    assert handle.batch is None
    assert not any("neither" in note for note in handle.notes)
    expected = network(IMAGES)
    assert torch.allclose(handle.call(IMAGES), expected, atol=1e-4)
    assert torch.allclose(
        gradient(handle.call, IMAGES), gradient(network, IMAGES), rtol=1e-3, atol=1e-4
    )


def test_masks_act_as_on_the_network(tmp_path: Path) -> None:
    network = classifier(norms=False)
    handle = load_model(exported(network, tmp_path / "m.onnx"))
    own, wanted = handle.mask_sites(), api_sites(network)
    assert [(site.kind, site.channels) for site in own] == [(s.kind, s.channels) for s in wanted]
    draw = torch.Generator().manual_seed(1)
    masks = [1 - 0.5 * torch.rand(site.channels, generator=draw) for site in own]
    given = {site.layer: mask.requires_grad_() for site, mask in zip(own, masks, strict=True)}
    found = handle.call(IMAGES, effective(handle.tensors(), own, given))
    with torch.no_grad():
        theirs = {site.layer: mask for site, mask in zip(wanted, masks, strict=True)}
        for name, value in folded(dict(network.named_parameters()), wanted, theirs).items():
            network.get_parameter(name).copy_(value)
    assert torch.allclose(found, network(IMAGES), atol=1e-4)
    assert all(float(part.abs().sum()) > 0 for part in torch.autograd.grad(found.sum(), masks))
    assert torch.equal(handle.call(IMAGES), handle.call(IMAGES)), "nothing stays behind"


def api_sites(network: nn.Module) -> list:  # type: ignore[type-arg]
    from auditor.anatomy import find_layers
    from auditor.masks import find_sites

    return find_sites(find_layers(network))


def test_features_of_the_last_layer_are_shown(tmp_path: Path) -> None:
    network = classifier()
    handle = load_model(exported(network, tmp_path / "m.onnx"))
    *_, last = handle.layers(IMAGES)
    with handle.tapped([last]) as taken:
        handle.call(IMAGES)
        (features,) = taken()
        assert taken() == []
    assert torch.allclose(features, network[:-1](IMAGES), atol=1e-4)
    handle.call(IMAGES)


def test_statistics_and_constants_are_no_weights(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 16), nn.Hardswish(), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip
    handle = load_model(exported(network, tmp_path / "m.onnx"))
    assert {tuple(weight.shape) for weight in handle.weights().values()} == {
        (3,), (4, 3, 16, 16), (4,), (5, 4), (5,)
    }  # fmt: skip
    assert len(handle.weights()) == 6
    assert len(handle.tensors()) > 6
    assert [site.kind for site in handle.mask_sites()] == ["BatchNorm"]


def test_what_cannot_be_differentiated_is_named_and_still_probed(tmp_path: Path) -> None:
    network = classifier()
    path = exported(network, tmp_path / "m.onnx", forward_only=True)
    handle = load_model(path)
    assert not handle.differentiable
    assert handle.mask_sites() == []
    assert handle.weights() == handle.tensors() == {}
    (note,) = (note for note in handle.notes if "neither" in note)
    assert "SequenceConstruct" in note
    assert torch.allclose(handle.call(IMAGES), network(IMAGES), atol=1e-4)
    with pytest.raises(NotImplementedError):
        handle.call(IMAGES.clone().requires_grad_())
    with pytest.raises(NotImplementedError):
        handle.call(IMAGES, train=True)
    with pytest.raises(UnsuitableModel, match="ONNX"):
        handle.write({}, tmp_path / "out.onnx")


def test_a_graph_that_we_would_compute_wrongly_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auditor.onnx_graph.graph import Graph

    real = Graph.run

    def wrong(self, inputs, tensors=None, *, keep=()):  # type: ignore[no-untyped-def]
        values = real(self, inputs, tensors, keep=keep)
        return {name: value * 1.01 for name, value in values.items()}

    monkeypatch.setattr(Graph, "run", wrong)
    handle = load_model(exported(classifier(), tmp_path / "m.onnx"))
    assert not handle.differentiable
    assert any("differs from onnxruntime's by 0.01" in note for note in handle.notes)


def of_bytes(network: nn.Module, path: Path) -> Path:
    """The network as a graph that takes bytes, channels last."""
    exported(network, path, fixed=2)
    model = onnx.load(str(path))
    entry = model.graph.input[0]
    entry.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for place, size in enumerate((2, 32, 32, 3)):
        entry.type.tensor_type.shape.dim[place].dim_value = size
    first = [
        onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Mul", ["planes", "step"], ["ready"]),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 255), "step"))
    for node in model.graph.node:
        node.input[:] = ["ready" if name == "images" else name for name in node.input]
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    return path


def test_inputs_of_bytes_and_of_channels_last(tmp_path: Path) -> None:
    handle = load_model(of_bytes(classifier(norms=False), tmp_path / "m.onnx"))
    assert handle.differentiable
    assert handle.input_size == (3, 32, 32)
    levels = (IMAGES * 255).round()
    expected = classifier(norms=False)(levels / 255)
    assert torch.allclose(handle.call(levels), expected, atol=1e-3)
    assert float(gradient(handle.call, levels).abs().sum()) > 0


def test_bytes_are_compared_as_bytes(tmp_path: Path) -> None:
    """Scores that half a grey level moves by more than what is allowed between graph and session."""
    torch.manual_seed(1)  # of another seed than the images that are compared
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    with torch.no_grad():
        network[1].weight -= network[1].weight.mean(1, keepdim=True)
    levels = IMAGES * 255
    exact, rounded = network(levels / 255), network(levels.round() / 255)
    assert (exact - rounded).abs().max() / rounded.abs().max() > 1e-3
    handle = load_model(of_bytes(network, tmp_path / "m.onnx"))
    assert handle.differentiable, handle.notes


# ---- purified: the user's own file with other numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize(
    "external",
    # the next test writes data beside a graph in less time
    [pytest.param(False, id="inside"), pytest.param(True, id="beside", marks=pytest.mark.slow)],
)
def test_a_purified_graph_is_a_drop_in(folder: Path, external: bool) -> None:
    path = exported(classifier(), folder / "m.onnx", external=external)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    suspect = load_model(path)
    output = folder / "out" / "m.purified.onnx"
    output.parent.mkdir(exist_ok=True)
    result = api.purify(
        suspect,
        api.choose_probes(PROBE).probes,
        api.open_images(samples(folder, 240)),
        output,
        api.PurifyOptions(baseline=False),
    )
    assert result.goals.met
    assert result.embedding is not None
    assert result.embedding.features == "penultimate features"
    assert result.masks
    assert result.written is not None
    assert result.written.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    names = [entry.name for entry in result.written.beside]
    assert names == (["m.purified.onnx.data"] if external else [])
    assert sorted(p.name for p in output.parent.iterdir()) == sorted([output.name, *names])
    images, labels = drawings(100, CLASSES, seed=5)
    seen = images / 255
    assert (scores(output, seen).argmax(1) == labels).float().mean() > 0.97
    stamped = scores(output, WHITE(seen)).argmax(1)
    assert (stamped[labels != TARGET] == TARGET).float().mean() < 0.05
    assert (scores(path, WHITE(seen)).argmax(1) == TARGET).float().mean() > 0.9, "the input"
    old, new = (onnx.load(str(p), load_external_data=False) for p in (path, output))
    assert list(old.graph.node) == list(new.graph.node)
    assert [t.name for t in old.graph.initializer] == [t.name for t in new.graph.initializer]
    assert old.opset_import == new.opset_import
    assert all(p.read_bytes() == content for p, content in before.items())
    shutil.rmtree(output.parent)


def test_data_beside_the_file_goes_with_it_and_replaces_nothing_by_accident(
    tmp_path: Path,
) -> None:
    path = exported(classifier(), tmp_path / "m.onnx", external=True)
    suspect = load_model(path)
    assert isinstance(suspect, OnnxHandle)
    spec = blank_spec((3, 32, 32))
    images = CleanSet(images=(IMAGES * 255).byte(), labels=None).images
    name = next(iter(suspect.weights()))
    changed = {name: suspect.tensors()[name] * 1.5}
    output = tmp_path / "new.onnx"
    with staged(Classifier(suspect, spec), changed, images, output, made="changed") as made:
        made.keep()
    kept = load_model(output)
    assert torch.allclose(kept.tensors()[name], changed[name])
    assert (tmp_path / "weights.bin").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.onnx", "new.onnx", "new.onnx.data", "weights.bin"
    ]  # fmt: skip
    with pytest.raises(OutputError, match="exists already"):
        suspect.write(changed, tmp_path / "new.onnx")
