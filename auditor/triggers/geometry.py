"""Where a pattern that was drawn at one image size lies in images of another size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Where = Literal["top-left", "top-right", "bottom-left", "bottom-right", "centre"]

Resize = Literal["scale", "keep"]
"""`scale`: places and sizes grow with the image. `keep`: pixel sizes stay, and the pattern keeps
its distance in pixels to the border that it is nearest to."""


def span(start: int, length: int, *, native: int, size: int, resize: Resize) -> tuple[int, int]:
    """Where `length` pixels from `start` of an axis of `native` pixels lie on one of `size` pixels.

    Args:
        start: First pixel; a negative one counts from the far border.
        length: Number of pixels, at least 1.
        native: Pixels of the axis that `start` and `length` were written for.
        size: Pixels of the axis of the images at hand.
        resize: What happens where the two differ.

    Returns:
        First pixel and number of pixels (1 to `size`). For ``size == native`` both as given.
    """
    start = start + native if start < 0 else start
    far = native - start - length
    if resize == "scale":
        length = max(1, _nearest(length, size / native))
        start, far = _nearest(start, size / native), _nearest(far, size / native)
    elif size != native and abs(start - far) <= 1:  # a centred pattern stays centred
        start = far = (size - length) // 2
    first = start if start <= far else size - far - length
    return min(max(first, 0), max(size - length, 0)), min(length, size)


def corner(
    where: Where, rows: int, columns: int, height: int, width: int, gap: int = 0
) -> tuple[int, int]:
    """Top row and left column of a rectangle in an image of `height` x `width` pixels.

    In a corner it is `gap` pixels away from both borders.
    """
    if where == "centre":
        return (height - rows) // 2, (width - columns) // 2
    return (
        gap if where.startswith("top") else height - rows - gap,
        gap if where.endswith("left") else width - columns - gap,
    )


def sampled(pattern: Tensor, rows: int, columns: int) -> Tensor:
    """Nearest-neighbour resize of ``(C, h, w)`` to ``(C, rows, columns)``."""
    return pattern[:, _sources(pattern.shape[1], rows)][:, :, _sources(pattern.shape[2], columns)]


def on_channels(pattern: Tensor, channels: int) -> Tensor:
    """A pattern ``(1 or 3, H, W)`` for images: grey from colour by the mean, colour by repetition."""
    if len(pattern) == channels:
        return pattern
    return pattern.mean(0, keepdim=True) if channels == 1 else pattern.expand(channels, -1, -1)


def _nearest(pixels: int, factor: float) -> int:
    return int(pixels * factor + 0.5)


def _sources(old: int, new: int) -> Tensor:
    return torch.arange(new).add(0.5).mul(old / new).long().clamp(max=old - 1)
