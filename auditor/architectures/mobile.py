"""MobileNetV2 for small images (arXiv 1801.04381), built from the shapes of its weights.

Where a block changes the number of channels and has no projection, it halves the image: the usual
code has projections exactly where the image keeps its size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from auditor.architectures.architecture import Choice, State
from auditor.architectures.shapes import Misfit, Shapes

CHOICES: dict[str, tuple[str, ...]] = {}


def blocks_of(shapes: Shapes) -> list[str]:
    """Names of the blocks, `layers.0` and so on.

    Raises:
        Misfit: There are none.
    """
    names = [f"layers.{number}" for number in shapes.numbered("layers")]
    ends = all(shapes.is_conv(f"conv{n}") and shapes.is_norm(f"bn{n}") for n in (1, 2))
    if not names or not ends or not shapes.is_conv("layers.0.conv3"):
        raise Misfit("no inverted residual blocks between two convolutions")
    return names


def options(shapes: Shapes, state: State) -> list[Choice]:
    """There is nothing to choose."""
    del state
    blocks_of(shapes)
    return [{}]


def title(shapes: Shapes) -> str:
    """What it is, for people."""
    return f"MobileNetV2 of {len(blocks_of(shapes))} blocks"


def build(shapes: Shapes, choice: Choice) -> nn.Module:
    """The network that these weights belong to.

    Raises:
        Misfit: It is no MobileNetV2.
    """
    del choice
    return MobileNetwork(shapes)


class MobileNetwork(nn.Module):
    """Inverted residual blocks between two convolutions."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        names = blocks_of(shapes)
        self.conv1 = shapes.first_conv("conv1")
        self.bn1 = shapes.norm("bn1", self.conv1.out_channels)
        blocks: list[_Inverted] = []
        channels = self.conv1.out_channels
        for name in names:
            blocks.append(_Inverted(shapes, name, channels))
            channels = blocks[-1].conv3.out_channels
        self.layers = nn.Sequential(*blocks)
        self.conv2 = shapes.conv("conv2", channels)
        self.bn2 = shapes.norm("bn2", self.conv2.out_channels)
        self._head = shapes.head_name()
        self._side = shapes.pooled_side(self._head, self.conv2.out_channels)
        self.add_module(self._head, shapes.head(self._head))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        out = self.layers(F.relu(self.bn1(self.conv1(images))))
        out = F.adaptive_avg_pool2d(F.relu(self.bn2(self.conv2(out))), self._side)
        logits: Tensor = self.get_submodule(self._head)(out.flatten(1))
        return logits


class _Inverted(nn.Module):
    def __init__(self, shapes: Shapes, name: str, incoming: int) -> None:
        super().__init__()
        outgoing = (shapes.size(f"{name}.conv3.weight") or (0,))[0]
        projects = bool(shapes.children(f"{name}.shortcut"))
        halves = outgoing != incoming and not projects
        self.conv1 = shapes.conv(f"{name}.conv1", incoming)
        inner = self.conv1.out_channels
        self.bn1 = shapes.norm(f"{name}.bn1", inner)
        self.conv2 = shapes.conv(f"{name}.conv2", inner, 2 if halves else 1)
        self.bn2 = shapes.norm(f"{name}.bn2", self.conv2.out_channels)
        self.conv3 = shapes.conv(f"{name}.conv3", self.conv2.out_channels)
        self.bn3 = shapes.norm(f"{name}.bn3", outgoing)
        self._adds = not halves
        self.shortcut = nn.Sequential()
        if projects:
            self.shortcut.append(shapes.conv(f"{name}.shortcut.0", incoming))
            self.shortcut.append(shapes.norm(f"{name}.shortcut.1", outgoing))

    def forward(self, inputs: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(inputs))))))
        out: Tensor = self.bn3(self.conv3(inner))
        return out + self.shortcut(inputs) if self._adds else out
