"""Where in an ONNX file each tensor's numbers are, found by reading the protobuf wire format.

With that the numbers can be changed in place, and no other byte of the file changes. Protobuf's own
library would write all of it anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

Span = tuple[int, int]
"""Offsets in the file, of the first byte and of the one after the last."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; the others were given up before ONNX was made."""
GRAPH = 7  # of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
OUTPUT, OPERATOR, ATTRIBUTE = 2, 4, 5  # of NodeProto
ATTRIBUTE_NAME, ATTRIBUTE_TENSOR = 1, 5  # of AttributeProto
FLOAT_DATA, TENSOR_NAME, RAW_DATA, DOUBLE_DATA = 4, 8, 9, 10  # of TensorProto


class Malformed(ValueError):
    """Not the wire format."""


def number_spans(data: bytes) -> dict[str, list[Span]]:
    """The bytes of each tensor of a model's graph that are numbers of fixed size, in order.

    Args:
        data: A serialised ModelProto.

    Returns:
        Name of the initialiser, or output of the Constant node -> its spans; usually one, none for
        numbers in another file or of variable size.

    Raises:
        Malformed: The data ends early, or is no protobuf.
    """
    spans: dict[str, list[Span]] = {}
    for number, kind, begin, end in _fields(data, 0, len(data)):
        if (number, kind) != (GRAPH, BYTES):
            continue
        for inner, _, start, stop in _fields(data, begin, end):
            if inner == INITIALIZER:
                name, found = _tensor(data, start, stop)
                spans[name] = found
            elif inner == NODE:
                spans |= _constant(data, start, stop)
    return spans


def _tensor(data: bytes, begin: int, end: int) -> tuple[str, list[Span]]:
    name, spans = "", defaultdict(list)
    for number, _, start, stop in _fields(data, begin, end):
        if number == TENSOR_NAME:
            name = _text(data, start, stop)
        else:
            spans[number].append((start, stop))
    present = [spans[number] for number in (RAW_DATA, FLOAT_DATA, DOUBLE_DATA) if spans[number]]
    return name, present[0] if present else []


def _constant(data: bytes, begin: int, end: int) -> dict[str, list[Span]]:
    operator, outputs, attributes = "", [], []
    for number, _, start, stop in _fields(data, begin, end):
        if number == OPERATOR:
            operator = _text(data, start, stop)
        elif number == OUTPUT:
            outputs.append((start, stop))
        elif number == ATTRIBUTE:
            attributes.append((start, stop))
    if operator != "Constant" or not outputs:
        return {}
    for attribute in attributes:
        parts = {number: (start, stop) for number, _, start, stop in _fields(data, *attribute)}
        if ATTRIBUTE_NAME in parts and ATTRIBUTE_TENSOR in parts:
            _, spans = _tensor(data, *parts[ATTRIBUTE_TENSOR])
            if _text(data, *parts[ATTRIBUTE_NAME]) == "value":
                return {_text(data, *outputs[0]): spans}
    return {}


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Of one message: number, wire type, and where the content begins and ends."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            length, at = _varint(data, at, end)
        elif kind == VARINT:
            length = _varint(data, at, end)[1] - at
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise Malformed(f"wire type {kind} at byte {at}")
        if number == 0 or length > end - at:
            raise Malformed(f"field {number} of {length} bytes at byte {at}, which ends at {end}")
        yield number, kind, at, at + length
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the last byte has its high bit clear."""
    value = 0
    for place, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise Malformed(f"no number at byte {at}")


def _text(data: bytes, begin: int, end: int) -> str:
    return data[begin:end].decode("utf-8", "replace")
