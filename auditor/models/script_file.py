"""Where a TorchScript archive keeps the numbers of its tensors.

The archive's `data.pkl` is read by a Python unpickler that knows no class but those of this module,
so that nothing in it can run; torch reads the same pickle by C++ code that tells no offsets.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from auditor.models.archive import Record, records_of
from auditor.models.stored import StoredTensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
UNREADABLE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, pickle.UnpicklingError),
    *(RuntimeError, TypeError, ValueError),
)


class Inert:
    """An object of the archive: what it holds, and no behaviour."""

    def __init__(self, *contents: object) -> None:
        self.contents: Any = contents

    def __setstate__(self, state: object) -> None:
        self.contents = state


class Reader(pickle.Unpickler):
    """Reads `data.pkl`; collects every tensor that it describes."""

    def __init__(self, stream: Any, records: dict[str, Record]) -> None:
        super().__init__(stream)
        self._records = records
        self.tensors: list[StoredTensor] = []

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for a class or function of that name; never the thing itself."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return Inert

    def persistent_load(self, identity: Any) -> tuple[Record, torch.dtype]:
        """A storage: `("storage", type, key, device, number of elements)`."""
        _, dtype, key, *_ = identity
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of unknown type")
        return self._records[key], dtype

    def _tensor(
        self,
        storage: tuple[Record, torch.dtype],
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
    ) -> StoredTensor:
        tensor = StoredTensor(*storage, int(offset), tuple(size), tuple(stride))
        self.tensors.append(tensor)
        return tensor


def stored_constants(path: Path) -> list[StoredTensor | None]:
    """The constants of the code of a TorchScript archive, c0 first; None for what is no tensor.

    Raises:
        UNREADABLE: The archive is none that we understand.
    """
    records = {key.removeprefix("constants/"): r for key, r in records_of(path).items()}
    root, _ = _unpickled(path, "constants.pkl", records)
    return [entry if isinstance(entry, StoredTensor) else None for entry in root]


def stored_tensors(path: Path) -> tuple[Callable[[str], StoredTensor], list[StoredTensor]]:
    """How to find a tensor by its name, and all tensors of a TorchScript archive.

    Both raise what a pickle can provoke (see `UNREADABLE`) where it is none that we understand, or
    holds no tensor of that name.
    """
    root, tensors = _unpickled(path, "data.pkl", records_of(path))

    def find(name: str) -> StoredTensor:
        value = root
        for part in name.split("."):
            value = value.contents[part]
        if not isinstance(value, StoredTensor):
            raise LookupError(name)
        return value

    return find, tensors


def _unpickled(
    path: Path, member: str, records: dict[str, Record]
) -> tuple[Any, list[StoredTensor]]:
    """What a member of an archive describes, and all tensors in it."""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.partition("/")[2] == member), None)
        if name is None:
            raise LookupError(member)
        with archive.open(name) as stream:
            reader = Reader(stream, records)
            return reader.load(), reader.tensors
