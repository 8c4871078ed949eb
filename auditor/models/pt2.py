"""`torch.export` archives (.pt2): run node by node, with gradients, and changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.anatomy import Layer
from auditor.errors import OutputError, UnreadableModel, UnsuitableModel
from auditor.models.archive import copied, records_of, repair_checksums
from auditor.models.base import GraphHandle
from auditor.models.graph_layers import features, graph_layers
from auditor.models.pt2_graph import (
    DTYPES,
    STRIDED,
    Program,
    TrainingProgram,
    UnsuitableProgram,
    read_program,
)
from auditor.models.script_file import UNREADABLE
from auditor.models.stored import StoredTensor, numbers_of, overwrite
from auditor.safety.pt2 import Pt2Documents, read_pt2
from auditor.safety.structure import FileFacts
from auditor.text import clean_text

FORWARD_ONLY = {"aten._native_multi_head_attention", "aten._transformer_encoder_layer_fwd"}
"""Operators without derivative, which exporting under `torch.no_grad()` takes for attention."""


class Pt2Handle(GraphHandle):
    """An exported program. Differentiable, in eval mode for ever.

    Its tensors may be stored in half precision; `tensors` are float32 all the same, and `call` and
    `write` round what they are given to the stored precision.
    """

    def __init__(self, file: FileFacts, device: torch.device) -> None:
        super().__init__(file, architecture="torch.export program", device=device)
        name = clean_text(file.path.name)
        documents = read_pt2(file.path)
        try:
            self._program = read_program(documents.program)
            self._places = _places(file.path, documents)
            content = numbers_of(file.path)
            self._stored = {
                key: place.of(content).clone().to(device) for key, place in self._places.items()
            }
            missing = set(self._program.stored.values()) - self._stored.keys()
        except TrainingProgram as error:
            raise _trains(name, error) from None
        except UnsuitableProgram as error:
            raise UnsuitableModel(
                f"{name}: {clean_text(str(error))}. auditor runs image classifiers whose operators it "
                "knows. Export the network to ONNX, or save its state_dict and pass --arch."
            ) from None
        except UNREADABLE as error:
            raise UnreadableModel(
                f"{name} cannot be read as a torch.export archive "
                f"({clean_text(str(error), limit=120)}). Export the network again with a current PyTorch."
            ) from None
        if missing:
            raise UnreadableModel(
                f"{name} lacks tensors that it computes with, first "
                f"{clean_text(min(missing), limit=80)}. Download it again."
            )
        self._read_names(documents)
        self.architecture = f"torch.export program, {len(self._program.nodes)} operators"
        version = clean_text(str(documents.program.get("torch_version", "")), limit=40)
        self.notes.append(f"Exported by torch {version or 'of unknown version'}.")
        operators = {node.operator for node in self._program.nodes}
        self._differentiable = not operators & FORWARD_ONLY
        if not self._differentiable:
            self.notes.append(
                "It was exported without gradients, so that its attention has none: it can be tested, "
                "but neither searched by gradient nor purified. Export it with them enabled."
            )

    def _read_names(self, documents: Pt2Documents) -> None:
        """Tied tensors are one place of the file under several names."""
        first: dict[StoredTensor, str] = {}
        self._names = {name: first.setdefault(place, name) for name, place in self._places.items()}
        """Every name -> the first name of the same tensor."""
        self._stored = {name: self._stored[name] for name in first.values()}
        self._tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in self._stored.items()
        }
        named = {value: self._names[name] for value, name in self._program.stored.items()}
        self._program = replace(self._program, stored=named)
        trained = {n for n, entry in documents.weights.items() if entry.get("is_param") is True}
        self._weights = {self._names[name] for name in trained}

    def call(
        self,
        inputs: Tensor,
        overrides: Mapping[str, Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        changed = {self._names[name]: tensor for name, tensor in (overrides or {}).items()}
        rounded = {name: tensor.to(self._stored[name].dtype) for name, tensor in changed.items()}
        if not self._program.dtype.is_floating_point:
            inputs = inputs.round().clamp(0, 255)
        try:
            raw, kept = self._program.run(
                inputs.to(self._program.dtype),
                {**self._stored, **rounded},
                self.device,
                keep=self._taps,
            )
        except TrainingProgram as error:
            raise _trains(clean_text(self.file.path.name), error) from None
        self._kept += kept
        return raw.float() if isinstance(raw, Tensor) and raw.is_floating_point() else raw

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def weights(self) -> dict[str, Tensor]:
        if not self.differentiable:
            return {}
        return {
            name: tensor
            for name, tensor in self._tensors.items()
            if name in self._weights and tensor.is_floating_point()
        }

    def anatomy(self) -> list[Layer]:
        if not self.differentiable:
            return []
        return graph_layers(self._program.nodes, self._program.stored, self._tensors)

    def layers(self, inputs: Tensor) -> list[str]:
        if not self.differentiable:
            return []
        return features(self._program.nodes, self._program.stored)

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        changes = {}
        for name, values in changed.items():
            place = self._places[self._names[name]]
            if place.size != tuple(values.shape):
                raise ValueError(f"{name} is {place.size}: {values.shape}")
            changes[place] = values
        copied(self.file, path)
        try:
            overwrite(path, set(self._places.values()), changes)
        except UNREADABLE as error:
            raise OutputError(
                f"{clean_text(self.file.path.name)}: its numbers cannot be changed in place "
                f"({clean_text(str(error), limit=120)}). Export the network again, with clones of the "
                "tensors that share numbers."
            ) from None
        repair_checksums(self.file.path, path)

    @property
    def differentiable(self) -> bool:
        return self._differentiable and self._program.dtype.is_floating_point

    @property
    def parameters(self) -> int:
        return sum(self._tensors[name].numel() for name in self._weights)

    @property
    def input_size(self) -> tuple[int | None, int | None, int | None]:
        _, channels, height, width = self._program.sizes
        return channels, height, width

    @property
    def batch(self) -> int | None:
        return self._program.sizes[0]

    @property
    def program(self) -> Program:
        """What the file computes."""
        return self._program


def _trains(name: str, error: TrainingProgram) -> UnsuitableModel:
    return UnsuitableModel(
        f"{name} was exported in train mode ({clean_text(str(error))}), so that its answers change from "
        "call to call and cannot be judged. Call model.eval(), export it again, and use that file."
    )


def _places(path: Path, documents: Pt2Documents) -> dict[str, StoredTensor]:
    """Where the tensors are in the file; tied ones are the same place.

    Raises:
        ValueError: A machine of other byte order wrote the records, or a name stands for two tensors.
    """
    records = records_of(path)
    if not records:
        raise ValueError("its records are of another byte order")
    places: dict[str, StoredTensor] = {}
    known: dict[tuple[Any, ...], StoredTensor] = {}
    for folder, table in (("weights", documents.weights), ("constants", documents.constants)):
        for name, entry in table.items():
            meta = entry["tensor_meta"]
            if name in places or meta["layout"] != STRIDED:
                raise ValueError(f"{name} is stored twice, or not as plain numbers")
            described = (
                records[f"{folder}/{entry['path_name']}"],
                DTYPES[meta["dtype"]],
                meta["storage_offset"]["as_int"],
                tuple(size["as_int"] for size in meta["sizes"]),
                tuple(stride["as_int"] for stride in meta["strides"]),
            )
            places[name] = known.setdefault(described, StoredTensor(*described))
    return places
