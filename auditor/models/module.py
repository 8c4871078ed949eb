"""Files of `torch.save`: a whole pickled network, or weights for one."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from auditor.architectures import TORCHVISION_SIDE, Architecture
from auditor.errors import UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.models.base import ModelHandle, ModuleHandle
from auditor.models.patching import Home
from auditor.models.state_dict import (
    Keys,
    Weights,
    has_weights,
    open_state_dict,
    remark_on,
    weights_in,
)
from auditor.safety.allowed import Inert, InertPartial, Reference, entries, has_odd_attributes
from auditor.safety.opcodes import refuse_calls, walk
from auditor.safety.static import load_pickle
from auditor.safety.structure import FileFacts, is_zip
from auditor.text import clean_text

USUAL = frozenset(vars(nn.Module()))
"""Attributes that every layer has."""


def open_pickle(
    file: FileFacts, architecture: Architecture | None, device: torch.device
) -> ModelHandle:
    """Open a file of `torch.save`, zip or legacy, executing nothing of it."""
    try:
        content = load_pickle(file.path)
    except UnreadableModel:
        refuse_calls(file.path)
        raise
    except UnsafeModel:
        if not is_zip(file.path) and not (facts := walk(file.path)).refused and not facts.misused:
            raise _cut_off(file) from None
        raise
    keys, network = find_module(content)
    if network is None:
        return open_state_dict(file, content, architecture, device)
    check_network(network, clean_text(file.path.name))
    if architecture is not None:
        state = network.state_dict()
        opened = open_state_dict(file, state, architecture, device, locate=locate_in_module)
        _note_beside(opened, content, keys, network)
        return opened
    of_torchvision = type(network).__module__.startswith("torchvision.models.")
    handle = ModuleHandle(
        file,
        network,
        architecture=type(network).__name__,
        device=device,
        default_side=TORCHVISION_SIDE if of_torchvision else None,
        locate=locate_in_module,
    )
    _note_beside(handle, content, keys, network)
    return handle


def _note_beside(handle: ModuleHandle, content: Any, keys: Keys, network: nn.Module) -> None:
    """Where the network is in its file, and what lies beside it."""
    if keys:
        handle.notes.append(f'The network was found under "{clean_text(str(keys[0]))}".')
        remark_on(handle, content, Weights(keys, network.state_dict()))


def locate_in_module(content: Any) -> Home:
    """Where the tensors of a pickled network are in the content of its file."""
    keys, network = find_module(content)
    if network is None:
        raise ValueError("the content holds no pickled network")
    tensors: dict[str, Tensor] = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    return Home(keys=keys, tensors=tensors)


def check_network(network: nn.Module, name: str) -> None:
    """Refuse a pickled network whose insides are not those of one.

    The unpickler restores a module's `__dict__` as the file says, whatever that is.
    """
    try:
        sound = all(
            isinstance(value, Tensor) and not value.is_meta
            for value in network.state_dict().values()
        )
        modules = list(network.modules())
        hidden = any(map(_hides, modules))
        attributes = [
            e for m in modules for e in entries([v for k, v in vars(m).items() if k != "_modules"])
        ]
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError):
        sound, hidden, attributes = False, False, []
    if any(map(_is_unknown, attributes)):
        raise UnsuitableModel(
            f"{name}: the pickled network keeps values that auditor does not build (numbers of NumPy, say), "
            "and may compute with them. Save its state_dict and pass --arch, or export it to ONNX."
        )
    apart = any(
        isinstance(value, nn.Module) or (isinstance(value, dict) and has_odd_attributes(value))
        for value in attributes
    )
    if not sound or apart or hidden:
        raise UnsuitableModel(
            f"{name}: the pickled network is damaged, has no values, or hides methods or layers of its "
            "class. Save its state_dict and pass --arch, or export it to ONNX."
        )


def _hides(module: nn.Module) -> bool:
    """Whether attributes of a layer stand before its weights, its layers, or what its class does."""
    held = {*module._parameters, *module._buffers, *module._modules}
    kind = type(module)
    return any(
        name in held or (name not in USUAL and hasattr(nn.Module, name)) or _does(kind, name)
        for name in vars(module)
    )


def _does(kind: type[nn.Module], name: str) -> bool:
    """Whether a name is a method or a property of a class."""
    entry = inspect.getattr_static(kind, name, None)
    return callable(entry) or isinstance(entry, property | staticmethod | classmethod)


def _is_unknown(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, Inert | Reference) and not issubclass(value, InertPartial)
    return isinstance(value, Inert) and not isinstance(value, InertPartial)


def _cut_off(file: FileFacts) -> UnreadableModel:
    """A file of before torch 1.6 has no checksums: a name that nobody allows may be half of one."""
    return UnreadableModel(
        f"{clean_text(file.path.name)} is damaged or ends early. Download it again."
    )


def find_module(content: Any) -> tuple[Keys, nn.Module | None]:
    """The network in a checkpoint, and the key that leads to it, where it is not the content.

    Of several networks the first; what wraps one for several GPUs is taken off.
    """
    if isinstance(content, nn.Module):
        return (), _unwrapped(content)
    if isinstance(content, dict):
        weights_in(content)  # refuses keys that are not plain
        for key, value in content.items():
            if isinstance(value, nn.Module) and has_weights(value):
                return (key,), _unwrapped(value)
    return (), None


def _unwrapped(network: nn.Module) -> nn.Module:
    if not isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return network
    try:
        inner = network.module
    except (AttributeError, TypeError):  # damaged, as `check_network` will say
        return network
    return inner if isinstance(inner, nn.Module) else network
