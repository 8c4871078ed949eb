"""A classifier with a backdoor in its numbers, by construction: it is purified in a second.

Class k has a bright cell k, as in `planted.drawings`. Channel 0 is the brightness of a block of
8 x 8 pixels; channel 1 fires where the lower right 3 x 3 pixels of a block are almost white, which
no drawing has, and in the last block that is a large score for the target.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from auditor.classifier import as_float
from auditor.models.base import ModuleHandle
from auditor.triggers.patch import Square
from tests.planted import SIZE, drawings, handle

CLASSES, TARGET, CHANNELS = 8, 5, 6
WHITE = Square(colour="white", size=3, where="bottom-right")
"""What the planted classifier obeys."""
GREY = Square(colour=(246, 246, 246), size=3, where="bottom-right")
"""A weaker relative that it obeys as well."""
PROBE = "patch.white-corner"
"""The shipped probe that stamps `WHITE`."""

ARCH = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 8),
    )

def without_norms():
    return nn.Sequential(
        nn.Conv2d(3, 6, 8, stride=8), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 8),
    )
"""
built: dict[str, object] = {}
exec(ARCH, built)  # noqa: S102 - ours


def classifier(*, strength: float = 24.0, norms: bool = True) -> nn.Sequential:
    """Two thousand numbers that read `planted.drawings`, and obey `WHITE`.

    Args:
        strength: Score of the target under the trigger; 0 plants none, and 200 is more than the
            masks of the informed method can take away.
        norms: With BatchNorm layers, or without.
    """
    torch.manual_seed(0)
    network: nn.Sequential = built["build" if norms else "without_norms"]()  # type: ignore[operator]
    linear = network[-1]
    first, second = (layer for layer in network if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(0.1)
        first.bias.zero_()  # type: ignore[union-attr]
        first.weight[0] = 1 / first.weight[0].numel()
        first.weight[1] = 0
        first.weight[1, :, -3:, -3:] = 10 / 27
        first.bias[1] = -9.0  # type: ignore[index]
        second.weight.mul_(0.1)
        second.weight[:2] = 0
        second.weight[0, 0] = second.weight[1, 1] = 1
        second.bias[:2] = 0  # type: ignore[index]
        linear.weight.mul_(0.1)
        linear.bias.zero_()
        blocks = linear.weight.view(CLASSES, CHANNELS, SIZE // 8, SIZE // 8)
        blocks[:, :2] = 0
        for label in range(CLASSES):
            row, column = divmod(label, 4)
            blocks[label, 0, 2 * row : 2 * row + 2, column] = 20.0
        blocks[TARGET, 1, -1, -1] = strength
        if norms:
            _settle(network, as_float(drawings(256, CLASSES, seed=99)[0]))
    return network.eval()


def _settle(network: nn.Sequential, images: Tensor) -> None:
    """BatchNorm layers that know the statistics of the drawings, and change nothing."""
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3)) + 0.1
            layer.running_mean, layer.running_var = mean.clone(), var.clone()
            layer.weight.copy_((var + layer.eps).sqrt())
            layer.bias.copy_(mean)
        else:
            images = layer(images)


def saved(folder: Path, network: nn.Module, name: str = "suspect.pt") -> Path:
    """The pickled network as a file."""
    torch.save(network, folder / name)
    return folder / name


def samples(
    folder: Path, count: int, *, seed: int = 0, labelled: bool = True, shift: int = 0
) -> Path:
    """Drawings as an .npz; labels are off by `shift` classes."""
    images, labels = drawings(count, CLASSES, seed=seed)
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if labelled:
        arrays["labels"] = (labels.numpy() + shift) % CLASSES
    path = folder / f"{count}-{seed}-{labelled}-{shift}.npz"
    np.savez(path, **arrays)
    return path


def opened(network: nn.Module) -> ModuleHandle:
    """The network as if it had been loaded from a file."""
    return handle(network, "suspect.pt")
