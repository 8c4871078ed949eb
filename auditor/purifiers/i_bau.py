"""Adversarial unlearning by implicit hypergradients (I-BAU, ICLR 2022, arXiv 2110.03735)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.progress import Notify
from auditor.purifiers.base import (
    PURIFIERS,
    Batches,
    Purified,
    Purifier,
    Task,
    all_finite,
    count,
    loop,
    parted,
    trainable,
)
from auditor.purifiers.second_order import twice_differentiable
from auditor.purifiers.strongest import Candidate, Run, strongest
from auditor.purifiers.universal import l2_radius, no_change, within_l2

Loss = Callable[[Tensor], Tensor]
"""A loss as a function of the perturbation."""
State = dict[str, Tensor]


@PURIFIERS.register("i-bau")
@dataclass(frozen=True, kw_only=True)
class ImplicitUnlearning(Purifier):
    """min_theta max_delta 1/n sum CE(f_theta(x + delta), y), delta one perturbation for all images.

    A round first finds delta* by SGD on ``L_in = -CE(f(x + delta), y) + penalty ||delta||^2`` from
    zero, within a ball (the paper's ||delta|| <= C); then theta follows, by Adam, the gradient of
    ``L_out(theta, delta*(theta))``, which knows that the adversary answers (see `hypergradient`).
    Eval mode; x + delta is not clamped; float32 throughout, for the second derivatives' sake.

    L_out is CE on batches of which one half (`share`) is perturbed: the paper's formula has all
    of the images perturbed, BackdoorBench about 1 % of them, which is no image of our batches. The
    inner descent makes three passes and batches are of 32, so that a few hundred images make
    enough steps; both L_in and L_out of a step are those of its batch. The ball's radius is ours.

    The strength is the number of rounds: the weights after each are kept, and the most rounds that
    clean accuracy can bear are chosen, at the least none.
    """

    title: ClassVar[str] = "Adversarial unlearning by implicit hypergradients"
    source: ClassVar[str] = "I-BAU, ICLR 2022, arXiv 2110.03735"

    rounds: int = 5
    passes: int = 3
    """Over the images, to find the perturbation of a round."""
    batch: int = 32
    lr: float = 1e-4
    """Of Adam on the weights, one pass a round."""
    inner_lr: float = 10.0
    penalty: float = 0.001
    radius: float = 10.0
    """l2 norm that the perturbation of a CIFAR image may have; the same a number for others."""
    iterations: int = 5
    """K, of the fixed point."""
    rate: float = 0.1
    """Step of the fixed-point map."""
    share: float = 0.5
    """Of a batch, perturbed in L_out."""

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Unlearn in rounds, and choose how many of them."""
        states, each, run = self._states(task, notify)
        device = task.classifier.device

        def candidates() -> Iterator[Candidate]:
            for number in reversed(range(len(states))):
                yield Candidate(
                    settings={"rounds": str(number)},
                    tensors={name: w.to(device) for name, w in states[number].items()},
                    run=(number * each, 0, 0.0),
                )

        chosen = strongest(task, candidates())
        tensors = chosen.candidate.tensors
        return Purified(
            tensors=tensors, stages=(chosen.stage("weights", run),), trained=count(tensors)
        )

    def _states(self, task: Task, notify: Notify) -> tuple[list[State], int, Run]:
        """The weights before the first and after each round, steps a round, and the run."""
        classifier = task.classifier
        trained = trainable(classifier.model)
        optimizer = torch.optim.Adam(trained.values(), lr=self.lr)
        fit = parted(len(task.images), task.seed).fit
        size = min(self.batch, len(fit))
        outward = -(-len(fit) // size)
        inward = self.passes * outward
        each = inward + outward
        batches = Batches(task, torch.Generator().manual_seed(task.seed), fit)
        change = no_change(task.images)
        states = [_kept(trained)]

        def step(number: int, batch: int) -> bool:
            place = number % each
            if place == 0:
                change.zero_()
            images, labels = batches.draw(batch)

            def loss(change: Tensor, share: float = 1.0) -> Tensor:
                stamped = round(share * len(images))
                seen = torch.cat([images[:stamped] + change, images[stamped:]])
                return F.cross_entropy(classifier(seen, trained), labels)

            def inner(change: Tensor) -> Tensor:
                return self.penalty * change.square().sum() - loss(change)

            if place < inward:
                return self._descend(inner, change)
            with twice_differentiable(classifier.model):
                gradients = hypergradient(
                    inner,
                    lambda change: loss(change, self.share),
                    tuple(trained.values()),
                    change,
                    iterations=self.iterations,
                    rate=self.rate,
                )
            if not all_finite(gradients):
                return False
            for weight, gradient in zip(trained.values(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            if place == each - 1:
                states.append(_kept(trained))
            return True

        run = loop(
            "adversarial unlearning",
            self.rounds * each,
            size,
            step,
            notify=notify,
            device=classifier.device,
        )
        return states, each, run

    def _descend(self, inner: Loss, change: Tensor) -> bool:
        """One step of the perturbation, in place; False: the loss is not finite."""
        here = change.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(inner(here), here)
        if not gradient.isfinite().all():
            return False
        after = within_l2(change - self.inner_lr * gradient, l2_radius(change, self.radius))
        change.copy_(after)
        return True


def hypergradient(
    inner: Loss,
    outer: Loss,
    weights: Sequence[Tensor],
    change: Tensor,
    *,
    iterations: int,
    rate: float,
) -> list[Tensor]:
    """The gradient of L_out(theta, delta*(theta)), where delta* is a minimum of L_in(theta, .).

    By the implicit function theorem it is ``d_theta L_out - d2_theta,delta L_in u`` with
    ``u = (d2_delta,delta L_in)^-1 d_delta L_out``. The inverse is a fixed point (Grazzi et al., ICML
    2020): ``u <- u + rate (d_delta L_out - d2_delta,delta L_in u)`` from zero, so that K iterations
    are K terms of Neumann's series.

    Args:
        inner: L_in, by the present weights, twice differentiable.
        outer: L_out, by the present weights.
        weights: theta, with gradients.
        change: delta*.
        iterations: K; 0 leaves the adversary's answer out.
        rate: Converges where L_in is convex and it is below 2 over its largest curvature; K terms are
            what is used anyway.

    Returns:
        One a weight, of its shape.
    """
    delta = change.detach().clone().requires_grad_()
    *direct, wanted = torch.autograd.grad(
        outer(delta), [*weights, delta], allow_unused=True, materialize_grads=True
    )
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    answer = torch.zeros_like(wanted)
    for _ in range(iterations):
        (curved,) = torch.autograd.grad(slope, delta, answer, retain_graph=True)
        answer = answer + rate * (wanted - curved)
    mixed = torch.autograd.grad(slope, weights, answer, allow_unused=True, materialize_grads=True)
    return [first - second for first, second in zip(direct, mixed, strict=True)]


def _kept(weights: State) -> State:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
