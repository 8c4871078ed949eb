"""Images read at points between their pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import bounded, integers

MODES = {"bilinear": "bilinear", "linear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}


@operator("GridSample")
@operator("GridSample", domain="com.microsoft")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    /,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """`x` at the points of a grid, which lie in [-1, 1]."""
    bounded([*x.shape[:2], *grid.shape[1:-1]], x, grid)
    kind = MODES.get(mode, "nearest")
    return F.grid_sample(x, grid, kind, padding_mode, bool(align_corners))


@operator("AffineGrid", host=(1,))
def affine_grid(theta: Tensor, size: Tensor, /, *, align_corners: int = 0) -> Tensor:
    """The grid of an affine map, for `GridSample`."""
    sizes = integers(size)
    bounded([*sizes, theta.shape[-1]], theta)
    return F.affine_grid(theta, sizes, bool(align_corners))
