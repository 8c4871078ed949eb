"""Convolutions and their transposes, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import bounded

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def margins(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """How much to pad before and after each spatial axis, for convolutions and pooling."""
    rank = len(sizes)
    if auto_pad in ("", "NOTSET"):
        given = list(pads or [0] * 2 * rank)
        return given[:rank], given[rank:]
    before, after = [0] * rank, [0] * rank
    if auto_pad == "VALID":
        return before, after
    for axis in range(rank):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        steps = -(-sizes[axis] // strides[axis])
        total = max((steps - 1) * strides[axis] + reach - sizes[axis], 0)
        small, large = total // 2, total - total // 2
        before[axis], after[axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return before, after


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` with a border of `value` around its last axes."""
    rank = len(before)
    sizes = x.shape[-rank:]
    spatial = [sum(sizes) for sizes in zip(sizes, before, after, strict=True)]
    bounded([*x.shape[:-rank], *spatial], x)
    borders: list[int] = []
    for low, high in zip(reversed(before), reversed(after), strict=True):
        borders += [low, high]
    return F.pad(x, borders, value=value)


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of ``(N, C, ...)`` with ``(M, C / group, ...)``."""
    del kernel_shape  # the weight has it
    rank = x.ndim - 2
    steps, spread = list(strides or [1] * rank), list(dilations or [1] * rank)
    before, after = margins(x.shape[2:], weight.shape[2:], steps, spread, pads, auto_pad)
    spatial = [
        (size + low + high - apart * (reach - 1) - 1) // step + 1
        for size, low, high, apart, reach, step in zip(
            x.shape[2:], before, after, spread, weight.shape[2:], steps, strict=True
        )
    ]
    bounded([len(x), len(weight), *spatial], x)
    if before != after or min(before) < 0:
        x, before = padded(x, before, after), [0] * rank
    return CONVOLUTIONS[rank](x, weight, bias, steps, before, spread, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The transpose of a convolution, with ``(C, M / group, ...)``."""
    del kernel_shape
    rank = x.ndim - 2
    steps, spread = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    whole = [
        step * (size - 1) + more + apart * (reach - 1) + 1
        for step, size, more, apart, reach in zip(
            steps, x.shape[2:], extra, spread, weight.shape[2:], strict=True
        )
    ]
    given = list(pads or [0] * 2 * rank)
    before, after = given[:rank], given[rank:]
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape or [
            size * step for size, step in zip(x.shape[2:], steps, strict=True)
        ]
        wanted = list(wanted)[-rank:]
        totals = [max(full - size, 0) for full, size in zip(whole, wanted, strict=True)]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        extra = [
            more + max(size - full, 0)
            for more, full, size in zip(extra, whole, wanted, strict=True)
        ]
        whole = [max(full, size) for full, size in zip(whole, wanted, strict=True)]
    bounded([len(x), weight.shape[1] * group, *whole], x)
    if before == after and all(more < step for more, step in zip(extra, steps, strict=True)):
        return TRANSPOSED[rank](x, weight, bias, steps, before, extra, group, spread)
    # torch crops both sides alike and extends little: compute everything, then crop or extend
    result = TRANSPOSED[rank](x, weight, None, steps, 0, 0, group, spread)
    result = padded(
        result,
        [-low for low in before],
        [more - high for more, high in zip(extra, after, strict=True)],
    )
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)
