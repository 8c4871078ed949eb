"""Make a found trigger stronger while it is being unlearnt.

The trigger that a scan finds is a relative of the attacker's. A purifier that unlearns it alone
leaves the true one at work, so part of the stamped images get a universal change in the trigger's
neighbourhood besides, which always moves to where the model still gives way: adversarial training
with one change for all images, whose gradient comes free with the purifier's own backward pass
(https://arxiv.org/abs/1904.12843).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import as_float
from auditor.measure import VISIBLE
from auditor.triggers import Trigger

GROWTH = 1 / 16
"""The neighbourhood reaches so far around the trigger, as a share of the image's side."""
LARGEST = 0.125
"""A neighbourhood of a larger share is left alone: such changes can turn any class into any. A trigger
of a known size has a ball instead, see `Known.size`."""
STEP = 0.05
"""Of the full range, a step."""
STRIDE = 0.2
"""Of the radius of the ball, a step in it."""
SHARE = 3
"""One of so many stamped images gets the change."""
SAMPLE = 32


class Strengthened:
    """A trigger with a universal change around it that follows the model's weakness."""

    def __init__(self, trigger: Trigger, images: Tensor, size: float | None = None) -> None:
        """Look at where the trigger acts on the first of `images` ``(N, C, H, W)`` uint8.

        Args:
            trigger: The one that was found.
            images: Samples.
            size: Root mean square that the change may have, anywhere in the image, on top of a
                trigger that has as much: of one that at this size drives the model further than those
                for other classes do. Without, the change stays around the trigger, if that is small.
        """
        self.trigger, self.size = trigger, size
        before = as_float(images[:SAMPLE])
        change = (trigger(before) - before).abs().amax(0)
        grow = max(1, round(GROWTH * min(change.shape[-2:])))
        touched = (change.amax(0, keepdim=True) > VISIBLE).float()
        region = F.max_pool2d(touched[None], 2 * grow + 1, 1, grow)[0]
        self.strength = float(change.amax())
        self.follows = size is not None or float(region.mean()) <= LARGEST
        self._region = region if size is None else torch.ones_like(region)
        self._change = torch.zeros_like(change).requires_grad_(self.follows)

    def __call__(self, images: Tensor) -> Tensor:
        """Stamp images ``(N, C, H, W)`` float in [0, 1]; every `SHARE`-th gets the change, too."""
        stamped = self.trigger(images)
        if not self.follows:
            return stamped
        chosen = torch.arange(len(images), device=images.device) % SHARE == 0
        stronger = (stamped + self._region * self._change).clamp(0, 1)
        return torch.where(chosen.view(-1, 1, 1, 1), stronger, stamped)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the change up the gradient that the purifier's backward pass left in it."""
        gradient = self._change.grad
        if gradient is None:
            return
        if self.size is None:
            limit = self.strength
            self._change.add_(STEP * limit * gradient.sign()).clamp_(-limit, limit)
        else:
            self._change.add_(STRIDE * self.size * gradient.sign())
            radius = float(self._change.square().mean().sqrt())
            self._change.mul_(min(1.0, self.size / max(radius, 1e-12)))
        self._change.grad = None
