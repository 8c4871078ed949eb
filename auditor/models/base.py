"""What every opened model file can do, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from auditor.anatomy import Layer, find_layers
from auditor.errors import UnsuitableModel
from auditor.masks import MaskSite, find_sites
from auditor.models.patching import Locate, write_changed
from auditor.models.slots import slots_of, training
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Taken = Callable[[], list[Tensor]]


class ModelHandle(ABC):
    """A suspect, opened: something that maps prepared inputs to raw outputs."""

    def __init__(self, file: FileFacts, *, architecture: str, device: torch.device) -> None:
        self.file = file
        self.architecture = architecture
        self.device = device
        self.notes: list[str] = []
        """What a reader of the report should know about how the file was opened."""
        self.rivals: list[str] = []
        """Of other weights in the file, as many as these: they are neither examined nor changed, and may be
        what is used."""
        self.alternatives: tuple[str, ...] = ()
        """For weights without a network whose network was found out: every one that they fit, as
        `--arch` takes it, the one that was opened first."""

    @abstractmethod
    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        """Run the network, on its own tensors or on others.

        The network itself is the same afterwards, whatever happens during the call.

        Args:
            inputs: ``(N, C, H, W)`` float32 on `device`, already normalised.
            overrides: Name -> tensor that stands in for the network's own during this call, all
                its aliases included; gradients flow to it.
            train: Run in train mode: dropout drops, BatchNorm uses the batch's statistics and
                updates the running ones in place in the tensors of `overrides`. Those that
                `overrides` does not name are updated in copies that are thrown away.

        Returns:
            Whatever the network returns; `scores.scores_of` makes sense of it.

        Raises:
            KeyError: The network has no tensor of a name in `overrides`.
            NotImplementedError: The format has no gradients, so nothing can be overridden.
        """

    def as_used(self, inputs: Tensor) -> Any:
        """The answer that a program gets which opens the file by its usual reader, and does no more to it.

        Arguments and result as of `call`. By default that is `call`.
        """
        return self.call(inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as the network holds it; empty where it hides them.

        Floating ones are float32 on `device`. Not copies: do not change them. A tensor that has
        several names (tied weights) is listed under the first.
        """
        return {}

    def weights(self) -> dict[str, Tensor]:
        """Those of `tensors` that training changes by gradients: no running statistics."""
        return {}

    def anatomy(self) -> list[Layer]:
        """The layers with numbers; empty where these cannot be changed. Names as in `tensors`."""
        return []

    def remembered(self) -> object:
        """What it keeps from one call to the next, to be compared; None for what cannot keep anything."""
        return None

    def mask_sites(self) -> list[MaskSite]:
        """Where masks can act on this network."""
        return find_sites(self.anatomy())

    def layers(self, inputs: Tensor) -> list[str]:
        """Convolutions and linear layers in the order in which the network computes them.

        Args:
            inputs: See `call`; the network is run on them.

        Returns:
            Their names, for `tapped`; empty where the format does not let one look inside.
        """
        return []

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[Taken]:
        """While this lasts, what each of `layers` gets as its input is kept.

        Yields:
            A function that hands over, and forgets, what all calls have kept; in the order of
            computation, each ``(N, ...)``.
        """
        yield list

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        """Write a copy of the suspect's file in which some tensors have other values.

        Everything else stays: container, keys, shapes, dtypes, order, other entries. The values
        are cast to the dtypes that the file stores, and given to all aliases of a tied tensor.

        Args:
            changed: Name as in `tensors` -> its new values, of the same shape, on any device.
            path: The new file, which does not exist.

        Raises:
            OutputError: The file cannot be written, or the values cannot be put into it.
            UnsuitableModel: The format cannot be changed; says what to do.
        """
        raise UnsuitableModel(
            f"{clean_text(self.file.path.name)} is {self.file.kind}, whose numbers auditor cannot "
            "change yet. Save the network with torch.save."
        )

    def side_files(self, path: Path) -> list[Path]:
        """The files that `write` puts beside `path`; they belong to it."""
        return []

    @property
    def trainable_statistics(self) -> bool:
        """True where `call(train=True)` updates running statistics of BatchNorm layers."""
        return False

    @property
    def rounding(self) -> float:
        """How far scores are from themselves computed in another order, relative to the largest.

        0 where that is only a matter of the last digits: everywhere but in int8 networks.
        """
        return 0.0

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


class GraphHandle(ModelHandle):
    """A suspect whose values have names; it hands over any of them beside its outputs."""

    def __init__(self, file: FileFacts, *, architecture: str, device: torch.device) -> None:
        super().__init__(file, architecture=architecture, device=device)
        self._taps: list[str] = []
        """Names of the values that each call adds to `_kept`."""
        self._kept: list[Tensor] = []

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[Taken]:
        def taken() -> list[Tensor]:
            features, self._kept = self._kept, []
            return features

        former = self._taps, self._kept
        self._taps, self._kept = list(layers), []
        try:
            yield taken
        finally:
            self._taps, self._kept = former


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
        locate: Locate | None = None,
    ) -> None:
        super().__init__(file, architecture=architecture, device=device)
        self.notes += lost_digits([*network.parameters(), *network.buffers()])
        # channels-last: convolutions run up to twice as fast, on CPU and GPU alike
        self._network: nn.Module = network.float().eval().requires_grad_(False).to(device)
        self._network.to(memory_format=torch.channels_last)
        self._slots = slots_of(self._network)
        self._input_size = input_size
        self._default_side = default_side
        self._extras = extras or {}
        self._locate = locate

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        tensors = self._slots.first_named(overrides or {})
        if not train:
            with self._slots.holding(tensors):
                return self._network(inputs)
        with self._slots.holding(self._slots.copied_buffers() | tensors), training(self._network):
            raw = self._network(inputs)
        # in train mode inception_v3 and googlenet return auxiliary logits besides
        return raw.logits if isinstance(raw, tuple) and hasattr(raw, "logits") else raw

    def tensors(self) -> dict[str, Tensor]:
        return self._slots.tensors()

    def weights(self) -> dict[str, Tensor]:
        return self._slots.weights()

    def anatomy(self) -> list[Layer]:
        return find_layers(self._network)

    def layers(self, inputs: Tensor) -> list[str]:
        names = {module: name for name, module in self._network.named_modules()}
        called: dict[nn.Module, None] = {}
        weighted = [module for module in names if isinstance(module, WEIGHTED)]
        with _before(weighted, lambda layer, read: called.setdefault(layer)), torch.no_grad():
            self.call(inputs)
        return [names[layer] for layer in called]

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[Taken]:
        kept: list[Tensor] = []

        def taken() -> list[Tensor]:
            features = list(kept)
            kept.clear()
            return features

        chosen = [self._network.get_submodule(name) for name in layers]
        with _before(chosen, lambda layer, read: kept.append(read)):
            yield taken

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        if self._locate is None:
            super().write(changed, path)
            return
        write_changed(self.file, path, self._slots.with_all_names(changed), self._locate)

    @property
    def trainable_statistics(self) -> bool:
        return any(
            isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
            for module in self._network.modules()
        )

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


def lost_digits(tensors: Iterable[Tensor]) -> list[str]:
    """A note where a network computes with 64 bits: ours does with 32, and may be another."""
    if all(tensor.dtype != torch.float64 for tensor in tensors):
        return []
    return [
        "Its weights have 64 bits, auditor computes with 32: what depends on the digits between is not seen."
    ]


@contextmanager
def _before(layers: Sequence[nn.Module], see: Callable[[nn.Module, Any], object]) -> Iterator[None]:
    """While this lasts, `see` is called with each of `layers` and what it reads, before it computes."""

    def look(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(layer, next(iter((*inputs, *named.values())), None))

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
