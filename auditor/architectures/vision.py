"""Vision transformers of any size in torchvision's spelling (arXiv 2010.11929)."""

from __future__ import annotations

import math

from torch import nn

from auditor.architectures.architecture import Choice, State
from auditor.architectures.shapes import Misfit, Shapes

HEAD_WIDTHS = ("64", "48", "32")
CHOICES = {"head-width": HEAD_WIDTHS}
"""Channels of one attention head, which no weight tells."""


def side_of(shapes: Shapes) -> int:
    """Side of the images: as many patches as there are positions.

    Raises:
        Misfit: It is no vision transformer.
    """
    patches = shapes.size("conv_proj.weight")
    positions = shapes.size("encoder.pos_embedding")
    if len(patches) != 4 or len(positions) != 3 or patches[2] != patches[3]:
        raise Misfit("no patches with positions")
    across = math.isqrt(max(positions[1] - 1, 0))
    if across * across != positions[1] - 1 or not 1 <= patches[2] <= 64 or not 1 <= across <= 128:
        raise Misfit("positions of no square of patches")
    return across * patches[2]


def options(shapes: Shapes, state: State) -> list[Choice]:
    """The widths of attention heads that divide the channels."""
    del state
    side_of(shapes)
    hidden = shapes.size("encoder.pos_embedding")[2]
    widths = [width for width in HEAD_WIDTHS if hidden % int(width) == 0]
    return [{} if width == HEAD_WIDTHS[0] else {"head-width": width} for width in widths]


def title(shapes: Shapes) -> str:
    """What it is, for people."""
    patch = shapes.size("conv_proj.weight")[2]
    hidden = shapes.size("encoder.pos_embedding")[2]
    layers = len(shapes.children("encoder.layers"))
    return f"vision transformer of {layers} layers, width {hidden}, {patch}×{patch} patches"


def build(shapes: Shapes, choice: Choice) -> nn.Module:
    """The network that these weights belong to.

    Raises:
        Misfit: It is no vision transformer, or the heads do not divide its channels.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    side = side_of(shapes)
    stem = shapes.size("conv_proj.weight")
    hidden, width = stem[0], int(choice.get("head-width", HEAD_WIDTHS[0]))
    first = shapes.size("encoder.layers.encoder_layer_0.mlp.0.weight")
    attention = shapes.size("encoder.layers.encoder_layer_0.self_attention.in_proj_weight")
    if len(first) != 2 or attention != (3 * hidden, hidden) or stem[1] not in (1, 3):
        raise Misfit("no transformer layers after the patches")
    if hidden % width or first[1] != hidden:
        raise Misfit(f"{hidden} channels are not divided into heads of {width}")
    network = VisionTransformer(
        image_size=side,
        patch_size=stem[2],
        num_layers=len(shapes.children("encoder.layers")),
        num_heads=hidden // width,
        hidden_dim=hidden,
        mlp_dim=first[0],
        num_classes=shapes.linear("heads.head").out_features,
    )
    if stem[1] != 3:
        network.conv_proj = nn.Conv2d(stem[1], hidden, stem[2], stride=stem[2])
    made: nn.Module = network
    return made
