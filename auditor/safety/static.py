"""What would a suspect file run if it were opened? Decided by allow-lists, without running it."""

from __future__ import annotations

import ast
import mmap
import re
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from auditor.errors import UnreadableModel, UnsafeModel
from auditor.safety.allowed import allowed_global
from auditor.safety.opcodes import PickleFacts, refuse_misuse
from auditor.safety.structure import MAX_LISTED, PICKLES, is_zip
from auditor.text import clean_text, listed

FORBIDDEN_OPERATORS = frozenset({"save", "from_file", "load", "_print", "TimePoint"})
"""TorchScript operators that read or write anything but the tensors they are given, or tell the time."""

UNCHECKED = ("_backward",)
"""Endings of operators that trust what they are given: autograd calls them, no network does."""

OPERATOR_LIBRARIES = frozenset({"prim", "aten", "torchvision", "quantized"})
"""Operator namespaces that come with torch and torchvision."""

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def load_pickle(path: Path, *, writable: bool = False) -> Any:
    """Read a file of `torch.save` without executing anything in it.

    torch's weights-only unpickler, with the classes of torch's and torchvision's own networks
    allowed. Tensors land on the CPU.

    Args:
        path: The file.
        writable: Let the tensors be the file's own bytes: what is written to them is written to the
            file. For zip files only; torch does not offer it on Windows.

    Raises:
        UnsafeModel: The file needs other code; lists the names it wants and the ways out. Or it holds
            a pickle that torch does not read, for somebody else.
        UnreadableModel: The pickle is damaged.
    """
    _refuse_other_pickles(path)
    facts = refuse_misuse(path)
    allowed: dict[str, type[Any]] = {}
    while True:
        entries: list[Any] = [(entry, name) for name, entry in allowed.items()]
        try:
            with torch.serialization.safe_globals(entries), _mapping(writable):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=writable)
        except Exception as error:  # whatever a hostile file provokes has one of two answers
            message = str(error)
        wanted = [name for name in _wanted_globals(path, message, facts) if name not in allowed]
        if not wanted:
            raise unreadable(path, message)
        refused = [name for name in wanted if allowed_global(name) is None]
        if refused:
            raise UnsafeModel(
                _refusal(path, refused),
                [f"it asks for {clean_text(entry, limit=80)}" for entry in refused],
            )
        allowed |= {name: entry for name in wanted if (entry := allowed_global(name)) is not None}


def unreadable(path: Path, message: str) -> UnreadableModel:
    """What a message of torch says of a file that it does not read."""
    name = clean_text(path.name)
    if "but got <class 'str'>" in message:
        return UnreadableModel(
            f"{name} is a whole network in PyTorch's old file format (before 1.6), which keeps its source "
            "code in the pickle. Save it again with a current PyTorch, or save its state_dict and pass "
            "--arch."
        )
    if "Unsupported operand" in message:
        return UnreadableModel(
            f"{name} is written in a pickle protocol that torch's weights-only reader does not know. Save it "
            "again with torch.save as it is, without pickle_protocol."
        )
    lines = message.strip().splitlines()
    return UnreadableModel(
        f"{name} cannot be read as a PyTorch file "
        f"({clean_text(lines[0] if lines else 'damaged', limit=160)})."
    )


def other_pickles(path: Path) -> list[str]:
    """Members of a zip archive that are pickles, besides the one that torch reads; fit to be shown."""
    if not is_zip(path):
        return []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    own = f"{names[0].partition('/')[0]}/data.pkl" if names else ""
    return [
        clean_text(name, limit=80)
        for name in names
        if name.casefold().endswith(PICKLES) and name != own
    ]


def _refuse_other_pickles(path: Path) -> None:
    found = other_pickles(path)
    if found:
        raise UnsafeModel(
            f"{clean_text(path.name)} holds more pickles than torch.save writes: "
            f"{', '.join(found[:MAX_LISTED])}. Whoever opens those may run anything; auditor does not "
            "open it. Ways out: save it again with torch.save.",
            [f"it holds another pickle than torch reads, {name}" for name in found],
        )


def _mapping(writable: bool) -> AbstractContextManager[None]:
    if not writable:
        return nullcontext()
    return torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)


def _wanted_globals(path: Path, message: str, facts: PickleFacts) -> list[str]:
    """Names outside torch's own allow-list: those of the file, and the one in the message."""
    named = {
        name if "." in name else f"builtins.{name}"  # as torch writes what is built in
        for name in _GLOBAL.findall(message)
    }
    if not is_zip(path):
        own = torch._weights_only_unpickler._get_allowed_globals()
        return sorted(named | {name for name in facts.wanted if name not in own})
    try:
        named.update(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the static walk met an opcode that it does not know
        return sorted(named)
    return sorted(named)


def _refusal(path: Path, refused: list[str]) -> str:
    shown = listed([clean_text(name, limit=80) for name in refused], MAX_LISTED)
    return (
        f"{clean_text(path.name)} is a pickle that needs code which is not part of torch or "
        f"torchvision; opening it could run anything, so auditor does not. It wants: {shown}. "
        "Ways out: (1) in the environment it came from, save torch.save(model.state_dict(), ...) "
        "and pass --arch your_file.py:factory; (2) export it to ONNX (torch.onnx.export); "
        "(3) export it to TorchScript (torch.jit.trace(...).save)."
    )


def check_torchscript(path: Path) -> None:
    """Refuse a TorchScript archive whose code does more than compute on tensors.

    TorchScript is code: its interpreter can write files already while loading (`__setstate__`).
    The archive's code is parsed, never run; operators and namespaces are checked one by one.

    Raises:
        UnsafeModel: Names what the code would do.
    """
    findings: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            # torch's reader ignores the case of names
            inner = member.partition("/")[2].casefold()
            if not inner.startswith("code/") or inner.endswith(".debug_pkl"):
                continue
            if not member.endswith(".py"):
                findings.append(f"it holds code under an odd name, {clean_text(member, limit=80)}")
                continue
            try:
                tree = ast.parse(archive.read(member).decode("utf-8"))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                findings.append(f"unreadable code in {clean_text(member, limit=80)}")
                continue
            findings += _code_findings(tree)
    if findings:
        findings = sorted(set(findings))
        shown = ", ".join(findings[:MAX_LISTED])
        raise UnsafeModel(
            f"{clean_text(path.name)} is a TorchScript file whose code does more than compute on "
            f"tensors: {shown}. auditor does not open it. Ways out: export the network to ONNX, "
            "or save its state_dict and pass --arch; of a quantised network, whose layers unpack themselves "
            "so, take it as it was before.",
            findings,
        )


def _code_findings(tree: ast.AST) -> list[str]:
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__setstate__", "__getstate__"):
            findings.append(f"it runs {node.name} while loading")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            findings.append("it prints")
        access = _attribute(node)
        if access is None:
            continue
        owner, name = access
        root = owner.id if isinstance(owner, ast.Name) else None
        if name is None or name in FORBIDDEN_OPERATORS or name.endswith(UNCHECKED):
            findings.append(f"it calls {_written(node)}")
        elif root == "ops" and name not in OPERATOR_LIBRARIES:
            findings.append(f"it uses operators of {clean_text(name, limit=60)!r}")
    return findings


def _written(node: ast.AST) -> str:
    try:
        return clean_text(ast.unparse(node), limit=60)
    except RecursionError:
        return "what is nested too deeply to be shown"


def _attribute(node: ast.AST) -> tuple[ast.expr, str | None] | None:
    """Owner and name of `owner.name` or `getattr(owner, "name")`; name None if it is computed."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        constant = len(node.args) == 2 and isinstance(node.args[1], ast.Constant)
        name = node.args[1].value if constant else None  # type: ignore[attr-defined]
        return node.args[0] if node.args else node.func, name if isinstance(name, str) else None
    return None
