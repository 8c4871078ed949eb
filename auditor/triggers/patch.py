"""Pixels at a place: literal patterns, generated squares, random draws.

Most published backdoors of images are of this kind, since BadNets (https://arxiv.org/abs/1708.06733).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from auditor.errors import ProbeError
from auditor.registry import nearest
from auditor.triggers.base import TRIGGERS, Trigger, cached, generator, within, wrapped
from auditor.triggers.geometry import Resize, Where, corner, on_channels, sampled, span

Cell = int | float | tuple[int | float, ...] | None
"""One pixel, 0 to 255: a grey value, (R, G, B), (R, G, B, opacity in [0, 1]), None: transparent."""


COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}

FEW_ARRANGEMENTS = 100
"""Below this many distinct orders of its pixels, a pattern is controlled by random colours only."""
NEARLY_CONSTANT = 16
"""Levels between the darkest and the brightest pixel, below which a pattern is one colour."""
MANY_ARRANGEMENTS = 10**9
"""Above this many, two draws never meet."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A rectangle of pixels."""

    at: tuple[int, int]
    """Row and column of its top left pixel at the native size; negative: from the far border."""
    cells: tuple[tuple[Cell, ...], ...]
    """Rows of pixels."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.cells), len(self.cells[0])


@TRIGGERS.register("patch")
@dataclass(frozen=True, kw_only=True, repr=False)
class Patch(Trigger):
    """Literal pixels at literal places, one block or several.

    At ``blend`` a stamped pixel is ``(1 - a) x + a p``, with `a` the `alpha` times the opacity of
    the pixel; at ``add`` it is ``x + alpha p``, in levels of 0 to 255, clipped or modulo 256.
    Grey images get the mean of the colours.
    """

    blocks: tuple[Block, ...]
    alpha: float = 1.0
    mode: Literal["blend", "add"] = "blend"
    overflow: Literal["clip", "wrap"] = "clip"
    """For ``add``; `wrap` is what a cast to uint8 does to 256 and above."""
    native: int = 32
    resize: Resize = "scale"

    def __post_init__(self) -> None:
        """Check the places, the shapes and the values."""
        within("alpha", self.alpha, 0, 1)
        within("native", self.native, 1, 4096)
        if not self.blocks:
            raise ProbeError("blocks is empty; a patch needs one at least")
        if self.overflow == "wrap" and self.mode != "add":
            raise ProbeError('overflow "wrap" needs mode "add"')
        for block in self.blocks:
            _check(block, self.native, lowest=-255 if self.mode == "add" else 0)
        if all(cell is None for cell in self._cells()):
            raise ProbeError("every cell is transparent; a patch needs one that is not")

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the pixels of the blocks set, mixed or added."""
        _, channels, height, width = images.shape
        value, weight = _layers(self, height, width, channels, images.device, images.dtype)
        if self.mode == "blend":
            return torch.lerp(images, value, weight)
        return wrapped(images + value) if self.overflow == "wrap" else images + value

    def control(self, seed: int) -> Patch:
        """The same pixels in another order (even seeds), or in random colours.

        Odd seeds get random colours, and so do patterns of (nearly) one colour or too few orders.
        """
        cells = [cell for cell in self._cells() if cell is not None]
        shuffled: Sequence[Cell]
        if seed % 2 == 0 and _is_patterned(cells):
            shuffled = _rearranged(cells, 1 + seed // 2)
        else:
            draw = generator(seed)
            low = -255 if self.mode == "add" and any(min(_rgba(c)[:3]) < 0 for c in cells) else 0
            colours = torch.randint(low, 256, (len(cells), 3), generator=draw).tolist()
            shuffled = [
                (*colour, *_rgba(cell)[3:]) if _rgba(cell)[3] < 1 else tuple(colour)
                for colour, cell in zip(colours, cells, strict=True)
            ]
        return self._with(iter(shuffled))

    def _cells(self) -> Iterator[Cell]:
        return (cell for block in self.blocks for row in block.cells for cell in row)

    def _with(self, cells: Iterator[Cell]) -> Patch:
        """The same shape, with the pixels that are not transparent taken from `cells`."""
        blocks = tuple(
            Block(
                at=block.at,
                cells=tuple(
                    tuple(None if cell is None else next(cells) for cell in row)
                    for row in block.cells
                ),
            )
            for block in self.blocks
        )
        return replace(self, blocks=blocks)


@TRIGGERS.register("square")
@dataclass(frozen=True, kw_only=True, repr=False)
class Square(Trigger):
    """A generated square, one colour or a checkerboard of two, in a corner or in the middle."""

    size: int = 3
    """Side in pixels at the native size."""
    where: Where = "bottom-right"
    gap: int = 0
    """Pixels between the square and the two borders of its corner."""
    colour: str | tuple[int, int, int] = "white"
    """A name or (R, G, B), 0 to 255; of a checkerboard, the colour of its top left pixel."""
    pattern: Literal["solid", "checker"] = "solid"
    second: str | tuple[int, int, int] = "black"
    """The other colour of a checkerboard."""
    alpha: float = 1.0
    native: int = 32
    resize: Resize = "scale"

    def __post_init__(self) -> None:
        """Draw it once: the checks of `Patch` apply."""
        within("size", self.size, 1, self.native)
        within("gap", self.gap, 0, self.native - self.size)
        _drawn(self)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the square set or mixed in."""
        return _drawn(self).stamp(images)

    def control(self, seed: int) -> Patch:
        """The control of the same pixels written as a `Patch`."""
        return _drawn(self).control(seed)


@TRIGGERS.register("random")
@dataclass(frozen=True, kw_only=True, repr=False)
class RandomPatch(Trigger):
    """One draw of the "jumbo" distribution of patches and blends of MNTD.

    The size is 2, 3, 4, 5 or the whole image. A small one lies anywhere, with opacity drawn from
    U(0.2, 0.6), where above 0.5 means 1; a whole one has U(0.05, 0.2). Colours are
    ``clip(U(-e, 1 + e))`` with ``e ~ U(0, 1)``.
    Source: https://arxiv.org/abs/1910.03137, section V, and its code.
    """

    seed: int
    """Draws size, place and opacity."""
    colours: int | None = None
    """Draws the colours; None: `seed` does. The controls differ in this field only."""
    native: int = 32
    resize: Resize = "scale"

    def __post_init__(self) -> None:
        """Check the native size."""
        within("native", self.native, 6, 4096)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the drawn pixels mixed in."""
        _, channels, height, width = images.shape
        value, weight = _random_layers(self, height, width, channels, images.device, images.dtype)
        return torch.lerp(images, value, weight)

    def control(self, seed: int) -> RandomPatch:
        """Same size, place and opacity; other colours."""
        return replace(self, colours=1_000_003 * (self.seed + 1) + seed)


def rgb(colour: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """The (R, G, B) of a named or literal colour.

    Raises:
        ProbeError: No such name, or a value outside 0 to 255.
    """
    if isinstance(colour, str):
        if colour not in COLOURS:
            raise ProbeError(
                f'no colour is named "{colour}"{nearest(colour, COLOURS)} Known: '
                f"{', '.join(COLOURS)}, or [R, G, B]"
            )
        return COLOURS[colour]
    for value in colour:
        within("colour", value, 0, 255)
    return colour


def _check(block: Block, native: int, *, lowest: int) -> None:
    if not block.cells or not block.cells[0] or len({len(row) for row in block.cells}) > 1:
        raise ProbeError(f"cells must be rows of equal length, not {block.cells!r}")
    for start, length in zip(block.at, block.size, strict=True):
        first = start + native if start < 0 else start
        if not 0 <= first <= native - length:
            raise ProbeError(
                f"a block of {length} pixels at {start} leaves the native size of {native}"
            )
    for cell in (cell for row in block.cells for cell in row if cell is not None):
        if isinstance(cell, tuple) and len(cell) not in (3, 4):
            raise ProbeError(f"a cell is a number, [R, G, B] or [R, G, B, opacity], not {cell!r}")
        *colour, opacity = _rgba(cell)
        for value in colour:
            within("a cell", value, lowest, 255)
        within("the opacity of a cell", opacity, 0, 1)


def _rgba(cell: Cell) -> tuple[float, ...]:
    if cell is None:
        return (0, 0, 0, 0)
    if isinstance(cell, tuple):
        return cell if len(cell) == 4 else (*cell, 1)
    return (cell, cell, cell, 1)


def _is_patterned(cells: Sequence[Cell]) -> bool:
    """Whether the pixels in another order would be another pattern."""
    levels = zip(*(_rgba(cell)[:3] for cell in cells), strict=True)
    spread = max(max(channel) - min(channel) for channel in levels)
    return spread >= NEARLY_CONSTANT and _arrangements(Counter(cells)) >= FEW_ARRANGEMENTS


def _arrangements(counts: Counter[Cell]) -> int:
    """How many distinct orders the pixels have (a multinomial coefficient)."""
    return math.factorial(counts.total()) // math.prod(map(math.factorial, counts.values()))


def _rearranged(cells: Sequence[Cell], number: int) -> list[Cell]:
    """The order number `number` of the pixels, counted from their own order, which is number 0.

    The distinct orders form a circle, which is walked in steps of about its golden section: no
    order comes twice before all have come, and those that follow each other look unlike. Where
    there are so many that none comes twice by chance, one is drawn.
    """
    counts = Counter(cells)
    orders = _arrangements(counts)
    if orders > MANY_ARRANGEMENTS:
        drawn = torch.randperm(len(cells), generator=generator(number))
        return [cells[i] for i in drawn.tolist()]
    step = int(orders * 0.618)
    while math.gcd(step, orders) > 1:
        step += 1
    kinds = list(counts)
    rank, left = number * step, counts.copy()
    for own in cells:  # the rank of the pixels' own order among all
        before = kinds[: kinds.index(own)]
        rank += sum(_arrangements(left - Counter([kind])) for kind in before if left[kind])
        left -= Counter([own])
    rank, left = rank % orders, counts
    result: list[Cell] = []
    while left:  # and the order of the wanted rank
        for kind in kinds:
            share = _arrangements(left - Counter([kind])) if left[kind] else 0
            if rank < share:
                break
            rank -= share
        result.append(kind)
        left -= Counter([kind])
    return result


@cached(1024)
def _drawn(square: Square) -> Patch:
    size, native = square.size, square.native
    colours = [rgb(square.colour)]
    if square.pattern == "checker":
        colours.append(rgb(square.second))
    cells = tuple(
        tuple(colours[(row + column) % len(colours)] for column in range(size))
        for row in range(size)
    )
    return Patch(
        blocks=(
            Block(at=corner(square.where, size, size, native, native, square.gap), cells=cells),
        ),
        alpha=square.alpha,
        native=square.native,
        resize=square.resize,
        rounding=square.rounding,
    )


@cached(64)
def _layers(
    patch: Patch, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What to stamp ``(C, H, W)`` and how opaque ``(1, H, W)``; for `add` times alpha."""
    canvas = torch.zeros(4, height, width, dtype=torch.float64)
    for block in patch.blocks:
        cells = torch.tensor(
            [[_rgba(cell) for cell in row] for row in block.cells], dtype=torch.float64
        )
        _paint(canvas, cells.permute(2, 0, 1), block.at, patch.native, patch.resize)
    value, weight = on_channels(canvas[:3], channels), canvas[3:]
    value = value * (patch.alpha * weight if patch.mode == "add" else 1) / 255
    return value.to(device, dtype), (weight * patch.alpha).to(device, dtype)


@cached(64)
def _random_layers(
    patch: RandomPatch,
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    draw = generator(patch.seed)
    sizes = (2, 3, 4, 5, patch.native)
    size = sizes[int(torch.randint(len(sizes), (), generator=draw))]
    row, column = torch.randint(patch.native - size + 1, (2,), generator=draw).tolist()
    u = float(torch.rand((), generator=draw))
    if size == patch.native:
        alpha = 0.05 + 0.15 * u
    else:
        alpha = 0.2 + 0.4 * u
        alpha = 1.0 if alpha > 0.5 else alpha
    colours = draw if patch.colours is None else generator(patch.colours)
    e = torch.rand((), generator=colours)
    pattern = (torch.rand(3, size, size, generator=colours) * (1 + 2 * e) - e).clamp(0, 1)
    canvas = torch.zeros(4, height, width)
    opaque = torch.ones(1, size, size)
    _paint(canvas, torch.cat([pattern, opaque]), (row, column), patch.native, patch.resize)
    value, weight = on_channels(canvas[:3], channels), canvas[3:]
    return value.to(device, dtype), (weight * alpha).to(device, dtype)


def _paint(canvas: Tensor, cells: Tensor, at: tuple[int, int], native: int, resize: Resize) -> None:
    """Paint RGBA cells ``(4, h, w)`` on a canvas ``(4, H, W)``; transparent ones leave it alone."""
    _, height, width = canvas.shape
    top, rows = span(at[0], cells.shape[1], native=native, size=height, resize=resize)
    left, columns = span(at[1], cells.shape[2], native=native, size=width, resize=resize)
    area = canvas[:, top : top + rows, left : left + columns]
    new = sampled(cells, rows, columns)
    area.copy_(torch.where(new[3:] > 0, new, area))
