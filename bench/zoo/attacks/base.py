"""What every attack is: it poisons training batches, and stamps test images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from auditor.registry import Registry
from bench.zoo.rows import AllToAll, LabelMap, SourceSpecific


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an attacker knows before training begins."""

    images: Tensor
    """``(N, C, H, W)`` uint8, all training images, on the CPU."""
    labels: Tensor
    """``(N,)`` int64, true ones."""
    chosen: Tensor
    """``(N,)`` bool: the images that are poisoned, the same in every epoch."""
    classes: int
    map: LabelMap
    normalise: Callable[[Tensor], Tensor]
    """Images in [0, 1] to what the network takes."""
    network: nn.Module
    """That will be trained; the attack may ask it, and trains only what is its own."""
    fresh: Callable[[], nn.Module]
    """Another untrained network of the same kind, on the same device."""
    steps: int
    """Batches that the training will have."""
    device: torch.device
    seed: int


@dataclass(kw_only=True)
class Batch:
    """Training images before augmentation, on the device."""

    images: Tensor
    """``(B, C, H, W)`` float32 in [0, 1]."""
    labels: Tensor
    """``(B,)`` int64."""
    chosen: Tensor
    """``(B,)`` bool: to be poisoned."""
    generator: torch.Generator
    """On the CPU; the only source of randomness."""
    progress: float
    """Share of the training that is done, from 0 to 1."""

    def draw(self, count: int) -> Tensor:
        """Indices ``(up to count,)`` of images that are not to be poisoned, drawn at random."""
        free = (~self.chosen).nonzero().flatten()
        order = torch.randperm(len(free), generator=self.generator)
        return free[order[:count].to(free.device)]


class Attack(ABC):
    """One backdoor attack. Its settings are the keyword arguments of the constructor."""

    clean_label: ClassVar[bool] = False
    """Poisons images of the target class and leaves their labels."""
    of_one_image: ClassVar[bool] = True
    """What a stamped image looks like is decided by itself and the attack, by no other image."""

    def prepare(self, setting: Setting) -> Tensor | None:
        """Before training: train what the attack needs.

        Returns:
            Training images ``(N, C, H, W)`` uint8 that replace the given ones; None keeps those.
        """
        self.setting = setting
        return None

    def poison(self, batch: Batch) -> Batch:
        """A batch with its chosen images stamped and relabelled. May train a generator on the way.

        The tensors of `batch` must not be modified; the result may be longer than the batch.
        """
        stamped = torch.where(_rows(batch.chosen), self.stamp(batch.images), batch.images)
        labels = torch.where(batch.chosen, self.wanted(batch.labels), batch.labels)
        return replace(batch, images=stamped, labels=labels)

    @abstractmethod
    def stamp(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] with the trigger, in [0, 1], on the same device."""

    def wanted(self, labels: Tensor) -> Tensor:
        """What stamped images of these classes ``(N,)`` are meant to become."""
        return wanted(self.setting.map, labels, self.setting.classes)

    def state(self) -> dict[str, Tensor]:
        """What is needed to stamp again, beside the settings: generators' weights, patterns."""
        return {}

    def restore(self, state: dict[str, Tensor], *, channels: int, side: int) -> None:
        """Stamp as the attack did whose `state()` this is, on the CPU, without training.

        Args:
            state: Empty where the settings are enough.
            channels: Of the images, 1 or 3.
            side: Of the images, in pixels.

        Raises:
            ValueError: This attack keeps nothing, so that it is the state of another.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps nothing beside its settings")


ATTACKS: Registry[type[Attack]] = Registry("attack")


def wanted(label_map: LabelMap, labels: Tensor, classes: int) -> Tensor:
    """The classes ``(N,)`` that the map makes of true `labels` ``(N,)``."""
    if isinstance(label_map, AllToAll):
        return (labels + 1) % classes
    target = torch.full_like(labels, label_map.target)
    if isinstance(label_map, SourceSpecific):
        return torch.where(labels == label_map.source, target, labels)
    return target


def victims(label_map: LabelMap, labels: Tensor, classes: int) -> Tensor:
    """Which images ``(N,)`` the backdoor turns into another class: those that ASR counts."""
    return wanted(label_map, labels, classes) != labels


def _rows(chosen: Tensor) -> Tensor:
    return chosen.view(-1, 1, 1, 1)
