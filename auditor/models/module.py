"""Files of `torch.save`: a whole pickled network, or weights for one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from auditor.architectures import TORCHVISION_SIDE, Architecture
from auditor.errors import UnsuitableModel
from auditor.models.base import ModelHandle, ModuleHandle
from auditor.models.state_dict import find_state_dict, open_state_dict
from auditor.safety.static import load_pickle
from auditor.safety.structure import FileFacts
from auditor.text import clean_text


def open_pickle(
    file: FileFacts, architecture: Architecture | None, device: torch.device
) -> ModelHandle:
    """Open a file of `torch.save`, zip or legacy, executing nothing of it."""
    content = load_pickle(file.path)
    path, network = find_module(content)
    if network is None:
        return open_state_dict(file, content, architecture, device)
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    _check(network, clean_text(file.path.name))
    if architecture is not None:
        return open_state_dict(file, network.state_dict(), architecture, device)
    of_torchvision = type(network).__module__.startswith("torchvision.models.")
    handle = ModuleHandle(
        file,
        network,
        architecture=type(network).__name__,
        device=device,
        default_side=TORCHVISION_SIDE if of_torchvision else None,
    )
    if path:
        handle.notes.append(f'The network was found under "{path}".')
    return handle


def _check(network: nn.Module, name: str) -> None:
    """Refuse a pickled network whose insides are not those of one.

    The unpickler restores a module's `__dict__` as the file says, whatever that is.
    """
    try:
        sound = all(
            isinstance(value, Tensor) and not value.is_meta
            for value in network.state_dict().values()
        )
        own = set().union(*(vars(module) for module in network.modules()))
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError):
        sound, own = False, set()
    if not sound or own & set(dir(nn.Module)) - set(vars(nn.Module())):
        raise UnsuitableModel(
            f"{name}: the pickled network is damaged, has no values, or hides methods of its class. Save "
            "its state_dict and pass --arch, or export it to ONNX."
        )


def find_module(content: Any) -> tuple[str, nn.Module | None]:
    """The network in a checkpoint: itself, or the first one among its entries."""
    if isinstance(content, nn.Module):
        return "", content
    if isinstance(content, dict) and len(find_state_dict(content)[1]) == 0:
        for key, value in content.items():
            if isinstance(value, nn.Module):
                return str(key), value
    return "", None
