"""What pruning methods share: channels are set to zero, as many as clean accuracy can bear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from auditor.errors import UnsuitableModel
from auditor.masks import MaskSite, folded
from auditor.models.base import ModelHandle
from auditor.purifiers.base import Purified, Task, all_finite, count
from auditor.purifiers.strongest import Candidate, Run, strongest
from auditor.text import clean_text

THRESHOLDS = tuple(round(step / 20, 2) for step in range(19, -1, -1))
"""0.95, 0.90 ... 0.05, 0: from the strongest to the gentlest."""


def sites_of(model: ModelHandle) -> list[MaskSite]:
    """Where masks can act on a network.

    Raises:
        UnsuitableModel: Nowhere.
    """
    sites = model.mask_sites()
    if not sites:
        raise UnsuitableModel(
            f"{clean_text(model.file.path.name)} has no layer whose channels could be pruned (no "
            "normalisation, and no convolution or linear layer before the last). Use --method finetune."
        )
    return sites


def descend(loss: Tensor, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> bool:
    """One step of masks down a loss, and back into [0, 1]; False, and no step, if it is not finite."""
    gradients = torch.autograd.grad(loss, tuple(masks.values()), allow_unused=True)
    if not bool(loss.isfinite()) or not all_finite(gradients):
        return False
    for mask, gradient in zip(masks.values(), gradients, strict=True):
        mask.grad = gradient
    optimizer.step()
    with torch.no_grad():
        for mask in masks.values():
            mask.clamp_(0, 1)
    return True


def pruned(
    own: Mapping[str, Tensor],
    sites: Sequence[MaskSite],
    masks: Mapping[str, Tensor],
    thresholds: Sequence[float],
) -> Iterator[Candidate]:
    """The network without the channels whose mask is at or below a threshold; at last, all of it.

    A threshold that prunes the same channels as the one before is left out.

    Args:
        own: The network's tensors by name, as the suspect has them.
        sites: Where the masks act.
        masks: Layer -> ``(channels,)`` in [0, 1], as trained.
        thresholds: Falling.
    """
    before, total = -1, count(masks)
    for threshold in (*thresholds, None):
        hard = {layer: _hard(mask, threshold) for layer, mask in masks.items()}
        cut = total - int(sum(float(mask.sum()) for mask in hard.values()))
        if cut == before:
            continue
        before = cut
        yield Candidate(
            settings={
                "threshold": "none" if threshold is None else f"{threshold:g}",
                "channels pruned": f"{cut:,} of {total:,}",
            },
            tensors=folded(own, sites, hard),
            masks=hard,
        )


def _hard(mask: Tensor, threshold: float | None) -> Tensor:
    return torch.ones_like(mask) if threshold is None else (mask > threshold).to(mask.dtype)


def chosen_by_threshold(
    task: Task,
    sites: Sequence[MaskSite],
    masks: Mapping[str, Tensor],
    thresholds: Sequence[float],
    run: Run,
) -> Purified:
    """The suspect without the channels of low mask, as many as clean accuracy can bear.

    Args:
        task: What the purifier was given.
        sites: Where the masks act.
        masks: Layer -> ``(channels,)`` in [0, 1], as trained.
        thresholds: Falling.
        run: Of the training of the masks.
    """
    own = task.classifier.model.tensors()
    chosen = strongest(task, pruned(own, sites, masks, thresholds))
    return Purified(
        tensors=chosen.candidate.tensors,
        masks=chosen.candidate.masks,
        sites=tuple(sites),
        lower_bounds=(0.0,) * len(sites),
        stages=(chosen.stage("pruning", run),),
        trained=count(masks),
    )
