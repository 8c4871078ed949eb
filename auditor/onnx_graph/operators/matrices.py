"""Products of matrices."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from auditor.onnx_graph.operators.registry import operator
from auditor.onnx_graph.operators.sizes import LARGEST, bounded


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, unless it would be absurdly large."""
    if min(a.ndim, b.ndim) > 1 and a.numel() * b.numel() > LARGEST:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        bounded([*batch, a.shape[-2], b.shape[-1]], a, b)
    return a @ b


@operator("MatMul")
def matmul(a: Tensor, b: Tensor, /) -> Tensor:
    """The product of matrices, batch by batch."""
    return product(a, b)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 1,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Alpha a @ b + beta c, the first two transposed if asked for."""
    del broadcast
    a, b = a.T if transA else a, b.T if transB else b
    bounded([a.shape[0], b.shape[1]], a, b)
    if c is None:
        result = a @ b
        return result if alpha == 1 else result * alpha
    if a.is_floating_point():
        return torch.addmm(c, a, b, alpha=alpha, beta=beta)
    return (alpha * (a @ b) + beta * c).to(a.dtype)


@operator("Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    """Products summed over the axes that an equation leaves out."""
    bounded([math.prod(_sizes(equation, tensors).values())], *tensors)
    result: Tensor = torch.einsum(equation, *tensors)
    return result


def _sizes(equation: str, tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """The size of every axis that the result of an equation names."""
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms.split(","), tensors, strict=True):
        named, _, trailing = term.partition("...")
        sizes |= dict(zip(named, tensor.shape, strict=False))
        sizes |= dict(zip(reversed(trailing), reversed(tensor.shape), strict=False))
        if "..." in term:
            between = tensor.shape[len(named) : tensor.ndim - len(trailing)]
            sizes["..."] = max(sizes.get("...", 1), math.prod(between))
    if "->" not in equation:
        letters = terms.replace(".", "").replace(",", "")
        return {name: size for name, size in sizes.items() if letters.count(name) < 2}
    return {name: size for name, size in sizes.items() if name in result}


@operator("Det")
def det(x: Tensor, /) -> Tensor:
    """The determinant of every matrix."""
    determinant: Tensor = torch.linalg.det(x)
    return determinant
