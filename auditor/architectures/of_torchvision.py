"""torchvision's classifiers, as they come or as people change them for other images and classes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from auditor.architectures.architecture import (
    TORCHVISION_SIDE,
    Architecture,
    Choice,
    Sizes,
    State,
    parsed,
    spelled,
)
from auditor.architectures.shapes import COUNTER, Misfit, Shapes, class_count, fitting
from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.text import clean_text

TABLE = Path(__file__).with_name("of_torchvision.json")
CHOICES = {"stem": ("plain", "maxpool", "stride2")}
"""What people do to the large first convolution and the pooling behind it for small images: a small
convolution alone, with the pooling, or with the stride."""
POOLINGS = ("maxpool", "features.pool0")
SMALL_SIDE = 32
SIMILAR = 0.5
MOST_BUILT = 4
"""Networks that are built to compare their shapes; the likeliest are tried first."""
FACTORIES = (torch.empty, torch.ones, torch.zeros)


class Hollow(TorchFunctionMode):
    """Networks made inside have shapes and no numbers.

    Not the meta device as a context: some of torchvision's networks compute with small tensors
    while they are made.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make new tensors without numbers."""
        options = dict(kwargs or {})
        if func in FACTORIES:
            options["device"] = "meta"
        return func(*args, **options)


def recognised(shapes: Shapes, state: State) -> list[Architecture]:
    """Every network of torchvision that these weights may belong to, the likeliest first."""
    found = []
    for name in likely(shapes):
        choices: list[Choice] = [{}]
        if _small_stem(name, shapes):
            choices += [{"stem": value} for value in CHOICES["stem"][1:]]
        found += [_architecture(spelled(name, choice), choice) for choice in choices]
    return found


def named(text: str) -> Architecture:
    """Understand `resnet18` or `resnet18,stem=maxpool`.

    Raises:
        UsageError: torchvision has no such network, or it has no such choice.
    """
    import torchvision

    name = text.partition(",")[0]
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UsageError(
            f"--arch {clean_text(text)}: torchvision has no classifier of this name"
            f"{nearest(name, names)} For your own network pass --arch your_file.py:factory."
        )
    return _architecture(text, parsed(text, CHOICES))


def likely(shapes: Shapes) -> list[str]:
    """Names of the networks whose parts have about as many tensors, the most similar first."""
    own: dict[str, int] = {}
    for name in shapes.sizes:
        if not name.endswith(COUNTER):
            top = name.partition(".")[0]
            own[top] = own.get(top, 0) + 1
    numbers = numbers_of({n: s for n, s in shapes.sizes.items() if not n.endswith(COUNTER)})
    scored = []
    for name, entry in table().items():
        parts = entry["parts"]
        tops = own.keys() | parts.keys()
        least = sum(min(own.get(top, 0), parts.get(top, 0)) for top in tops)
        most = sum(max(own.get(top, 0), parts.get(top, 0)) for top in tops)
        if least / most >= SIMILAR:
            size = min(numbers, entry["numbers"]) / max(numbers, entry["numbers"], 1)
            scored.append((-least / most, -size, name))
    return [name for _, _, name in sorted(scored)[:MOST_BUILT]]


@functools.cache
def table() -> Mapping[str, Any]:
    """Name -> tensors in each of its parts, and numbers in all but the classes' matrix.

    Written by `python -m tests.torchvision_table`; a test compares it with torchvision.
    """
    made: Mapping[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return made


def numbers_of(sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers in all tensors but the last matrix, whose size depends on the classes."""
    matrices = [size for size in sizes.values() if len(size) == 2]
    last = math.prod(matrices[-1]) if matrices else 0
    return sum(math.prod(size) for size in sizes.values()) - last


def create(name: str, options: Mapping[str, Any]) -> nn.Module:
    """One of torchvision's networks, with fresh weights."""
    import torchvision

    if name in ("inception_v3", "googlenet"):
        options = {**options, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _architecture(text: str, choice: Choice) -> Architecture:
    name = text.partition(",")[0]

    def build(state: State) -> nn.Module:
        with fitting(text):
            return _built(name, Shapes(state), class_count(state), choice)

    def sizes(state: State) -> Sizes:
        shapes = Shapes(state)
        stems = (size for size in shapes.sizes.values() if len(size) == 4 and size[1] in (1, 3))
        channels = next((size[1] for size in stems), 3)
        # Vision transformers bind their weights to one image size; the others take any.
        if name.startswith("vit_"):
            side = _vit_side(name, shapes)
            return Sizes((channels, side, side), side)
        return Sizes(
            (channels, None, None), SMALL_SIDE if _small_stem(name, shapes) else TORCHVISION_SIDE
        )

    return Architecture(name=text, build=build, sizes=sizes)


def _built(name: str, shapes: Shapes, classes: int | None, choice: Choice) -> nn.Module:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ("inception_v3", "googlenet"):
        auxiliary = ("AuxLogits", "aux1")
        options["aux_logits"] = any(top in auxiliary for top in shapes.children())
    if name.startswith("vit_"):
        options["image_size"] = _vit_side(name, shapes)
    network = create(name, options)
    _refit_stem(network, shapes, choice)
    _refit_head(network, shapes)
    return network


def _vit_side(name: str, shapes: Shapes) -> int:
    positions = shapes.size("encoder.pos_embedding")
    patch = shapes.size("conv_proj.weight")
    if len(positions) == 3 and len(patch) == 4 and 1 < positions[1] < 1 << 16:
        side = math.isqrt(positions[1] - 1) * patch[2]
        if 0 < side <= 1 << 12 and side % int(name[-2:]) == 0:
            return side
    return TORCHVISION_SIDE


def _first_conv(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    convs = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    return next(convs, None)


def _small_stem(name: str, shapes: Shapes) -> bool:
    """Is the first convolution smaller than torchvision's, with a pooling behind it?"""
    if not name.startswith(("resne", "wide_resnet", "densenet")):
        return False
    stem = "features.conv0" if name.startswith("densenet") else "conv1"
    return 0 < (shapes.size(f"{stem}.weight") or (0,) * 4)[-1] < 7


def _refit_stem(network: nn.Module, shapes: Shapes, choice: Choice) -> None:
    """Give the first convolution the file's kernel and channels."""
    found = _first_conv(network)
    if found is None:
        return
    name, old = found
    size = shapes.size(f"{name}.weight")
    if len(size) != 4 or size == tuple(old.weight.shape) or size[0] != old.out_channels:
        return
    stem = choice.get("stem", "plain")
    own = old.kernel_size[0]
    if size[2] == own:
        stride = old.stride[0]
    elif own == old.stride[0]:
        stride = size[2]  # patches that do not overlap
    else:
        stride = old.stride[0] if stem == "stride2" else 1
    conv = shapes.first_conv(name, stride)
    if own == old.stride[0]:
        conv.padding = (0, 0)
    if size[2] == own:
        conv.padding = old.padding
    _put(network, name, conv)
    if size[2] < own and stem != "maxpool":
        for pooling in POOLINGS:
            if pooling in dict(network.named_modules()):
                _put(network, pooling, nn.Identity())


def _refit_head(network: nn.Module, shapes: Shapes) -> None:
    """Linear layers at the end of the file's sizes, or a chain of them where torchvision has one."""
    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    if not linears:
        return
    last = list(linears)[-1]  # auxiliary classifiers come before
    top = last.partition(".")[0]
    inside = [name for name in linears if name.partition(".")[0] == top]
    own = {name for name in network.state_dict() if name.startswith(f"{top}.")}
    if own == {name for name in shapes.sizes if name.startswith(f"{top}.")}:
        for name in inside:
            _put(network, name, shapes.linear(name))
        inputs = shapes.head_inputs(inside[0])
    else:
        inner = last if shapes.numbered(last) else top
        if not shapes.children(inner):
            return
        _put(network, inner, shapes.head(inner))
        inside = [last] if inner == last else inside
        inputs = shapes.head_inputs(inner)
    if inputs != linears[inside[0]].in_features:
        raise Misfit(f"{top} takes {inputs} numbers an image")


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
