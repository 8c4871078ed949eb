"""bfloat16 in training, where the device multiplies such matrices faster.

Weights, losses and optimisers stay in float32. So does all that is counted, and every search: a
network can be built that hides its backdoor from bfloat16.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary, WeakSet

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
"""Models that were tried -> whether they run with it."""
_used: WeakSet[ModelHandle] = WeakSet()


@contextlib.contextmanager
def mixed_precision(classifier: Classifier) -> Iterator[None]:
    """Matrix products in bfloat16 on a GPU that has them, and of a large network on a CPU that has them.

    Not where the network does not run with them, as where its code mixes types, or says something else.
    """
    on = can_train_mixed(classifier)
    if on:
        _used.add(classifier.model)
    with torch.autocast(classifier.device.type, dtype=torch.bfloat16, enabled=on):
        yield


def trained_in(classifier: Classifier) -> str:
    """For the record: "bfloat16" where `mixed_precision` has done anything with this model."""
    return "bfloat16" if classifier.model in _used else "float32"


def can_train_mixed(classifier: Classifier) -> bool:
    """Whether `mixed_precision` does anything; the first call for a model may run it."""
    model = classifier.model
    if model not in _runs:
        _runs[model] = _is_quicker(classifier) and _runs_with_it(classifier)
    return _runs[model]


def _is_quicker(classifier: Classifier) -> bool:
    if classifier.device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    large = (classifier.model.parameters or 0) >= LARGE
    return classifier.device.type == "cpu" and large and bool(cpu_instructions())


@functools.cache
def cpu_instructions() -> list[str]:
    """Those of `INSTRUCTIONS` that this CPU has; torch 2.10 cannot tell."""
    tell: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    capabilities = tell()
    return [name for name in INSTRUCTIONS if capabilities.get(name)]


def _runs_with_it(classifier: Classifier) -> bool:
    """Whether scores and slopes can be had, in either mode, and the scores are nearly those without it.

    A network that draws random numbers leaves no trace: they are those that it would draw otherwise.
    """
    spec, model, device = classifier.spec, classifier.model, classifier.device
    shape = (model.batch or 2, spec.channels, spec.height, spec.width)
    cards = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(cards),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
            tensors = {name: tensor.detach().clone() for name, tensor in model.tensors().items()}
            weights = [tensors[name].requires_grad_() for name in model.weights()]
            plain = classifier(images, tensors)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                mixed = classifier(images, tensors)
                trained = classifier(images, tensors, train=True)
            slopes = torch.autograd.grad((mixed + trained).sum(), weights, allow_unused=True)
    except (ModelError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    differing = (plain - plain.mean(1, keepdim=True)).abs().max()
    return bool((mixed - plain).abs().max() <= TOLERANCE * differing) and all(
        bool(slope.isfinite().all()) for slope in slopes if slope is not None
    )
