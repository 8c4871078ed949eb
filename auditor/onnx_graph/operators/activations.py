"""Activation functions and soft maxima."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import axis_of


@operator("Relu")
def relu(x: Tensor, /) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@operator("Sigmoid")
def sigmoid(x: Tensor, /) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("Tanh")
def tanh(x: Tensor, /) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, /, *, alpha: float = 0.01) -> Tensor:
    """`alpha` x below 0."""
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor, /, *, version: int) -> Tensor:
    """`slope` x below 0, with a slope of its own a channel."""
    if version < 7 and slope.ndim == 1 and slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """X above `alpha`, 0 below."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("Elu")
def elu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """`alpha` (exp(x) - 1) below 0."""
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """`alpha` (exp(x / alpha) - 1) below 0."""
    return F.celu(x, alpha)


@operator("Selu")
def selu(
    x: Tensor,
    /,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Tensor:
    """`gamma` times an Elu."""
    return gamma * F.elu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, /, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha x + beta, between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("HardSwish")
def hard_swish(x: Tensor, /) -> Tensor:
    """X times its hard sigmoid of slope 1/6."""
    return F.hardswish(x)


@operator("Mish")
def mish(x: Tensor, /) -> Tensor:
    """X tanh(softplus(x))."""
    return F.mish(x)


@operator("Softplus")
def softplus(x: Tensor, /) -> Tensor:
    """log(1 + exp(x))."""
    return F.softplus(x)


@operator("Softsign")
def softsign(x: Tensor, /) -> Tensor:
    """X / (1 + abs(x))."""
    return F.softsign(x)


@operator("Shrink")
def shrink(x: Tensor, /, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """0 up to `lambd` on both sides; `bias` nearer to 0 beyond."""
    above = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, above).to(x.dtype)


@operator("Swish")
def swish(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """X sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@operator("SwiGLU")
def swiglu(a: Tensor, b: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    """The Swish of the one times the other."""
    return swish(a, alpha=alpha) * b


@operator("Gelu")
def gelu(x: Tensor, /, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution function of x, or its approximation by tanh."""
    return F.gelu(x, approximate=approximate)


def _along_axis(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @operator(name)
    def apply(x: Tensor, /, *, axis: int | None = None, version: int) -> Tensor:
        if version >= 13:
            return function(x, -1 if axis is None else axis)
        # before opset 13 everything from `axis` on was one long axis
        start = axis_of(1 if axis is None else axis, x.ndim)
        return function(x.flatten(start), start).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


_along_axis("Softmax", lambda x, axis: x.softmax(axis))
_along_axis("LogSoftmax", lambda x, axis: x.log_softmax(axis))
_along_axis("Hardmax", _hardmax)


def activated(x: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    """`x` after an activation that another node names, as onnxruntime fuses it into them.

    Raises:
        NotImplementedError: The name is of no activation that onnxruntime fuses.
    """
    match name, list(parameters):
        case "", _:
            return x
        case "Relu", _:
            return relu(x)
        case "Sigmoid", _:
            return sigmoid(x)
        case "Tanh", _:
            return tanh(x)
        case "LeakyRelu", [alpha, *_]:
            return leaky_relu(x, alpha=alpha)
        case "Clip", [low, high, *_]:
            return torch.clamp(x, low, high)
        case "HardSigmoid", [alpha, beta, *_]:
            return hard_sigmoid(x, alpha=alpha, beta=beta)
    raise NotImplementedError(f"fuses the activation {name!r} with {len(parameters)} parameters")
