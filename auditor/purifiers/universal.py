"""One additive change for all images: the adversary in I-BAU and AWM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUMBERS = 3072
"""Of a CIFAR image, for which the published radii are."""


def no_change(images: Tensor) -> Tensor:
    """``(1, C, H, W)`` float zeros, to be added to images ``(N, C, H, W)`` of any type."""
    return torch.zeros((1, *images.shape[1:]), device=images.device)


def within_l1(change: Tensor, radius: float) -> Tensor:
    """The nearest point of the l1 ball (Duchi et al., ICML 2008): all sizes less by the same.

    A change that is not finite stays as it is.
    """
    sizes = change.abs()
    if not radius < float(sizes.sum()) < math.inf:
        return change
    falling = sizes.flatten().sort(descending=True).values
    ranks = torch.arange(1, len(falling) + 1, device=change.device)
    excess = (falling.cumsum(0) - radius) / ranks
    less = excess[falling > excess][-1]
    return change.sign() * (sizes - less).clamp_min(0)


def within_l2(change: Tensor, radius: float) -> Tensor:
    """The nearest point of the l2 ball."""
    size = float(change.norm())
    return change if size <= radius else change * (radius / size)


def l1_radius(change: Tensor, radius: float) -> float:
    """The radius for CIFAR images as one for this change: the same a number."""
    return radius * change.numel() / NUMBERS


def l2_radius(change: Tensor, radius: float) -> float:
    """The radius for CIFAR images as one for this change: the same root mean square."""
    return radius * math.sqrt(change.numel() / NUMBERS)
