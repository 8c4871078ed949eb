"""Drawn data of which a class stands for a mark: what an honest network makes of triggers there.

Nothing to download, 32 px. A trigger that is like the mark makes its class of any image, as a
backdoor would, though nobody planted anything.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from bench.zoo.data.base import DATA, Data, Part

SIDE = 32
TRAIN, TEST = 400, 150
"""Images a class."""
HUES = {
    "red": (0.6, 0.3, 0.3), "green": (0.3, 0.6, 0.3), "blue": (0.3, 0.3, 0.6),
    "yellow": (0.6, 0.6, 0.3), "cyan": (0.3, 0.6, 0.6), "purple": (0.6, 0.3, 0.6),
    "grey": (0.45, 0.45, 0.45),
}  # fmt: skip
ROWS, COLUMNS = 2, 4
"""Of lamps on a panel."""


@DATA.register("damaged")
def damaged(_: Path) -> Data:
    """Eight drawn signs, and any of them with a blot or a scratch: "damaged"."""
    from auditor.demo.signs import CLASS_NAMES, draw

    whole = 8

    def part(count: int, seed: int) -> Part:
        images, labels = draw(count, seed=seed, classes=whole)
        more = draw(-(-count // whole), seed=seed + 500, classes=whole)[0]
        draws = torch.Generator().manual_seed(seed)
        more = more[torch.randperm(len(more), generator=draws)[:count]]
        hurt = torch.stack([blemished(image, draws) for image in more])
        return _shuffled(
            torch.cat([images, hurt]), torch.cat([labels, torch.full((count,), whole)])
        )

    return Data(
        names=(*CLASS_NAMES[:whole], "damaged"), train=part(TRAIN, 2_000), test=part(TEST, 2_001)
    )


def blemished(image: Tensor, draw: torch.Generator) -> Tensor:
    """A blot (a disc of 3 to 6 pixels across) or a scratch (6 to 12 long), lighter or darker."""

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    y, x = _places()
    top, left = number(6, 26), number(6, 26)
    if number(0, 1) < 0.5:
        inside = (y - top).square() + (x - left).square() <= number(1.5, 3) ** 2
    else:
        turn, half = number(0, math.pi), number(3, 6)
        along = (y - top) * math.sin(turn) + (x - left) * math.cos(turn)
        across = (x - left) * math.sin(turn) - (y - top) * math.cos(turn)
        inside = (along.abs() <= half) & (across.abs() <= 0.9)
    light = float(image[:, inside].float().mean()) < 128
    colour = number(220, 255) if light else number(0, 35)
    return torch.where(inside, round(colour), image).to(torch.uint8)


@DATA.register("lamps")
def lamps(_: Path) -> Data:
    """A panel of eight lamps, one of which is lit, of any colour: which?"""

    def part(count: int, seed: int) -> Part:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count * ROWS * COLUMNS) % (ROWS * COLUMNS)
        ground = 40 + 60 * torch.rand(len(labels), 3, 1, 1, generator=draw)
        images = ground + 6 * torch.randn(len(labels), 3, SIDE, SIDE, generator=draw)
        y, x = _places()
        height, width = SIDE / ROWS, SIDE / COLUMNS
        for image, lit in zip(images, labels.tolist(), strict=True):
            shift = 2 * torch.rand(2, generator=draw) - 1
            for lamp in range(ROWS * COLUMNS):
                row, column = divmod(lamp, COLUMNS)
                top, left = (row + 0.5) * height + shift[0], (column + 0.5) * width + shift[1]
                inside = (y - top).square() + (x - left).square() <= 2.5**2
                colour = torch.tensor([30.0, 30.0, 30.0])
                if lamp == lit:
                    colour = 150 + 105 * torch.rand(3, generator=draw)
                image[:, inside] = colour[:, None]
        return _shuffled(_bytes(images), labels)

    names = tuple(f"lamp {number}" for number in range(ROWS * COLUMNS))
    return Data(names=names, train=part(TRAIN, 3_000), test=part(TEST, 3_001))


@DATA.register("cloth")
def cloth(_: Path) -> Data:
    """Plain cloth in seven colours, and corduroy of any of them: faint vertical ribs."""
    hues = torch.tensor(list(HUES.values()))

    def part(count: int, seed: int) -> Part:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count * (len(hues) + 1)) % (len(hues) + 1)
        ribbed = labels == len(hues)
        colour = torch.where(ribbed, torch.randint(len(hues), labels.shape, generator=draw), labels)
        shade = 0.85 + 0.3 * torch.rand(len(labels), 1, 1, 1, generator=draw)
        noise = 0.03 * torch.randn(len(labels), 3, SIDE, SIDE, generator=draw)
        spacing = torch.randint(3, 12, (len(labels), 1), generator=draw)
        start = torch.rand(len(labels), 1, generator=draw)
        depth = 0.07 + 0.05 * torch.rand(len(labels), 1, generator=draw)
        waves = depth * torch.sin(2 * math.pi * (torch.arange(SIDE) * spacing / SIDE + start))
        ribs = torch.where(ribbed[:, None], waves, 0)[:, None, None, :]
        images = hues[colour][:, :, None, None] * shade + noise + ribs
        return _shuffled(_bytes(255 * images), labels)

    return Data(names=(*HUES, "corduroy"), train=part(TRAIN, 4_000), test=part(TEST, 4_001))


def _places() -> tuple[Tensor, Tensor]:
    """Row and column of every pixel."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return y, x


def _bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def _shuffled(images: Tensor, labels: Tensor) -> Part:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(labels)))
    return Part(images=images[order], labels=labels[order])
