"""Files of safetensors: weights without a network, and nothing in them that could run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from auditor.architectures import Architecture
from auditor.errors import OutputError, UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.models.archive import copied
from auditor.models.base import ModelHandle, ModuleHandle
from auditor.models.patching import same_numbers
from auditor.models.state_dict import StateDict, open_state_dict
from auditor.safety.opcodes import begins_with_pickle, refuse_calls
from auditor.safety.structure import FileFacts
from auditor.text import clean_text, listed

LENGTH = 8
"""Bytes before the header: its length, little-endian."""
MAX_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class SafetensorsContent:
    """What a file of safetensors holds."""

    state: StateDict
    metadata: Mapping[str, str]
    tied: tuple[str, ...] = ()
    """Names that only the metadata has, for the tensor of another name."""


class SafetensorsHandle(ModuleHandle):
    """A network with the weights of a file of safetensors."""

    def __init__(self, file: FileFacts, opened: ModuleHandle) -> None:
        super().__init__(
            file,
            opened.module,
            architecture=opened.architecture,
            device=opened.device,
            input_size=opened.input_size,
            default_side=opened.default_side,
            extras=opened.extras,
            locate=opened._locate,
        )
        self.notes += opened.notes
        self.rivals += opened.rivals
        self.alternatives = opened.alternatives

    def write(self, changed: Mapping[str, Tensor], path: Path) -> None:
        _write_changed(self, self._slots.with_all_names(changed), path)

    def entries_of(self, state: StateDict) -> Mapping[str, str]:
        """Name in the network -> key in the file."""
        return {} if self._locate is None else self._locate(state).entries

    def refuse_other_ties(self, content: SafetensorsContent) -> None:
        """Refuse metadata by which tensors are one that the network does not keep as one.

        Other readers would leave those out.

        Raises:
            UnsuitableModel: There are some.
        """
        names = {key: name for name, key in self.entries_of(content.state).items()}
        first = self._slots.names
        for key in content.tied:
            kept = content.metadata[key]
            if key not in names and kept not in names:
                continue  # beside the network
            if key not in names or kept not in names or first[names[key]] != first[names[kept]]:
                raise UnsuitableModel(
                    f"{clean_text(self.file.path.name)}: by its metadata {clean_text(key, limit=80)} is "
                    f"{clean_text(kept, limit=80)}, which are not one tensor in {self.architecture}. Save it "
                    "again with safetensors.torch.save_model."
                )


def open_safetensors(
    file: FileFacts, architecture: Architecture | None, device: torch.device
) -> ModelHandle:
    """Open a file of safetensors.

    Raises:
        UnreadableModel: It is damaged.
        UnsuitableModel: The weights belong to another network than `architecture`.
    """
    content = read_safetensors(file.path)
    checkpoint = {**content.metadata, **content.state}  # the metadata may name the network
    handle = SafetensorsHandle(file, open_state_dict(file, checkpoint, architecture, device))
    handle.refuse_other_ties(content)
    said = [
        f"{clean_text(key, limit=40)}: {clean_text(value, limit=60)}"
        for key, value in sorted(content.metadata.items())
        if key != "format"
    ]
    if said:
        handle.notes.append(f"Its metadata says {listed(said, MAX_SHOWN)}.")
    return handle


def read_safetensors(path: Path) -> SafetensorsContent:
    """Every tensor of a file, on the CPU, and its metadata.

    `safetensors.torch.save_model` keeps one of several tied tensors and notes the names of the
    others in the metadata; they are given back their tensor.

    Raises:
        UnreadableModel: As of `stored_content`.
    """
    content = stored_content(path)
    state = content.state
    tied = {
        name: state[kept]
        for name, kept in content.metadata.items()
        if kept in state and name not in state
    }
    return replace(content, state=state | tied, tied=tuple(tied))


def stored_content(path: Path) -> SafetensorsContent:
    """The same under the names in the file only, without those of tied tensors.

    Raises:
        UnsafeModel: It is a pickle as well.
        UnreadableModel: The library refuses it (offsets that overlap, overflow or leave holes), or
            it has tensors of a type that torch does not know.
    """
    refuse_calls(path)
    if begins_with_pickle(path):
        raise UnsafeModel(
            f"{clean_text(path.name)} is safetensors and a pickle as well, so that torch.load finds another "
            "model in it; refused. Ways out: save it again with safetensors.torch.save_file."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as content:
            metadata = content.metadata() or {}
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, RuntimeError, ValueError) as error:
        raise UnreadableModel(
            f"{clean_text(path.name)} cannot be read as safetensors "
            f"({clean_text(str(error), limit=160)}). Download it again."
        ) from None
    return SafetensorsContent(state=state, metadata=metadata)


def _write_changed(
    handle: SafetensorsHandle, changed: Sequence[tuple[Sequence[str], Tensor]], path: Path
) -> None:
    """Write the values over those of a copy; its header stays as it is.

    Args:
        handle: The suspect.
        changed: All names of a tensor in the network, and its values.
        path: The new file.

    Raises:
        OutputError: It cannot be written, or the values cannot be put into it.
    """
    file, name = handle.file, clean_text(handle.file.path.name)
    copied(file, path)
    old = read_safetensors(path)
    entries, places = handle.entries_of(old.state), _places(path)
    expected = dict(old.state)
    with path.open("r+b") as stream:
        for names, values in changed:
            present = [entries[alias] for alias in names if alias in entries]
            # files of before PyTorch 0.4.1 have no such counter, and `fit` does not ask for it
            if not present and not names[0].endswith("num_batches_tracked"):
                raise OutputError(
                    f"{name} does not hold {clean_text(names[0], limit=120)}, which was changed, so "
                    "that it cannot be written."
                )
            for key in present:
                stored = old.state[key]
                if stored.shape != values.shape:
                    raise ValueError(f"{key} is {tuple(stored.shape)}: {values.shape}")
                expected[key] = values.detach().to("cpu", stored.dtype).contiguous()
                stored_as = key if key in places else old.metadata[key]
                stream.seek(places[stored_as])
                stream.write(expected[key].reshape(-1).view(torch.uint8).numpy().tobytes())
    found = read_safetensors(path).state
    if not all(same_numbers(values, found[key]) for key, values in expected.items()):
        raise OutputError(
            f"{name} stores several tensors of the network as one, and they have different values "
            "now. Save clones of them with safetensors.torch.save_file."
        )


def _places(path: Path) -> dict[str, int]:
    """Where the numbers of each tensor begin in the file, which the library has checked."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(LENGTH))
        header: dict[str, Any] = json.loads(stream.read(length))
    begin = LENGTH + length
    return {
        key: begin + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }
