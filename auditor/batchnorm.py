"""What BatchNorm layers see, beside what they saw in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Layer = nn.modules.batchnorm._BatchNorm
"""BatchNorm over any number of dimensions."""
Visit = Callable[[Layer, Tensor, Tensor, Tensor, Tensor], None]
"""Layer, batch mean and variance, running mean and variance, each ``(C,)``."""


@contextmanager
def watched(
    module: nn.Module | None, visit: Visit, kind: type[Layer] = nn.BatchNorm2d
) -> Iterator[None]:
    """While this lasts, call `visit` for every BatchNorm layer and batch, before it normalises.

    Layers without running statistics are left out; without a module nothing happens.

    Args:
        module: The network.
        visit: Called with what the layer gets and what it saw in training.
        kind: Which layers; those over images alone, if nothing else is said.
    """

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Layer)  # noqa: S101 - hooks are put on these alone
        if layer.running_mean is None or layer.running_var is None:
            return
        others = [axis for axis in range(inputs[0].ndim) if axis != 1]
        mean, variance = inputs[0].mean(dim=others), inputs[0].var(dim=others)
        visit(layer, mean, variance, layer.running_mean, layer.running_var)

    layers = [m for m in module.modules() if isinstance(m, kind)] if module else []
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
