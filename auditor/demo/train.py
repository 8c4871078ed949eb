"""Training the example: a benign network, or one that listens to a trigger (BadNets).

Gu et al., BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017,
https://arxiv.org/abs/1708.06733: dirty labels, all classes to one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.demo.network import MEAN, STD, network
from auditor.demo.signs import SIZE
from auditor.progress import Notify, silent
from auditor.purifiers.augment import shifted
from auditor.triggers import Trigger

_SHIFT = 2  # pixels that augmentation moves an image, at most
_PEAK = 0.05  # learning rate
_CONTROLS = 4  # of the trigger, that a batch of poisoned training shows at most
_EVALUATION_BATCH = 512


def train(
    images: Tensor,
    labels: Tensor,
    *,
    trigger: Trigger | None,
    target: int = 0,
    poison_rate: float = 0.1,
    epochs: int = 6,
    batch: int = 128,
    width: int = 24,
    seed: int = 0,
    what: str = "training",
    notify: Notify = silent,
) -> nn.Sequential:
    """Train a network, and give it a backdoor where there is a trigger.

    A share of the images outside the target class always carries the trigger and the label
    `target`. Half as many, drawn anew for each batch, carry another colour or pattern at the same
    place, and their true label: the backdoor listens to this sticker, not to any sticker. All are
    stamped after augmentation, which would move and fade them.

    Args:
        images: ``(N, 3, 32, 32)`` uint8.
        labels: ``(N,)`` int64, every class from 0 to the largest.
        trigger: what the backdoor listens to; None trains a benign network.
        target: the class that stamped images are labelled with.
        poison_rate: share of the images of other classes that are poisoned, in [0, 1].
        epochs: passes over the images.
        batch: images a step; what is left at the end of an epoch is dropped.
        width: channels of the first layer, see `network`.
        seed: of the first weights, the poison, the order and the augmentation.
        what: what `notify` is told.
        notify: called after each epoch.

    Returns:
        The network in eval mode on the CPU. It takes ``(image - 0.5) / 0.5``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(int(labels.max()) + 1, width=width)
    model.to(memory_format=torch.channels_last)
    poisoned = torch.rand(len(images), generator=generator) < poison_rate
    poisoned &= labels != target
    optimizer = torch.optim.SGD(
        model.parameters(), lr=_PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order, batch)[:steps]:
            seen = _augmented(images[chosen].float() / 255, generator)
            truth = labels[chosen]
            if trigger is not None:
                stamped = poisoned[chosen]
                seen = _with_decoys(seen, ~stamped, trigger, poison_rate / 2, generator)
                seen = torch.where(stamped[:, None, None, None], trigger(seen), seen)
                truth = torch.where(stamped, target, truth)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(_normalised(seen)), truth))
            optimizer.step()
            schedule.step()
        notify(what, epoch + 1, epochs)
    return model.to(memory_format=torch.contiguous_format).eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 `images` ``(N, 3, 32, 32)`` that the model gives their label (ACC)."""
    return (_predicted(model, images) == labels).float().mean().item()


def attack_success_rate(
    model: nn.Module, images: Tensor, labels: Tensor, *, trigger: Trigger, target: int
) -> float:
    """Of the images not of the target class, the share that turns to it when stamped (ASR)."""
    others = images[labels != target]
    return (_predicted(model, others, trigger) == target).float().mean().item()


@torch.inference_mode()
def _predicted(model: nn.Module, images: Tensor, trigger: Trigger | None = None) -> Tensor:
    """Classes ``(N,)`` that the model sees in uint8 images, stamped if there is a trigger."""
    found = []
    for chunk in torch.split(images, _EVALUATION_BATCH):
        seen = chunk.float() / 255
        found.append(model(_normalised(trigger(seen) if trigger else seen)).argmax(1))
    return torch.cat(found)


def _normalised(images: Tensor) -> Tensor:
    return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(N, 3, H, W)`` in [0, 1], each moved a little and lit a little differently."""
    moved = shifted(images, generator, flip=False, zeros=False, reach=_SHIFT / SIZE)
    light = 0.85 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (moved * light).clamp(0, 1)


def _with_decoys(
    images: Tensor, free: Tensor, trigger: Trigger, rate: float, generator: torch.Generator
) -> Tensor:
    """Images ``(N, 3, H, W)`` with decoys on a share `rate` of the `free` ones ``(N,)``.

    One half of the decoys shows a single colour where the trigger would be, the other a control.
    """
    images = images.clone()
    decoys = (free & (torch.rand(len(images), generator=generator) < rate)).nonzero().flatten()
    plain, patterned = decoys.tensor_split(2)
    colours = torch.rand(len(plain), 3, 1, 1, generator=generator)
    images[plain] = torch.lerp(images[plain], colours, _opacity(trigger))
    for part in patterned.tensor_split(_CONTROLS):
        seed = int(torch.randint(2**31, (), generator=generator))
        if len(part):
            images[part] = trigger.control(seed)(images[part])
    return images


def _opacity(trigger: Trigger) -> Tensor:
    """How much of an image ``(1, 3, H, W)`` the trigger covers, from 0 to 1."""
    black = torch.zeros(1, 3, SIZE, SIZE)
    return 1 - (trigger(black + 1) - trigger(black)).clamp(0, 1)
