"""What the worker says to the process that started it: JSON in frames of limited length.

The worker may have been taken over by the suspect. So nothing of it is unpickled or run, every
frame is checked field by field, and what is too long or not understood ends the conversation.
"""

from __future__ import annotations

import os
import struct
from typing import IO

import msgspec

from auditor.safety.sandbox import Confinement

MAX_BYTES = 128 << 20
"""Of a frame; results have a megabyte or two."""
MAX_WORDS = 20_000
"""Characters of a message for a person."""
_LENGTH = struct.Struct(">I")


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """First of all: the worker is confined (or was told not to be)."""

    confinement: Confinement | None


class Progress(msgspec.Struct, frozen=True, tag="progress", forbid_unknown_fields=True):
    """What is going on, how much of it is done, of how much."""

    what: str
    done: int
    total: int


class Failure(msgspec.Struct, frozen=True, tag="failure", forbid_unknown_fields=True):
    """Last of all: why there is no result."""

    kind: str
    """Name of a class in `errors`, `OSError`, or nothing: a traceback."""
    message: str


class Done(msgspec.Struct, frozen=True, tag="done", forbid_unknown_fields=True):
    """Last of all: the result, as JSON in a text."""

    result: str


Message = Ready | Progress | Failure | Done


class Garbled(Exception):
    """What the worker sent is no message."""


def send(channel: int, message: Message) -> None:
    """Write one frame to a file descriptor."""
    data = msgspec.json.encode(message)
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(channel, rest) :]


def receive(stream: IO[bytes]) -> Message | None:
    """Read one frame; None at the end.

    Raises:
        Garbled: It is too long, ends early, or is no message.
    """
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise Garbled("a message ended early")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise Garbled(f"a message of {length} bytes")
    data = stream.read(length)
    if len(data) < length:
        raise Garbled("a message ended early")
    try:
        message: Message = msgspec.json.decode(data, type=Message)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Garbled(str(error)) from None
    return message
