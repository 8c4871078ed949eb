"""Open any model file: identified by its bytes, loaded by the least powerful route."""

from __future__ import annotations

from pathlib import Path

import torch

from auditor.architectures import resolve_architecture
from auditor.errors import UnreadableModel, UsageError
from auditor.models.base import ModelHandle
from auditor.models.mark import mark_notes
from auditor.safety.structure import FileFacts, Kind, identify
from auditor.text import clean_text


def load_model(
    path: Path | str, *, arch: str | None = None, device: torch.device | str = "cpu"
) -> ModelHandle:
    """Open a suspect without executing anything in it.

    Args:
        path: PyTorch (`torch.save` of a network or of weights), safetensors, TorchScript,
            `torch.export`, or ONNX.
        arch: For weights without a network: a torchvision name, or `file.py:factory`.
        device: Where the network will run.

    Raises:
        ModelError: The file is missing, damaged, unsafe to open, or no image classifier.
        UsageError: `arch` makes no sense.
    """
    file = identify(Path(path))
    handle = _opened(file, arch, torch.device(device))
    handle.notes += mark_notes(file)
    return handle


def _opened(file: FileFacts, arch: str | None, device: torch.device) -> ModelHandle:
    architecture = None if arch is None else resolve_architecture(arch)
    match file.kind:
        case Kind.TORCH_ZIP | Kind.TORCH_LEGACY:
            from auditor.models.module import open_pickle

            return open_pickle(file, architecture, device)
        case Kind.PICKLE:
            from auditor.safety.opcodes import refuse_calls

            refuse_calls(file.path)
            raise UnreadableModel(
                f"{clean_text(file.path.name)} is a plain Python pickle, not a file of torch.save. "
                "auditor never unpickles such files. Save the weights with "
                "torch.save(model.state_dict(), ...) and pass --arch."
            )
        case Kind.TORCHSCRIPT | Kind.ONNX | Kind.PT2 if architecture is not None:
            raise UsageError(
                f"--arch {arch}: {clean_text(file.path.name)} is {file.kind} and carries its own "
                "network. Leave --arch out."
            )
        case Kind.PT2:
            from auditor.models.pt2 import Pt2Handle

            return Pt2Handle(file, device)
        case Kind.SAFETENSORS:
            from auditor.models.safetensors import open_safetensors

            return open_safetensors(file, architecture, device)
        case Kind.TORCHSCRIPT:
            from auditor.models.torchscript import TorchScriptHandle

            return TorchScriptHandle(file, device)
        case Kind.ONNX:
            from auditor.models.onnx import OnnxHandle

            return OnnxHandle(file, device)


def resolve_device(text: str) -> torch.device:
    """Understand `--device`: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        UsageError: No such device here; says why.
    """
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UsageError(
            f"--device {clean_text(text)}: use auto, cpu, cuda, cuda:N or mps."
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this torch build has no CUDA" if torch.version.cuda is None else "no usable GPU"
            raise UsageError(f"--device {text}: {why}. Use --device cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"--device {text}: there are {torch.cuda.device_count()} GPUs.")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: not available here. Use --device cpu.")
    elif device.type != "cpu":
        raise UsageError(f"--device {text}: use auto, cpu, cuda, cuda:N or mps.")
    return device
