"""bfloat16 in training and searching, where the device multiplies such matrices faster.

Weights, losses and optimisers stay in float32, and nothing that is counted is made with it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import torch

from auditor.classifier import Classifier
from auditor.errors import ModelError
from auditor.memory import is_out_of_memory
from auditor.models.base import ModelHandle

LARGE = 1_000_000
"""Parameters from which on a network is slow on a CPU, so that it is worth the digits that it costs."""
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""What a CPU has to have; elsewhere bfloat16 is emulated, and slower than float32."""

TOLERANCE = 0.25
"""By how much scores of noise may differ from those in float32, of the largest distance from their mean."""

_runs: WeakKeyDictionary[ModelHandle, bool] = WeakKeyDictionary()


@contextlib.contextmanager
def mixed_precision(classifier: Classifier) -> Iterator[None]:
    """Matrix products in bfloat16 on a GPU that has them, and of a large network on a CPU that has them.

    Not where the network does not run with them, as where its code mixes types, or says something else.
    """
    on = uses_bfloat16(classifier)
    with torch.autocast(classifier.device.type, dtype=torch.bfloat16, enabled=on):
        yield


def uses_bfloat16(classifier: Classifier) -> bool:
    """Whether `mixed_precision` does anything; the first call for a model may run it."""
    model = classifier.model
    if model not in _runs:
        _runs[model] = _is_quicker(classifier) and _runs_with_it(classifier)
    return _runs[model]


def _is_quicker(classifier: Classifier) -> bool:
    if classifier.device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    large = (classifier.model.parameters or 0) >= LARGE
    return classifier.device.type == "cpu" and large and _cpu_has_it()


@functools.cache
def _cpu_has_it() -> bool:
    """Torch 2.10 cannot tell."""
    tell: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = tell()
    return any(capabilities.get(name) for name in INSTRUCTIONS)


def _runs_with_it(classifier: Classifier) -> bool:
    """Whether scores and slopes can be had, and the scores are nearly those that they are without."""
    spec, device = classifier.spec, classifier.device
    shape = (classifier.model.batch or 2, spec.channels, spec.height, spec.width)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
            weights = {n: w.detach().clone() for n, w in classifier.model.weights().items()}
            leaves = [leaf.requires_grad_() for leaf in (images, *weights.values())]
            plain = classifier(images, weights)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                mixed = classifier(images, weights)
            slopes = torch.autograd.grad(mixed.sum(), leaves, allow_unused=True)
    except (ModelError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    differing = (plain - plain.mean(1, keepdim=True)).abs().max()
    return bool((mixed - plain).abs().max() <= TOLERANCE * differing) and all(
        bool(slope.isfinite().all()) for slope in slopes if slope is not None
    )
