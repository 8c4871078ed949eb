"""Bare weights find their network: the same logits as a reference that was written apart from ours."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from auditor.architectures import resolve_architecture
from auditor.architectures.infer import Match, candidates
from auditor.architectures.of_torchvision import Hollow, create, likely, table
from auditor.architectures.shapes import Shapes
from auditor.errors import UnsafeModel, UnsuitableModel, UsageError
from auditor.models.load import load_model
from tests.field_networks import (
    VGG,
    Basic,
    Bottle,
    Dense,
    FourStages,
    Mobile,
    OptionA,
    PreBasic,
    PreBottle,
    Row,
    Wide,
    WideBiased,
)
from tests.torchvision_table import entry, names

SHARED = Path(__file__).parents[2] / "shared"
Make = Callable[[], nn.Module]


def trained(make: Make) -> nn.Module:
    """A network whose numbers are all its own, as after training."""
    torch.manual_seed(0)
    network = make()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    if isinstance(network, VisionTransformer):
        nn.init.normal_(network.heads.head.weight)  # torchvision begins with zeros
    return network.eval()


def names_of(matches: list[Match]) -> list[str]:
    return [match.architecture.name for match in matches if match.exact]


def built(network: nn.Module, name: str) -> nn.Module:
    """The network of that name, with the weights of this one."""
    state = network.state_dict()
    found = resolve_architecture(name).build(state)
    found.load_state_dict(state)
    return found.eval()


def same(first: nn.Module, second: nn.Module, *size: int) -> bool:
    images = torch.rand(3, *(size or (3, 32, 32)), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, found = first(images), second(images)
    scale = float(expected.abs().max())
    return torch.allclose(expected / scale, found / scale, atol=1e-5)


FIELD: dict[str, tuple[Make, str]] = {
    "resnet18": (partial(FourStages, Basic, [2, 2, 2, 2], 16, 10), "cifar:resnet18"),
    "resnet34": (partial(FourStages, Basic, [3, 4, 6, 3], 8, 43), "cifar:resnet34"),
    "resnet50": (partial(FourStages, Bottle, [3, 4, 6, 3], 8, 100), "cifar:resnet50"),
    "grey": (partial(FourStages, Basic, [1, 1, 1, 1], 8, 10, channels=1), "cifar:resnet10"),
    "preact18": (partial(FourStages, PreBasic, [2, 2, 2, 2], 16, 10), "cifar:preact_resnet18"),
    "preact18 wide": (partial(FourStages, PreBasic, [2, 2, 2, 2], 64, 10), "cifar:preact_resnet18"),
    "preact34": (partial(FourStages, PreBasic, [3, 4, 6, 3], 8, 43), "cifar:preact_resnet34"),
    "preact50": (partial(FourStages, PreBottle, [3, 4, 6, 3], 8, 10), "cifar:preact_resnet50"),
    "resnet20": (partial(OptionA, 3), "cifar:resnet20"),
    "resnet56": (partial(OptionA, 9), "cifar:resnet56"),
    "wrn16-1": (partial(Wide, 16, 1), "cifar:wide_resnet16"),
    "wrn28-2": (partial(Wide, 28, 2), "cifar:wide_resnet28"),
    "wrn40-2": (partial(Wide, 40, 2), "cifar:wide_resnet40"),
    "wrn16-2 biased": (
        partial(WideBiased, 2, 2), "cifar:wide_resnet16,shortcut=raw,stride=second",
    ),
    "vgg11": (partial(Row, VGG[11]), "cifar:vgg11"),
    "vgg13": (partial(Row, VGG[13], norm=False), "cifar:vgg13"),
    "vgg16": (partial(Row, VGG[16]), "cifar:vgg16"),
    "vgg16 full": (partial(Row, VGG[16], divisor=1), "cifar:vgg16"),
    "vgg19": (partial(Row, VGG[19], norm=False), "cifar:vgg19"),
    "small vgg": (
        partial(Row, [64, 64, 0, 128, 128, 0, 256, 256, 0], drop=True, head=16), "cifar:vgg",
    ),
    "small elu": (partial(Row, [64, 64, 0, 128, 128, 0], act=nn.ELU, head=64), "cifar:vgg,act=elu"),
    "densenet": (partial(Dense, [2, 3, 4, 2], 8), "cifar:densenet"),
    "densenet121": (partial(Dense, [6, 12, 24, 16], 12), "cifar:densenet"),
    "mobilenet": (Mobile, "cifar:mobilenet_v2"),
}  # fmt: skip


DEEP = {
    "preact34",
    "preact50",
    "resnet34",
    "resnet50",
    "resnet56",
    "wrn40-2",
    "vgg13",
    "vgg19",
    "densenet121",
}
"""Networks whose family has a smaller one, which is always tested."""
assert FIELD.keys() >= DEEP


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEEP else []) for n in FIELD]
)
def test_networks_of_the_field(name: str) -> None:
    make, expected = FIELD[name]
    network = trained(make)
    found = names_of(candidates(network.state_dict()))
    assert expected in found
    if "elu" not in name:  # BatchNorm numbers drawn at random tell no activation
        assert found[0] == expected or "vgg" in name
    grey = name == "grey"
    assert same(network, built(network, expected), 1 if grey else 3, 32, 32)


def small_resnet(pooling: bool, classes: int = 7) -> nn.Module:
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if not pooling:
        network.maxpool = nn.Identity()
    return network


def quarter_resnet() -> nn.Module:
    network = ResNet(BasicBlock, [2, 2, 2, 2])
    network.inplanes = 16
    network.conv1, network.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    network.maxpool = nn.Identity()
    for place, width in enumerate((16, 32, 64, 128), start=1):
        layer = network._make_layer(BasicBlock, width, 2, stride=1 if place == 1 else 2)
        setattr(network, f"layer{place}", layer)
    network.fc = nn.Linear(128, 10)
    return network


def chained_head() -> nn.Module:
    network = get_model("mobilenet_v3_small")
    network.classifier = nn.Sequential(nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 12))
    return network


def chained_fc() -> nn.Module:
    network = get_model("resnet18")
    network.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 12))
    return network


def grey_resnet() -> nn.Module:
    network = get_model("resnet18", num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


TORCHVISION: dict[str, tuple[Make, str, tuple[int, ...]]] = {
    "resnet18": (partial(get_model, "resnet18", num_classes=43), "resnet18", (3, 64, 64)),
    "densenet121": (partial(get_model, "densenet121", num_classes=10), "densenet121", (3, 64, 64)),
    "mobilenet": (partial(get_model, "mobilenet_v3_large", num_classes=10), "mobilenet_v3_large", (3, 64, 64)),
    "efficientnet": (partial(get_model, "efficientnet_b1", num_classes=10), "efficientnet_b1", (3, 64, 64)),
    "convnext": (partial(get_model, "convnext_tiny", num_classes=10), "convnext_tiny", (3, 64, 64)),
    "squeezenet": (partial(get_model, "squeezenet1_1", num_classes=10), "squeezenet1_1", (3, 64, 64)),
    "regnet": (partial(get_model, "regnet_y_400mf", num_classes=10), "regnet_y_400mf", (3, 64, 64)),
    "shufflenet": (partial(get_model, "shufflenet_v2_x1_0", num_classes=4), "shufflenet_v2_x1_0", (3, 64, 64)),
    "googlenet": (partial(get_model, "googlenet", num_classes=4, aux_logits=False, init_weights=False), "googlenet", (3, 64, 64)),
    "swin": (partial(get_model, "swin_t", num_classes=4), "swin_t", (3, 64, 64)),
    "vit of 64": (partial(get_model, "vit_b_16", num_classes=4, image_size=64), "vit_b_16", (3, 64, 64)),
    "small stem": (partial(small_resnet, False), "resnet18", (3, 32, 32)),
    "small stem, pooled": (partial(small_resnet, True), "resnet18,stem=maxpool", (3, 32, 32)),
    "quarter": (quarter_resnet, "cifar:resnet18", (3, 32, 32)),
    "grey": (grey_resnet, "resnet18", (1, 64, 64)),
    "chained head": (chained_head, "mobilenet_v3_small", (3, 64, 64)),
    "chained fc": (chained_fc, "resnet18", (3, 64, 64)),
    "small vit": (
        partial(VisionTransformer, 32, 4, 2, 3, 192, 384, num_classes=10), "cifar:vit", (3, 32, 32),
    ),
    "narrow heads": (
        partial(VisionTransformer, 48, 8, 2, 4, 192, 384, num_classes=10),
        "cifar:vit,head-width=48", (3, 48, 48),
    ),
}  # fmt: skip


LARGE = {"vit of 64", "convnext", "swin"}
"""Their shapes alone are told apart in `test_large_ones_are_told_from_shapes_alone`."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in TORCHVISION]
)
def test_torchvision_and_what_people_make_of_it(name: str) -> None:
    make, expected, size = TORCHVISION[name]
    network = trained(make)
    found = names_of(candidates(network.state_dict()))
    assert expected in found
    assert same(network, built(network, expected), *size)


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg11_bn", "resnet152", "inception_v3", "swin_v2_b", "regnet_y_128gf", "maxvit_t",
     "mnasnet0_5", "vit_l_32", "convnext_large", "efficientnet_v2_l", "resnext101_64x4d",
     "wide_resnet50_2", "resnext50_32x4d"],
)  # fmt: skip
def test_large_ones_are_told_from_shapes_alone(name: str) -> None:
    with Hollow():
        state = create(name, {}).state_dict()
    assert names_of(candidates(state))[0] == name


def test_the_table_is_what_torchvision_has() -> None:
    """Those that are quick to make; `python -m tests.torchvision_table` writes all."""
    known = set(names())
    if known != set(table()):
        pytest.skip("another version of torchvision than the table's")
    for name in ("resnet18", "densenet121", "vit_b_16", "regnet_x_400mf", "squeezenet1_0"):
        assert entry(name) == table()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_network_of_torchvision_finds_itself(name: str) -> None:
    with Hollow():
        state = create(name, {}).state_dict()
    assert likely(Shapes(state))[0] == name or name in names_of(candidates(state))
    assert entry(name) == table()[name]


def statistics(network: nn.Module, side: int = 32) -> nn.Module:
    """Give BatchNorm the statistics of some inputs, as training does."""
    network.train()
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.5, generator=generator)
    with torch.no_grad():
        for _ in range(2):
            coarse = torch.rand(16, 3, side // 4, side // 4, generator=generator)
            fine = torch.rand(16, 3, side, side, generator=generator)
            network(nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear") + fine / 4)
    return network.eval()


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (nn.ReLU, "cifar:vgg"),
        (nn.ELU, "cifar:vgg,act=elu"),
        (nn.GELU, "cifar:vgg,act=gelu"),
        (partial(nn.LeakyReLU, 0.1), "cifar:vgg,act=leaky"),
    ],
)
def test_batchnorm_statistics_tell_the_activation(act: type, expected: str) -> None:
    torch.manual_seed(0)
    network = statistics(Row([256, 256, 0, 256, 256, 0], act=act, head=64))
    assert names_of(candidates(network.state_dict()))[0] == expected


@pytest.mark.parametrize("pooling", [False, True])
def test_batchnorm_statistics_tell_the_pooling_of_narrow_networks(pooling: bool) -> None:
    torch.manual_seed(0)
    network = quarter_resnet()
    if pooling:
        network.maxpool = nn.MaxPool2d(3, 2, 1)
    found = names_of(candidates(statistics(network).state_dict()))
    assert found[0] == ("cifar:resnet18,stem=maxpool" if pooling else "cifar:resnet18")


def test_hints_of_the_checkpoint_come_first() -> None:
    state = trained(partial(FourStages, PreBasic, [1, 1, 1, 1], 8, 10)).state_dict()
    assert (
        names_of(candidates(state, {"model_name": "preactresnet10"}))[0] == "cifar:preact_resnet10"
    )


def test_timm_is_used_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert name == "tiny_net"
        assert not pretrained
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    fake = types.ModuleType("timm")
    fake.create_model = create_model  # type: ignore[attr-defined]
    fake.is_model = lambda name: name == "tiny_net"  # type: ignore[attr-defined]
    fake.list_models = lambda: ["tiny_net"]  # type: ignore[attr-defined]
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "timm", fake)
    network = create_model("tiny_net", pretrained=False, num_classes=6)
    torch.save({"arch": "tiny_net", "state_dict": network.state_dict()}, tmp_path / "m.pth")
    handle = load_model(tmp_path / "m.pth")
    assert handle.alternatives == ("timm:tiny_net",)
    with pytest.raises(UsageError, match='did you mean "tiny_net"'):
        resolve_architecture("timm:tiny_nett")


def test_without_timm_its_names_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises((UsageError, ValueError)):
        resolve_architecture("timm:resnet18")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cifar:resnet18,stem=maxpol", 'did you mean "maxpool"'),
        ("cifar:resnet18,stm=maxpool", 'did you mean "stem"'),
        ("cifar:resent18", "Known: cifar:resnet18, cifar:preact_resnet18"),
        ("resnet18,stem=none", "one of plain, maxpool, stride2"),
    ],
)
def test_names_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_architecture(text)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "model_name": "preactresnet18", "num_classes": 10},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"1.{key}": value for key, value in state.items()},
    ],
    ids=["bare", "BackdoorBench", "DataParallel", "behind a Resize"],
)
def test_files_open_without_arch(
    wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    network = trained(partial(FourStages, PreBasic, [2, 2, 2, 2], 8, 10))
    torch.save(wrap(network.state_dict()), tmp_path / "m.pth")
    handle = load_model(tmp_path / "m.pth")
    assert handle.alternatives[0] == "cifar:preact_resnet18"
    assert any("PreActResNet-18, width 8, 10 classes" in note for note in handle.notes)
    assert handle.default_side == 32
    assert same(network, handle.module)  # type: ignore[arg-type]
    for name in handle.alternatives:
        again = load_model(tmp_path / "m.pth", arch=name)
        assert again.alternatives == ()
        assert again.default_side == 32


def test_networks_found_out_can_be_masked_and_written(tmp_path: Path) -> None:
    network = trained(partial(Wide, 16, 1))
    torch.save(
        {f"1.{key}": value for key, value in network.state_dict().items()}, tmp_path / "m.pth"
    )
    handle = load_model(tmp_path / "m.pth")
    assert len(handle.mask_sites()) == 13
    changed = {name: tensor * 2 for name, tensor in handle.weights().items() if "fc" in name}
    handle.write(changed, tmp_path / "n.pth")
    again = load_model(tmp_path / "n.pth", arch=handle.alternatives[0])
    with torch.no_grad():
        network.fc.weight *= 2
        network.fc.bias *= 2
    assert same(network, again.module)  # type: ignore[arg-type]


def test_what_resembles_a_network_is_told_how_it_differs(tmp_path: Path) -> None:
    state = dict(get_model("resnet18", num_classes=10).state_dict())
    state["layer1.0.attention.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UnsuitableModel) as refused:
        load_model(tmp_path / "m.pth")
    message = str(refused.value)
    assert "--arch resnet18 most (99%" in message
    assert "layer1.0.attention.weight is too much" in message
    assert "my_model.py:build" in message


def test_a_named_network_that_does_not_fit_says_why(tmp_path: Path) -> None:
    torch.save(FourStages(Basic, [1, 1, 1, 1], 8, 10).state_dict(), tmp_path / "m.pth")
    with pytest.raises(UnsuitableModel, match="they are those of resnet10"):
        load_model(tmp_path / "m.pth", arch="cifar:resnet18")
    with pytest.raises(UnsuitableModel, match="no dense stages"):
        load_model(tmp_path / "m.pth", arch="cifar:densenet")


def _many() -> dict[str, Tensor]:
    one = torch.zeros(1)
    return {f"layer{n}.weight": one for n in range(100_000)}


def _deep() -> dict[str, Tensor]:
    return {".".join("a" * 50_000): torch.zeros(2, 2)}


def _odd() -> dict[str, Tensor]:
    return {"\x1b[31mfc\u202e.weight": torch.zeros(3, 3), "..": torch.zeros(2), "": torch.zeros(1)}


def _huge() -> dict[str, Tensor]:
    one = torch.zeros(1)
    state = dict(FourStages(Basic, [1, 1, 1, 1], 8, 10).state_dict())
    state["layer4.0.conv2.weight"] = one.expand(1 << 20, 1 << 20, 3, 3)
    return state


def _huge_numbers() -> dict[str, Tensor]:
    return {
        "features.99999999999.weight": torch.zeros(3, 3, 3, 3),
        "classifier.weight": torch.zeros(3, 3),
    }


def _no_classes() -> dict[str, Tensor]:
    state = dict(FourStages(Basic, [1, 1, 1, 1], 8, 10).state_dict())
    state["linear.weight"] = torch.zeros(0, 64)
    state["linear.bias"] = torch.zeros(0)
    return state


def _shapeless() -> dict[str, Tensor]:
    return {key: torch.tensor(1.0) for key in FourStages(Basic, [1, 1, 1, 1], 8, 10).state_dict()}


def _swapped() -> dict[str, Tensor]:
    state = FourStages(PreBasic, [1, 1, 1, 1], 8, 10).state_dict()
    return {key: value.transpose(0, -1) for key, value in state.items()}


@pytest.mark.parametrize(
    "make", [_many, _deep, _odd, _huge, _huge_numbers, _no_classes, _shapeless, _swapped]
)
def test_hostile_weights_are_refused_at_once(make: Callable[[], dict[str, Tensor]]) -> None:
    state = make()
    torchvision.models.list_models()
    candidates({"a": torch.zeros(1)})
    begin = time.process_time()
    assert not any(match.exact for match in candidates(state))
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("make", [_odd, _huge, _no_classes])
def test_hostile_files_are_refused_with_a_message(
    make: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save(make(), tmp_path / "m.pth")
    with pytest.raises((UnsuitableModel, UnsafeModel)) as refused:
        load_model(tmp_path / "m.pth")
    assert "\x1b" not in str(refused.value)
    assert "\u202e" not in str(refused.value)


@pytest.mark.parametrize("name", ["cifar10_vgg_badnets.pth", "cifar10_vgg_l2inv.pth"])
def test_published_suspects_need_no_arch(name: str) -> None:
    if not (SHARED / "suspects" / name).exists():
        pytest.skip("needs the published suspects in ../shared")
    path = SHARED / "suspects" / name
    begin = time.process_time()
    handle = load_model(path)
    assert time.process_time() - begin < 5
    assert handle.alternatives == ("cifar:vgg,act=elu",)
    reference = load_model(path, arch=f"{SHARED / 'suspects' / 'small_vgg.py'}:build")
    assert same(reference.module, handle.module)  # type: ignore[arg-type]
