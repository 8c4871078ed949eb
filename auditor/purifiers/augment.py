"""Small changes that leave an image what it is, drawn on the CPU so that a seed means one thing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 1 / 8
"""Of the image's side: 4 pixels of CIFAR's 32."""


def shifted(
    images: Tensor,
    generator: torch.Generator,
    *,
    flip: bool,
    zeros: bool = True,
    reach: float = SHIFT,
) -> Tensor:
    """Random crops of the padded images, and half of them mirrored.

    Args:
        images: ``(N, C, H, W)`` float in [0, 1].
        generator: On the CPU.
        flip: Mirror half of the images.
        zeros: Pad with black (as the published code does) and not with the border.
        reach: Largest shift, as a share of the image's side.
    """
    count, _, height, width = images.shape
    pad = max(1, round(reach * min(height, width)))
    mode = "constant" if zeros else "replicate"
    padded = F.pad(images, (pad, pad, pad, pad), mode=mode)
    down, right = torch.randint(2 * pad + 1, (2, count), generator=generator).to(images.device)
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = right[:, None] + torch.arange(width, device=images.device)
    if flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    every = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def mixed(images: Tensor, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    """A share of the images mixed with another one, each by its own weight from U(0, 1)."""
    count = len(images)
    keep = torch.rand(count, generator=generator)
    keep = torch.where(torch.rand(count, generator=generator) < share, keep, torch.ones(()))
    other = torch.randperm(count, generator=generator).to(images.device)
    weight = keep.view(-1, 1, 1, 1).to(images.device)
    return torch.lerp(images[other], images, weight)
