"""What the running statistics of BatchNorm layers would be, had the network always been as it is now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from auditor.batchnorm import Layer, watched
from auditor.classifier import Classifier, as_float
from auditor.progress import Notify
from auditor.purifiers.augment import shifted
from auditor.purifiers.base import copied_buffers, loop

BATCHES = 20
"""At 96 images each, chance moves a mean by 2 % of a standard deviation, in deep layers at worst."""


@torch.no_grad()
def reestimated(
    classifier: Classifier,
    tensors: Mapping[str, Tensor],
    images: Tensor,
    chosen: Tensor,
    *,
    batch: int,
    seed: int,
    notify: Notify,
) -> dict[str, Tensor]:
    """Running means and variances of a changed network: averages over batches, all alike.

    As in train mode every layer normalises by the batch's own statistics, so that later layers get
    what they will get with the new ones. Unlike there dropout stays off, which would spread what
    the layers after it see, and without momentum the last batches count for no more than the first.

    Args:
        classifier: The suspect, which stays as it is.
        tensors: Name -> what is changed in it.
        images: ``(N, C, H, W)`` uint8.
        chosen: Indices of those to look at, shifted and mirrored.
        batch: Images that are normalised together.
        seed: Of the order and the shifts.
        notify: Progress.

    Returns:
        Buffer name -> ``(channels,)``; empty without such layers, and for formats without an eager
        module to look into. Counts of batches are left as they are.
    """
    model = classifier.model
    if model.module is None or not model.trainable_statistics:
        return {}
    buffers = copied_buffers(model)
    names = {id(buffer): name for name, buffer in buffers.items()}
    passing: list[tuple[str, Tensor]] = []
    seen: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    order = chosen[torch.randperm(len(chosen), generator=generator)]

    def normalise(
        layer: Layer, mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor
    ) -> None:
        for buffer, value in ((running_mean, mean), (running_var, variance)):
            if id(buffer) in names:
                buffer.copy_(value)
                passing.append((names[id(buffer)], value))

    def step(number: int, size: int) -> bool:
        passing.clear()  # of a batch for which the memory was too small
        places = torch.arange(number * size, (number + 1) * size) % len(order)
        part = as_float(images[order[places].to(images.device)])
        classifier(shifted(part, generator, flip=True, zeros=False), {**tensors, **buffers})
        for name, value in passing:
            seen.setdefault(name, []).append(value)
        return True

    with watched(model.module, normalise, Layer):
        loop(
            "purifying: BatchNorm statistics",
            BATCHES,
            batch,
            step,
            notify=notify,
            device=classifier.device,
        )
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}
