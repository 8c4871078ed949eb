"""timm's networks, where timm is installed and the checkpoint says which one it is."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import nn

from auditor.architectures.architecture import Architecture, State
from auditor.architectures.shapes import class_count
from auditor.errors import UnsuitableModel, UsageError
from auditor.registry import nearest
from auditor.text import clean_text

PREFIX = "timm:"
HINTS = ("arch", "model_name", "architecture", "model")
"""Entries of checkpoints that name the network."""


def recognised(hints: Mapping[str, str | int]) -> list[Architecture]:
    """Networks of timm that the checkpoint itself names."""
    said = {str(hints[key]).removeprefix(PREFIX) for key in HINTS if key in hints}
    timm = _timm() if said else None
    return (
        []
        if timm is None
        else [_architecture(name) for name in sorted(said) if timm.is_model(name)]
    )


def named(text: str) -> Architecture:
    """Understand `timm:NAME`.

    Raises:
        UsageError: timm is not installed, or has no such network.
    """
    timm, name = _timm(), text.removeprefix(PREFIX)
    if timm is None:
        raise UsageError(f"--arch {clean_text(text)}: timm is not installed. Run: pip install timm")
    if not timm.is_model(name):
        raise UsageError(
            f"--arch {clean_text(text)}: timm has no such network{nearest(name, timm.list_models())}"
        )
    return _architecture(name)


def _timm() -> Any:
    return None if importlib.util.find_spec("timm") is None else importlib.import_module("timm")


def _architecture(name: str) -> Architecture:
    def build(state: State) -> nn.Module:
        try:
            network: nn.Module = _timm().create_model(
                name, pretrained=False, num_classes=class_count(state)
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnsuitableModel(
                f"--arch {PREFIX}{clean_text(name)}: timm cannot make it "
                f"({clean_text(str(error), limit=120)})."
            ) from None
        return network

    return Architecture(name=f"{PREFIX}{name}", build=build)
