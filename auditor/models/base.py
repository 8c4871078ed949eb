"""What every opened model file can do, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from auditor.safety.structure import FileFacts


class ModelHandle(ABC):
    """A suspect, opened: something that maps prepared inputs to raw outputs."""

    def __init__(self, file: FileFacts, *, architecture: str, device: torch.device) -> None:
        self.file = file
        self.architecture = architecture
        self.device = device
        self.notes: list[str] = []
        """What a reader of the report should know about how the file was opened."""

    @abstractmethod
    def call(self, inputs: Tensor) -> Any:
        """Run the network.

        Args:
            inputs: ``(N, C, H, W)`` float32 on `device`, already normalised.

        Returns:
            Whatever the network returns; `classifier.logits_of` makes sense of it.
        """

    @property
    def module(self) -> nn.Module | None:
        """The network as an eager module, where there is one (hooks, BatchNorm statistics)."""
        return None

    @property
    def differentiable(self) -> bool:
        """True where gradients with respect to the input exist."""
        return False

    @property
    def parameters(self) -> int | None:
        """Number of trained numbers, where it can be counted."""
        return None

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width as far as the file fixes them."""
        return (None, None, None)

    @property
    def default_side(self) -> int | None:
        """The side of square images that networks of this kind are made for, where that is known."""
        return None

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, None where any will do."""
        return None

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """Tensors beside the weights (WaNet's grids, for instance)."""
        return {}


class ModuleHandle(ModelHandle):
    """An eager `nn.Module`, on its device and in eval mode."""

    def __init__(
        self,
        file: FileFacts,
        network: nn.Module,
        *,
        architecture: str,
        device: torch.device,
        input_size: tuple[int | None, int | None, int | None] = (None, None, None),
        default_side: int | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(file, architecture=architecture, device=device)
        # channels-last: convolutions run up to twice as fast, on CPU and GPU alike
        self._network: nn.Module = network.float().eval().requires_grad_(False).to(device)
        self._network.to(memory_format=torch.channels_last)
        self._input_size = input_size
        self._default_side = default_side
        self._extras = extras or {}

    def call(self, inputs: Tensor) -> Any:
        return self._network(inputs.contiguous(memory_format=torch.channels_last))

    @property
    def module(self) -> nn.Module:
        return self._network

    @property
    def differentiable(self) -> bool:
        return True

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        return self._input_size

    @property
    def default_side(self) -> int | None:
        return self._default_side

    @property
    def extras(self) -> Mapping[str, Tensor]:
        return self._extras
