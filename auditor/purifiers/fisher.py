"""What FIP and Fast-FIP share: Fisher information, and fine-tuning towards where there is little.

Both minimise the same loss, in other coordinates theta. The formula is that of the paper (CCS 2024,
arXiv 2409.00863). How it is computed is our own: the released code's trace estimator is linear in
the gradient and has mean zero, and its anchor is commented out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from auditor.classifier import as_float
from auditor.models.base import ModelHandle
from auditor.precision import mixed_precision
from auditor.progress import Notify
from auditor.purifiers.base import (
    Batches,
    Purified,
    Purifier,
    Task,
    checked,
    copied_buffers,
    count,
    detached,
    loop,
    parted,
)
from auditor.purifiers.second_order import twice_differentiable
from auditor.purifiers.strongest import Candidate, bisected
from auditor.results.purify import What

Tensors = dict[str, Tensor]
Labels = Literal["sampled", "true"]

FISHER_IMAGES = 256
"""Images, at most, that the diagonal of the Fisher information is a mean over."""
HOPELESS = 5.0
"""Half-way, a training ends if it has cost so many times the accuracy that may be lost…"""
HOPELESS_AT_LEAST = 0.1
"""…and more than so much: the other half rarely brings that back."""


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """What is trained, and how the network's weights follow from it."""

    start: Tensors
    """theta_bd: the coordinates of the suspect."""
    weights: Callable[[Tensors], Tensors]
    """theta -> the weights, by their names in the network, differentiable."""


@dataclass(frozen=True, kw_only=True)
class FlatMinimum(Purifier):
    """Fine-tuning into a flat minimum of the loss on clean images, by SGD with momentum.

    ``L(theta) = CE + eta_F Tr F(theta) + eta_r / 2 sum_i Fbar_i (theta_i - theta_bd,i)^2``

    F is the Fisher information on clean images. Fbar is its diagonal at the suspect, empirical (of
    the given labels) and not normalised. Cross-entropy is in train mode. The trace, in eval mode so
    that images do not see each other, enters every `every`-th iteration (as often as in the released
    code, and not scaled up for that); the gradient of ``eta_F Tr F`` is shortened to the length of
    the cross-entropy's, since Tr F is in the thousands at the sharp minimum where training starts.

    The pair (eta_F, eta_r) is chosen a model at a time: the first of `strengths` that clean accuracy
    on kept-back images can bear, all of them with the same draws (the last, where there are too few
    images to keep some back).
    """

    what: ClassVar[What]

    iterations: int = 400
    """The paper's 100 epochs of 500 images in batches of 128; its released code has 2,000."""
    batch: int = 128
    lr: float = 0.005
    momentum: float = 0.95
    every: int = 5
    """Iterations from one trace to the next."""
    labels: Labels = "sampled"
    """y in the trace: drawn from the network's own p(y|x) (the true Fisher information, which is
    still there where the images are fitted), or the given ones (the empirical)."""
    strengths: tuple[tuple[float, float], ...] = ((5e-3, 5), (1e-3, 5), (1e-4, 5), (1e-4, 50))
    """(eta_F, eta_r), from the strongest to the gentlest. The paper's author advises an eta_F of
    0.005 or less; eta_r is 5 in the released code."""

    @abstractmethod
    def coordinates(self, model: ModelHandle) -> Coordinates:
        """What to train of a network.

        Raises:
            UnsuitableModel: It has nothing of the kind.
        """

    def purify(self, task: Task, notify: Notify) -> Purified:
        """Train at the strongest pair (eta_F, eta_r) that clean accuracy can bear."""
        coordinates = self.coordinates(task.classifier.model)
        fisher = diagonal(task, coordinates, notify) if self.iterations else {}

        chosen = bisected(
            task,
            [
                partial(self._trained, task, coordinates, fisher, eta_f, eta_r, notify)
                for eta_f, eta_r in self.strengths
            ],
        )
        return Purified(
            tensors=chosen.candidate.tensors,
            stages=chosen.stages(self.what),
            trained=count(coordinates.start),
        )

    def _trained(
        self,
        task: Task,
        coordinates: Coordinates,
        fisher: Tensors,
        eta_f: float,
        eta_r: float,
        notify: Notify,
    ) -> Candidate:
        """The suspect, fine-tuned at one strength."""
        classifier, start = task.classifier, coordinates.start
        theta = fresh(start)
        places = list(theta.values())
        buffers = copied_buffers(classifier.model)
        optimizer = torch.optim.SGD(places, lr=self.lr, momentum=self.momentum)
        generator = torch.Generator().manual_seed(task.seed)
        batches = Batches(task, generator, parted(len(task.images), task.seed).fit)

        def changed() -> Tensors:
            return {**buffers, **coordinates.weights(theta)}

        def step(number: int, batch: int) -> bool:
            if number and number == self.iterations // 2 and hopeless(task, detached(changed())):
                return False
            images, labels = batches.draw(batch)
            steep = [torch.zeros_like(tensor) for tensor in places]
            if eta_f and number % self.every == 0:
                with twice_differentiable(classifier.model):
                    # in full precision: these are squares of gradients
                    scores = classifier(images, changed())
                    trace = self._trace(scores, labels, places, generator)
                    steep = slopes(eta_f * trace, places)
            now = changed()
            with mixed_precision(classifier):
                logits = classifier(images, now, train=True)
            fit = slopes(F.cross_entropy(logits.float(), labels), places)
            steep = shortened(steep, norm(fit))
            held = slopes(eta_r * anchor(theta, start, fisher), places)
            if not bool(norm([*fit, *steep, *held]).isfinite()):
                return False
            for tensor, *parts in zip(places, fit, steep, held, strict=True):
                tensor.grad = parts[0] + parts[1] + parts[2]
            optimizer.step()
            return True

        device = classifier.device
        run = loop(self.title, self.iterations, self.batch, step, notify=notify, device=device)
        own, after = classifier.model.tensors(), detached(changed())
        return Candidate(
            settings={"eta_F": f"{eta_f:g}", "eta_r": f"{eta_r:g}"},
            tensors={name: new for name, new in after.items() if not torch.equal(new, own[name])},
            run=run,
        )

    def _trace(
        self, logits: Tensor, labels: Tensor, theta: Sequence[Tensor], generator: torch.Generator
    ) -> Tensor:
        likelihoods = logits.log_softmax(1)
        if self.labels == "sampled":
            labels = sampled(likelihoods.detach(), generator)
        signs = torch.randint(2, (len(labels),), generator=generator).to(labels.device) * 2 - 1
        return fisher_trace(likelihoods.gather(1, labels[:, None])[:, 0], signs, theta)


def fisher_trace(likelihoods: Tensor, signs: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """An unbiased estimate of the trace of the Fisher information, differentiable in theta.

    ``T = ||G||^2 / B`` with ``G = grad_theta sum_i r_i log p(y_i | x_i)``. Since the signs are
    independent, ``E[r_i r_j] = delta_ij`` and ``E[T] = (1/B) sum_i ||grad log p(y_i | x_i)||^2``.

    Args:
        likelihoods: ``(B,)``, log p(y_i | x_i) of images that do not see each other.
        signs: ``(B,)``, r_i: 1 or -1, with probability one half.
        theta: What to differentiate by.
    """
    total = (signs * likelihoods).sum()
    return squared_norm(slopes(total, theta, create_graph=True)) / len(signs)


def sampled(likelihoods: Tensor, generator: torch.Generator) -> Tensor:
    """Classes ``(B,)`` drawn by their log probabilities ``(B, K)``, the Gumbel-max way."""
    uniform = torch.rand(likelihoods.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
    return (likelihoods - uniform.log().neg().log().to(likelihoods.device)).argmax(1)


def anchor(theta: Tensors, start: Tensors, fisher: Tensors) -> Tensor:
    """``1/2 sum_i Fbar_i (theta_i - theta_bd,i)^2``: what matters on clean images stays.

    Args:
        theta: The coordinates.
        start: theta_bd.
        fisher: Fbar, of the same names and shapes.
    """
    moved = [fisher[name] * (tensor - start[name]).square() for name, tensor in theta.items()]
    return torch.stack([part.sum() for part in moved]).sum() / 2


def shortened(gradients: Sequence[Tensor], longest: Tensor) -> list[Tensor]:
    """The gradients, all of them times one factor so that their norm is at most `longest`."""
    factor = (longest / norm(gradients).clamp_min(1e-30)).clamp_max(1)
    return [gradient * factor for gradient in gradients]


def diagonal(task: Task, coordinates: Coordinates, notify: Notify) -> Tensors:
    """Fbar: the mean over fit images of the squared gradients of log p(y|x), at the suspect.

    One image after the other, in eval mode, y as given; of at most `FISHER_IMAGES` images.
    """
    chosen = parted(len(task.images), task.seed).fit[:FISHER_IMAGES]
    theta = fresh(coordinates.start)
    places = list(theta.values())
    weights = coordinates.weights(theta)
    sums = [torch.zeros_like(tensor) for tensor in places]

    def step(number: int, batch: int) -> bool:
        place = chosen[number : number + 1]
        logits = task.classifier(as_float(task.images[place.to(task.images.device)]), weights)
        loss = F.cross_entropy(logits, task.labels[place].to(logits.device))
        for total, slope in zip(sums, slopes(loss, places, keep=True), strict=True):
            total += slope.square()
        return True

    device = task.classifier.device
    loop("Fisher information", len(chosen), 1, step, notify=notify, device=device)
    return {name: total / len(chosen) for name, total in zip(theta, sums, strict=True)}


@torch.no_grad()
def hopeless(task: Task, tensors: Tensors) -> bool:
    """True where much more accuracy is gone, on the images for choosing, than may be lost."""
    clean = replace(task, known=())
    lost = checked(clean, {}).acc - checked(clean, tensors).acc
    return lost > max(HOPELESS * task.max_acc_drop, HOPELESS_AT_LEAST)


def fresh(start: Tensors) -> Tensors:
    """Copies to train."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all numbers."""
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all numbers together."""
    return squared_norm(gradients).sqrt()


def slopes(
    value: Tensor, theta: Sequence[Tensor], *, create_graph: bool = False, keep: bool = False
) -> list[Tensor]:
    """The gradient; zero for what `value` does not depend on.

    Args:
        value: A scalar.
        theta: What to differentiate by.
        create_graph: It shall be differentiable itself.
        keep: The graph will be needed again.
    """
    found = torch.autograd.grad(
        value,
        theta,
        retain_graph=keep or create_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)
