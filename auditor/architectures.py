"""The network that a bare state dict belongs to, as the user names it with `--arch`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from auditor.errors import UsageError
from auditor.registry import nearest
from auditor.text import clean_text

TORCHVISION_SIDE = 224


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A way to make the network."""

    name: str
    build: Callable[[int | None], nn.Module]
    """Number of classes (None where unknown) -> the network with fresh weights."""
    input_size: tuple[int | None, int | None, int | None] = (None, None, None)
    default_side: int | None = None
    """Side of the square images that it is made for."""


def resolve_architecture(text: str) -> Architecture:
    """Understand `--arch`: a torchvision name, or `file.py:factory`.

    The file of a factory is the user's own code and is run as such.

    Raises:
        UsageError: No such torchvision network, file or factory; or it does not make a network.
    """
    if ".py:" in text:
        return _from_file(text)
    if text.endswith(".py"):
        raise UsageError(
            f"--arch {text}: name the function that makes the network, --arch {text}:build"
        )
    return _from_torchvision(text)


def _from_torchvision(name: str) -> Architecture:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UsageError(
            f"--arch {clean_text(name)}: torchvision has no classifier of this name"
            f"{nearest(name, names)} For your own network pass --arch your_file.py:factory."
        )

    def build(classes: int | None) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        if name in ("inception_v3", "googlenet"):
            options["init_weights"] = False
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return network

    # Vision transformers bind their weights to one image size; the others take any.
    fixed = name.startswith("vit_") and not name.endswith("h_14")
    return Architecture(
        name=name,
        build=build,
        input_size=(3, TORCHVISION_SIDE, TORCHVISION_SIDE) if fixed else (3, None, None),
        default_side=TORCHVISION_SIDE,
    )


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

    def build(classes: int | None) -> nn.Module:
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
