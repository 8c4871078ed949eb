"""Files of `torch.save`: a whole pickled network, or weights for one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from auditor.architectures import TORCHVISION_SIDE, Architecture
from auditor.models.base import ModelHandle, ModuleHandle
from auditor.models.state_dict import find_state_dict, open_state_dict
from auditor.safety.static import load_pickle
from auditor.safety.structure import FileFacts


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


def find_module(content: Any) -> tuple[str, nn.Module | None]:
    """The network in a checkpoint: itself, or the first one among its entries."""
    if isinstance(content, nn.Module):
        return "", content
    if isinstance(content, dict) and len(find_state_dict(content)[1]) == 0:
        for key, value in content.items():
            if isinstance(value, nn.Module):
                return str(key), value
    return "", None
