"""What we call: images in [0, 1] to logits, whatever the file's format and preprocessing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from auditor.errors import ModelError, UnsuitableModel
from auditor.memory import is_out_of_memory
from auditor.models.base import ModelHandle
from auditor.results.facts import ONE_NUMBER, InputSpec, Output
from auditor.scores import as_logits, scores_of
from auditor.text import clean_text

BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
CPU_BATCH_SIZES = BATCH_SIZES[:3]
"""Larger ones gain nothing on a CPU, and stamping then works outside its caches."""
TUNING_SECONDS = 1.5
"""Time that finding the fastest batch size may take on a slow machine."""
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError,
    TypeError, ValueError, torch.jit.Error,
)  # fmt: skip
"""What a network raises that does not run on what it is given."""
UNDECIDED = -1
"""In place of a predicted class."""


class Classifier:
    """A model with its preprocessing: `(N, C, H, W)` in [0, 1] to logits `(N, K)`.

    Normalisation exists here and nowhere else. Where the network ends in a softmax or a sigmoid, its
    log probabilities are returned, whose differences are those of the logits; where it returns one
    number an image, logits of two classes.
    """

    def __init__(
        self,
        model: ModelHandle,
        spec: InputSpec,
        *,
        output: Output | None = "logits",
        batch_size: int = 64,
    ) -> None:
        """Join them.

        Args:
            model: The network.
            spec: How its input is prepared.
            output: What it returns; None leaves that as it is, so that these are no logits yet.
            batch_size: Unless the file fixes one.
        """
        self.model = model
        self.spec = spec
        self.output = output
        self.batch_size = model.batch or batch_size
        self.device = model.device
        mean = torch.tensor(spec.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(spec.std, device=self.device).view(1, -1, 1, 1)
        self._scale, self._offset = 1 / std, -mean / std
        self._plain = not spec.per_image and bool((mean == 0).all() and (std == 1).all())

    def of(self, model: ModelHandle) -> Classifier:
        """Another model, its input prepared in the same way."""
        return Classifier(model, self.spec, output=self.output, batch_size=self.batch_size)

    @property
    def differentiable(self) -> bool:
        """True where gradients with respect to the images exist."""
        return self.model.differentiable

    def __call__(
        self,
        images: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Tensor:
        """Logits of images, in one forward pass.

        Args:
            images: ``(N, C, H, W)`` float32 in [0, 1] on `device`.
            overrides: Tensors in place of the model's own, see `ModelHandle.call`.
            train: Train mode, see there.

        Returns:
            ``(N, K)`` float32; with a gradient where grad mode is on and the model has one.

        Raises:
            ModelError: The network does not run on them.
        """
        return self._logits(images, partial(self.model.call, overrides=overrides, train=train))

    def as_used(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of a few images by the file as its users open it, see `ModelHandle.as_used`."""
        return self._logits(images, self.model.as_used)

    def _logits(self, images: Tensor, call: Callable[[Tensor], Any]) -> Tensor:
        try:
            raw = call(self.prepared(images))
        except REFUSALS as error:
            if is_out_of_memory(error):
                raise
            shape = "x".join(map(str, images.shape))
            name = clean_text(self.model.file.path.name)
            raise ModelError(
                f"{name} does not run on images of {shape}: {reason(error)}."
            ) from error
        if len(images) == 1 and isinstance(raw, Tensor) and raw.shape[-1:].numel() == raw.numel():
            raw = raw.reshape(1, -1)  # of one image, some leave the first dimension out
        return as_logits(
            self._checked(scores_of(raw, self.model.file.path.name), images), self.output
        )

    def _checked(self, scores: Tensor, images: Tensor) -> Tensor:
        """Scores, if there is a row an image, and one number where there always is."""
        wrong = ""
        if len(scores) != len(images):
            wrong = f"{len(scores)} rows of scores for {len(images)} images"
        elif self.output is not None and (scores.shape[1] == 1) != (self.output in ONE_NUMBER):
            wrong = "one number for some images and several scores for others"
        if wrong:
            raise UnsuitableModel(f"{clean_text(self.model.file.path.name)} returns {wrong}.")
        return scores

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input: stretched, reordered, normalised as `spec` says."""
        if self.spec.per_image:
            low = images.amin(dim=(1, 2, 3), keepdim=True)
            high = images.amax(dim=(1, 2, 3), keepdim=True)
            images = (images - low) / (high - low).clamp_min(1e-6)
        if self.spec.order == "bgr":
            images = images.flip(1)
        # a network that works in place must not change the caller's images
        return images.clone() if self._plain else torch.addcmul(self._offset, images, self._scale)

    def predict(self, images: Tensor) -> Tensor:
        """Predicted classes ``(N,)`` int64 on the CPU; -1 where the scores name none, see `decided`.

        Args:
            images: ``(N, C, H, W)``, uint8, or float in [0, 1], on any device.
        """
        return decided(self.logits(images)).cpu()

    def answers(self, images: Tensor) -> Tensor:
        """The same for unstamped images, to which every sound model has an answer.

        Raises:
            UnsuitableModel: The scores of some name no class.
        """
        return self.answered(self.predict(images))

    def answered(self, predicted: Tensor) -> Tensor:
        """Such predictions ``(N,)``, if none is missing.

        Raises:
            UnsuitableModel: The scores of some images name no class.
        """
        missing = int((predicted == UNDECIDED).sum())
        if missing:
            # which of several sets of weights was taken, say
            known = clean_text(" ".join([*self.model.notes, *self.model.rivals]), limit=400)
            raise UnsuitableModel(
                f"{clean_text(self.model.file.path.name)} gives NaN or infinite scores for {missing} of "
                f"{len(predicted)} images with normalize={self.spec.normalize}. The file may be damaged, "
                f"or --normalize is wrong.{f' Known of it: {known}' if known else ''}"
            )
        return predicted

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of any number of images, batched; on `device`, without gradient."""
        outputs = []
        start = 0
        while start < len(images):
            part = images[start : start + self.batch_size]
            logits = self.guarded(lambda: as_float(part.to(self.device)))  # noqa: B023
            if logits is None:
                continue
            outputs.append(logits)
            start += len(part)
        return self._together(outputs)

    def guarded(self, make: Callable[[], Tensor]) -> Tensor | None:
        """Logits of the batch that `make` makes; out of memory, halve `batch_size`, return None.

        Raises:
            ModelError: Not even one image fits.
        """
        try:
            block = make()
            if self.model.batch is None or len(block) == self.model.batch:
                return self(block)
            return self._padded(block)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self.batch_size == 1 or self.model.batch is not None:
            raise ModelError(
                f"Out of memory at batch size {self.batch_size} on {self.device}. "
                "Use --device cpu, or a machine with more memory."
            )
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _padded(self, block: Tensor) -> Tensor:
        """Logits where the file fixes the batch size: the last batch is filled up."""
        size = self.model.batch or len(block)
        outputs = []
        for start in range(0, len(block), size):
            part = block[start : start + size]
            missing = size - len(part)
            filled = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            outputs.append(self(filled)[: len(part)])
        return self._together(outputs)

    def _together(self, parts: list[Tensor]) -> Tensor:
        if len({part.shape[1] for part in parts}) > 1:
            name = clean_text(self.model.file.path.name)
            raise UnsuitableModel(f"{name} returns more scores for some images than for others.")
        return torch.cat(parts)

    @torch.inference_mode()
    def tune_batch_size(self) -> float:
        """Set `batch_size` to the fastest one, and return images a second at it."""
        if self.model.batch is not None:
            sizes: tuple[int, ...] = (self.model.batch,)
        else:
            sizes = CPU_BATCH_SIZES if self.device.type == "cpu" else BATCH_SIZES
        spec = self.spec
        best, best_speed = sizes[0], 0.0
        begin = time.perf_counter()
        shape = (spec.channels, spec.height, spec.width)
        self.batch_size = sizes[0]
        while self.guarded(lambda: torch.rand(self.batch_size, *shape, device=self.device)) is None:
            pass
        for size in sizes:
            self.batch_size = size
            block = torch.rand(size, *shape, device=self.device)
            speed = 0.0
            for _ in range(2):
                start = time.perf_counter()
                if self.guarded(lambda: block) is None:  # noqa: B023
                    break
                synchronize(self.device)
                speed = max(speed, size / (time.perf_counter() - start))
            if speed > best_speed * 1.03:
                best, best_speed = size, speed
            if self.batch_size < size or time.perf_counter() - begin > TUNING_SECONDS:
                break
        self.batch_size = best
        return best_speed


def decided(logits: Tensor) -> Tensor:
    """Predicted classes ``(N,)`` of logits ``(N, K)``.

    `UNDECIDED` where the scores name none: one is NaN, or the largest is infinite. What is answered
    then depends on the program that runs the model, and is no class of the model's choice.
    """
    largest, predicted = logits.max(1)
    named = largest.isfinite() & ~logits.isnan().any(1)
    return torch.where(named, predicted, UNDECIDED)


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]; uint8 is divided by 255."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def reason(error: BaseException) -> str:
    """The last line of what a network said when it did not run; its words are the suspect's."""
    lines = str(error).strip().splitlines()
    return clean_text(lines[-1] if lines else type(error).__name__, limit=200)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that wall time means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
