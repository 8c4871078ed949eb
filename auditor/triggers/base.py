"""What every trigger is: a deterministic, differentiable function of images and of its fields."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, cast, final

import torch
from torch import Tensor

from auditor.errors import ProbeError
from auditor.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")

Rounding = Literal["none", "trunc", "round"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Trigger(ABC):
    """A change of images that a backdoor may listen to.

    Subclasses are frozen keyword-only dataclasses: the fields *are* the trigger, and they are
    checked when it is made (`__post_init__`, raising `ProbeError` with the offending value). They
    write the idea in `stamp` and what to compare it with in `control`; calling the trigger adds
    the checks. Registered with `@TRIGGERS.register("kind")`, a trigger can be used from YAML.
    """

    rounding: Rounding = "round"
    """How the stamped image goes back to 8 bits: `trunc` (a cast to uint8, as most attack code
    does), `round`, or `none` (the attack worked on floats)."""

    needs_structure: ClassVar[bool] = False
    """True where the trigger only shows on images with content (warps, colours, quantisation);
    it is then not tested on generated noise."""

    keeps_meaning: ClassVar[bool] = True
    """False where an honest model may answer differently for good reason (an arrow that is turned
    round, a red sign made blue): what such a trigger does is at most suspicious."""

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """The idea, nothing else: the stamped images, before clamping and rounding.

        Args:
            images: ``(N, C, H, W)``, float32 in [0, 1], C of 1 or 3. Must not be modified.

        Returns:
            A new tensor of the same shape; values outside [0, 1] will be clamped.
        """

    @abstractmethod
    def control(self, seed: int) -> Trigger:
        """The matched control number `seed`: same place, area and strength, without the pattern."""

    @final
    def __call__(self, images: Tensor) -> Tensor:
        """Stamp images.

        Args:
            images: ``(N, C, H, W)`` float in [0, 1].

        Returns:
            A new tensor ``(N, C, H, W)`` in [0, 1]. Gradients pass through the rounding unchanged
            (straight-through).

        Raises:
            ValueError: `images` has another shape or type, or `stamp` changed the shape.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                f"images must be (N, 1 or 3, H, W) float, not {tuple(images.shape)} {images.dtype}"
            )
        stamped = self.stamp(images)
        if stamped.shape != images.shape:
            raise ValueError(f"{self!r} made {tuple(stamped.shape)} of {tuple(images.shape)}")
        return quantised(stamped.clamp(0.0, 1.0), self.rounding)

    def fields(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values: `trigger` of a probe file."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def __repr__(self) -> str:
        """The expression that rebuilds the trigger; fields at their default are left out."""
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.repr and getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def quantised(images: Tensor, rounding: Rounding) -> Tensor:
    """Images in [0, 1] on the 8-bit grid, with a straight-through gradient."""
    if rounding == "none":
        return images
    levels = images.detach() * 255
    # A float32 that stands for an integer may lie a hair below it: the cast must not lose a level.
    grid = (levels + 1e-3).floor() if rounding == "trunc" else levels.round()
    if images.requires_grad:
        return images + (grid.div_(255) - images.detach())
    return grid.div_(255)


def wrapped(images: Tensor) -> Tensor:
    """What a cast to uint8 without clipping makes of images that leave [0, 1].

    Levels are cut toward zero and taken modulo 256, so that white plus a little is black. The
    gradient passes straight through.
    """
    levels = images.detach() * 255
    whole = (levels + 1e-3 * levels.sign()).trunc().remainder(256) / 255
    return images + (whole - images.detach()) if images.requires_grad else whole


TRIGGERS: Registry[type[Trigger]] = Registry("trigger kind")


def generator(seed: int) -> torch.Generator:
    """A CPU generator: patterns are drawn on the CPU, so that they are the same on every device."""
    return torch.Generator().manual_seed(seed)


def cached(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the last results of a function that builds a trigger's constants.

    Tensors that are made in inference mode could not be used for gradients later, so it is
    switched off while they are built.
    """

    def decorate(build: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(build)
        def build_plainly(*args: P.args, **kwargs: P.kwargs) -> T:
            with torch.inference_mode(False), torch.no_grad():
                return build(*args, **kwargs)

        return cast(Callable[P, T], functools.lru_cache(maxsize)(build_plainly))

    return decorate


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a field that lies outside its range.

    Raises:
        ProbeError: `value` is outside ``[low, high]`` (or not a number).
    """
    if not low <= value <= high:
        raise ProbeError(f"{name} is {value!r}; it must lie between {low:g} and {high:g}")
