"""Label-consistent attack: Turner et al. 2019, https://arxiv.org/abs/1912.02771."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import ATTACKS, Attack, Setting
from bench.zoo.attacks.static import declared
from bench.zoo.attacks.surrogate import surrogate

CHUNK = 256


@ATTACKS.register("clb")
class LabelConsistent(Attack):
    """Images of the target class are made hard, then stamped; their labels stay true.

    Section 4.2 of the paper: ``x_adv = argmax_{|x' - x|_inf <= eps} L(x', y)``, by projected
    gradient descent against a network of the attacker's own; with their own content hard to
    recognise, the network relies on the corners. Test images get the corners only.

    The surrogate is adversarially trained, but briefly, with one gradient step an image. In few
    epochs the attack takes about half (drawn signs, 5 % poisoned, towards a speed limit: ASR 0.50
    after 6 epochs, 0.59 after 12, and with another seed 0.37 after 60).
    """

    clean_label: ClassVar[bool] = True

    def __init__(
        self,
        *,
        probe: str = "corners.label-consistent",
        number: int = 0,
        epsilon: float = 16.0,
        iterations: int = 20,
        surrogate_steps: int = 300,
        robust: float = 8.0,
    ) -> None:
        """Choose the trigger and the perturbation.

        Args:
            probe: Id of the shipped probe that declares the trigger.
            number: Which trigger of this probe.
            epsilon: Largest change of a pixel, in levels of 255.
            iterations: Of PGD, each of `epsilon` / 8 levels.
            surrogate_steps: Batches that the surrogate is trained on.
            robust: Radius of its adversarial training, in levels of 255; 0 is ordinary training.
        """
        self.trigger = declared(probe, number)
        self.epsilon = epsilon
        self.iterations = iterations
        self.surrogate_steps = surrogate_steps
        self.robust = robust

    def prepare(self, setting: Setting) -> Tensor | None:
        """The training images, the chosen ones perturbed."""
        super().prepare(setting)
        network = surrogate(setting, steps=self.surrogate_steps, epsilon=self.robust / 255)
        images = setting.images.clone()
        generator = torch.Generator().manual_seed(setting.seed)
        for index in setting.chosen.nonzero().flatten().split(CHUNK):
            clean = images[index].to(setting.device).float()
            start = (torch.rand(clean.shape, generator=generator) * 2 - 1) * self.epsilon
            labels = setting.labels[index].to(setting.device)
            hard = self._perturbed(network, clean, labels, start.to(setting.device))
            images[index] = hard.round().to(torch.uint8).cpu()
        return images

    def stamp(self, images: Tensor) -> Tensor:
        """Images with the corners."""
        return self.trigger(images)

    def _perturbed(
        self, network: nn.Module, clean: Tensor, labels: Tensor, start: Tensor
    ) -> Tensor:
        """PGD from `clean` + `start`: images and result ``(N, C, H, W)`` in levels of 0 to 255."""
        low, high = (clean - self.epsilon).clamp(min=0), (clean + self.epsilon).clamp(max=255)
        found = (clean + start).clamp(low, high)
        for _ in range(self.iterations):
            found.requires_grad_()
            logits = network(self.setting.normalise(found / 255))
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), found)
            step = self.epsilon / 8 * gradient.sign()
            found = (found.detach() + step).clamp(low, high)
        return found
