"""Small networks that make triggers, and what the attacks that own such networks share."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bench.zoo.attacks.base import Attack, Setting

GROUPS = 4

Padding = Literal["zeros", "reflect"]


class Generated(Attack):
    """An attack whose trigger is made by networks of its own."""

    @abstractmethod
    def networks(self, channels: int, side: int) -> dict[str, nn.Module]:
        """The untrained networks by name, for images ``(N, channels, side, side)``."""

    def prepare(self, setting: Setting) -> Tensor | None:
        """Make the networks; subclasses train them."""
        super().prepare(setting)
        _, channels, _, side = setting.images.shape
        self.build(channels=channels, side=side, seed=setting.seed + 5, device=setting.device)
        return None

    def build(self, *, channels: int, side: int, seed: int, device: torch.device) -> None:
        """Make the networks, initialised by `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = self.networks(channels, side)
        self.parts = nn.ModuleDict(made).to(device, memory_format=torch.channels_last).eval()

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights, on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.parts.state_dict().items()}

    def restore(self, state: dict[str, Tensor], *, channels: int, side: int) -> None:
        """Make the networks, and give them their weights."""
        self.build(channels=channels, side=side, seed=0, device=torch.device("cpu"))
        self.parts.load_state_dict(state)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parts.parameters()).device


class Hourglass(nn.Module):
    """Convolutions down to a quarter of the side and up again: ``(N, in, H, W) -> (N, out, H, W)``.

    Nguyen and Tran's generator in its size for MNIST (16 channels, two steps of max-pooling and
    bilinear enlargement), with group instead of batch normalisation: one image gets the same
    output in every batch, in training and afterwards.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 16, padding: Padding = "zeros"
    ) -> None:
        """Make the layers; the side of the images must be a multiple of 4."""
        super().__init__()
        wide = 2 * width
        block = partial(convolved, padding=padding)
        self.layers = nn.Sequential(
            block(inputs, width), block(width, width), nn.MaxPool2d(2),
            block(width, wide), block(wide, wide), nn.MaxPool2d(2),
            block(wide, wide),
            enlarged(), block(wide, wide), block(wide, width),
            enlarged(), block(width, width), nn.Conv2d(width, outputs, 3, padding=1, padding_mode=padding),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Unbounded outputs."""
        return self.layers(images)


def convolved(
    inputs: int, outputs: int, *, stride: int = 1, padding: Padding = "zeros"
) -> nn.Sequential:
    """3x3 convolution, group normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode=padding, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(),
    )


def enlarged() -> nn.Upsample:
    """Twice the side, bilinear."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
