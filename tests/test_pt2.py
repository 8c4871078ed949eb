"""torch.export archives: run without torch's loader, changed in place, refused where they hold code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from auditor.anatomy import find_layers
from auditor.classifier import Classifier
from auditor.errors import OutputError, UnreadableModel, UnsafeModel, UnsuitableModel, UsageError
from auditor.inputs import blank_spec
from auditor.masks import MaskSite, effective, find_sites
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.models.pt2 import Pt2Handle
from tests.hostile import CONFIG, HOSTILE_PT2, PROGRAM, edited, graph, tampered
from tests.test_write import IMAGES, changed_members, fold_and_reload, network, noisy, some_masks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Attention(nn.Module):
    """A vision transformer of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.before = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.after = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)
        y = self.before(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        scores: Tensor = self.head(self.after(x + y)[:, 0])
        return scores


def without_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3), nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(216, 7), nn.ReLU(), nn.Linear(7, 5),
    )  # fmt: skip


class Other(nn.Module):
    """Buffers that are not saved, a constant, a shared slice, sizes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)
        self.linear = nn.Linear(192, 5)
        self.register_buffer("offset", torch.rand(3, 1, 1), persistent=False)

    def forward(self, x: Tensor, scale: float = 0.5, flip: None = None) -> Tensor:
        x = self.norm(x + self.offset) * scale
        x = torch.cat((x, x)).reshape(2 * x.shape[0], -1)[x.shape[0] :]
        scores: Tensor = self.linear(x)
        return scores + torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": network,
    "attention": lambda: noisy(Attention()),
    "no norms": lambda: noisy(without_norms()),
    "tied": lambda: network("tied"),
    "other": lambda: noisy(Other()),
}


def export(net: nn.Module, path: Path, *, batch: bool = True, decomposed: bool = False) -> Path:
    shapes = {0: torch.export.Dim("n")} if batch else None
    arguments = (IMAGES, *((0.25, None) if isinstance(net, Other) else ()))
    dynamic = (shapes, *(None for _ in arguments[1:]))
    program = torch.export.export(net, arguments, dynamic_shapes=dynamic)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """The networks as files, each exported once."""
    folder = tmp_path_factory.mktemp("pt2")

    def file(kind: str, decomposed: bool = False) -> Path:
        path = folder / f"{kind.replace(' ', '-')}-{decomposed}.pt2"
        if not path.exists():
            torch.manual_seed(0)
            export(NETWORKS[kind]().eval(), path, decomposed=decomposed)
        return path

    return file


Files = Callable[..., Path]


@pytest.fixture
def suspect(files: Files, tmp_path: Path) -> Path:
    return Path(shutil.copy(files("batch norm"), tmp_path / "m.pt2"))


def sites_with_gradients(handle: ModelHandle) -> list[MaskSite]:
    """The sites of a model, after a look at whether gradients reach all of their masks."""
    sites = handle.mask_sites()
    masks = {name: mask.requires_grad_() for name, mask in some_masks(handle).items()}
    handle.call(IMAGES, effective(handle.tensors(), sites, masks)).square().sum().backward()
    for name, mask in masks.items():
        assert mask.grad is not None, name
        assert mask.grad.abs().sum() > 0, name
    return sites


@pytest.mark.parametrize("decomposed", [False, True], ids=["", "decomposed"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip(kind: str, decomposed: bool, files: Files, tmp_path: Path) -> None:
    path = Path(shutil.copy(files(kind, decomposed), tmp_path / "m.pt2"))
    torch.manual_seed(0)
    net = NETWORKS[kind]().eval()
    arguments = (0.25, None) if isinstance(net, Other) else ()
    handle = load_model(path)
    with torch.inference_mode():
        assert torch.allclose(handle.call(IMAGES), net(IMAGES, *arguments), atol=1e-6)
        assert torch.allclose(handle.call(IMAGES[:3]), net(IMAGES[:3], *arguments), atol=1e-6)

    sites = sites_with_gradients(handle)

    out = fold_and_reload(path)
    own = torch.export.load(out).module()  # the user's own way
    with torch.inference_mode():
        assert torch.equal(own(IMAGES, *arguments), load_model(out).call(IMAGES))
    touched = {name for site in sites for name, _ in site.tensors}
    assert len(changed_members(path, out)) == len(touched)


@pytest.mark.parametrize("decomposed", [False, True], ids=["", "decomposed"])
@pytest.mark.parametrize("kind", ["batch norm", "attention", "no norms", "tied"])
def test_sites_are_those_of_the_eager_network(kind: str, decomposed: bool, files: Files) -> None:
    found = load_model(files(kind, decomposed)).mask_sites()
    assert found == find_sites(find_layers(NETWORKS[kind]()))


def test_names_kinds_and_facts(files: Files) -> None:
    handle = load_model(files("batch norm"))
    net = network()
    assert handle.tensors().keys() == net.state_dict().keys()
    assert handle.weights().keys() == dict(net.named_parameters()).keys()
    assert handle.parameters == sum(p.numel() for p in net.parameters())
    assert handle.input_size == (3, 8, 8)
    assert handle.batch is None
    assert handle.differentiable
    assert not handle.trainable_statistics
    assert handle.notes == [f"Exported by torch {torch.__version__}."]
    with pytest.raises(KeyError, match="typo"):
        handle.call(IMAGES, {"typo": torch.zeros(4)})


def test_gradients_reach_the_image_and_its_numbers_stay(files: Files) -> None:
    handle = load_model(files("no norms"))
    images = IMAGES.clone().requires_grad_()
    handle.call(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).flatten(1)[:, :5]

    before = IMAGES.clone()
    path = files("no norms").with_name("first.pt2")
    export(First(), path)
    assert torch.equal(load_model(path).call(IMAGES), before.sub(0.5).flatten(1)[:, :5])
    assert torch.equal(before, IMAGES)


def test_a_fixed_batch(tmp_path: Path) -> None:
    net = network()
    handle = load_model(export(net, tmp_path / "m.pt2", batch=False))
    assert handle.batch == 4
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    classifier = Classifier(handle, blank_spec((3, 8, 8)))
    with torch.inference_mode():
        assert torch.allclose(classifier.logits(images), net(images / 255), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-6)]
)
def test_other_precisions(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    net, path = network().to(dtype), tmp_path / "m.pt2"
    torch.export.save(torch.export.export(net, (IMAGES.to(dtype),)), path)
    handle = load_model(path)
    assert all(t.dtype == torch.float32 for t in handle.weights().values())
    found = handle.call(IMAGES)
    assert found.dtype == torch.float32
    assert torch.allclose(found, net(IMAGES.to(dtype)).float(), atol=tolerance)
    fold_and_reload(path, tolerance=tolerance)


def test_tied_weights_stay_tied(files: Files, tmp_path: Path) -> None:
    handle = load_model(files("tied"))
    changed = {"4.weight": torch.zeros(8, 8)}
    handle.write(changed, tmp_path / "out.pt2")
    state = torch.export.load(tmp_path / "out.pt2").state_dict
    assert state["2.weight"].eq(0).all()
    assert state["4.weight"].eq(0).all()
    assert "4.weight" not in load_model(tmp_path / "out.pt2").tensors()
    with torch.inference_mode():
        expected = load_model(tmp_path / "out.pt2").call(IMAGES)
        assert torch.equal(handle.call(IMAGES, changed), expected)


def test_tensors_that_share_some_numbers(tmp_path: Path) -> None:
    net = network()
    both = torch.rand(8)
    net[1].weight, net[1].bias = nn.Parameter(both[:4]), nn.Parameter(both[2:6])
    handle = load_model(export(net, tmp_path / "m.pt2"))
    assert torch.equal(handle.tensors()["1.bias"], both[2:6])
    with pytest.raises(OutputError, match="share their numbers"):
        handle.write({"1.weight": torch.zeros(4)}, tmp_path / "out.pt2")


def test_every_tensor_can_be_written(files: Files, suspect: Path) -> None:
    handle = load_model(suspect)
    changed = {name: tensor + 1 for name, tensor in handle.tensors().items()}
    out = suspect.with_name("out.pt2")
    handle.write(changed, out)
    again = load_model(out).tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in changed.items())
    handle.write({}, suspect.with_name("same.pt2"))
    assert suspect.with_name("same.pt2").read_bytes() == suspect.read_bytes()
    with pytest.raises(KeyError, match="typo"):
        handle.write({"typo": torch.zeros(4)}, suspect.with_name("out2.pt2"))
    with pytest.raises(ValueError, match=r"1\.weight"):
        handle.write({"1.weight": torch.zeros(1)}, suspect.with_name("out3.pt2"))


def test_an_interrupted_call_leaves_the_tensors(files: Files, monkeypatch: Any) -> None:
    handle = load_model(files("batch norm"))
    assert isinstance(handle, Pt2Handle)
    before = handle.call(IMAGES)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(handle.program), "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.call(IMAGES, {"1.weight": torch.zeros(4)})
    monkeypatch.undo()
    assert torch.equal(handle.call(IMAGES), before)


@pytest.mark.parametrize(
    "layers",
    [[nn.BatchNorm2d(3)], [nn.Dropout(0.5)], [nn.Identity(), nn.Dropout2d(0.5)]],
    ids=["batch norm", "dropout", "feature dropout"],
)
def test_programs_in_train_mode(layers: list[nn.Module], tmp_path: Path) -> None:
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 5)).train()
    with pytest.raises(UnsuitableModel, match=r"train mode.*model\.eval\(\)"):
        load_model(export(net, tmp_path / "m.pt2")).call(IMAGES)


class Counting(nn.Module):
    """Changes its own buffer, which no static sign tells."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.view(-1).add_(1)
        return x.flatten(1)[:, :5] + self.calls


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).flatten(1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).flatten(1)


def test_programs_that_are_no_classifiers(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with pytest.raises(UnsuitableModel, match="train mode"):
        load_model(export(Counting(), path)).call(IMAGES)
    torch.export.save(torch.export.export(Two(), (IMAGES, IMAGES)), path)
    with pytest.raises(UnsuitableModel, match="2 tensors"):
        load_model(path)
    torch.export.save(torch.export.export(nn.Linear(8, 5), (torch.rand(2, 8),)), path)
    with pytest.raises(UnsuitableModel, match="2 axes"):
        load_model(path)
    with pytest.raises(UnsuitableModel, match=r"aten\.rand_like"):
        load_model(export(Noisy(), path))


def test_arch_makes_no_sense(files: Files) -> None:
    with pytest.raises(UsageError, match="carries its own network"):
        load_model(files("batch norm"), arch="resnet18")


@pytest.mark.parametrize("way", HOSTILE_PT2)
def test_code_is_refused_and_not_run(way: str, suspect: Path, tmp_path: Path) -> None:
    make, words = HOSTILE_PT2[way]
    marker = tmp_path / "marker"
    hostile = make(suspect, marker)
    with pytest.raises(UnsafeModel, match=words):
        load_model(hostile)
    assert not marker.exists()
    # the danger is real: torch's own loader runs our harmless payload
    try:
        torch.export.load(hostile).module()(IMAGES)
    except Exception:
        assert marker.exists(), f"torch does not run it this way any more: {way}"
    assert marker.exists()


def target(name: str) -> Callable[[Any], None]:
    return lambda document: graph(document)["nodes"][0].update(target=name)


def structure(**fields: object) -> Callable[[Any], None]:
    spec = json.dumps(
        [1, {"type": "builtins.tuple", "context": "null", "children_spec": [], **fields}]
    )
    return lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec)  # fmt: skip


def expression(text: object) -> Callable[[Any], None]:
    return lambda document: graph(document).update(sym_int_values={"s": {"as_expr": {"expr_str": text}}})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (target("torch.hub.load"), r"calls torch\.hub\.load"),
        (target("torch.ops.evil.run.default"), r"calls torch\.ops\.evil"),
        (target("torch.ops.aten.from_file.default"), r"calls torch\.ops\.aten\.from_file"),
        (target("torch.ops.higher_order.cond"), r"calls torch\.ops\.higher_order"),
        (target("_operator.attrgetter"), r"calls _operator\.attrgetter"),
        (target("#ext:op"), "calls #ext:op"),
        (lambda d: graph(d)["nodes"][0]["inputs"].append({"name": "f", "arg": {"as_graph": {}}}), "higher-order"),
        (lambda d: graph(d)["nodes"][0]["inputs"].append({"name": "f", "arg": {"as_custom_obj": {}}}), "custom class"),
        (structure(context='{"__enum__": true, "fqn": "this:Zen", "name": "A"}'), "imports what"),
        (structure(context='["a\\"); evil(\\""]'), "imports what"),
        (structure(type="collections.defaultdict"), "imports what"),
        (structure(context="no json"), "imports what"),
        (lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=["x=evil()"]), "in the name"),
        (lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a"b'), "in the name"),
        (lambda d: graph(d)["tensor_values"].update({"a b": {}}), "in the name"),
        (expression("s0.__class__"), "evaluates"),
        (expression("Symbol(open('x'))"), "evaluates"),
        (expression("Integer('__import__(1)')"), "evaluates"),
        (expression("Max(s0, 'evil()')"), "evaluates"),
        (expression("(lambda: 1)()"), "evaluates"),
        (expression("[s0 for s0 in ()]"), "evaluates"),
        (expression("evil"), "evaluates"),
        (expression("f'{s0}'"), "evaluates"),
        (expression("math.__loader__"), "evaluates"),
        (expression(3), "evaluates"),
        (expression("(" * 5000), "evaluates"),
    ],
)  # fmt: skip
def test_ways_round_are_refused(change: Callable[[Any], None], words: str, suspect: Path) -> None:
    with pytest.raises(UnsafeModel, match=words):
        load_model(edited(suspect, change))


@pytest.mark.parametrize(
    "text",
    [
        "s0", "2*s0 + 1", "Symbol('s31', positive=True, integer=True)", "s0 // 4 - u0**2",
        "Mul(Integer(2), Symbol('s0', integer=True))", "Eq(Mod(s0, 8), 0)", "Max(1, FloorDiv(s0, 2))",
        "L['x'].size()[0] <= 512", "not (L['args'][0].size()[2] < 3)", "math.floor(s0 / 2) == 1",
    ],
)  # fmt: skip
def test_arithmetic_is_allowed(text: str, suspect: Path) -> None:
    path = edited(suspect, lambda document: (expression(text)(document), document["guards_code"].append(text)))  # fmt: skip
    load_model(path)


def test_the_guards_that_torch_writes_are_allowed(tmp_path: Path) -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(x[:, :, 1:], 2).flatten(1) * x.shape[0]

    sizes = {0: torch.export.Dim("n", max=64), 2: torch.export.Dim("h", min=4, max=32)}
    program = torch.export.export(Sized(), (IMAGES,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "m.pt2")
    handle = load_model(tmp_path / "m.pt2")
    assert handle.input_size == (3, None, 8)
    images = torch.rand(2, 3, 16, 8)
    assert torch.allclose(handle.call(images), Sized()(images))


def add(**members: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.update({n.replace("__", "/"): d for n, d in members.items()})


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (add(data__aotinductor__model__a=b""), UnsafeModel, "compiled code"),
        (lambda m: m.update({"extra/X.SO": b""}), UnsafeModel, "compiled code"),
        (lambda m: m.update({"data/weights/model.pt": b""}), UnsafeModel, "weights are a pickle"),
        (lambda m: m.update({"data/sample_inputs/model.pt": b"\x80\x02."}), UnsafeModel, "cannot read"),
        (lambda m: m.update({"models/other.json": b"{}"}), UnsuitableModel, "one program"),
        (lambda m: m.pop(PROGRAM), UnsuitableModel, "one program"),
        (lambda m: m.pop(CONFIG), UnreadableModel, "no '.*weights_config"),
        (lambda m: m.update({PROGRAM: b"{"}), UnreadableModel, "no JSON"),
        (lambda m: m.update({PROGRAM: b"[]"}), UnreadableModel, "no object"),
        (lambda m: m.update({PROGRAM: b"[" * 100_000}), UnreadableModel, "no JSON"),
        (lambda m: m.pop("data/weights/weight_0"), UnreadableModel, "cannot be read"),
        (lambda m: m.update({"data/weights/weight_0": b"1234"}), UnreadableModel, "more numbers than"),
        (lambda m: m.update({"byteorder": b"big"}), UnreadableModel, "byte order"),
    ],
)  # fmt: skip
def test_odd_and_damaged_archives(
    edit: Callable[[dict[str, bytes]], None], error: type[Exception], words: str, suspect: Path
) -> None:
    with pytest.raises(error, match=words):
        load_model(tampered(suspect, edit))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d.update(schema_version={"major": 9, "minor": 1}), UnsuitableModel, "another version"),
        (lambda d: d.pop("graph_module"), UnreadableModel, "cannot be read"),
        (target("torch.ops.aten.nonsense.default"), UnsuitableModel, r"aten\.nonsense"),
        (target("torch.ops.aten.conv2d.nonsense"), UnreadableModel, "cannot be read"),
        (lambda d: graph(d)["nodes"].reverse(), UnreadableModel, "out of order"),
        (lambda d: graph(d)["nodes"].pop(), UnreadableModel, "never computed"),
        (lambda d: graph(d)["nodes"].append(graph(d)["nodes"][0]), UnreadableModel, "out of order"),
        (lambda d: graph(d)["nodes"][0]["inputs"][0].update(arg={"as_complex": {}}), UnsuitableModel, "as_complex"),
        (lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name="gone"), UnreadableModel, "lacks tensors"),
        (lambda d: d["graph_module"]["signature"].update(output_specs=[{"buffer_mutation": {}}]), UnsuitableModel, "train mode"),
    ],
)  # fmt: skip
def test_odd_and_damaged_programs(
    change: Callable[[Any], None], error: type[Exception], words: str, suspect: Path
) -> None:
    with pytest.raises(error, match=words):
        load_model(edited(suspect, change))
