"""What BatchNorm layers see, beside what they saw in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Visit = Callable[[nn.BatchNorm2d, Tensor, Tensor, Tensor, Tensor], None]
"""Layer, batch mean and variance, running mean and variance, each ``(C,)``."""


@contextmanager
def watched(module: nn.Module | None, visit: Visit) -> Iterator[None]:
    """While this lasts, call `visit` for every BatchNorm layer and batch.

    Layers without running statistics are left out; without a module nothing happens.
    """

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)  # noqa: S101 - hooks are put on these alone
        if layer.running_mean is None or layer.running_var is None:
            return
        mean, variance = inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3))
        visit(layer, mean, variance, layer.running_mean, layer.running_var)

    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)] if module else []
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
