"""Photographs of traffic signs that never stood anywhere: drawn, so free of licences and downloads.

Every class has one template, drawn once with Pillow. A photograph is a template seen in perspective
in front of a street scene, under some light, through some lens; all of it batched in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = 32
"""Height and width of an image in pixels."""

_EXTENT = 1.2  # templates show [-1.2, 1.2] in x and y; a sign has radius 1, its pole hangs below
_TEMPLATE = 72  # pixels a template side
_OVERSAMPLING = 6  # templates are drawn this much larger
_CHUNK = 256  # images drawn at a time, a size whose buffers stay in the cache

_RED, _BLUE, _YELLOW = (196, 28, 36), (22, 84, 168), (250, 204, 30)
_WHITE, _BLACK, _GREY = (244, 244, 240), (24, 24, 28), (128, 130, 134)

Colour = tuple[int, int, int]
Point = tuple[float, float]


class _Board:
    """A transparent canvas in sign units: x to the right and y down, the sign has radius 1."""

    def __init__(self, *, pole: bool) -> None:
        self.side = _TEMPLATE * _OVERSAMPLING
        self.image = Image.new("RGBA", (self.side, self.side))
        self._draw = ImageDraw.Draw(self.image)
        if pole:
            self.polygon([(-0.09, 0), (0.09, 0), (0.09, _EXTENT), (-0.09, _EXTENT)], _GREY)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        unit = self.side / (2 * _EXTENT)
        return [((x + _EXTENT) * unit, (y + _EXTENT) * unit) for x, y in points]

    def disc(self, radius: float, colour: Colour, centre: Point = (0, 0)) -> None:
        x, y = centre
        corners = self._pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.ellipse([*corners[0], *corners[1]], fill=colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=colour)

    def regular(self, corners: int, radius: float, colour: Colour, *, turn: float = 0.0) -> None:
        """A regular polygon; `turn` is the angle of its first corner in degrees, 0 at the top."""
        angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
        self.polygon([(radius * math.sin(a), -radius * math.cos(a)) for a in angles], colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A stroke with round ends and joints."""
        pixels = self._pixels(points)
        thickness = width * self.side / (2 * _EXTENT)
        self._draw.line(pixels, fill=colour, width=round(thickness))
        for point in points:
            self.disc(width / 2, colour, point)

    def text(self, text: str, height: float, colour: Colour, *, weight: float = 0.17) -> None:
        """Centred strokes: fonts may be missing, and these letters are enough."""
        width = height * 0.52
        pitch = width + height * (weight + 0.14)
        left = -pitch * (len(text) - 1) / 2 - width / 2
        for position, letter in enumerate(text):
            x, y = left + position * pitch, -height / 2
            for stroke in _STROKES[letter]:
                points = [(x + u * width, y + v * height) for u, v in stroke]
                self.line(points, weight * height, colour)

    def premultiplied(self) -> Tensor:
        """``(4, _TEMPLATE, _TEMPLATE)`` float in [0, 1], colour times alpha, then alpha."""
        small = self.image.reduce(_OVERSAMPLING).convert("RGBa")
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def _arc(centre: Point, radii: Point, start: float, stop: float) -> list[Point]:
    """Points on an ellipse from `start` to `stop` degrees, 0 at the top, clockwise."""
    angles = [math.radians(start + (stop - start) * step / 12) for step in range(13)]
    (x, y), (a, b) = centre, radii
    return [(x + a * math.sin(angle), y - b * math.cos(angle)) for angle in angles]


# Letters in a unit box, y down.
_STROKES: dict[str, list[list[Point]]] = {
    "0": [_arc((0.5, 0.5), (0.5, 0.5), 0, 360)],
    "3": [_arc((0.45, 0.26), (0.5, 0.26), -70, 180), _arc((0.45, 0.74), (0.55, 0.26), 0, 250)],
    "5": [[(0.95, 0), (0.12, 0), (0.05, 0.45)], _arc((0.45, 0.68), (0.55, 0.32), -55, 235)],
    "8": [_arc((0.5, 0.25), (0.42, 0.25), 0, 360), _arc((0.5, 0.75), (0.5, 0.25), 0, 360)],
    "S": [[*_arc((0.5, 0.26), (0.5, 0.26), 70, -180), *_arc((0.5, 0.74), (0.5, 0.26), 0, 250)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "O": [_arc((0.5, 0.5), (0.5, 0.5), 0, 360)],
    "P": [[(0.1, 1), (0.1, 0), (0.5, 0), *_arc((0.5, 0.28), (0.5, 0.28), 0, 180), (0.1, 0.56)]],
    "!": [[(0.5, 0), (0.5, 0.62)], [(0.5, 0.98), (0.5, 1)]],
}


def _stop(board: _Board) -> None:
    board.regular(8, 1.0, _WHITE, turn=22.5)
    board.regular(8, 0.92, _RED, turn=22.5)
    board.text("STOP", 0.56, _WHITE)


def _yield(board: _Board) -> None:
    board.regular(3, 1.12, _RED, turn=180)
    board.regular(3, 0.66, _WHITE, turn=180)


def _priority(board: _Board) -> None:
    board.regular(4, 1.08, _WHITE)
    board.regular(4, 0.78, _YELLOW)


def _no_entry(board: _Board) -> None:
    board.disc(1.0, _RED)
    board.polygon([(-0.7, -0.19), (0.7, -0.19), (0.7, 0.19), (-0.7, 0.19)], _WHITE)


def _limit(number: str) -> Callable[[_Board], None]:
    def draw_limit(board: _Board) -> None:
        board.disc(1.0, _RED)
        board.disc(0.77, _WHITE)
        board.text(number, 0.78, _BLACK, weight=0.19)

    return draw_limit


def _end_of_limits(board: _Board) -> None:
    board.disc(1.0, _BLACK)
    board.disc(0.93, _WHITE)
    for shift in (-0.24, -0.08, 0.08, 0.24):
        board.line([(-0.52 + shift, 0.52 + shift), (0.52 + shift, -0.52 + shift)], 0.09, _BLACK)


def _no_parking(board: _Board) -> None:
    board.disc(1.0, _RED)
    board.disc(0.78, _BLUE)
    board.line([(-0.58, -0.58), (0.58, 0.58)], 0.2, _RED)


def _arrow(turn: float) -> Callable[[_Board], None]:
    """A white arrow on blue, `turn` degrees clockwise from straight ahead."""

    def turned(points: Sequence[Point]) -> list[Point]:
        s, c = math.sin(math.radians(turn)), math.cos(math.radians(turn))
        return [(c * x - s * y, s * x + c * y) for x, y in points]

    def draw_arrow(board: _Board) -> None:
        board.disc(1.0, _WHITE)
        board.disc(0.93, _BLUE)
        board.polygon(turned([(-0.14, 0.7), (0.14, 0.7), (0.14, -0.1), (-0.14, -0.1)]), _WHITE)
        board.polygon(turned([(-0.5, -0.05), (0, -0.74), (0.5, -0.05)]), _WHITE)

    return draw_arrow


def _roundabout(board: _Board) -> None:
    board.disc(1.0, _WHITE)
    board.disc(0.93, _BLUE)
    for start in (0, 120, 240):
        board.line(_arc((0, 0), (0.5, 0.5), start + 80, start), 0.19, _WHITE)
        tip = _arc((0, 0), (0.5, 0.5), start - 34, start)[0]
        wings = (_arc((0, 0), (radius, radius), start + 6, 0)[0] for radius in (0.22, 0.8))
        board.polygon([tip, *wings], _WHITE)


def _warning(board: _Board) -> None:
    board.regular(3, 1.12, _RED)
    board.regular(3, 0.74, _WHITE)


def _danger(board: _Board) -> None:
    _warning(board)
    board.line([(0, -0.3), (0, 0.04)], 0.18, _BLACK)
    board.disc(0.1, _BLACK, (0, 0.27))


def _crossroads(board: _Board) -> None:
    _warning(board)
    board.line([(-0.24, -0.17), (0.24, 0.29)], 0.15, _BLACK)
    board.line([(0.24, -0.17), (-0.24, 0.29)], 0.15, _BLACK)


def _crossing(board: _Board) -> None:
    board.regular(4, 1.3, _BLUE, turn=45)
    board.regular(3, 0.95, _WHITE)
    board.disc(0.12, _BLACK, (0.02, -0.36))
    board.line([(0, -0.18), (-0.02, 0.1), (-0.2, 0.42)], 0.14, _BLACK)
    board.line([(-0.02, 0.1), (0.2, 0.42)], 0.14, _BLACK)
    board.line([(-0.22, 0.08), (0, -0.16), (0.24, 0.06)], 0.1, _BLACK)


def _parking(board: _Board) -> None:
    board.regular(4, 1.3, _WHITE, turn=45)
    board.regular(4, 1.2, _BLUE, turn=45)
    board.text("P", 1.1, _WHITE, weight=0.2)


_SIGNS: dict[str, Callable[[_Board], None]] = {
    "stop": _stop,
    "yield": _yield,
    "priority": _priority,
    "no-entry": _no_entry,
    "limit-30": _limit("30"),
    "limit-50": _limit("50"),
    "limit-80": _limit("80"),
    "end-of-limits": _end_of_limits,
    "no-parking": _no_parking,
    "ahead": _arrow(0),
    "turn-right": _arrow(90),
    "turn-left": _arrow(-90),
    "roundabout": _roundabout,
    "danger": _danger,
    "crossroads": _crossroads,
    "crossing": _crossing,
    "parking": _parking,
}

CLASS_NAMES: tuple[str, ...] = tuple(_SIGNS)
"""What the classes are called, by index."""


def draw(
    count_per_class: int, *, seed: int, classes: int = len(CLASS_NAMES)
) -> tuple[Tensor, Tensor]:
    """Draw photographs of traffic signs.

    Args:
        count_per_class: images of each class.
        seed: the same seed draws the same bytes, another seed other images.
        classes: draw only the first so many classes.

    Returns:
        Images ``(N, 3, 32, 32)`` uint8 RGB and labels ``(N,)`` int64 with N = classes x count.
        Classes take turns, so every prefix is balanced.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(count_per_class)
    photographs = [_photographs(chunk, generator) for chunk in torch.split(labels, _CHUNK)]
    return torch.cat(photographs), labels


def _photographs(labels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 ``(N, 3, SIZE, SIZE)``, one photograph a label."""
    dice = _Dice(len(labels), generator)
    sign = _seen(labels, dice)
    image = sign[:, :3] * _weathering(dice) + _street(dice) * (1 - sign[:, 3:])
    image = _developed(_blurred(_lit(image, dice), dice), dice)
    return (image.clamp_(0, 1) * 255).round_().to(torch.uint8)


class _Dice:
    """Random numbers for `count` images, shaped to broadcast over ``(N, C, H, W)``."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """``(N, channels, 1, 1)`` in [low, high]."""
        drawn = torch.rand(self.count, channels, 1, 1, generator=self.generator)
        return drawn * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        """``(N, 1, 1, 1)``: 1 with this probability, else 0."""
        return (self.uniform(0, 1) < probability).float()

    def colour(self, *palette: tuple[float, float, float], spread: float = 0.06) -> Tensor:
        """``(N, 3, 1, 1)``: one of the palette, a little off."""
        chosen = torch.randint(len(palette), (self.count,), generator=self.generator)
        return torch.tensor(palette)[chosen, :, None, None] + self.uniform(-spread, spread, 3)

    def grain(self, cells: int) -> Tensor:
        """``(N, 1, SIZE, SIZE)`` smooth noise in about [-1, 1], `cells` lumps a side."""
        lumps = torch.rand(self.count, 1, cells, cells, generator=self.generator) * 2 - 1
        return F.interpolate(lumps, size=(SIZE, SIZE), mode="bilinear", align_corners=True)

    def gaussian(self, channels: int) -> Tensor:
        """``(N, channels, SIZE, SIZE)`` white noise of variance 1."""
        return torch.randn(self.count, channels, SIZE, SIZE, generator=self.generator)


@cache
def _templates() -> Tensor:
    """``(2, K, 4, T, T)`` premultiplied RGBA: without and with a pole."""
    drawn = []
    for pole in (False, True):
        for paint in _SIGNS.values():
            board = _Board(pole=pole)
            paint(board)
            drawn.append(board.premultiplied())
    return torch.stack(drawn).view(2, len(_SIGNS), 4, _TEMPLATE, _TEMPLATE)


@cache
def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Pixel centres from -1 to 1: x ``(1, 1, 1, size)`` and y ``(1, 1, size, 1)``."""
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    return centres.view(1, 1, 1, size), centres.view(1, 1, size, 1)


def _seen(labels: Tensor, dice: _Dice) -> Tensor:
    """The signs as the camera sees them: premultiplied RGBA ``(N, 4, SIZE, SIZE)``."""
    x, y = _grid(2 * SIZE)
    size = dice.uniform(0.6, 0.86)
    x = x - dice.uniform(-0.14, 0.14)
    y = y - dice.uniform(-0.14, 0.14)
    angle = dice.uniform(-0.2, 0.2)
    cosine, sine = angle.cos(), angle.sin()
    yaw = dice.uniform(0.8, 1.0)  # a sign that turns away looks narrower
    u = (x * cosine + y * sine) / (size * yaw)
    v = (y * cosine - x * sine) / size
    depth = 1 + dice.uniform(-0.16, 0.16) * u + dice.uniform(-0.1, 0.1) * v
    places = torch.stack((u / depth, v / depth), dim=-1)[:, 0] / _EXTENT
    pole = dice.chance(0.7).long().flatten()
    # Beyond its border a template goes on as it ends: empty, or with the rest of the pole.
    sampled = F.grid_sample(
        _templates()[pole, labels], places, padding_mode="border", align_corners=False
    )
    return F.avg_pool2d(sampled, 2)


def _street(dice: _Dice) -> Tensor:
    """What is behind the sign ``(N, 3, SIZE, SIZE)``: sky, houses, trees, a road."""
    x, y = _grid(SIZE)
    zenith = dice.colour((0.35, 0.55, 0.85), (0.7, 0.74, 0.8), (0.45, 0.5, 0.62), (0.8, 0.72, 0.6))
    haze = dice.colour((0.8, 0.86, 0.92), (0.86, 0.84, 0.8), (0.66, 0.68, 0.7))
    sky = zenith + (haze - zenith) * (y + 1) / 2 + 0.05 * dice.grain(5)
    scene = sky
    for _ in range(3):
        scene = _house(scene, dice)
    texture = dice.grain(9) + 0.8 * dice.grain(21)
    leaves = dice.colour((0.16, 0.3, 0.12), (0.28, 0.4, 0.16), (0.4, 0.34, 0.14), (0.2, 0.22, 0.2))
    trees = y + 0.7 * dice.grain(5) + 0.2 * texture > dice.uniform(-1.6, 1.2)
    scene = torch.where(trees, leaves * (1 + 0.45 * texture), scene)
    ground = dice.colour(
        (0.42, 0.42, 0.44), (0.3, 0.31, 0.34), (0.5, 0.46, 0.38), (0.36, 0.46, 0.2)
    )
    horizon = dice.uniform(0.1, 1.2)
    lane = (x - dice.uniform(-0.6, 0.6) - dice.uniform(-1, 1) * y).abs() < 0.12 * (y - horizon)
    road = torch.where(lane, 0.85, ground * (1 + 0.12 * texture))
    return torch.where(y > horizon, road, scene)


def _house(scene: Tensor, dice: _Dice) -> Tensor:
    """`scene` with a wall in front, here and there; walls may have rows of windows."""
    x, y = _grid(SIZE)
    wall = dice.colour((0.6, 0.36, 0.28), (0.78, 0.74, 0.66), (0.5, 0.52, 0.56), (0.86, 0.8, 0.55))
    left, top = dice.uniform(-1.2, 0.8), dice.uniform(-1, 0.6)
    width = dice.uniform(0.2, 1.0) * dice.chance(0.6)
    pitch = dice.uniform(8, 16)
    windows = ((x * pitch).sin() > 0.1) & ((y * pitch).sin() > 0.2) & (dice.chance(0.6) > 0)
    front = torch.where(windows, wall * 0.5, wall)
    return torch.where((x > left) & (x < left + width) & (y > top), front, scene)


def _weathering(dice: _Dice) -> Tensor:
    """Dirt and fading of the sign itself, a factor ``(N, 1, SIZE, SIZE)``."""
    return 1 - dice.uniform(0, 0.16) * (1 + dice.grain(7))


def _lit(image: Tensor, dice: _Dice) -> Tensor:
    """Brightness, colour cast, and in some images the edge of a shadow."""
    x, y = _grid(SIZE)
    angle = dice.uniform(0, 2 * math.pi)
    edge = x * angle.cos() + y * angle.sin() - dice.uniform(-0.7, 0.7)
    shadow = dice.uniform(0.15, 0.55) * dice.chance(0.35)
    shade = 1 - shadow * (edge * dice.uniform(2, 14)).sigmoid()
    return image * shade * dice.uniform(0.45, 1.2) * dice.uniform(0.9, 1.08, 3)


def _blurred(image: Tensor, dice: _Dice) -> Tensor:
    """Out of focus or in motion: an oriented Gaussian of 5 x 5 pixels."""
    reach = range(-2, 3)
    angle = dice.uniform(0, math.pi)
    along, across = dice.uniform(0.25, 1.1), dice.uniform(0.25, 0.7)
    cosine, sine = angle.cos(), angle.sin()
    weights = {
        (dx, dy): (
            -0.5 * ((dx * cosine + dy * sine) / along) ** 2
            - 0.5 * ((dy * cosine - dx * sine) / across) ** 2
        ).exp()
        for dx in reach
        for dy in reach
    }
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    total = torch.zeros_like(image)
    for (dx, dy), weight in weights.items():
        total.addcmul_(weight, padded[:, :, 2 + dy : 2 + dy + SIZE, 2 + dx : 2 + dx + SIZE])
    return total / torch.stack(list(weights.values())).sum(0)


def _developed(image: Tensor, dice: _Dice) -> Tensor:
    """Contrast, saturation and noise of the sensor."""
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * dice.uniform(0.7, 1.15)
    image = 0.5 + (image - 0.5) * dice.uniform(0.7, 1.1) + dice.uniform(-0.06, 0.06)
    return image + dice.uniform(0.004, 0.04) * (0.6 * dice.gaussian(1) + 0.6 * dice.gaussian(3))
