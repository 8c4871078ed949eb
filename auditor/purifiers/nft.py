"""Neural mask Fine-Tuning as published (ECCV 2024, arXiv 2407.10052), with its ablations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.errors import UnsuitableModel
from auditor.masks import Shape, clip, effective, folded, lower_bounds, ones
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Batches,
    Purified,
    Purifier,
    Task,
    copied_buffers,
    count,
    detached,
    loop,
    whole_stage,
)
from auditor.text import clean_text

Network = Callable[[Tensor], Tensor]

PASS = 200
"""Iterations between two steps of the learning rate."""


@PURIFIERS.register("nft-paper")
@dataclass(frozen=True, kw_only=True)
class NeuralMaskFineTuning(Purifier):
    """Masks in [mu(l), 1] on every normalisation scale, fine-tuned under MixUp on clean images.

    Minimises ``L_mix(m) + eta_c / N_c * sum |1 - m|``, N_c = N / K, by SGD with momentum; masks are
    clipped to ``[mu(l), 1]`` after every step, ``mu(l) = alpha exp(-beta l)``. BatchNorm works in
    train mode, so its running statistics follow the mixed images, as in the official code.
    """

    title: ClassVar[str] = "Neural mask fine-tuning as published"
    chooses: ClassVar[bool] = False
    source: ClassVar[str] = "ECCV 2024, arXiv 2407.10052"

    iterations: int = 1000
    batch: int = 128
    lr: float = 0.05
    lr_min: float = 0.02
    """The cosine schedule goes from `lr` to this over five passes of 200 iterations."""
    momentum: float = 0.95
    regulariser: float = 0.001
    """eta_c; 0 leaves the l1 term out."""
    mixup: bool = True
    alpha: float = 0.8
    beta: float = 0.5
    bound: Shape = "exponential"
    """Shape of mu(l); `none` is the ablation without a lower bound."""
    depth_aware: bool = False
    """Stretch mu(l) over networks deeper than the paper's."""
    statistics: bool = True
    """BatchNorm in train mode, as published; False keeps its running statistics."""

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Fine-tune the masks and fold them."""
        classifier = task.classifier
        model, device = classifier.model, classifier.device
        sites = model.mask_sites()
        if not sites:
            raise UnsuitableModel(
                f"{clean_text(model.file.path.name)} has no layer that a mask could act on (no "
                "normalisation, and no convolution or linear layer before the last)."
            )
        own = model.tensors()
        bounds = lower_bounds(
            len(sites),
            alpha=self.alpha,
            beta=self.beta,
            shape=self.bound,
            depth_aware=self.depth_aware,
        )
        masks = {name: mask.requires_grad_() for name, mask in ones(sites, device).items()}
        statistics = copied_buffers(model) if self.statistics else {}
        optimizer = torch.optim.SGD(masks.values(), lr=self.lr, momentum=self.momentum)
        passes = max(1, -(-self.iterations // PASS))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes, self.lr_min)
        generator = torch.Generator().manual_seed(task.seed)
        pull = self.regulariser * task.classes / len(task.images)
        batches = Batches(task, generator)

        def step(number: int, batch: int) -> bool:
            images, labels = batches.draw(batch)
            with mixed_precision(classifier):
                loss = self._loss(
                    lambda x: classifier(
                        x, {**statistics, **effective(own, sites, masks)}, train=self.statistics
                    ),
                    images,
                    labels,
                    generator,
                )
            loss = loss + pull * torch.stack([(1 - m).abs().sum() for m in masks.values()]).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            clip(masks, sites, bounds)
            if (number + 1) % PASS == 0:
                schedule.step()
            return True

        run = loop(
            "neural mask fine-tuning",
            self.iterations,
            self.batch,
            step,
            notify=notify,
            device=device,
        )
        found = detached(masks)
        tensors = {**statistics, **folded(own, sites, found)}
        return Purified(
            tensors=tensors,
            masks=found,
            sites=tuple(sites),
            lower_bounds=tuple(bounds),
            stages=(whole_stage("masks", task, tensors, run),),
            trained=count(masks),
        )

    def _loss(
        self, call: Network, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy of images mixed by one weight from Beta(1, 1) = U(0, 1) a batch."""
        if not self.mixup:
            return F.cross_entropy(call(images), labels)
        weight = float(torch.rand((), generator=generator))
        other = torch.randperm(len(images), generator=generator).to(images.device)
        logits = call(weight * images + (1 - weight) * images[other])
        first, second = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[other])
        return weight * first + (1 - weight) * second
