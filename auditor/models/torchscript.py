"""TorchScript archives (`torch.jit.save`), scripted or traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.errors import OutputError, UnreadableModel
from auditor.masks import MaskSite, find_sites
from auditor.models.archive import copied, repair_checksums
from auditor.models.base import ModelHandle
from auditor.models.patching import same_numbers
from auditor.models.script_file import UNREADABLE, stored_tensors
from auditor.models.slots import Slot, Slots, training
from auditor.safety.static import check_torchscript
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

FORWARD_ONLY = ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")
"""Operators without derivative, which tracing under `torch.no_grad()` takes for attention."""


class TorchScriptHandle(ModelHandle):
    """A TorchScript network. Differentiable, but without hooks.

    Tracing bakes the mode in: `call(train=True)` then does what eval mode does. Frozen networks
    have no parameters but constants in their code; nothing of them can be overridden.
    """

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="TorchScript", device=device)
        check_torchscript(file.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated helps no reviewer
                self._network: Any = torch.jit.load(str(file.path), map_location=device)  # type: ignore[no-untyped-call]
            self._network.eval()
            self._graph = self._network.inlined_graph
        except (AttributeError, RuntimeError, ValueError) as error:
            raise UnreadableModel(
                f"{clean_text(file.path.name)} cannot be loaded as TorchScript "
                f"({clean_text(str(error).strip(), limit=200)})."
            ) from None
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        self._slots = Slots(_slots_of(self._network))
        # recurse=False: scripted networks have it in one branch only, and take the other
        self._differentiable = not any(self._graph.findAllNodes(op, False) for op in FORWARD_ONLY)
        if not self._differentiable:
            self.notes.append(
                "It was traced without gradients, so that its attention has none: it can be "
                "tested, but neither searched by gradient nor purified. Trace it with them enabled."
            )
        self.architecture = f"TorchScript {clean_text(self._network.original_name, limit=60)}"

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        tensors = self._slots.first_named(overrides or {})
        if not train:
            with self._slots.holding(tensors):
                return self._network(inputs)
        with self._slots.holding(self._slots.copied_buffers() | tensors), training(self._network):
            return self._network(inputs)

    def tensors(self) -> dict[str, Tensor]:
        return self._slots.tensors()

    def weights(self) -> dict[str, Tensor]:
        return self._slots.weights() if self._differentiable else {}

    def mask_sites(self) -> list[MaskSite]:
        return find_sites(self._network) if self._differentiable else []

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        copied(self.file, path)
        name = clean_text(self.file.path.name)
        try:
            _patch(path, self._slots.with_all_names(changed))
        except UNREADABLE as error:
            raise OutputError(
                f"{name}: its numbers cannot be changed in place "
                f"({clean_text(str(error), limit=120)}). Load it with a current PyTorch, save it "
                "again with torch.jit.save, and use that file."
            ) from None
        repair_checksums(self.file.path, path)

    @property
    def differentiable(self) -> bool:
        return self._differentiable

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())

    @property
    def trainable_statistics(self) -> bool:
        averages = any(name.endswith("running_mean") for name in self._slots.names)
        reads = self._graph.findAllNodes("prim::GetAttr", True)
        return averages and any(node.s("name") == "training" for node in reads)


def _slots_of(network: Any) -> Iterator[Slot]:
    for prefix, module in network.named_modules(remove_duplicate=False):
        for held, buffer in ((module._parameters, False), (module._buffers, True)):
            for leaf, tensor in held.items():
                if tensor is not None:
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    yield Slot(name=name, tensor=tensor, put=_putter(module, leaf), buffer=buffer)


def _putter(module: Any, leaf: str) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        module._c.setattr(leaf, tensor)

    return put


def _patch(path: Path, changed: list[tuple[list[str], Tensor]]) -> None:
    """Write new numbers into a copy of an archive.

    Raises:
        ValueError: Other tensors share the numbers, so that they would change as well.
    """
    find, stored = stored_tensors(path)
    size = path.stat().st_size
    content: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size)
    wanted = {tensor: tensor.of(content).clone() for tensor in stored}
    for names, values in changed:
        for name in names:
            tensor = find(name)
            if tensor.size != tuple(values.shape):
                raise ValueError(f"{name} is stored with another shape")
            wanted[tensor] = values.detach().to("cpu", tensor.dtype)
            tensor.of(content).copy_(wanted[tensor])
    if not all(same_numbers(values, tensor.of(content)) for tensor, values in wanted.items()):
        raise ValueError("several tensors share their numbers")
