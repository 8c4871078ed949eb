"""Networks in a row: convolutions one after the other, then a linear head (VGG, arXiv 1409.1556).

`features.0`, `features.1`, `features.3`: numbers that are left out are layers without weights. One
is the activation, two are activation and max-pooling, three have dropout besides. How large the
images are and whether a last pooling follows is told by how many numbers the head takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auditor.architectures.architecture import Choice, State
from auditor.architectures.running import ACTIVATIONS, Pair, plausible, unexplained
from auditor.architectures.shapes import Misfit, Shapes

CHOICES = {"act": tuple(ACTIVATIONS)}
LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
USUAL_SIDES = (32, 64, 28, 96, 224, 128, 48)
DEPTHS = {8: 11, 10: 13, 13: 16, 16: 19}
"""Convolutions -> the number in the name of the VGG that has so many."""


@dataclass(frozen=True)
class Plan:
    """What each place of the row holds."""

    row: str
    head: str
    layers: tuple[str, ...]
    """conv, norm, act, pool or drop."""
    side: int
    """Of the images."""

    @property
    def depth(self) -> int | None:
        """As in VGG-16; None for others."""
        return DEPTHS.get(self.layers.count("conv"))


def planned(shapes: Shapes) -> Plan:
    """Recognise a row of convolutions and its head.

    Raises:
        Misfit: It is none.
    """
    tops = shapes.children()
    rows = [t for t in tops if any(shapes.is_conv(f"{t}.{n}") for n in shapes.numbered(t))]
    head = shapes.head_name()
    if len(rows) != 1 or set(tops) != {rows[0], head}:
        raise Misfit("no row of convolutions with a head")
    (row,) = rows
    places = shapes.numbered(row)
    if len(places) != len(shapes.children(row)):
        raise Misfit(f"{row} is no row of layers")
    layers = _layers(shapes, row, places)
    convs = [number for number in places if shapes.is_conv(f"{row}.{number}")]
    channels = shapes.size(f"{row}.{convs[-1]}.weight")[0]
    mapped = shapes.pooled_side(head, channels)
    pools = layers.count("pool")
    for side in USUAL_SIDES:
        for last in (1, 0):
            if side >> (pools + last) == mapped:
                return Plan(row, head, (*layers, *["pool"] * last), side)
    return Plan(row, head, (*layers, "pool"), mapped << (pools + 1))


def _layers(shapes: Shapes, row: str, places: list[int]) -> tuple[str, ...]:
    kinds: list[str] = []
    if places[0]:
        raise Misfit(f"{row} does not begin with a convolution")
    for place in places:
        name = f"{row}.{place}"
        kind = "conv" if shapes.is_conv(name) else "norm" if shapes.is_norm(name) else ""
        gap = place - len(kinds)
        if not kind or gap > 3:
            raise Misfit(f"{name} is neither convolution nor BatchNorm, or far from the one before")
        if kinds[-2:] == [
            "act",
            "norm",
        ]:  # convolution, activation, BatchNorm: a pooling may follow
            kinds += ["pool", "drop"][:gap]
        else:
            kinds += ["act", "pool", "drop"][:gap]
        kinds.append(kind)
    return tuple(kinds if kinds[-2:] == ["act", "norm"] else [*kinds, "act"])


def options(shapes: Shapes, state: State) -> list[Choice]:
    """The likely activations, the most likely first: told by BatchNorm statistics, if there are."""
    plan = planned(shapes)
    pairs = []
    for place, kinds in enumerate(zip(plan.layers, plan.layers[1:], plan.layers[2:], strict=False)):
        if kinds == ("norm", "act", "conv") and plan.layers[place + 3] == "norm":
            names = (f"{plan.row}.{place + step}" for step in (0, 2, 3))
            pairs.append(Pair(*names))
    scores = {name: unexplained(state, pairs, acts) for name, acts in ACTIVATIONS.items()}
    found = plausible(scores)
    if len(found) == len(ACTIVATIONS):
        found = found[:3]
    return [{} if name == "relu" else {"act": name} for name in found]


def title(shapes: Shapes) -> str:
    """What it is, for people."""
    plan = planned(shapes)
    convs = plan.layers.count("conv")
    name = f"VGG-{plan.depth}" if plan.depth else f"VGG of {convs} convolutions"
    return f"{name}{', BatchNorm' if 'norm' in plan.layers else ''}"


def side_of(shapes: Shapes) -> int:
    """Side of the images."""
    return planned(shapes).side


def build(shapes: Shapes, choice: Choice) -> nn.Module:
    """The network that these weights belong to.

    Raises:
        Misfit: It is no row of convolutions.
    """
    return PlainNetwork(shapes, planned(shapes), choice)


class PlainNetwork(nn.Module):
    """A row of layers, flattened, and a head."""

    def __init__(self, shapes: Shapes, plan: Plan, choice: Choice) -> None:
        super().__init__()
        self._row, self._head = plan.row, plan.head
        act = choice.get("act", "relu")
        row: list[nn.Module] = []
        channels = 0
        for place, kind in enumerate(plan.layers):
            name = f"{plan.row}.{place}"
            layer: nn.Module
            if kind == "conv":
                conv = shapes.conv(name, channels) if channels else shapes.first_conv(name)
                layer, channels = conv, conv.out_channels
            elif kind == "norm":
                layer = shapes.norm(name, channels)
            elif kind == "pool":
                layer = nn.MaxPool2d(2)
            elif kind == "act":
                layer = nn.LeakyReLU(0.1) if act == "leaky" else LAYERS[act]()
            else:
                layer = nn.Identity()  # dropout, whose strength nobody knows
            row.append(layer)
        self.add_module(plan.row, nn.Sequential(*row))
        self.add_module(plan.head, shapes.head(plan.head))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        maps = self.get_submodule(self._row)(images)
        logits: Tensor = self.get_submodule(self._head)(torch.flatten(maps, 1))
        return logits
