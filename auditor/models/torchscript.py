"""TorchScript archives (`torch.jit.save`), scripted or traced."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.anatomy import Layer, find_layers
from auditor.errors import OutputError, UnreadableModel, UnsuitableModel
from auditor.masks import find_sites
from auditor.models.archive import copied, repair_checksums
from auditor.models.base import GraphHandle, lost_digits
from auditor.models.frozen import FrozenGraph, read_frozen, write_frozen
from auditor.models.script_file import UNREADABLE, stored_tensors
from auditor.models.script_taps import Taps
from auditor.models.slots import Slot, Slots, training
from auditor.models.stored import overwrite
from auditor.safety.static import check_torchscript
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

FORWARD_ONLY = ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")
"""Operators without derivative, which tracing under `torch.no_grad()` takes for attention."""
AGREEMENT = 1e-4
"""Largest difference of the answers with and without a look inside."""


class TorchScriptHandle(GraphHandle):
    """A TorchScript network, differentiable.

    Tracing bakes the mode in: `call(train=True)` then does what eval mode does. Frozen networks
    have no parameters but constants in their code, which then are its tensors: c0, c1 ...
    """

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="TorchScript", device=device)
        check_torchscript(file.path)
        _refuse_optimized(file.path)
        self._opened = str(file.path)  # what is written is called by the name that it will have
        try:
            self._network: Any = _loaded(self._opened, device)
            saved_in_train_mode = any(
                getattr(module, "training", False)  # frozen ones have no mode
                for module in self._network.modules()
            )
            self.notes += lost_digits([*self._network.parameters(), *self._network.buffers()])
            self._network.float().eval()  # as of all formats: images come in float32
            self._graph = self._network.inlined_graph
        except (*UNREADABLE, MemoryError) as error:
            raise UnreadableModel(
                f"{clean_text(file.path.name)} cannot be loaded as TorchScript "
                f"({clean_text(str(error).strip(), limit=200)})."
            ) from None
        self._untouched: Any = None
        """Another copy, for `as_used`, once it is needed."""
        if saved_in_train_mode:
            self.notes.append(
                "It was saved in train mode; auditor puts it into eval mode, and users must."
            )
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        self._slots = Slots(_slots_of(self._network))
        self._frozen = None if find_sites(find_layers(self._network)) else self._read_frozen()
        self._inner = (
            Taps(self._graph, self._network._c) if self._frozen is None else self._frozen.taps
        )
        # recurse=False: scripted networks have it in one branch only, and take the other
        self._differentiable = not any(self._graph.findAllNodes(op, False) for op in FORWARD_ONLY)
        if not self._differentiable:
            self.notes.append(
                "It was traced without gradients, so that its attention has none: it can be "
                "tested, but neither searched by gradient nor purified. Trace it with them enabled."
            )
        self.architecture = f"TorchScript {clean_text(self._network.original_name, limit=60)}"

    def _read_frozen(self) -> FrozenGraph | None:
        """The network as a function of its constants, if those are the weights of its layers.

        Freezing leaves few parameters that are none of a known layer (those of scripted attention);
        they then stay as they are.
        """
        module = self._network._c
        if module._get_forward_hooks() or module._get_forward_pre_hooks():
            return None  # which the function would leave out
        try:
            frozen = read_frozen(self.file.path, self._network, self.device)
        except UNREADABLE:
            return None  # it can be scanned all the same
        return frozen if frozen is not None and frozen.weights() else None

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        if self._frozen is not None and (overrides or self._taps):
            raw, *kept = self._frozen.call(inputs, overrides or {}, keep=self._taps)
            self._kept += kept
            return raw
        tensors = self._slots.first_named(overrides or {})
        if not train:
            with self._slots.holding(tensors):
                return self._run(inputs)
        with self._slots.holding(self._slots.copied_buffers() | tensors), training(self._network):
            return self._run(inputs)

    def as_used(self, inputs: Tensor) -> Any:
        """By a copy whose numbers and flags are as the file has them."""
        if self._untouched is None:
            self._untouched = _loaded(self._opened, self.device).eval()
        kinds = (p.dtype for p in self._untouched.parameters() if p.is_floating_point())
        raw = self._untouched(inputs.to(next(kinds, inputs.dtype)))
        return raw.float() if isinstance(raw, Tensor) else raw

    def _run(self, inputs: Tensor) -> Any:
        if not self._taps:
            return self._network(inputs)
        raw, *kept = self._inner.function(self._taps)(inputs)
        self._kept += kept
        return raw

    def remembered(self) -> object:
        read = {node.s("name") for node in self._graph.findAllNodes("prim::GetAttr", True)}
        inner = [module._c for module in self._network.modules()]
        return [_kept(c.getattr(name)) for c in inner for name in sorted(read) if c.hasattr(name)]

    def tensors(self) -> dict[str, Tensor]:
        return self._slots.tensors() if self._frozen is None else self._frozen.floats()

    def weights(self) -> dict[str, Tensor]:
        if self._frozen is not None:
            wanted = self._frozen.weights() if self._differentiable else set()
            return {name: t for name, t in self._frozen.floats().items() if name in wanted}
        return self._slots.weights() if self._differentiable else {}

    def anatomy(self) -> list[Layer]:
        if not self._differentiable:
            return []
        return find_layers(self._network) if self._frozen is None else self._frozen.layers()

    def layers(self, inputs: Tensor) -> list[str]:
        alone = len(list(self._graph.inputs())) == 2  # the network itself, and the images
        if not alone or not self._differentiable:
            return []
        names = self._inner.names()
        with torch.no_grad():
            own = self.call(inputs.clone())  # it may change its input
            try:
                with self.tapped(names):
                    same = self.call(inputs.clone())
                torch.testing.assert_close(same, own, rtol=AGREEMENT, atol=AGREEMENT)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AssertionError, TypeError):
                return []  # it cannot stand alone, or leaves out what hooks do
        return names

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        frozen = {} if self._frozen is None else self._frozen.checked(changed)
        copied(self.file, path)
        name = clean_text(self.file.path.name)
        try:
            if self._frozen is None:
                _patch(path, self._slots.with_all_names(changed))
            else:
                write_frozen(path, frozen)
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
        if self._frozen is not None:
            return sum(self._frozen.tensors[name].numel() for name in self._frozen.weights())
        return sum(parameter.numel() for parameter in self._network.parameters())

    @property
    def trainable_statistics(self) -> bool:
        averages = any(name.endswith("running_mean") for name in self._slots.names)
        reads = self._graph.findAllNodes("prim::GetAttr", True)
        return averages and any(node.s("name") == "training" for node in reads)


def _loaded(path: str, device: torch.device) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated helps no reviewer
        return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]


def _kept(value: Any) -> object:
    """An attribute as it is now; of a tensor, where it is and how often it was changed in place."""
    if isinstance(value, Tensor):
        # tensors of a scan's calls have none
        version = None if value.is_inference() else value._version
        return value.data_ptr(), version
    if isinstance(value, list | tuple):
        return [_kept(entry) for entry in value]
    if isinstance(value, dict):
        return [(key, _kept(entry)) for key, entry in value.items()]
    return value if isinstance(value, bool | int | float | str) else None


def _refuse_optimized(path: Path) -> None:
    """Refuse what `torch.jit.optimize_for_inference` made.

    Raises:
        UnsuitableModel: Its weights are in oneDNN's own layout, without gradients.
    """
    with zipfile.ZipFile(path) as archive:
        code = [name for name in archive.namelist() if name.endswith(".py")]
        optimized = any(b"mkldnn" in archive.read(name) for name in code)
    if optimized:
        raise UnsuitableModel(
            f"{clean_text(path.name)} was made by torch.jit.optimize_for_inference: its weights are in "
            "the layout of one processor library (oneDNN) and have no gradients. Use the TorchScript "
            "file from before that step."
        )


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
    overwrite(path, stored, {find(name): values for names, values in changed for name in names})
