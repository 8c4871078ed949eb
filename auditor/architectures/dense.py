"""DenseNet-BC for small images (arXiv 1608.06993), built from the shapes of its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.architectures.architecture import Choice, State
from auditor.architectures.shapes import Misfit, Shapes

CHOICES: dict[str, tuple[str, ...]] = {}


def stages_of(shapes: Shapes) -> list[str]:
    """Names of the dense stages, `dense1` and so on.

    Raises:
        Misfit: There are none.
    """
    names = [top for top in shapes.children() if top.startswith("dense") and shapes.numbered(top)]
    if not names or not shapes.is_conv("conv1") or not shapes.is_norm("bn"):
        raise Misfit("no dense stages between a convolution and a BatchNorm")
    return names


def options(shapes: Shapes, state: State) -> list[Choice]:
    """There is nothing to choose."""
    del state
    stages_of(shapes)
    return [{}]


def title(shapes: Shapes) -> str:
    """What it is, for people."""
    names = stages_of(shapes)
    layers = sum(len(shapes.numbered(name)) for name in names)
    growth = (shapes.size(f"{names[0]}.0.conv2.weight") or (0,))[0]
    return f"DenseNet-{2 * layers + len(names) + 1}, growth {growth}"


def build(shapes: Shapes, choice: Choice) -> nn.Module:
    """The network that these weights belong to.

    Raises:
        Misfit: It is no DenseNet.
    """
    del choice
    return DenseNetwork(shapes)


class DenseNetwork(nn.Module):
    """Dense stages with transitions that halve the image between them."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._stages = stages_of(shapes)
        self.conv1 = shapes.first_conv("conv1")
        channels = self.conv1.out_channels
        for place, name in enumerate(self._stages, start=1):
            layers = []
            for number in shapes.numbered(name):
                layer = _DenseLayer(shapes, f"{name}.{number}", channels)
                layers.append(layer)
                channels += layer.conv2.out_channels
            self.add_module(name, nn.Sequential(*layers))
            if place < len(self._stages):
                transition = _Transition(shapes, f"trans{place}", channels)
                self.add_module(f"trans{place}", transition)
                channels = transition.conv.out_channels
        self.bn = shapes.norm("bn", channels)
        self._head = shapes.head_name()
        self._side = shapes.pooled_side(self._head, channels)
        self.add_module(self._head, shapes.head(self._head))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        out: Tensor = self.conv1(images)
        for place, name in enumerate(self._stages, start=1):
            out = self.get_submodule(name)(out)
            if place < len(self._stages):
                out = self.get_submodule(f"trans{place}")(out)
        pooled = F.adaptive_avg_pool2d(F.relu(self.bn(out)), self._side)
        logits: Tensor = self.get_submodule(self._head)(pooled.flatten(1))
        return logits


class _DenseLayer(nn.Module):
    def __init__(self, shapes: Shapes, name: str, incoming: int) -> None:
        super().__init__()
        self.bn1 = shapes.norm(f"{name}.bn1", incoming)
        self.conv1 = shapes.conv(f"{name}.conv1", incoming)
        self.bn2 = shapes.norm(f"{name}.bn2", self.conv1.out_channels)
        self.conv2 = shapes.conv(f"{name}.conv2", self.conv1.out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """New channels first, as the original stacks them."""
        out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(inputs))))))
        return torch.cat([out, inputs], 1)


class _Transition(nn.Module):
    def __init__(self, shapes: Shapes, name: str, incoming: int) -> None:
        super().__init__()
        self.bn = shapes.norm(f"{name}.bn", incoming)
        self.conv = shapes.conv(f"{name}.conv", incoming)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(inputs))), 2)
