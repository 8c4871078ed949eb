"""Masks multiply parameters: ones change nothing, gradients reach each, folding is the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from auditor.anatomy import find_layers
from auditor.masks import MaskSite, effective, find_sites, folded, lower_bounds, ones
from auditor.models.base import ModuleHandle
from auditor.models.torchscript import TorchScriptHandle
from auditor.safety.structure import FileFacts, Kind, identify

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def batch_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 5)
    )  # fmt: skip


def layer_norms() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)
    )


def without_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2), nn.Flatten(), nn.Linear(294, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


def transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norms": batch_norms,
    "layer norms": layer_norms,
    "without norms": without_norms,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "vision transformer": transformer,
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=5),
    "convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, None, 2)], num_classes=5
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.no_grad():  # fresh networks hide mistakes: scales of one, biases and heads of zero
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def opened(network: nn.Module) -> ModuleHandle:
    file = FileFacts(path=Path("x.pt"), kind=Kind.TORCH_ZIP, bytes=1, sha256="")
    return ModuleHandle(file, network, architecture="x", device=torch.device("cpu"))


def scripted(network: nn.Module, path: Path, *, trace: bool) -> TorchScriptHandle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (
            torch.jit.trace(network, IMAGES, check_trace=False)
            if trace
            else torch.jit.script(network)
        )
        made.save(str(path))
    return TorchScriptHandle(identify(path), torch.device("cpu"))


def random_masks(sites: list[MaskSite]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {s.layer: 1 - 0.4 * torch.rand(s.channels, generator=generator) for s in sites}


def check_masks(handle: ModuleHandle | TorchScriptHandle) -> None:
    """The laws, on any handle."""
    sites, tensors = handle.mask_sites(), handle.tensors()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.inference_mode():
        plain = handle.call(IMAGES)
        masked = handle.call(IMAGES, effective(tensors, sites, ones(sites)))
    assert torch.equal(masked, plain)

    masks = {layer: mask.requires_grad_() for layer, mask in random_masks(sites).items()}
    logits = handle.call(IMAGES, effective(tensors, sites, masks))
    assert not torch.allclose(logits, plain, atol=1e-4)
    logits.square().sum().backward()
    for layer, mask in masks.items():
        assert mask.grad is not None, layer
        assert mask.grad.isfinite().all(), layer
        assert mask.grad.abs().sum() > 0, layer

    with torch.inference_mode():
        fold = handle.call(IMAGES, folded(tensors, sites, masks))
    assert torch.allclose(fold, logits, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in handle.tensors().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_on_eager_networks(name: str) -> None:
    check_masks(opened(made(name)))


@pytest.mark.parametrize("trace", [False, True], ids=["script", "trace"])
@pytest.mark.parametrize("name", ["batch norms", "without norms", "vision transformer"])
def test_masks_on_torchscript(name: str, trace: bool, tmp_path: Path) -> None:
    network = made(name)
    handle = scripted(network, tmp_path / "m.pt", trace=trace)
    check_masks(handle)
    own, eager = handle.mask_sites(), find_sites(find_layers(network))
    assert [(s.layer, s.kind, s.channels, s.tensors) for s in own] == [
        (s.layer, s.kind, s.channels, s.tensors) for s in eager
    ]


def test_attention_that_was_traced_without_gradients(tmp_path: Path) -> None:
    with torch.no_grad():
        handle = scripted(made("vision transformer"), tmp_path / "m.pt", trace=True)
    assert not handle.differentiable
    assert handle.mask_sites() == []
    assert "traced without gradients" in handle.notes[0]
    assert scripted(made("vision transformer"), tmp_path / "n.pt", trace=True).differentiable
    assert scripted(made("vision transformer"), tmp_path / "o.pt", trace=False).differentiable


def layers(network: nn.Module) -> list[tuple[str, str, int]]:
    return [(site.layer, site.kind, site.channels) for site in find_sites(find_layers(network))]


def test_every_norm_with_a_scale_has_one_site() -> None:
    network = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm3d(3), nn.SyncBatchNorm(4), nn.LayerNorm(5), nn.GroupNorm(2, 6),
        nn.InstanceNorm2d(7, affine=True), nn.RMSNorm(8), torchvision.ops.FrozenBatchNorm2d(9),
        torchvision.models.convnext.LayerNorm2d(10), nn.InstanceNorm2d(7), nn.BatchNorm2d(3, affine=False),
        nn.LayerNorm((3, 4, 5)), nn.Linear(2, 2),
    )  # fmt: skip
    kinds = ["BatchNorm", "BatchNorm", "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm",
             "RMSNorm", "BatchNorm", "LayerNorm"]  # fmt: skip
    assert layers(network) == [(str(i), kind, i + 2) for i, kind in enumerate(kinds)]
    assert find_sites(find_layers(network))[0].tensors == (("0.weight", 0),)


def test_resnet18_has_the_batch_norms_in_order() -> None:
    found = layers(torchvision.models.resnet18())
    assert len(found) == 20
    assert found[0] == ("bn1", "BatchNorm", 64)
    assert [layer for layer, _, _ in found[5:8]] == [
        "layer2.0.bn1", "layer2.0.bn2", "layer2.0.downsample.1"
    ]  # fmt: skip


def test_without_norms_output_channels_are_masked_but_not_the_classes() -> None:
    sites = find_sites(find_layers(without_norms()))
    assert [(s.layer, s.kind, s.channels, s.tensors) for s in sites] == [
        ("0", "Conv", 4, (("0.weight", 0), ("0.bias", 0))),
        ("2", "Conv", 4, (("2.weight", 0),)),
        ("4", "ConvTranspose", 6, (("4.weight", 1), ("4.bias", 0))),
        ("6", "Linear", 8, (("6.weight", 0), ("6.bias", 0))),
    ]
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1))
    assert layers(convolutional) == [("0", "Conv", 4)]
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 3)})
    assert layers(attention) == [("a.out_proj", "Linear", 4)]


def test_transposed_convolutions_with_groups() -> None:
    def sites(inputs: int, outputs: int, groups: int) -> list[MaskSite]:
        layer = nn.ConvTranspose2d(inputs, outputs, 2, groups=groups)
        return find_sites(find_layers(nn.Sequential(layer, nn.Linear(2, 2))))

    assert sites(4, 4, 4)[0].tensors == (("0.weight", 0), ("0.bias", 0))
    assert sites(4, 6, 1)[0].tensors == (("0.weight", 1), ("0.bias", 0))
    assert sites(4, 6, 2) == []


def test_what_is_shared_is_masked_once() -> None:
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    assert layers(nn.Sequential(one, one, two, nn.Linear(4, 2))) == [("0", "Linear", 4)]
    assert layers(nn.Sequential(one, nn.ReLU(), two)) == [], "tied to the classes"
    norm = nn.BatchNorm2d(3)
    assert layers(nn.Sequential(norm, norm)) == [("0", "BatchNorm", 3)]


def test_names_may_lie() -> None:
    class LayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("running_mean", torch.zeros(3))

    assert layers(nn.Sequential(LayerNorm())) == []
    assert layers(nn.Sequential(Own())) == [("0", "BatchNorm", 3)]


def test_masks_are_checked() -> None:
    network = batch_norms()
    tensors, sites = dict(network.named_parameters()), find_sites(find_layers(network))
    with pytest.raises(ValueError, match="masked twice"):
        effective(tensors, [*sites, *sites], ones(sites))
    with pytest.raises(ValueError, match="needs 4 masks"):
        effective(tensors, sites, {"1": torch.ones(3)})
    with pytest.raises(KeyError):
        effective(tensors, sites, {})
    assert not folded(tensors, sites, ones(sites))["1.weight"].requires_grad


def test_lower_bounds_are_those_of_the_paper() -> None:
    table = {1: 0.485, 2: 0.294, 3: 0.178, 4: 0.108, 5: 0.0657, 6: 0.0398, 7: 0.0242, 8: 0.0147,
             9: 0.0089, 10: 0.0054, 12: 0.0020, 14: 0.0007, 16: 0.0003, 19: 0.00006}  # fmt: skip
    bounds = lower_bounds(19)
    assert len(bounds) == 19
    for layer, bound in table.items():
        assert bounds[layer - 1] == pytest.approx(bound, abs=0.0006 if bound > 0.1 else 0.00006)
    assert lower_bounds(19, depth_aware=True) == bounds
    deep = lower_bounds(53, depth_aware=True)
    assert deep[52] == pytest.approx(bounds[18])
    assert deep[0] == pytest.approx(0.8 * math.exp(-0.5 * 19 / 53))
    assert lower_bounds(4, shape="linear") == pytest.approx([0.6, 0.4, 0.2, 0.0])
    assert lower_bounds(2, shape="cosine") == pytest.approx([0.4, 0.0])
    assert lower_bounds(3, shape="none") == [0, 0, 0]
    assert lower_bounds(0) == []


def test_overrides_know_aliases_and_refuse_unknown_names() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3072), nn.Linear(3072, 3072))
    network[2].weight = network[1].weight
    handle = opened(network)
    assert list(handle.tensors()) == ["1.weight", "1.bias", "2.bias"]
    zero = torch.zeros(3072, 3072)
    with torch.inference_mode():
        out = handle.call(IMAGES, {"2.weight": zero})
        assert torch.equal(out, network[2].bias.expand(3, -1))
        with pytest.raises(KeyError, match="weihgt"):
            handle.call(IMAGES, {"1.weihgt": zero})


def check_training(handle: ModuleHandle | TorchScriptHandle) -> None:
    own = {name: tensor.clone() for name, tensor in handle.tensors().items()}
    names = [name for name in own if "running" in name or "tracked" in name]
    statistics = {name: own[name].clone() for name in names}
    torch.manual_seed(0)
    trained = handle.call(IMAGES, statistics, train=True)
    assert not torch.allclose(trained, handle.call(IMAGES))
    assert all(not torch.equal(statistics[name], own[name]) for name in names)
    batch = statistics["1.running_mean"] / 0.1
    conv = nn.functional.conv2d(IMAGES, own["0.weight"], own["0.bias"])
    assert torch.allclose(batch, conv.mean((0, 2, 3)), atol=1e-5)
    handle.call(IMAGES, train=True)
    assert all(torch.equal(own[name], tensor) for name, tensor in handle.tensors().items())


def test_train_mode_changes_statistics_only_in_the_overrides(tmp_path: Path) -> None:
    network = made("batch norms")
    handle = opened(network)
    assert handle.trainable_statistics
    check_training(handle)
    assert not any(module.training for module in network.modules())
    assert not opened(made("layer norms")).trainable_statistics
    script = scripted(made("batch norms"), tmp_path / "s.pt", trace=False)
    assert script.trainable_statistics
    check_training(script)
    traced = scripted(made("batch norms"), tmp_path / "t.pt", trace=True)
    assert not traced.trainable_statistics
    assert torch.equal(traced.call(IMAGES, train=True), traced.call(IMAGES))


def test_train_mode_returns_the_logits_of_networks_with_auxiliary_ones() -> None:
    network = torchvision.models.googlenet(num_classes=5, init_weights=False)
    images = torch.rand(2, 3, 64, 64)
    assert opened(network).call(images, train=True).shape == (2, 5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("train", [False, True])
def test_the_network_is_itself_again_after_an_exception(error: type, train: bool) -> None:
    network = made("batch norms")
    handle = opened(network)
    own = {name: (tensor, tensor.clone()) for name, tensor in handle.tensors().items()}

    def interrupt(*_: object) -> None:
        raise error

    hook = network[4].register_forward_hook(interrupt)
    with pytest.raises(error):
        handle.call(IMAGES, {"1.weight": torch.zeros(4)}, train=train)
    hook.remove()
    assert not any(module.training for module in network.modules())
    for name, tensor in {
        **dict(network.named_parameters()),
        **dict(network.named_buffers()),
    }.items():
        assert tensor is own[name][0]
        assert torch.equal(tensor, own[name][1])


def test_a_scripted_network_is_itself_again_after_an_exception(tmp_path: Path) -> None:
    handle = scripted(made("batch norms"), tmp_path / "m.pt", trace=False)
    with torch.inference_mode():
        before = handle.call(IMAGES)
        with pytest.raises(RuntimeError):
            handle.call(torch.rand(1, 3, 8, 8), {"1.weight": torch.zeros(4)})
        assert torch.equal(handle.call(IMAGES), before)
