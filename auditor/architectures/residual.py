"""Residual networks of the field, built from the shapes of their weights.

He et al. 2015 (arXiv 1512.03385), pre-activation 2016 (arXiv 1603.05027), wide 2016 (arXiv
1605.07146). How many stages and blocks, widths, bottlenecks, groups, projections and the spelling of
names are read; the order within a block is told by which BatchNorm sees which number of channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from auditor.architectures.architecture import TORCHVISION_SIDE, Choice, State
from auditor.architectures.running import Pair, plausible, unexplained
from auditor.architectures.shapes import Misfit, Shapes

SHORTCUTS = ("shortcut", "downsample", "convShortcut", "skip")
STAGE = re.compile(r"(?:layer|block|stage|group)_?(\d)")
CHOICES = {
    "stem": ("plain", "maxpool", "stride2"),
    "shortcut": ("activated", "raw"),
    "stride": ("first", "second"),
}
"""What no weight tells: what follows the first convolution; where a pre-activation block's projection
begins; which convolution of a block halves the image. First what most code does."""


@dataclass(frozen=True)
class Plan:
    """How the weights are named."""

    stem: str
    """The first convolution."""
    norm: str | None
    """The BatchNorm outside of the stages: after the stem, or before the head (pre-activation)."""
    stages: tuple[tuple[str, ...], ...]
    """Blocks of each stage."""
    convs: int
    """Convolutions on a block's main path."""
    before: bool
    """Pre-activation."""
    head: str

    @property
    def blocks(self) -> int:
        """In all stages."""
        return sum(map(len, self.stages))

    @property
    def depth(self) -> int:
        """As papers count: the wide ones count projections too."""
        wide = self.before and len(self.stages) == 3
        return self.convs * self.blocks + (4 if wide else 2)

    @property
    def family(self) -> str:
        """Its name in the zoo."""
        if not self.before:
            return "resnet"
        return "wide_resnet" if len(self.stages) == 3 else "preact_resnet"


def planned(shapes: Shapes) -> Plan:
    """Recognise a residual network.

    Raises:
        Misfit: It is none.
    """
    tops = shapes.children()
    names = sorted(
        (int(match[1]), top)
        for top in tops
        if (match := STAGE.fullmatch(top)) and not shapes.is_conv(top)
    )
    stages = tuple(tuple(_blocks(shapes, top)) for _, top in names)
    stems = [top for top in tops if shapes.is_conv(top)]
    norms = [top for top in tops if shapes.is_norm(top)]
    if not stages or not all(stages) or len(stems) != 1 or len(norms) > 1:
        raise Misfit("no stages of residual blocks after one convolution")
    first = stages[0][0]
    convs = len([c for c in ("conv1", "conv2", "conv3") if shapes.is_conv(f"{first}.{c}")])
    if convs < 2 or not shapes.is_norm(f"{first}.bn1"):
        raise Misfit(f"{first} is no residual block")
    before = _is_before(shapes, stages, norms)
    if not before and not norms:
        raise Misfit("no BatchNorm after the first convolution")
    return Plan(
        stem=stems[0],
        norm=norms[0] if norms else None,
        stages=stages,
        convs=convs,
        before=before,
        head=shapes.head_name(),
    )


def _blocks(shapes: Shapes, stage: str) -> Iterator[str]:
    """Names of a stage's blocks: `layer1.0`, or `block1.layer.0` in one family of wide networks."""
    inner = f"{stage}.layer"
    owner = inner if shapes.numbered(inner) else stage
    for number in shapes.numbered(owner):
        yield f"{owner}.{number}"


def _is_before(shapes: Shapes, stages: tuple[tuple[str, ...], ...], norms: list[str]) -> bool:
    """Does the first BatchNorm of blocks see what comes in, not what the convolution makes of it?"""
    for stage in stages:
        weight = shapes.size(f"{stage[0]}.conv1.weight")
        seen = shapes.size(f"{stage[0]}.bn1.running_mean")
        if len(weight) == 4 and len(seen) == 1 and weight[0] != weight[1]:
            return seen[0] == weight[1]
    return not norms


def options(shapes: Shapes, state: State) -> list[Choice]:
    """The likely choices, the most likely first."""
    plan = planned(shapes)
    if plan.before:
        if any(f"{stage[0]}.conv1.bias" in shapes.sizes for stage in plan.stages):
            # the one widespread code with biases here projects and strides in its own way
            return [{"shortcut": "raw", "stride": "second"}, {}, {"shortcut": "raw"}]
        projects = any(_shortcut(shapes, stage[0]) for stage in plan.stages)
        return [{}, {"shortcut": "raw"}] if projects else [{}]
    if shapes.size(f"{plan.stem}.weight")[2] > 3 or plan.head != "fc" or len(plan.stages) < 4:
        return [{}]
    # torchvision's code with a smaller first convolution: everybody adapts it in another way
    first = f"{plan.stages[0][0]}"
    pairs = [Pair(plan.norm or "", f"{first}.conv1", f"{first}.bn1")]
    pooling = plausible(
        {
            "plain": unexplained(state, pairs, F.relu),
            "maxpool": unexplained(state, pairs, F.relu, pooled=True),
        }
    )
    pools: list[Choice] = [{} if name == "plain" else {"stem": name} for name in pooling]
    return [*pools, {"stem": "stride2"}] if {} in pools else pools


def title(shapes: Shapes) -> str:
    """What it is, for people."""
    plan = planned(shapes)
    kind = {"resnet": "ResNet", "preact_resnet": "PreActResNet", "wide_resnet": "WideResNet"}
    width = shapes.size(f"{plan.stem}.weight")[0]
    return f"{kind[plan.family]}-{plan.depth}, width {width}"


def side_of(shapes: Shapes) -> int:
    """Side of the images: larger first convolutions are for larger ones.

    Raises:
        Misfit: It is no residual network.
    """
    plan = planned(shapes)
    if shapes.size(f"{plan.stem}.weight")[2:] == (7, 7):
        return TORCHVISION_SIDE
    channels = shapes.size(f"{plan.stages[-1][-1]}.conv{plan.convs}.weight")[0]
    return 32 * shapes.pooled_side(plan.head, channels)


def build(shapes: Shapes, choice: Choice) -> nn.Module:
    """The network that these weights belong to.

    Raises:
        Misfit: It is no residual network.
    """
    return ResidualNetwork(shapes, planned(shapes), choice)


class ResidualNetwork(nn.Module):
    """Stem, stages of residual blocks, average pooling, a linear head."""

    def __init__(self, shapes: Shapes, plan: Plan, choice: Choice) -> None:
        super().__init__()
        self._plan = plan
        large = shapes.size(f"{plan.stem}.weight")[2:] == (7, 7)
        stem = choice.get("stem", "plain")
        self.add_module(
            plan.stem, shapes.first_conv(plan.stem, 2 if large or stem == "stride2" else 1)
        )
        channels = shapes.size(f"{plan.stem}.weight")[0]
        self._pool = nn.MaxPool2d(3, 2, 1) if large or stem == "maxpool" else nn.Identity()
        if plan.norm is not None and not plan.before:
            self.add_module(plan.norm, shapes.norm(plan.norm, channels))
        for number, stage in enumerate(plan.stages):
            owner = _made(self, stage[0].rpartition(".")[0])
            for place, name in enumerate(stage):
                stride = 2 if number and not place else 1
                block = _Block(shapes, name, channels, stride, plan, choice)
                owner.add_module(name.rpartition(".")[2], block)
                channels = block.channels
        if plan.norm is not None and plan.before:
            self.add_module(plan.norm, shapes.norm(plan.norm, channels))
        self._side = shapes.pooled_side(plan.head, channels)
        self.add_module(plan.head, shapes.head(plan.head))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        plan = self._plan
        out: Tensor = self.get_submodule(plan.stem)(images)
        norm = None if plan.norm is None else self.get_submodule(plan.norm)
        if norm is not None and not plan.before:
            out = F.relu(norm(out))
        out = self._pool(out)
        for stage in plan.stages:
            for name in stage:
                out = self.get_submodule(name)(out)
        if norm is not None and plan.before:
            out = F.relu(norm(out))
        logits: Tensor = self.get_submodule(plan.head)(
            F.adaptive_avg_pool2d(out, self._side).flatten(1)
        )
        return logits


def _made(network: nn.Module, path: str) -> nn.Module:
    """The container at `path`, made where it is missing."""
    owner = network
    for part in path.split("."):
        if part not in dict(owner.named_children()):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner


def _shortcut(shapes: Shapes, block: str) -> str:
    """Name of a block's projection; empty where it has none."""
    found = [name for name in SHORTCUTS if shapes.children(f"{block}.{name}")]
    return found[0] if found else ""


class _Block(nn.Module):
    """A residual block, either order, two or three convolutions."""

    def __init__(
        self, shapes: Shapes, name: str, incoming: int, stride: int, plan: Plan, choice: Choice
    ) -> None:
        super().__init__()
        self._incoming, self._stride, self._before = incoming, stride, plan.before
        self._raw = choice.get("shortcut") == "raw"
        # bottlenecks halve the image in the middle, as torchvision's do ("v1.5")
        halving = 1 if plan.convs == 3 or choice.get("stride") == "second" else 0
        channels = incoming
        self._layers = [(f"conv{n}", f"bn{n}") for n in range(1, plan.convs + 1)]
        for place, (conv, norm) in enumerate(self._layers):
            layer = shapes.conv(f"{name}.{conv}", channels, stride if place == halving else 1)
            seen = channels if plan.before else layer.out_channels
            # in the order of the usual code, which is the order of the keys
            pair = [(conv, layer), (norm, shapes.norm(f"{name}.{norm}", seen))]
            for key, module in reversed(pair) if plan.before else pair:
                self.add_module(key, module)
            channels = layer.out_channels
        self.channels = channels
        self._projection = _shortcut(shapes, name)
        if self._projection:
            path = f"{name}.{self._projection}"
            self.add_module(self._projection, _projection(shapes, path, incoming, channels, stride))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        parts = self._modules
        out, start = inputs, inputs
        for place, (conv, norm) in enumerate(self._layers):
            if self._before:
                out = F.relu(parts[norm](out))  # type: ignore[misc]
                if not place and not self._raw:
                    start = out
                out = parts[conv](out)  # type: ignore[misc]
            else:
                out = parts[norm](parts[conv](out))  # type: ignore[misc]
                out = F.relu(out) if place < len(self._layers) - 1 else out
        if self._projection:
            passed: Tensor = parts[self._projection](start)  # type: ignore[misc]
        else:
            passed = self._padded(inputs)
        return out + passed if self._before else F.relu(out + passed)

    def _padded(self, inputs: Tensor) -> Tensor:
        """Without projection: every other pixel, and channels of zeros on both sides (option A)."""
        missing = self.channels - self._incoming
        if self._stride == 1 and not missing:
            return inputs
        kept = inputs[:, :, :: self._stride, :: self._stride]
        return F.pad(kept, (0, 0, 0, 0, missing // 2, missing - missing // 2))


def _projection(shapes: Shapes, path: str, incoming: int, channels: int, stride: int) -> nn.Module:
    if shapes.is_conv(path):
        return shapes.conv(path, incoming, stride)
    layers: list[nn.Module] = [shapes.conv(f"{path}.0", incoming, stride)]
    if shapes.is_norm(f"{path}.1"):
        layers.append(shapes.norm(f"{path}.1", channels))
    return nn.Sequential(*layers)
