"""What would a pickle call if it were loaded? Its opcodes are read one by one, nothing is called.

The stack is followed with stand-ins, well enough to show the arguments of a call. What cannot be
followed counts as a name that nobody knows.
"""

from __future__ import annotations

import enum
import io
import math
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from auditor.errors import UnreadableModel, UnsafeModel
from auditor.safety.allowed import (
    InertEnum,
    InertOptimizer,
    InertPartial,
    PlainDict,
    Reference,
    allowed_global,
)
from auditor.safety.structure import DAMAGED, MAX_LISTED, PICKLES, is_zip
from auditor.text import clean_text, listed

MAX_OPCODES = 10_000_000
MAX_CALLS = 20
MAX_PICKLE = 256 << 20
"""Bytes of a pickle in an archive, without its tensors."""
LEGACY_PICKLES = 5
"""In a file of before torch 1.6: magic number, protocol, system, content, names of storages."""
BROKEN = "its pickle cannot be followed to the end"
COMPUTED = "a name that is computed"
REBUILDS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"}
CONSTANTS = {
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("BINBYTES", "SHORT_BINBYTES", "FLOAT", "BINFLOAT"),
}


class Unknown:
    """Something on the stack that is not followed."""

    def __repr__(self) -> str:
        return "…"


@dataclass(frozen=True)
class Named:
    """A global: a class or function, by its name."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(eq=False)
class Made:
    """What a call gives, as far as it is followed: by what, of what, and whether its state was set."""

    by: str
    arguments: tuple[Any, ...]
    built: bool = False
    items: int = 0
    """Entries that were appended."""

    def __repr__(self) -> str:
        return "…"


@dataclass(eq=False)
class Table:
    """A dictionary of the pickle: its keys."""

    keys: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return "…"


@dataclass(eq=False)
class Series:
    """A list of the pickle: how many entries it has."""

    items: int = 0

    def __repr__(self) -> str:
        return "…"


UNKNOWN = Unknown()
STORED = Unknown()
"""What the archive keeps beside the pickle: numbers, and in old files classes."""
DTYPE = "numpy.dtype"
OVERLOADS = "__overloads__"
"""What `torch.jit.script` leaves in every layer that it has seen, and alone looks for."""
DEQUE = "collections.deque"
BYTES = {"_codecs.encode", "builtins.bytes"}
"""What bytes are made by in protocol 2."""
PLAIN_DTYPE = re.compile(r"([?biufcmMO])\d*|([SUV])(\d+)")
"""Of numbers, dates and objects; of text and bytes, which have a length."""
OBJECT_FLAGS = 63
"""Of an array of objects: with others NumPy takes bytes of the file for their addresses."""
TEXT_FLAGS = 8
WITH_STATE = {"torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter_with_state"}
"""They call what they are given, or set any attribute of a tensor; no state dict needs them."""
TYPES_OF_TORCH = re.compile(r"torch(\.\w+)*\.(\w*Tensor|\w*Storage|Parameter)")
"""Called, they give whatever the memory holds; pickle only names them."""
CONSTANT_OPCODES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass
class PickleFacts:
    """What a pickle wants and would do."""

    wanted: set[str] = field(default_factory=set)
    """Full names of its globals."""
    calls: list[str] = field(default_factory=list)
    """Calls of what is not allowed, or not to be called so, with their arguments; fit to be shown."""
    tensors: int = 0
    numbers: int = 0
    """In all tensors."""
    misused: list[str] = field(default_factory=list)
    """Those of the calls whose function is allowed, but not to be called so."""
    complete: bool = True
    """It was read to its end."""

    @property
    def refused(self) -> list[str]:
        """Names that could do anything."""
        return sorted(name for name in self.wanted if not is_allowed(name))

    @property
    def findings(self) -> tuple[str, ...]:
        """What loading it would do, and what else it asks for; a line each, fit to be shown."""
        found = [f"loading it calls {call}" for call in self.calls]
        shown = {call.partition("(")[0] for call in self.calls}
        names = (clean_text(name, limit=80) for name in self.refused)
        found += [f"it asks for {name}" for name in names if name not in shown]
        if not self.complete:
            found.append(BROKEN)
        return tuple(found)


def is_allowed(name: str) -> bool:
    """Would the weights-only unpickler accept it, or auditor's allow-list of layers?"""
    known = torch._weights_only_unpickler._get_allowed_globals()
    return name in known or allowed_global(name) is not None


def walk(path: Path) -> PickleFacts:
    """Read the opcodes of every pickle in a file of `torch.save`, zip or legacy.

    Raises:
        OSError: The file cannot be read.
    """
    facts = PickleFacts()
    if not is_zip(path):
        with path.open("rb") as stream:
            for _ in range(LEGACY_PICKLES):
                if not _walk(stream, facts):
                    break
        return facts
    # `identify` sees to it that torch's reader sees the same archive
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.casefold().endswith(PICKLES):
                continue
            if member.file_size > MAX_PICKLE:
                facts.complete = False
                continue
            try:
                _walk(io.BytesIO(archive.read(member)), facts)
            except DAMAGED:
                facts.complete = False
    return facts


def begins_with_pickle(path: Path) -> bool:
    """Whether the bytes of a file, whatever it is, are a pickle first.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        return _walk(stream, PickleFacts())


def refuse_calls(path: Path) -> None:
    """Refuse a file whose pickles call what could do anything, whether or not it can be read.

    Raises:
        UnsafeModel: Says what they call and ask for.
        OSError: The file cannot be read.
    """
    facts = walk(path)
    # in an archive checksums are right, so that a pickle without an end is no accident
    findings = facts.findings if facts.refused or facts.calls or is_zip(path) else ()
    if findings:
        raise _unsafe(path, findings)


def refuse_misuse(path: Path) -> PickleFacts:
    """Refuse a file that calls what is allowed in ways that pickle does not.

    Torch's unpickler would make these calls. What is not allowed at all it refuses itself.

    Returns:
        What the pickles of another file want and would do.

    Raises:
        UnsafeModel: Says what they call.
        UnreadableModel: They cannot be followed to their end.
        OSError: The file cannot be read.
    """
    facts = walk(path)
    findings = [f"loading it calls {call}" for call in facts.misused]
    if not facts.complete and is_zip(path):
        findings.append(BROKEN)
    if findings:
        raise _unsafe(path, tuple(findings))
    if not facts.complete:
        raise UnreadableModel(
            f"{clean_text(path.name)} is damaged, ends early, or holds a pickle too long to be checked. "
            "Download it again, or save the network's state_dict alone."
        )
    return facts


def _unsafe(path: Path, findings: tuple[str, ...]) -> UnsafeModel:
    return UnsafeModel(
        f"{clean_text(path.name)} is a pickle, and opening it could run anything, so auditor does not: "
        f"{listed(findings, MAX_LISTED, '; ')}. Ways out: in the environment it came from, save "
        "torch.save(model.state_dict(), ...) and pass --arch, or export it to ONNX.",
        findings,
    )


def _walk(stream: IO[bytes], facts: PickleFacts) -> bool:
    """One pickle; False where it breaks off."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                facts.complete = False
                return False
            _step(opcode, argument, stack, marks, memo, facts)
    except (ValueError, EOFError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        facts.complete = False
        return False
    return True


def _step(
    opcode: pickletools.OpcodeInfo,
    argument: Any,
    stack: list[Any],
    marks: list[int],
    memo: dict[int, Any],
    facts: PickleFacts,
) -> None:
    name = opcode.name
    if name == "MARK":
        marks.append(len(stack))
        return
    if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1] if stack else UNKNOWN
        return
    popped = _popped(opcode, stack, marks)
    if name in CONSTANTS:
        made: Any = argument
    elif name in CONSTANT_OPCODES:
        made = CONSTANT_OPCODES[name]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        made = memo.get(int(argument), UNKNOWN)
    elif name == "GLOBAL":
        made = _global(argument.replace(" ", ".", 1), facts)
    elif name == "STACK_GLOBAL":
        parts = popped[-2:]
        computed = len(parts) < 2 or not all(isinstance(part, str) for part in parts)
        made = _global(COMPUTED if computed else ".".join(parts), facts)
    elif name.startswith("EXT"):
        made = _global(f"extension {argument} of copyreg", facts)
    elif name == "INST":
        made = _called(name, _global(argument.replace(" ", ".", 1), facts), popped, facts)
    elif name in CALLS:
        arguments = popped[1:] if name == "OBJ" else popped[-1] if popped else ()
        made = _called(name, popped[0] if popped else UNKNOWN, arguments, facts)
    elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
        made = tuple(popped)
    elif name in ("EMPTY_DICT", "DICT"):
        made = Table(popped[::2])
    elif name in ("EMPTY_LIST", "LIST"):
        made = Series(len(popped))
    elif name in ("APPENDS", "APPEND", "SETITEMS", "SETITEM", "ADDITEMS", "BUILD"):
        made = popped[0] if popped else UNKNOWN
        if name == "BUILD":
            _built(made, popped[-1] if popped else UNKNOWN, facts)
        elif isinstance(made, Table):
            made.keys += popped[1::2]
        elif isinstance(made, Series | Made):
            made.items += len(popped) - 1
            if isinstance(made, Made) and made.by == DEQUE and made.items > _longest(made):
                _note_call("collections.deque.append", made.arguments, facts, misused=True)
    elif name == "BINPERSID":
        made = STORED
    elif name == "DUP":
        made = popped[-1] if popped else UNKNOWN
        stack.append(made)
    else:
        made = UNKNOWN
    if opcode.stack_after:
        stack.append(made)


def _popped(opcode: pickletools.OpcodeInfo, stack: list[Any], marks: list[int]) -> list[Any]:
    """What an opcode takes from the stack, in the order in which it was put there."""
    before = [entry.name for entry in opcode.stack_before]
    single = before.index("mark") if "mark" in before else len(before)
    found: list[Any] = []
    if "mark" in before:
        begin = marks.pop() if marks else 0
        found = stack[begin:]
        del stack[begin:]
    if single:
        found = stack[-single:] + found
        del stack[-single:]
    return found


def _global(name: str, facts: PickleFacts) -> Named:
    name = _modern(name)
    facts.wanted.add(name)
    return Named(name)


def _modern(name: str) -> str:
    """The name in Python 3 of what Python 2 called otherwise, as the unpickler reads it."""
    module, _, attribute = name.rpartition(".")
    if (module, attribute) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, attribute])
    return f"{IMPORT_MAPPING.get(module, module)}.{attribute}" if module else name


def _called(opcode: str, function: Any, arguments: Any, facts: PickleFacts) -> Any:
    """A call, as pickle writes it for what it is of; every other one is a finding."""
    given = tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
    if not isinstance(function, Named):
        if function is STORED:  # a class of an old file, which torch's unpickler refuses
            return STORED
        _note_call("what the file makes", given, facts, misused=True)
        return UNKNOWN
    name = function.name
    if name in REBUILDS and len(given) > 2:
        size = given[2]
        facts.tensors += 1
        if isinstance(size, tuple) and all(isinstance(n, int) for n in size):
            facts.numbers += math.prod(size)
    if name in torch._weights_only_unpickler._get_allowed_globals():
        if name in WITH_STATE or TYPES_OF_TORCH.fullmatch(name):
            _note_call(name, given, facts, misused=True)
    elif (kind := allowed_global(name)) is None:
        _note_call(name, given, facts)
    elif not _is_usual_call(opcode, name, kind, given):
        _note_call(name, given, facts, misused=True)
    return Made(name, given)


def _is_usual_call(opcode: str, name: str, kind: type[Any], given: tuple[Any, ...]) -> bool:
    if issubclass(kind, nn.Module | InertOptimizer):  # a constructor may do anything with arguments
        return opcode == "NEWOBJ" and not given
    if issubclass(kind, Reference):
        return False
    if issubclass(kind, enum.Enum | InertEnum | InertPartial):
        return opcode == "REDUCE" and len(given) == 1
    if issubclass(kind, PlainDict):  # what a factory makes no reader would see
        return len(given) < 2 and all(value is None or isinstance(value, Named) for value in given)
    first = given[0] if given else None
    if name == DTYPE:
        return isinstance(first, str) and PLAIN_DTYPE.fullmatch(first) is not None
    if name.endswith(".multiarray._reconstruct"):
        return first == Named("numpy.ndarray")
    if name.endswith(".multiarray.scalar"):
        numbers = isinstance(first, Made) and _is_dtype(first) and not _is_of_objects(first)
        return numbers and len(given) == 2 and _is_raw(given[1])
    if name == "builtins.bytes":
        return not given
    return True


def _built(made: Any, state: Any, facts: PickleFacts) -> None:
    """The state of what was made, as pickle writes it: once, and with nothing that Python would call."""
    if made is STORED or (isinstance(made, Made) and not is_allowed(made.by)):
        return  # refused by name
    if not isinstance(made, Made):
        _note_call("what the file makes.__setstate__", (state,), facts, misused=True)
        return
    kind = allowed_global(made.by)
    if made.by == DTYPE:
        usual = _is_usual_dtype(str(made.arguments[0]), state)
    elif made.by.endswith(".multiarray._reconstruct"):
        usual = _is_usual_array(state)
    elif kind is not None and issubclass(kind, enum.Enum | InertEnum):
        usual = False
    elif kind is not None and issubclass(kind, InertPartial):
        usual = isinstance(state, tuple) and len(state) == 4
        usual = usual and _is_same(made.arguments[0], state[0])
        usual = usual and (state[3] is None or _is_plain_table(state[3]))
    elif kind is None:  # torch's own: an OrderedDict keeps the versions of its layers
        usual = isinstance(state, Table) and state.keys in ([], ["_metadata"])
    else:
        usual = _is_plain_table(state)
    if made.built or not usual:
        _note_call(f"{made.by}.__setstate__", (state,), facts, misused=True)
    made.built = True


def _is_same(function: Any, other: Any) -> bool:
    """One function twice; what is nested is not looked into, since that may take for ever."""
    named = isinstance(function, Named) and isinstance(other, Named) and function == other
    return named or function is other or function is STORED


def _is_plain_table(state: Any) -> bool:
    """Attributes, none of which Python looks for by itself."""
    return isinstance(state, Table) and all(
        isinstance(key, str) and (key == OVERLOADS or not key.startswith("__"))
        for key in state.keys
    )


def _is_dtype(value: Any) -> bool:
    return isinstance(value, Made) and value.by == DTYPE


def _is_of_objects(dtype: Made) -> bool:
    return str(dtype.arguments[0]).startswith("O")


def _is_raw(value: Any) -> bool:
    return isinstance(value, str | bytes) or (isinstance(value, Made) and value.by in BYTES)


def _is_usual_array(state: Any) -> bool:
    """Version, shape, type, order and numbers; of objects as many as there are places."""
    if not isinstance(state, tuple) or len(state) != 5:
        return False
    version, shape, dtype, fortran, content = state
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        return False
    if type(version) is not int or not isinstance(fortran, bool) or not _is_dtype(dtype):
        return False
    if _is_of_objects(dtype):
        return isinstance(content, Series) and content.items == math.prod(shape)
    return _is_raw(content)


def _longest(deque: Made) -> float:
    longest = deque.arguments[1] if len(deque.arguments) > 1 else None
    return longest if isinstance(longest, int) else math.inf


def _is_usual_dtype(code: str, state: Any) -> bool:
    """Version, byte order, no parts, size, alignment and flags; of dates what they count, too."""
    found = PLAIN_DTYPE.fullmatch(code)
    if found is None or not isinstance(state, tuple) or len(state) < 8:
        return False
    if any(part is not None for part in state[2:5]) or len(state) > 8 + (found[1] in ("m", "M")):
        return False
    size, flags = (-1, -1), {0}
    if found[1] == "O":
        flags = {OBJECT_FLAGS}
    elif found[2]:
        wide = 4 if found[2] == "U" else 1
        size, flags = (wide * int(found[3]), wide), {0, TEXT_FLAGS}
    exact = all(type(part) is int for part in state[5:8])
    return exact and state[5:7] == size and state[7] in flags


def _note_call(
    name: str, arguments: tuple[Any, ...], facts: PickleFacts, *, misused: bool = False
) -> None:
    call = f"{clean_text(name, limit=80)}({_shown(arguments)})"
    if len(facts.calls) < MAX_CALLS:
        facts.calls.append(call)
    if misused and len(facts.misused) < MAX_CALLS:
        facts.misused.append(call)


def _shown(arguments: tuple[Any, ...]) -> str:
    parts = [repr(value) if not isinstance(value, tuple | list) else "…" for value in arguments]
    return clean_text(", ".join(parts), limit=120)
