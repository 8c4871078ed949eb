"""A suspect with other numbers in it: what a purification has made, before it is a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from auditor.models.base import ModelHandle, Taken


class ChangedHandle(ModelHandle):
    """A model whose named tensors have other values; the model itself stays as it is."""

    def __init__(self, model: ModelHandle, changed: Mapping[str, Tensor]) -> None:
        super().__init__(model.file, architecture=model.architecture, device=model.device)
        self._model, self._changed = model, dict(changed)

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        return self._model.call(inputs, {**self._changed, **(overrides or {})}, train=train)

    def tensors(self) -> dict[str, Tensor]:
        return {**self._model.tensors(), **self._changed}

    def weights(self) -> dict[str, Tensor]:
        own = self._model.weights()
        return {name: self._changed.get(name, tensor) for name, tensor in own.items()}

    def layers(self, inputs: Tensor) -> list[str]:
        return self._model.layers(inputs)

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[Taken]:
        with self._model.tapped(layers) as taken:
            yield taken

    @property
    def trainable_statistics(self) -> bool:
        return self._model.trainable_statistics

    @property
    def module(self) -> nn.Module | None:
        return self._model.module

    @property
    def differentiable(self) -> bool:
        return self._model.differentiable

    @property
    def parameters(self) -> int | None:
        return self._model.parameters

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        return self._model.input_size

    @property
    def default_side(self) -> int | None:
        return self._model.default_side

    @property
    def batch(self) -> int | None:
        return self._model.batch

    @property
    def extras(self) -> Mapping[str, Tensor]:
        return self._model.extras
