"""Kinds of trigger that an inversion looks for: one trigger a class, as tensors with gradients.

Each is a differentiable twin of a trigger of the battery, and can be turned into one. Images come
as ``(K, n, C, H, W)``: n images for each of K classes, which are searched side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.registry import Registry
from auditor.triggers.base import Trigger
from auditor.triggers.colour import ColourMatrix
from auditor.triggers.found import Addition, Overlay
from auditor.triggers.pictures import fitted
from auditor.triggers.warp import GridWarp, warped

MOST_SIDE = 64
"""Triggers on larger images are searched on a coarser grid, and interpolated."""
SHRINK, GROW = 0.95, 1.03
"""Factors on the size that a field may have, a step: where it works, and where it does not."""
STEP = 0.25
"""Length of a step, as a share of that size."""
MOMENTUM = 0.7
ROOM = 2.0
"""A trigger is judged at so many times the smallest size that worked."""


class Form(ABC):
    """Triggers of one kind, one for each of K classes."""

    what: ClassVar[str]
    """The kind in words."""
    measure: ClassVar[str]
    """What its size is, in words."""
    explored: ClassVar[int] = 0
    """Steps in which it looks around before it shrinks."""
    compared: ClassVar[float | None] = None
    """Largest size at which the class that the smallest one reaches is held against the next ones;
    None: never, where nobody has measured what benign networks do."""

    @abstractmethod
    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Random triggers for images ``(C, H, W)``."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Tensors that make the triggers, K rows each: what is kept of one that worked."""

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Stamped images, ``(K, n, C, H, W)`` in [0, 1]."""

    @abstractmethod
    def sizes(self) -> Tensor:
        """How large the change of each class is, ``(K,)``; what is kept small."""

    @abstractmethod
    def shrink(self, works: Tensor, fails: Tensor) -> Tensor:
        """Ask for smaller triggers where they work, for larger ones where they fail.

        Args:
            works: ``(K,)`` bool.
            fails: ``(K,)`` bool; where neither holds, nothing changes.

        Returns:
            What the search adds to its loss, ``(K,)``.
        """

    def learn(self, margins: Tensor, done: float) -> None:
        """While it looks around: what the last stamped images gave.

        Args:
            margins: ``(K, n)``.
            done: Share of the steps for that; from 1 on it shrinks.
        """
        raise NotImplementedError

    @abstractmethod
    def step(self) -> None:
        """Move against the gradients."""

    @abstractmethod
    def strongest(self, rows: Tensor, room: float = 1.0, size: float | None = None) -> Form:
        """The triggers of some classes, settled at the size that they are judged at.

        That is twice their own, so that there is room to become strong, and never more than
        a size that a benign network hardly obeys.

        Args:
            rows: Which classes.
            room: Factor on both for patches, for other purposes than judging. Changes of the whole
                image have none: larger ones turn any class into any.
            size: Settle them at this size instead.
        """

    @abstractmethod
    def trigger(self, row: int) -> Trigger:
        """The trigger of one class, for the battery."""

    def to(self, device: torch.device) -> Form:
        """Move to a device, before the first step."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                leaf = value.requires_grad
                setattr(self, name, value.detach().to(device).requires_grad_(leaf))
        return self

    def state(self) -> list[Tensor]:
        """A copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters()]

    @torch.no_grad()
    def restore(self, state: list[Tensor], rows: Tensor) -> None:
        """Take rows ``(K,)`` bool from a copy."""
        for parameter, kept in zip(self.parameters(), state, strict=True):
            parameter[rows] = kept[rows]


FORMS: Registry[type[Form]] = Registry("form of trigger")


@FORMS.register("patch")
class PatchForm(Form):
    """A pattern under a mask, the mask as small as possible.

    ``x' = (1 - m) x + m q``, ``m = sigmoid(2 a)``, ``q = sigmoid(2 p)``, Adam on a and p: Neural
    Cleanse (https://doi.org/10.1109/SP.2019.00031), with one weight of the mask's size a class.

    A mask that starts anywhere often shrinks towards the wrong place and stays there. So every
    image first shows the pattern in a window of its own, drawn at random; the mask then starts
    where windows were most effective.
    """

    what = "patch"
    measure = "share of the image that the mask covers"

    RATE = 0.25
    WEIGHT, HEAVIER, LIGHTER = 5.0, 1.3, 1.5
    WEIGHTS = (0.1, 1e5)
    explored = 90
    WINDOW, KEPT = 1 / 4, 0.08
    """Side of a window, as a share of the image's; share of the image where the mask then starts."""
    AREA, FEWEST = 0.01, 4
    """Largest share of the image, and fewest pixels, that a trigger is judged at."""

    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Faint masks, grey patterns."""
        channels, height, width = coarse(shape)
        self.size = shape[1:]
        self.mask = torch.randn(classes, 1, height, width, generator=draw) * 0.5 - 2
        self.pattern = torch.randn(classes, channels, height, width, generator=draw) * 0.5
        self.mask.requires_grad_()
        self.pattern.requires_grad_()
        self.weight = torch.full((classes,), self.WEIGHT)
        self.region: Tensor | None = None
        self.gain = torch.zeros(classes, height, width)
        self.seen = torch.zeros(classes, height, width)
        self.window: Tensor | None = None
        self._exploring, self._draw = True, draw
        self._optimizer: torch.optim.Adam | None = None

    def parameters(self) -> list[Tensor]:
        """Mask and pattern; where the region is settled, the pattern alone."""
        return [self.mask, self.pattern] if self.region is None else [self.pattern]

    def layers(self) -> tuple[Tensor, Tensor]:
        """Opacity ``(K, 1, h, w)`` and pattern ``(K, C, h, w)``."""
        opacity = torch.sigmoid(2 * self.mask) if self.region is None else self.region
        return opacity, torch.sigmoid(2 * self.pattern)

    def stamp(self, images: Tensor) -> Tensor:
        """The pattern over the images, by the mask."""
        if self._exploring:
            return self._in_windows(images)
        opacity, pattern = self.layers()
        over = resized(torch.cat([opacity * pattern, opacity], 1), self.size).unsqueeze(1)
        return images * (1 - over[:, :, -1:]) + over[:, :, :-1]

    def _in_windows(self, images: Tensor) -> Tensor:
        """The pattern where each image's own window is."""
        shape = images.shape[:2]
        inside = torch.ones(*shape, 1, 1, device=images.device)
        for axis, side in ((2, self.gain.shape[1]), (3, self.gain.shape[2])):
            length = max(1, round(side * self.WINDOW))
            first = torch.randint(0, side - length + 1, shape, generator=self._draw)
            places = torch.arange(side) - first.unsqueeze(2)
            along = ((places >= 0) & (places < length)).float().to(images.device)
            inside = inside * along.unsqueeze(5 - axis)
        self.window = inside
        shown = F.interpolate(inside.flatten(0, 1).unsqueeze(1), self.size, mode="nearest")
        pattern = resized(torch.sigmoid(2 * self.pattern), self.size).unsqueeze(1)
        return torch.lerp(images, pattern, shown.view(*shape, 1, *self.size))

    @torch.no_grad()
    def learn(self, margins: Tensor, done: float) -> None:
        """Remember where windows were effective, in the second half, when patterns have formed."""
        if done > 1 / 2 and self.window is not None:
            self.gain += (margins[:, :, None, None] * self.window).sum(1)
            self.seen += self.window.sum(1)
        if done >= 1:
            gain = torch.where(self.seen > 0, self.gain / self.seen.clamp_min(1), -torch.inf)
            count = max(self.FEWEST, round(self.KEPT * gain[0].numel()))
            ranks = gain.flatten(1).argsort(1, descending=True).argsort(1).view_as(gain)
            start = torch.where(ranks < count, 0.3, -2.0).unsqueeze(1)
            noise = torch.randn(start.shape, generator=self._draw).to(start.device)
            self.mask.copy_(start + 0.2 * noise)
            self._exploring, self.window, self._optimizer = False, None, None

    def sizes(self) -> Tensor:
        """Mean opacity."""
        return self.layers()[0].mean((1, 2, 3))

    def shrink(self, works: Tensor, fails: Tensor) -> Tensor:
        """A heavier or a lighter mask."""
        change = torch.where(works, self.HEAVIER, torch.where(fails, 1 / self.LIGHTER, 1.0))
        self.weight = (self.weight * change).clamp(*self.WEIGHTS)
        return self.weight * self.sizes()

    def step(self) -> None:
        """Adam."""
        if self._optimizer is None:
            moved = [self.pattern] if self._exploring else self.parameters()
            self._optimizer = torch.optim.Adam(moved, lr=self.RATE, betas=(0.5, 0.9))
        self._optimizer.step()
        self._optimizer.zero_grad()

    def strongest(self, rows: Tensor, room: float = 1.0, size: float | None = None) -> PatchForm:
        """The pixels where the mask is strongest, wholly opaque; the others untouched."""
        chosen = PatchForm.__new__(PatchForm)
        chosen.size, chosen._optimizer, chosen._exploring = self.size, None, False
        opacity = self.layers()[0][rows].detach()
        # of single pixels and blocks the latter: the mean over neighbours
        local = F.avg_pool2d(opacity, 3, 1, 1).flatten(1)
        area = room * (ROOM * opacity.mean((1, 2, 3), keepdim=True)).clamp_max(self.AREA)
        area = area if size is None else torch.full_like(area, size)
        count = (area.flatten(1) * local.shape[1]).round().clamp_min(self.FEWEST)
        ranks = local.argsort(1, descending=True).argsort(1)
        chosen.region = (ranks < count).float().view_as(opacity)
        chosen.pattern = self.pattern[rows].detach().clone().requires_grad_()
        return chosen

    def trigger(self, row: int) -> Trigger:
        """Pattern and mask as they are."""
        opacity, pattern = self.layers()
        return Overlay.of(pattern[row].detach(), opacity[row].detach())


class FieldForm(Form):
    """Numbers under a bound that shrinks as long as they work: projected gradient descent.

    Steps along the gradient, normalised and with momentum. The bound is a ball, of which its radius
    is the largest root mean square and a step a share, unless a form says otherwise.
    """

    START: ClassVar[float]
    """Radius that the ball has at first."""
    LARGEST: ClassVar[float]
    JUDGED: ClassVar[float]
    """Largest radius that a trigger is judged at: of an added picture the largest (in steps of 2/255)
    at which no benign network of the zoo's calibration half is surer on half of the images."""

    field: Tensor

    def begin(self, field: Tensor, shape: tuple[int, int, int]) -> None:
        """Start from a random field, ``(K, ...)``."""
        self.size = shape[1:]
        self.channels = shape[0]
        self.radius = torch.full((len(field),), self.START)
        self.field = self._within(field * self.START / 1000).requires_grad_()
        self.velocity = torch.zeros_like(field)
        self.settled = False

    def parameters(self) -> list[Tensor]:
        """The field."""
        return [self.field]

    def sizes(self) -> Tensor:
        """Root mean square."""
        return _rms(self.field).flatten()

    def shrink(self, works: Tensor, fails: Tensor) -> Tensor:
        """A smaller or a larger ball; nothing in the loss."""
        if not self.settled:
            change = torch.where(works, SHRINK, torch.where(fails, GROW, 1.0))
            self.radius = (self.radius * change).clamp(self.LARGEST / 1000, self.LARGEST)
        return torch.zeros_like(self.radius)

    @torch.no_grad()
    def step(self) -> None:
        """Along the gradient, then back into the ball."""
        gradient = self.field.grad
        if gradient is None:
            return
        unit = gradient / _rms(gradient).clamp_min(1e-20)
        self.velocity = MOMENTUM * self.velocity + (1 - MOMENTUM) * unit
        self.field.copy_(self._within(self.field - STEP * self._scale() * self.velocity))
        self.field.grad = None

    def strongest(self, rows: Tensor, room: float = 1.0, size: float | None = None) -> Form:
        """The fields blown up, or shrunk, to the ball that they are judged in."""
        chosen = type(self).__new__(type(self))
        chosen.size, chosen.channels, chosen.settled = self.size, self.channels, True
        chosen.radius = (ROOM * self.sizes()[rows].detach()).clamp_max(self.JUDGED)
        if size is not None:
            chosen.radius = torch.full_like(chosen.radius, size)
        chosen.field = chosen._blown_up(self.field[rows].detach()).requires_grad_()
        chosen.velocity = torch.zeros_like(chosen.field)
        return chosen

    def _scale(self) -> Tensor | float:
        """What a step is a share of."""
        return _rows(self.radius, self.field)

    def _within(self, field: Tensor) -> Tensor:
        size = _rms(field).clamp_min(1e-20)
        return field * (_rows(self.radius, field) / size).clamp_max(1)

    def _blown_up(self, field: Tensor) -> Tensor:
        """A field, as large as it may be."""
        return field / _rms(field) * _rows(self.radius, field)


@FORMS.register("additive")
class AdditiveForm(FieldForm):
    """One change added to every image: ``x' = clip(x + d)``, d as small as possible.

    Sinusoids, bumps in the spectrum and faint noise are close to this.
    """

    what = "added picture"
    measure = "root mean square of the change, of the full range"
    START, LARGEST, JUDGED = 0.06, 0.3, 6 / 255
    compared = 0.1  # as a picture that is blended in at a third

    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Nearly nothing."""
        self.begin(torch.randn(classes, *coarse(shape), generator=draw), shape)

    def stamp(self, images: Tensor) -> Tensor:
        """Images plus the field."""
        return (images + resized(self.field, self.size).unsqueeze(1)).clamp(0, 1)

    def trigger(self, row: int) -> Trigger:
        """The field as a picture to add."""
        return Addition.of(self.field[row].detach())


@FORMS.register("blend")
class BlendForm(FieldForm):
    """One picture blended into every image: ``x' = (1 - a) x + a q``, a as small as possible.

    Beside what it adds, it takes contrast, which no added picture does. The field is q less grey;
    the radius is the opacity a, and does not bound it. It is judged at twice the size of an added
    picture, since it changes an image by about half of its opacity.
    """

    what = "blended picture"
    measure = "opacity of the picture"
    START, LARGEST, JUDGED = 0.12, 0.6, 12 / 255

    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Nearly grey."""
        self.begin(torch.randn(classes, *coarse(shape), generator=draw), shape)

    def parameters(self) -> list[Tensor]:
        """The picture, and its opacity."""
        return [self.field, self.radius]

    def pictures(self) -> Tensor:
        """q, ``(K, C, h, w)``."""
        return (0.5 + self.field).clamp(0, 1)

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the picture in them."""
        picture = resized(self.pictures(), self.size).unsqueeze(1)
        return torch.lerp(images, picture, self.radius.view(-1, 1, 1, 1, 1))

    def sizes(self) -> Tensor:
        """Opacity."""
        return self.radius

    def trigger(self, row: int) -> Trigger:
        """The picture under an even mask."""
        picture = self.pictures()[row].detach()
        return Overlay.of(picture, self.radius[row].expand_as(picture[:1]))

    def _scale(self) -> float:
        """The picture is no larger where it is fainter."""
        return 1.0

    def _within(self, field: Tensor) -> Tensor:
        return field.clamp(-0.5, 0.5)

    def _blown_up(self, field: Tensor) -> Tensor:
        return field


@FORMS.register("warp")
class WarpForm(FieldForm):
    """A smooth warp, the displacements as small as possible."""

    what = "warp"
    measure = "root mean square displacement, in half image sides"
    START, LARGEST, JUDGED = 0.08, 0.4, 0.04
    POINTS = 6

    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Nearly still."""
        self.begin(torch.randn(classes, 2, self.POINTS, self.POINTS, generator=draw), shape)

    def stamp(self, images: Tensor) -> Tensor:
        """Warped images."""
        classes, count = images.shape[:2]
        moved = warped(images.flatten(0, 1), self.field.repeat_interleave(count, 0))
        return moved.view(classes, count, *images.shape[2:])

    def trigger(self, row: int) -> Trigger:
        """The field as the control points of a warp."""
        return GridWarp.of(self.field[row : row + 1].detach(), self.size[0])


@FORMS.register("colour")
class ColourForm(FieldForm):
    """A linear change of the colours, as near to none as possible."""

    what = "change of colours"
    measure = "root mean square difference of the matrix from none"
    START, LARGEST, JUDGED = 0.15, 0.8, 0.15

    def __init__(self, classes: int, shape: tuple[int, int, int], draw: torch.Generator) -> None:
        """Nearly none."""
        self.begin(torch.randn(classes, shape[0], shape[0] + 1, generator=draw), shape)

    def stamp(self, images: Tensor) -> Tensor:
        """``x + M x + b``."""
        matrix, offset = self.field[..., :-1], self.field[..., -1]
        change = torch.einsum("kij,knjhw->knihw", matrix, images)
        return (images + change + offset[:, None, :, None, None]).clamp(0, 1)

    def trigger(self, row: int) -> Trigger:
        """Matrix and offset; grey images have one number of each."""
        field = self.field[row].detach().cpu()
        if self.channels == 1:
            field = torch.cat([torch.eye(3) * field[0, 0], field[0, 1].expand(3, 1)], 1)
        matrix = (torch.eye(3) + field[:, :3]).tolist()
        red, green, blue = ((round(r, 4), round(g, 4), round(b, 4)) for r, g, b in matrix)
        x, y, z = (round(value, 4) for value in field[:, 3].tolist())
        return ColourMatrix(matrix=(red, green, blue), offset=(x, y, z))


def coarse(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, height and width of the grid that triggers for images ``(C, H, W)`` are searched on."""
    channels, height, width = shape
    factor = min(1.0, MOST_SIDE / max(height, width))
    return channels, max(1, round(height * factor)), max(1, round(width * factor))


def resized(field: Tensor, size: tuple[int, int]) -> Tensor:
    """``(K, C, h, w)`` at the images' size; as `fitted` does it."""
    return torch.stack([fitted(row, *size) for row in field]) if field.shape[2:] != size else field


def _rms(field: Tensor) -> Tensor:
    """Of each row, with as many dimensions."""
    return field.square().flatten(1).mean(1).add(1e-20).sqrt().view(-1, *[1] * (field.ndim - 1))


def _rows(values: Tensor, field: Tensor) -> Tensor:
    return values.view(-1, *[1] * (field.ndim - 1))
