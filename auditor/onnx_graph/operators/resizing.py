"""Images made larger and smaller.

Interpolation treats the axes one after another, so along each of them it is a matrix from the old
pixels to the new ones, whatever the mode. We build that matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axes_of, bounded, integers

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized."""

    size: int
    """Pixels before."""
    new: int
    """Pixels after."""
    scale: float
    window: tuple[float, float]
    """Begin and end of the part that is resized, as shares of the axis (tf_crop_and_resize)."""

    def positions(self, mode: str) -> Numbers:
        """Where among the old pixels each new one lies."""
        pixel = np.arange(self.new, dtype=np.float64)
        exact = self.scale * self.size  # what `new` was before it was rounded
        match mode:
            case "half_pixel":
                return (pixel + 0.5) / self.scale - 0.5
            case "pytorch_half_pixel":
                return (pixel + 0.5) / self.scale - 0.5 if exact > 1 else 0 * pixel - 0.5
            case "half_pixel_symmetric":
                offset = self.size / 2 * (1 - self.new / exact)
                return offset + (pixel + 0.5) / self.scale - 0.5
            case "asymmetric":
                return pixel / self.scale
            case "align_corners":
                return pixel * (self.size - 1) / (exact - 1) if exact != 1 else 0 * pixel
            case "tf_crop_and_resize":
                begin, end = (share * (self.size - 1) for share in self.window)
                if self.new == 1:
                    return pixel + (begin + end) / 2
                return begin + pixel * (end - begin) / (self.new - 1)
        raise NotImplementedError(f"resizes with coordinates of mode {mode!r}")


def _nearest(positions: Numbers, mode: str, scale: float) -> Numbers:
    match mode:
        case "round_prefer_floor":
            return np.ceil(positions - 0.5)
        case "round_prefer_ceil":
            return np.floor(positions + 0.5)
        case "floor":
            return np.floor(positions)
        case "ceil":
            return np.ceil(positions)
        case "simple":  # what was meant before opset 11
            return np.floor(positions) if scale >= 1 else np.ceil(positions)
    raise NotImplementedError(f"takes the nearest pixel in the mode {mode!r}")


def _linear(distance: Numbers) -> Numbers:
    triangle: Numbers = np.maximum(1 - np.abs(distance), 0)
    return triangle


def _cubic(a: float) -> Callable[[Numbers], Numbers]:
    def weights(distance: Numbers) -> Numbers:
        d = np.abs(distance)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return weights


def _matrix(
    axis: _Axis,
    positions: Numbers,
    kernel: Callable[[Numbers], Numbers],
    radius: int,
    antialias: bool,
    exclude_outside: bool,
) -> Numbers:
    """``(new, size)``: how much of each old pixel is in each new one."""
    stretch = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil(radius / stretch)
    bounded([axis.new, axis.size + 2 * reach])
    neighbours = np.floor(positions)[:, None] + np.arange(1 - reach, reach + 1)
    weights = kernel((neighbours - positions[:, None]) * stretch)
    if exclude_outside:
        weights = np.where((neighbours >= 0) & (neighbours < axis.size), weights, 0)
    if exclude_outside or antialias:
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((axis.new, axis.size))
    rows = np.broadcast_to(np.arange(axis.new)[:, None], weights.shape)
    columns = np.clip(neighbours, 0, axis.size - 1).astype(np.int64)
    np.add.at(matrix, (rows, columns), weights)
    return matrix


@operator("Resize", host=(1, 2, 3))
def resize(
    x: Tensor,
    second: Tensor | None = None,
    third: Tensor | None = None,
    fourth: Tensor | None = None,
    /,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    version: int,
) -> Tensor:
    """Another size, told by scales or directly."""
    if version < 11:  # no region of interest yet, one way to count
        roi, scales, sizes = None, second, None
        coordinate_transformation_mode, nearest_mode = "asymmetric", "simple"
    else:
        roi, scales, sizes = second, third, fourth
    chosen = axes_of(None, axes, x.ndim)
    chosen = list(range(x.ndim)) if chosen is None else chosen
    resized = _resized_axes(x, chosen, roi, scales, sizes, keep_aspect_ratio_policy)
    final = list(x.shape)
    for place, axis in zip(chosen, resized, strict=True):
        final[place] = axis.new
    bounded(final, x)
    outside = torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)
    result = x
    for place, axis in zip(chosen, resized, strict=True):
        crops = coordinate_transformation_mode == "tf_crop_and_resize"
        if axis.new == axis.size and axis.scale == 1 and not crops:
            continue
        positions = axis.positions(coordinate_transformation_mode)
        if mode == "nearest":
            nearest = _nearest(positions, nearest_mode, axis.scale).clip(0, axis.size - 1)
            order = torch.from_numpy(nearest.astype(np.int64)).to(x.device)
            result = result.index_select(place, order)
        else:
            kernel, radius = (_cubic(cubic_coeff_a), 2) if mode == "cubic" else (_linear, 1)
            weights = _matrix(
                axis, positions, kernel, radius, bool(antialias), bool(exclude_outside)
            )
            matrix = torch.from_numpy(weights.astype(np.float32)).to(x.device)
            result = (result.float().movedim(place, -1) @ matrix.T).movedim(-1, place)
        if crops:
            line = [1] * x.ndim
            line[place] = axis.new
            beyond = (positions < 0) | (positions > axis.size - 1)
            outside = outside | torch.from_numpy(beyond).to(x.device).reshape(line)
    if bool(outside.any()):
        result = torch.where(outside, extrapolation_value, result)
    return result.to(x.dtype)


def _resized_axes(
    x: Tensor,
    chosen: list[int],
    roi: Tensor | None,
    scales: Tensor | None,
    sizes: Tensor | None,
    policy: str,
) -> list[_Axis]:
    old = [x.shape[axis] for axis in chosen]
    if sizes is not None and sizes.numel():
        new = integers(sizes)
        factors = [after / before for before, after in zip(old, new, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(old)
            new = [math.floor(factor * size + 0.5) for size in old]
    elif scales is not None and scales.numel():
        factors = [float(factor) for factor in scales.reshape(-1).tolist()]
        new = [math.floor(size * factor) for size, factor in zip(old, factors, strict=True)]
    else:
        raise ValueError("tells neither scales nor sizes")
    if min(new, default=1) < 1 or min(factors, default=1.0) <= 0:
        raise ValueError(f"asks for the sizes {new}")
    begins, ends = [0.0] * len(old), [1.0] * len(old)
    if roi is not None and roi.numel():
        shares = [float(share) for share in roi.reshape(-1).tolist()]
        begins, ends = shares[: len(old)], shares[len(old) :]
    return [
        _Axis(before, after, factor, (begin, end))
        for before, after, factor, begin, end in zip(old, new, factors, begins, ends, strict=True)
    ]


@operator("Upsample", host=(1,))
def upsample(
    x: Tensor,
    factors: Tensor | None = None,
    /,
    *,
    mode: str = "nearest",
    scales: Sequence[float] | None = None,
) -> Tensor:
    """What Resize was called before opset 10."""
    given = torch.tensor(list(scales or ())) if factors is None else factors
    return resize(x, given, mode="nearest" if mode == "nearest" else "linear", version=10)
