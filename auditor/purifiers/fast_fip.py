"""Fast-FIP: FIP in the singular values of the weights, a few thousand numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from auditor.errors import UnsuitableModel
from auditor.models.base import ModelHandle
from auditor.purifiers.base import PURIFIERS
from auditor.purifiers.fisher import Coordinates, FlatMinimum, Tensors
from auditor.results.purify import What
from auditor.text import clean_text


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a weight, ``(out, rest)``."""

    weight: Tensor
    """W, of any shape."""
    axis: int
    """Its axis of output channels."""
    left: Tensor
    """U, ``(out, r)``."""
    values: Tensor
    """sigma, ``(r,)``, r = min(out, rest)."""
    right: Tensor
    """V^T, ``(r, rest)``."""

    def shifted(self, delta: Tensor) -> Tensor:
        """``W' = U diag(ReLU(sigma + delta)) V^T``, of the shape of W, differentiable in delta.

        Computed as ``W + U diag(ReLU(sigma + delta) - sigma) V^T``, so that W is W at delta = 0.
        """
        change = (self.left * ((self.values + delta).relu() - self.values)) @ self.right
        moved = self.weight.movedim(self.axis, 0)
        return self.weight + change.reshape(moved.shape).movedim(0, self.axis)


def spectrum(weight: Tensor, axis: int) -> Spectrum:
    """Decompose a weight whose output channels are along `axis`."""
    matrix = weight.movedim(axis, 0).flatten(1)
    return Spectrum(weight, axis, *torch.linalg.svd(matrix, full_matrices=False))


def spectra(model: ModelHandle) -> Mapping[str, Spectrum]:
    """Of every weight with two axes or more; the first is that of outputs unless a layer tells."""
    axes = dict(layer.weight for layer in model.anatomy())
    return {
        name: spectrum(weight.detach(), axes.get(name, 0))
        for name, weight in model.weights().items()
        if weight.ndim >= 2 and weight.numel() and weight.isfinite().all()
    }


@PURIFIERS.register("fast-fip")
@dataclass(frozen=True, kw_only=True)
class FastFisherPurification(FlatMinimum):
    """FIP that trains nothing but shifts of the weights' singular values.

    Every weight ``W = U diag(sigma) V^T`` becomes ``U diag(ReLU(sigma + delta)) V^T``; the loss of
    `FlatMinimum`, theta = delta, from delta = 0. Biases and normalisations stay as they are, but for
    BatchNorm's running statistics. No code of it was released.
    """

    title: ClassVar[str] = "Fast-FIP: FIP in the weights' singular values"
    source: ClassVar[str] = "ACM CCS 2024, arXiv 2409.00863"
    what: ClassVar[What] = "spectral shifts"

    lr: float = 0.005
    """Not published; FIP's, since ``u_k v_k^T`` are orthonormal: a step in delta is as long as the
    step in W that it makes."""

    def coordinates(self, model: ModelHandle) -> Coordinates:
        """Shifts of singular values, zero at the start."""
        found = spectra(model)
        if not found:
            raise UnsuitableModel(
                f"{clean_text(model.file.path.name)} has no weight with singular values (no matrix "
                "and no kernel that could be changed). Use --method nft."
            )

        def weights(delta: Tensors) -> Tensors:
            return {name: found[name].shifted(shift) for name, shift in delta.items()}

        start = {name: torch.zeros_like(entry.values) for name, entry in found.items()}
        return Coordinates(start=start, weights=weights)
