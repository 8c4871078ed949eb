"""A network's tensors by name, and other tensors in their places for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One place in which a network keeps a tensor."""

    name: str
    tensor: Tensor
    put: Callable[[Tensor], None]
    buffer: bool


class Slots:
    """Every parameter and buffer of a network; tied ones together, under their first name.

    Not `torch.func.functional_call`, which cannot call TorchScript, takes any misspelt name, and
    leaves tensors swapped when an interrupt comes while it swaps them.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        first: dict[int, str] = {}
        self.names: dict[str, str] = {}
        """Every name -> the first name of the same tensor."""
        self._slots: dict[str, list[Slot]] = {}
        for slot in slots:
            name = first.setdefault(id(slot.tensor), slot.name)
            self.names[slot.name] = name
            self._slots.setdefault(name, []).append(slot)

    def tensors(self) -> dict[str, Tensor]:
        """First name -> the network's own tensor."""
        return {name: slots[0].tensor for name, slots in self._slots.items()}

    def weights(self) -> dict[str, Tensor]:
        """Those of `tensors` that are parameters, and floating."""
        return {
            name: slots[0].tensor
            for name, slots in self._slots.items()
            if not all(slot.buffer for slot in slots) and slots[0].tensor.is_floating_point()
        }

    def copied_buffers(self) -> dict[str, Tensor]:
        """Copies of those of `tensors` that are no parameters: running statistics and the like."""
        return {
            name: slots[0].tensor.clone()
            for name, slots in self._slots.items()
            if all(slot.buffer for slot in slots)
        }

    def first_named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` under their first names.

        Raises:
            KeyError: The network has no tensor of that name.
        """
        return {self.names[name]: tensor for name, tensor in tensors.items()}

    def with_all_names(self, tensors: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
        """Each of `tensors`, after the list of all the names that the network has for it.

        Raises:
            KeyError: The network has no tensor of that name.
        """
        return [
            ([slot.name for slot in self._slots[name]], tensor)
            for name, tensor in self.first_named(tensors).items()
        ]

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """While this lasts, the network computes with `tensors`; then with its own again.

        Args:
            tensors: First name -> tensor.
        """
        swapped = [slot for name in tensors for slot in self._slots[name]]
        try:
            for name, tensor in tensors.items():
                for slot in self._slots[name]:
                    slot.put(tensor)
            yield
        finally:
            for slot in swapped:
                slot.put(slot.tensor)


def slots_of(network: nn.Module) -> Slots:
    """The slots of an eager network."""
    return Slots(_slots_of(network))


def _slots_of(network: nn.Module) -> Iterator[Slot]:
    for prefix, module in network.named_modules(remove_duplicate=False):
        for held, buffer in ((module._parameters, False), (module._buffers, True)):
            for leaf, tensor in held.items():
                if tensor is not None:
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    put = _putter(held, leaf)
                    yield Slot(name=name, tensor=tensor, put=put, buffer=buffer)


def _putter(held: dict[str, Tensor | None], leaf: str) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        held[leaf] = tensor

    return put


@contextmanager
def training(network: nn.Module) -> Iterator[None]:
    """Train mode while this lasts, eval mode afterwards."""
    try:
        network.train()
        yield
    finally:
        network.eval()
