"""What every purifier is: clean images and evidence in, changed tensors out."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from auditor import measure
from auditor.anatomy import Layer
from auditor.classifier import Classifier, as_float, synchronize
from auditor.errors import ModelError, UnsuitableModel
from auditor.masks import MaskSite
from auditor.measure import Stamped
from auditor.memory import is_out_of_memory
from auditor.models.base import ModelHandle
from auditor.models.changed import ChangedHandle
from auditor.progress import Notify
from auditor.purifiers.augment import shifted
from auditor.registry import Registry
from auditor.results.facts import ONE_NUMBER
from auditor.results.purify import Check, Stage, What
from auditor.text import clean_text

NOTIFY_STEPS = 10
KEPT_BACK = 4
"""One of so many fit images is kept back for choosing…"""
FEWEST_KEPT_BACK = 16
"""…unless there would be fewer than these: then the images that are fitted on serve."""
MOST_KEPT_BACK = 256


@dataclass(frozen=True, kw_only=True)
class Known:
    """A trigger that the scan found, and what it does."""

    stamped: Stamped
    mapping: tuple[int, ...]
    """Source class -> target class, -1 where a class is left alone."""
    searched: bool = False
    """A search made it, so that it is a relative of the attacker's at best."""
    size: float | None = None
    """Root mean square of an added picture that was held against others of its size."""

    def wanted(self, labels: Tensor) -> Tensor:
        """Where the trigger sends images of classes ``(N,)``; -1 for those that it leaves alone."""
        return torch.tensor(self.mapping)[labels]

    def hits(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Which images ``(N,)`` go where the trigger sends them, by their predictions under it."""
        return measure.follows(torch.tensor(self.mapping), labels, predicted)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a purifier gets: everything but the judge images."""

    classifier: Classifier
    """The suspect."""
    images: Tensor
    """``(N, C, H, W)`` uint8 on the classifier's device: the fit images."""
    labels: Tensor
    """``(N,)`` int64 on the CPU: labels, or the suspect's predictions where there are none."""
    classes: int
    known: tuple[Known, ...]
    """What the scan found, strongest first; may be empty."""
    max_asr: float
    max_acc_drop: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Purified:
    """What a purifier made of a suspect."""

    tensors: dict[str, Tensor]
    """Name -> new values; tensors that stay as they were are left out."""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Layer -> ``(channels,)``, where masks are (part of) the result; already in `tensors`."""
    sites: tuple[MaskSite, ...] = ()
    lower_bounds: tuple[float, ...] = ()
    """One a site."""
    stages: tuple[Stage, ...] = ()
    trained: int = 0
    """Numbers that were trained or chosen: masks, weights, spectral shifts."""


class Purifier(ABC):
    """One way to purify. Subclasses are frozen keyword-only dataclasses: the fields are settings."""

    title: ClassVar[str]
    source: ClassVar[str]
    """The paper and its code, or why the method is as it is."""
    informed: ClassVar[bool] = False
    """It uses what the scan found."""
    most_known: ClassVar[int | None] = None
    """So many triggers, the first ones; None is all of them. The others judge."""
    chooses: ClassVar[bool] = True
    """It keeps some of the fit images back (`parted`) and chooses by them."""

    @abstractmethod
    def purify(self, task: Task, notify: Notify) -> Purified:
        """Change the suspect's numbers so that the backdoor goes and the rest stays.

        The classifier itself is left as it was.

        Raises:
            ModelError: The network has nothing that this purifier can change.
        """

    @property
    def name(self) -> str:
        """The registered name, or that of the class where it is a user's own."""
        known = (name for name in PURIFIERS if PURIFIERS[name] is type(self))
        return next(known, type(self).__name__)

    def settings(self) -> dict[str, str]:
        """The fields, for the record."""
        return {name: str(value) for name, value in vars(self).items()}


PURIFIERS: Registry[type[Purifier]] = Registry("method")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's own generators, which dropout draws from, begin with a seed; restore them after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Batches:
    """Random batches of fit images, shifted and mirrored, with their labels."""

    def __init__(
        self, task: Task, generator: torch.Generator, chosen: Tensor | None = None
    ) -> None:
        """Draw with replacement from the fit images, or from those with indices `chosen`."""
        self._task, self._generator, self._chosen = task, generator, chosen
        self._labels = task.labels.to(task.images.device)
        self.count = len(task.images) if chosen is None else len(chosen)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Images ``(size, C, H, W)`` float in [0, 1] and labels ``(size,)``, on the device."""
        places = torch.randint(self.count, (size,), generator=self._generator)
        if self._chosen is not None:
            places = self._chosen[places]
        places = places.to(self._task.images.device)
        images = shifted(as_float(self._task.images[places]), self._generator, flip=True)
        return images, self._labels[places]


def loop(
    what: str,
    steps: int,
    batch: int,
    step: Callable[[int, int], bool],
    *,
    notify: Notify,
    device: torch.device,
) -> tuple[int, int, float]:
    """Run `step(number, batch)` until it returns False, at most `steps` times.

    Out of memory, the batch is halved and the step is done again.

    Returns:
        Steps, images that went through, and seconds.

    Raises:
        ModelError: Not even two images fit.
    """
    begin, images, number = time.monotonic(), 0, 0
    while number < steps:
        try:
            more = step(number, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch <= 2:
                raise ModelError(
                    f"Out of memory at batch size {batch} on {device}. Use --device cpu, or a machine "
                    "with more memory."
                ) from None
            batch //= 2
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        number, images = number + 1, images + batch
        if number % NOTIFY_STEPS == 0:
            notify(what, number, steps)
        if not more:
            break
    synchronize(device)
    notify(what, steps, steps)
    return number, images, time.monotonic() - begin


def changed_classifier(classifier: Classifier, tensors: Mapping[str, Tensor]) -> Classifier:
    """The classifier with other tensors in its model."""
    return classifier.of(ChangedHandle(classifier.model, tensors))


@torch.inference_mode()
def measured(
    classifier: Classifier, images: Tensor, labels: Tensor, known: Sequence[Known]
) -> tuple[float, list[float]]:
    """ACC on some images, and each trigger's ASR on those of them that it concerns.

    Args:
        classifier: What to measure.
        images: ``(N, C, H, W)`` uint8 on its device.
        labels: ``(N,)`` int64 on the CPU.
        known: Triggers with their mappings.
    """
    accuracy = float((classifier.predict(images) == labels).float().mean())
    after = measure.predictions(classifier, images, [entry.stamped.trigger for entry in known])
    rates = []
    for entry, predicted in zip(known, after, strict=True):
        eligible = (entry.wanted(labels) >= 0).sum().clamp_min(1)
        rates.append(float(entry.hits(predicted, labels).sum() / eligible))
    return accuracy, rates


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Indices of the fit images to fit on, and of those to choose by."""

    fit: Tensor
    choose: Tensor
    apart: bool
    """False: there are too few images, so that those to choose by are fitted on as well."""


def parted(count: int, seed: int) -> Parts:
    """Keep some of `count` fit images back for choosing, where there are enough."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    back = min(count // KEPT_BACK, MOST_KEPT_BACK)
    if back < FEWEST_KEPT_BACK:
        return Parts(fit=order, choose=order[:MOST_KEPT_BACK], apart=False)
    return Parts(fit=order[back:], choose=order[:back], apart=True)


def checked(task: Task, tensors: Mapping[str, Tensor], step: int = 0) -> Check:
    """The suspect with other tensors in it, on the images to choose by, with what is known.

    Args:
        task: What the purifier was given.
        tensors: Name -> what is changed.
        step: After so many.
    """
    chosen = parted(len(task.images), task.seed).choose
    images = task.images[chosen.to(task.images.device)]
    after = changed_classifier(task.classifier, tensors)
    accuracy, rates = measured(after, images, task.labels[chosen], task.known)
    return Check(step=step, asr=max(rates, default=0.0), acc=accuracy, loss=0.0)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """True where no number of those tensors that are there is infinite or not a number."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


def trainable(model: ModelHandle) -> dict[str, Tensor]:
    """Copies of the weights, with gradients."""
    return {name: w.detach().clone().requires_grad_() for name, w in model.weights().items()}


def last_layer(task: Task, suits: Callable[[Layer, Tensor], bool], otherwise: str) -> Layer:
    """The layer that gives the classes.

    Args:
        task: What the purifier was given.
        suits: Says of a layer and its weight whether it will do.
        otherwise: What to say where it will not, after the name of the file.

    Raises:
        UnsuitableModel: It will not, or it cannot be trained.
    """
    model = task.classifier.model
    name = clean_text(model.file.path.name)
    if task.classifier.output in ONE_NUMBER:
        raise UnsuitableModel(
            f"{name} returns one number an image, and this method needs a layer that gives one a class. "
            "Use --method nft."
        )
    weights = model.weights()
    for layer in model.anatomy():
        weight = weights.get(layer.weight[0])
        gives = layer.is_last and layer.channels == task.classes
        if gives and weight is not None and suits(layer, weight):
            return layer
    raise UnsuitableModel(f"{name} {otherwise} Use --method nft.")


def copied_buffers(model: ModelHandle) -> dict[str, Tensor]:
    """Copies of what is no weight (running statistics), which train mode updates in place."""
    weights = model.weights()
    return {name: t.clone() for name, t in model.tensors().items() if name not in weights}


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without their gradients."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def count(trained: Mapping[str, Tensor]) -> int:
    """Numbers in tensors."""
    return sum(tensor.numel() for tensor in trained.values())


def whole_stage(
    what: What,
    task: Task,
    tensors: Mapping[str, Tensor],
    run: tuple[int, int, float],
) -> Stage:
    """The one stage of a method that chooses nothing, measured on the fit images themselves.

    Args:
        what: What was trained.
        task: What the method was given.
        tensors: What it made.
        run: Steps, images and seconds, as `loop` returns them.
    """
    steps, images, seconds = run
    after = changed_classifier(task.classifier, tensors)
    accuracy, rates = measured(after, task.images, task.labels, task.known)
    return Stage(
        what=what,
        settings={},
        steps=steps,
        images=images,
        seconds=seconds,
        checks=(Check(step=steps, asr=max(rates, default=0.0), acc=accuracy, loss=0.0),),
        outcome=f"ACC {accuracy:.1%} on the fit images themselves; the method does not choose.",
        kept=True,
    )
