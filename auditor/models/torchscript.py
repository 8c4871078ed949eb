"""TorchScript archives (`torch.jit.save`), scripted or traced."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from auditor.errors import UnreadableModel
from auditor.models.base import ModelHandle
from auditor.safety.static import check_torchscript
from auditor.safety.structure import FileFacts
from auditor.text import clean_text


class TorchScriptHandle(ModelHandle):
    """A TorchScript network. Differentiable, but without hooks."""

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="TorchScript", device=device)
        check_torchscript(file.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated helps no reviewer
                self._network: Any = torch.jit.load(str(file.path), map_location=device)  # type: ignore[no-untyped-call]
            self._network.eval()
        except (RuntimeError, ValueError) as error:
            raise UnreadableModel(
                f"{clean_text(file.path.name)} cannot be loaded as TorchScript "
                f"({clean_text(str(error).strip(), limit=200)})."
            ) from None
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        self.architecture = f"TorchScript {clean_text(self._network.original_name, limit=60)}"

    def call(self, inputs: Tensor) -> Any:
        return self._network(inputs)

    @property
    def differentiable(self) -> bool:
        return True

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())
