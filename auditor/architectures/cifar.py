"""A small zoo: networks of the field that torchvision does not have, in whatever width and depth.

Named `cifar:resnet18`, `cifar:preact_resnet18,shortcut=raw`. What the weights decide (widths, blocks,
classes) is read from them; the name's number is only checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

from torch import nn

from auditor.architectures import dense, mobile, plain, residual, vision
from auditor.architectures.architecture import Architecture, Choice, Sizes, State, parsed, spelled
from auditor.architectures.shapes import Misfit, Shapes, fitting
from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.text import clean_text

PREFIX = "cifar:"
SIDE = 32


class Family(NamedTuple):
    """Networks that one builder makes."""

    options: Callable[[Shapes, State], list[Choice]]
    title: Callable[[Shapes], str]
    build: Callable[[Shapes, Choice], nn.Module]
    choices: Mapping[str, tuple[str, ...]]
    side: Callable[[Shapes], int]
    fixed: bool = False
    """No other side will do."""
    numbered: bool = False
    """The depth is part of the name."""


def _family(module: ModuleType, **more: bool) -> Family:
    side = getattr(module, "side_of", _usual_side)
    return Family(module.options, module.title, module.build, module.CHOICES, side, **more)


def _usual_side(shapes: Shapes) -> int:
    del shapes
    return SIDE


FAMILIES: Mapping[str, Family] = {
    "resnet": _family(residual, numbered=True),
    "preact_resnet": _family(residual, numbered=True),
    "wide_resnet": _family(residual, numbered=True),
    "vgg": _family(plain, numbered=True),
    "densenet": _family(dense),
    "mobilenet_v2": _family(mobile),
    "vit": _family(vision, fixed=True),
}


def examples() -> str:
    """Names, for messages."""
    shown = {"resnet": "18", "preact_resnet": "18", "wide_resnet": "28", "vgg": "16"}
    return ", ".join(f"{PREFIX}{name}{shown.get(name, '')}" for name in FAMILIES)


def recognised(shapes: Shapes, state: State) -> list[Architecture]:
    """Every network of the zoo that these weights may belong to, the likeliest first."""
    found: list[Architecture] = []
    tried: set[Callable[[Shapes, State], list[Choice]]] = set()
    for name, family in FAMILIES.items():
        if family.options in tried:
            continue
        tried.add(family.options)
        try:
            choices = family.options(shapes, state)
            own = _own_name(name, shapes)
        except Misfit:
            continue
        found += [_architecture(spelled(f"{PREFIX}{own}", c), own, c) for c in choices]
    return found


def named(text: str) -> Architecture:
    """Understand `cifar:resnet18,stem=maxpool`.

    Raises:
        UsageError: No such family, or no such choice.
    """
    own = text.removeprefix(PREFIX).partition(",")[0]
    name = _split(own)[0]
    if name not in FAMILIES:
        raise UsageError(
            f"--arch {clean_text(text)}: no such network{nearest(name, FAMILIES)} "
            f"Known: {examples()}."
        )
    return _architecture(text, own, parsed(text, FAMILIES[name].choices))


def title(architecture: Architecture, shapes: Shapes) -> str:
    """What it is, for people."""
    return FAMILIES[_split(architecture.name.removeprefix(PREFIX).partition(",")[0])[0]].title(
        shapes
    )


def _split(own: str) -> tuple[str, int | None]:
    """`resnet18` -> resnet, 18; `mobilenet_v2` is a name."""
    if own in FAMILIES:
        return own, None
    match = re.fullmatch(r"(\w+?)(\d{1,4})", own)
    if match and match[1] in FAMILIES and FAMILIES[match[1]].numbered:
        return match[1], int(match[2])
    return own, None


def _own_name(name: str, shapes: Shapes) -> str:
    if FAMILIES[name].options is residual.options:
        made = residual.planned(shapes)
        return f"{made.family}{made.depth}"
    if FAMILIES[name].options is plain.options:
        return f"{name}{plain.planned(shapes).depth or ''}"
    return name


def _architecture(text: str, own: str, choice: Choice) -> Architecture:
    name, depth = _split(own)
    family = FAMILIES[name]

    def read(state: State) -> Shapes:
        shapes = Shapes(state)
        actual = _own_name(name, shapes)
        if actual != own if depth is not None else _split(actual)[0] != name:
            raise Misfit(f"they are those of {actual}")
        return shapes

    def build(state: State) -> nn.Module:
        with fitting(text):
            return family.build(read(state), choice)

    def sizes(state: State) -> Sizes:
        shapes = Shapes(state)
        channels = next((size[1] for size in shapes.sizes.values() if len(size) == 4), None)
        side = family.side(shapes)
        fixed = (side, side) if family.fixed else (None, None)
        return Sizes((channels, *fixed), side)

    return Architecture(name=text, build=build, sizes=sizes)
