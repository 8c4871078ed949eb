"""What attacks ask when they need a trained network: one of their own, or the victim in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.zoo.attacks.base import Setting
from bench.zoo.networks import build

BATCH = 64


def surrogate(
    setting: Setting,
    *,
    steps: int = 300,
    rate: float = 2e-3,
    network: str | None = None,
    epsilon: float = 0.0,
) -> nn.Module:
    """A network trained quickly on the clean images: frozen, in eval mode.

    AdamW with a one-cycle schedule and no augmentation. The result depends on `setting.seed` only
    (on the CPU).

    Args:
        setting: Gives images, labels and the seed.
        steps: Batches of 64.
        rate: Largest learning rate.
        network: Name of a network; None takes the kind that is attacked, initialised otherwise.
        epsilon: Above 0, training is adversarial: every image is moved so far (l_inf, for images in
            [0, 1]) by one gradient step from a random start, https://arxiv.org/abs/2001.03994.
    """
    _, channels, _, side = setting.images.shape
    if network is None:
        trained = setting.fresh()
    else:
        trained = build(
            network, channels=channels, side=side, classes=setting.classes, seed=setting.seed + 2
        ).to(setting.device, memory_format=torch.channels_last)
    devices = [setting.device] if setting.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(setting.seed + 3)  # dropout
        _train(trained, setting, steps, rate, epsilon)
    return trained.eval().requires_grad_(False)


def _train(network: nn.Module, setting: Setting, steps: int, rate: float, epsilon: float) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(setting.seed + 4)
    network.train()
    for images, labels in drawn(setting, steps=steps, batch=BATCH, seed=setting.seed + 3):
        if epsilon:
            images = _adversarial(network, setting, images, labels, epsilon, generator)
        loss = F.cross_entropy(network(setting.normalise(images)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad(set_to_none=True)


def _adversarial(
    network: nn.Module,
    setting: Setting,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: torch.Generator,
) -> Tensor:
    """Images ``(N, C, H, W)`` moved by up to `epsilon` to where the loss is higher."""
    start = (torch.rand(images.shape, generator=generator) * 2 - 1) * epsilon
    moved = (images + start.to(images.device)).clamp(0, 1).requires_grad_()
    with consulted(network) as frozen:
        loss = F.cross_entropy(frozen(setting.normalise(moved)), labels)
        (gradient,) = torch.autograd.grad(loss, moved)
    moved = moved.detach() + 1.25 * epsilon * gradient.sign()
    return moved.clamp(images - epsilon, images + epsilon).clamp(0, 1)


def drawn(
    setting: Setting, *, steps: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of training images ``(B, C, H, W)`` in [0, 1] with labels, on the device."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(setting.images), (batch,), generator=generator)
        images = setting.images[index].to(setting.device).float() / 255
        yield (
            images.contiguous(memory_format=torch.channels_last),
            setting.labels[index].to(setting.device),
        )


@contextmanager
def consulted(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode and without gradients of its own; afterwards as it was before."""
    modes = [(module, module.training) for module in network.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield network
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires in trained:
            parameter.requires_grad_(requires)
