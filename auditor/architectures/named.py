"""The network that a bare state dict belongs to, as the user names it with `--arch`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from torch import nn

from auditor.architectures import cifar, of_timm, of_torchvision
from auditor.architectures.architecture import Architecture, State
from auditor.architectures.shapes import class_count
from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.text import clean_text


def resolve_architecture(text: str) -> Architecture:
    """Understand `--arch`: torchvision's name, `cifar:NAME`, `timm:NAME`, or `file.py:factory`.

    What no weight tells can be added: `resnet18,stem=maxpool`.

    The file of a factory is the user's own code and is run as such.

    Raises:
        UsageError: No such network, file or factory; or it does not make a network.
    """
    if ".py:" in text:
        return _from_file(text)
    if text.endswith(".py"):
        raise UsageError(
            f"--arch {text}: name the function that makes the network, --arch {text}:build"
        )
    if text.startswith(cifar.PREFIX):
        return cifar.named(text)
    if text.startswith(of_timm.PREFIX):
        return of_timm.named(text)
    return of_torchvision.named(text)


def _from_file(text: str) -> Architecture:
    file, _, factory = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--arch {clean_text(text)}: there is no file {clean_text(file)}.")
    spec = importlib.util.spec_from_file_location(f"auditor_arch_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--arch {clean_text(text)}: {clean_text(file)} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(
            f"--arch {clean_text(text)}: running the file failed: {type(error).__name__}: {error}"
        ) from error
    make = getattr(module, factory, None)
    if not callable(make):
        callables = [n for n, value in vars(module).items() if callable(value)]
        raise UsageError(
            f'--arch {clean_text(text)}: {path.name} has no function "{clean_text(factory)}"'
            f"{nearest(factory, callables)}"
        )

    def build(state: State) -> nn.Module:
        classes = class_count(state)
        parameter = inspect.signature(make).parameters.get("num_classes")
        wants_classes = parameter is not None and parameter.default is inspect.Parameter.empty
        try:
            network = make(num_classes=classes) if wants_classes else make()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"--arch {clean_text(text)}: {factory}() failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"--arch {clean_text(text)}: {factory}() returned a "
                f"{type(network).__name__}, not an nn.Module."
            )
        return network

    return Architecture(name=f"{path.name}:{factory}", build=build)
