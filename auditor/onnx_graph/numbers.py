"""The numbers of one ONNX tensor as bytes, whichever field of the protobuf they are in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from auditor.errors import OutputError
from auditor.text import clean_text

TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
}
"""Types that are ever changed; integers of quantised weights stay."""


def encoded(values: Tensor, stored: Any) -> bytes:
    """Values cast to the type of a stored tensor, little-endian as ONNX has it.

    Raises:
        OutputError: The stored tensor holds no floats.
        ValueError: It has another shape.
    """
    if stored.data_type not in TYPES:
        raise OutputError(
            f"{clean_text(stored.name, limit=120)} holds "
            f"{clean_text(_type_name(stored.data_type))} numbers, which auditor never changes."
        )
    if tuple(stored.dims) != tuple(values.shape):
        raise ValueError(f"{stored.name} is {tuple(stored.dims)}: {tuple(values.shape)}")
    numbers = values.detach().cpu().to(TYPES[stored.data_type]).contiguous()
    if numbers.dtype is torch.bfloat16:  # numpy has no such type
        numbers = numbers.view(torch.int16)
    array = numbers.numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def inline_bytes(stored: Any) -> bytes:
    """The numbers of a tensor of one of `TYPES` that the model file holds itself."""
    if stored.HasField("raw_data"):
        return bytes(stored.raw_data)
    match stored.data_type:
        case onnx.TensorProto.FLOAT:
            return np.array(stored.float_data, "<f4").tobytes()
        case onnx.TensorProto.DOUBLE:
            return np.array(stored.double_data, "<f8").tobytes()
        case _:  # the bits of half precision, as integers
            return np.array(stored.int32_data, "<i4").astype("<u2").tobytes()


def put_inline(stored: Any, data: bytes) -> None:
    """Give a tensor other numbers, in the field that holds those it has."""
    if stored.HasField("raw_data"):
        stored.raw_data = data
        return
    match stored.data_type:
        case onnx.TensorProto.FLOAT:
            stored.float_data[:] = np.frombuffer(data, "<f4").tolist()
        case onnx.TensorProto.DOUBLE:
            stored.double_data[:] = np.frombuffer(data, "<f8").tolist()
        case _:
            stored.int32_data[:] = np.frombuffer(data, "<u2").tolist()


def _type_name(data_type: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(data_type)).lower()
    except ValueError:
        return f"type-{data_type}"
