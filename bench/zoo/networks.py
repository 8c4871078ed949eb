"""Networks to train: torchvision's classes and `torch.nn` only, so that any loader reads them.

`name/2` has half of the channels. All take images of the data's own size, normalised with mean and
standard deviation 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from auditor.registry import Registry

MEAN = STD = 0.5

Make = Callable[[int, int, int, int], nn.Module]
"""``(channels, side in pixels, classes, divisor of the width) -> network``."""

NETWORKS: Registry[Make] = Registry("network")


def build(name: str, *, channels: int, side: int, classes: int, seed: int) -> nn.Module:
    """An untrained network, initialised by `seed`.

    Raises:
        UnknownName: There is no such network.
    """
    kind, _, divisor = name.partition("/")
    make = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(channels, side, classes, int(divisor or 1))


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] to what every network here takes."""
    return (images - MEAN) / STD


@NETWORKS.register("resnet18")
def _resnet18(channels: int, side: int, classes: int, divisor: int) -> nn.Module:
    """ResNet-18 with a 3x3 first layer and no pooling after it, as used on CIFAR."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    widths = [max(8, width // divisor) for width in (64, 128, 256, 512)]
    network.inplanes = widths[0]
    network.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(widths[0])
    network.maxpool = nn.Identity() if side <= 64 else network.maxpool
    for place, width in enumerate(widths, start=1):
        layer = network._make_layer(BasicBlock, width, 2, stride=1 if place == 1 else 2)
        setattr(network, f"layer{place}", layer)
    network.fc = nn.Linear(widths[-1], classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _vgg(norm: bool, channels: int, side: int, classes: int, divisor: int) -> nn.Module:
    """Two convolutions a stage, as many stages as halve the image to 4 pixels or less."""
    layers: list[nn.Module] = []
    inputs = channels
    for width in (64, 128, 256, 512, 512):
        if side <= 4:
            break
        width = max(8, width // divisor)
        for _ in range(2):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    head = max(64, 512 // divisor)
    network = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(inputs * side**2, head),
        nn.ReLU(),
        nn.Linear(head, classes),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


NETWORKS.register("vgg")(partial(_vgg, False))
NETWORKS.register("vgg-bn")(partial(_vgg, True))


@NETWORKS.register("mobilenet")
def _mobilenet(channels: int, side: int, classes: int, divisor: int) -> nn.Module:
    """MobileNetV2 whose first two reductions are left out for small images."""
    first = 1 if side <= 64 else 2
    stages = [
        [1, 16, 1, 1], [6, 24, 2, first], [6, 32, 3, 2], [6, 64, 3, 2], [6, 96, 2, 1],
        [6, 160, 2, 2],
    ]  # fmt: skip
    network = MobileNetV2(
        num_classes=classes, width_mult=1 / divisor, inverted_residual_setting=stages, dropout=0.0
    )
    stem = network.features[0]
    stem[0] = nn.Conv2d(channels, stem[0].out_channels, 3, stride=first, padding=1, bias=False)
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    return network


@NETWORKS.register("vit")
def _vit(channels: int, side: int, classes: int, divisor: int) -> nn.Module:
    """A small vision transformer: 6 layers, patches of 4 pixels (16 for large images)."""
    patch = 4 if side <= 64 else 16
    hidden = 192 // divisor
    network = VisionTransformer(
        image_size=side, patch_size=patch, num_layers=6, num_heads=max(1, hidden // 48),
        hidden_dim=hidden, mlp_dim=2 * hidden, num_classes=classes,
    )  # fmt: skip
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, hidden, patch, stride=patch)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)
    return network


@NETWORKS.register("convnext")
def _convnext(channels: int, side: int, classes: int, divisor: int) -> nn.Module:
    """A small ConvNeXt: 2, 2, 4 blocks; its stem covers 2 pixels for small images."""
    widths = [max(16, width // divisor) for width in (64, 128, 256)]
    stages = [
        CNBlockConfig(widths[0], widths[1], 2),
        CNBlockConfig(widths[1], widths[2], 2),
        CNBlockConfig(widths[2], None, 4),
    ]
    network = ConvNeXt(stages, stochastic_depth_prob=0.0, layer_scale=1.0, num_classes=classes)
    stem = network.features[0]
    size = 2 if side <= 64 else 4
    stem[0] = nn.Conv2d(channels, widths[0], size, stride=size)
    return network
