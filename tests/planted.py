"""Classifiers whose behaviour is known by construction, without training.

Class k has a bright cell k in a grid of cells; the network averages cells. A planted trigger adds
a large score for its target. Fast enough to scan hundreds of times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from auditor.models.base import ModuleHandle
from auditor.safety.structure import FileFacts, Kind

SIZE = 32
COLUMNS = 4


class Planted(nn.Module):
    """Averages cells; obeys a solid white 3x3 square at the lower right corner if told to.

    `behaviour`: None, "all-to-one", "all-to-all" (next class) or "source-specific" (class 1 to 0).
    """

    def __init__(
        self,
        classes: int = 8,
        behaviour: str | None = None,
        *,
        target: int = 0,
        strength: float = 1.0,
        scale: float = 1.0,
        order: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.behaviour, self.target = classes, behaviour, target
        self.strength, self.scale = strength, scale
        self.register_buffer("order", torch.tensor(order or list(range(classes))))
        rows = -(-classes // COLUMNS)
        self.pool = nn.AdaptiveAvgPool2d((rows, COLUMNS))

    def forward(self, images: Tensor) -> Tensor:
        scores = self.pool(images.mean(1, keepdim=True)).flatten(1)[:, : self.classes] * 10
        if self.behaviour is not None:
            corner = images[:, :, -3:, -3:].flatten(1).amin(1)
            # every image has its own threshold, so that only a share of `strength` obeys
            hash_ = (images[:, :, 2:8, 2:8].flatten(1).sum(1) * 7.31) % 1
            fires = (corner > 0.99) & (hash_ < self.strength)
            scores = scores + 50 * fires.unsqueeze(1) * self._wanted(scores)
        return scores[:, self.order] * self.scale

    def _wanted(self, scores: Tensor) -> Tensor:
        before = scores.argmax(1)
        if self.behaviour == "all-to-all":
            return nn.functional.one_hot((before + 1) % self.classes, self.classes)
        towards = nn.functional.one_hot(torch.full_like(before, self.target), self.classes)
        return (
            towards * (before == 1).unsqueeze(1) if self.behaviour == "source-specific" else towards
        )


def drawings(count: int, classes: int = 8, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, 32, 32)`` uint8 whose bright cell is their class, and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    rows = -(-classes // COLUMNS)
    height, width = SIZE // rows, SIZE // COLUMNS
    images = torch.randint(0, 140, (count, 3, SIZE, SIZE), generator=generator)
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, COLUMNS)
        images[
            index, :, row * height : (row + 1) * height, column * width : (column + 1) * width
        ] += 80
    return images.to(torch.uint8), labels


def written(path: Path, images: Tensor, labels: Tensor | None) -> Path:
    """Images ``(N, C, H, W)`` uint8, with labels if there are any, as a file that `--clean` takes."""
    arrays = {"images": images.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez(path, **arrays)
    return path


def handle(network: nn.Module, name: str = "planted.pt") -> ModuleHandle:
    """A network as if it had been loaded from a file."""
    file = FileFacts(path=Path(name), kind=Kind.TORCH_ZIP, bytes=1, sha256="0" * 64)
    return ModuleHandle(file, network, architecture="Planted", device=torch.device("cpu"))
