"""What would a `torch.export` archive run if its user loaded it? Decided by allow-lists.

`torch.export.load` executes text of the file: pickles (example inputs, weights, constants; where its
safe unpickler fails, it tries the unsafe one), symbolic expressions (`sympify` is `eval`), guards
(`exec`), names (they become Python source), operators (any function of torch by name), enumerations
of the signature (`import`), compiled libraries. auditor reads such a file by none of that (see
`models.pt2_graph`); but the purified copy goes back to somebody who does, so a file that would run
anything is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from auditor.errors import UnreadableModel, UnsafeModel, UnsuitableModel
from auditor.safety.static import FORBIDDEN_OPERATORS, OPERATOR_LIBRARIES
from auditor.safety.structure import MAX_LISTED
from auditor.text import clean_text, listed

PROGRAM = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_CONFIG = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_CONFIG = f"{CONSTANTS}model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
COMPILED = ("data/aotinductor/", "data/executorch/")
COMPILED_ENDINGS = (".so", ".dll", ".dylib", ".pyd", ".cubin", ".pte")
SCHEMA = 8
"""Major version of the JSON's schema, in torch 2.6 and since."""

IDENTIFIER = re.compile(r"(?!\d)\w*", re.ASCII)
PATH = re.compile(r"[\w.@\-]*", re.ASCII)
SYMBOL = re.compile(r"(s|u|f|zf|zuf)\d+", re.ASCII)
OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
LIBRARIES = OPERATOR_LIBRARIES | {"prims"}
PYTHON_OPERATORS = frozenset(
    (
        *("_operator.eq", "_operator.ne", "_operator.le", "_operator.ge", "_operator.lt"),
        *("_operator.gt", "_operator.neg", "_operator.pos", "_operator.mul", "_operator.add"),
        *("_operator.sub", "_operator.floordiv", "_operator.mod", "_operator.pow"),
        *("_operator.truediv", "_operator.and_", "_operator.or_", "math.trunc", "torch.sym_not"),
        *("torch.sym_int", "torch.sym_float", "torch.sym_ite", "torch.sym_max", "torch.sym_min"),
        "torch.sym_sqrt",
    )
)
"""Functions that compute sizes."""

FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Not", "And", "Or", "Equality", "Unequality"),
        *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Piecewise"),
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
        *("FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow"),
        *("FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat"),
        *("TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "floor", "ceiling"),
        *("max", "min", "abs", "floor", "ceil", "trunc", "int", "float"),
    )
)
"""What an expression may call: sympy's and torch's arithmetic."""
CONSTANTS_OF_SYMPY = frozenset(("true", "false", "oo", "int_oo", "L", "math"))
SIZES = frozenset(("size", "shape", "stride", "storage_offset", "ndim", "dim", "numel"))
"""What a guard may ask a tensor."""
ROUNDING = frozenset(("floor", "ceil", "trunc", "sqrt"))
ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.BinOp),
    *(ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
    *(ast.Subscript, ast.Attribute, ast.Tuple, ast.IfExp),
)


@dataclass(frozen=True, kw_only=True)
class Pt2Documents:
    """The JSON of an archive: the program, and where its tensors are."""

    program: Mapping[str, Any]
    weights: Mapping[str, Any]
    """Name -> description of the tensor; likewise the constants."""
    constants: Mapping[str, Any]


def read_pt2(path: Path) -> Pt2Documents:
    """Read the JSON of a `torch.export` archive, executing nothing of it.

    Raises:
        UnsafeModel: Loading the file with torch would run code; names it.
        UnsuitableModel: It holds no program, several, or one of another version of torch.
        UnreadableModel: It is damaged.
    """
    name = clean_text(path.name)
    with zipfile.ZipFile(path) as archive:
        members = {member.partition("/")[2]: member for member in archive.namelist()}
        findings = list(_member_findings(members))
        documents = {}
        for wanted in (PROGRAM, WEIGHTS_CONFIG, CONSTANTS_CONFIG):
            if wanted in members:
                documents[wanted] = _parsed(archive.read(members[wanted]), name, wanted)
                findings += _findings(documents[wanted])
        if SAMPLE_INPUTS in members:
            findings += _pickle_findings(archive.read(members[SAMPLE_INPUTS]))
    if findings:
        findings = list(dict.fromkeys(findings))
        raise UnsafeModel(
            f"{name} is a torch.export archive that does more than compute on tensors: loading it with "
            f"torch.export.load could run anything. {listed(findings, MAX_LISTED, '; ')}. auditor "
            "does not open it. Ways out: export the network to ONNX, or save its state_dict and pass "
            "--arch.",
            findings,
        )
    _check_programs(name, members)
    program = documents[PROGRAM]
    version = program.get("schema_version")
    if not isinstance(version, dict) or version.get("major") != SCHEMA:
        raise UnsuitableModel(
            f"{name} was written by another version of torch (schema "
            f"{clean_text(str(version), limit=60)}; auditor reads {SCHEMA}). Export the network again "
            "with a current PyTorch."
        )
    try:
        weights = documents[WEIGHTS_CONFIG]["config"]
        constants = documents[CONSTANTS_CONFIG]["config"]
    except KeyError as error:
        raise _damaged(name, f"no {error}") from None
    if not isinstance(weights, dict) or not isinstance(constants, dict):
        raise _damaged(name, "its tables of tensors are no tables")
    return Pt2Documents(program=program, weights=weights, constants=constants)


def _check_programs(name: str, members: Mapping[str, str]) -> None:
    programs = [member for member in members if member.startswith("models/")]
    if programs == [PROGRAM]:
        return
    shown = ", ".join(clean_text(member, limit=60) for member in programs[:MAX_LISTED]) or "none"
    raise UnsuitableModel(
        f"{name} should hold one program, {PROGRAM}; it holds {shown}. Save the classifier alone with "
        "torch.export.save."
    )


def _parsed(data: bytes, name: str, member: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(name, f"{member} is no JSON") from None
    if not isinstance(document, dict):
        raise _damaged(name, f"{member} is no object")
    return document


def _damaged(name: str, why: str) -> UnreadableModel:
    return UnreadableModel(f"{name} is a damaged torch.export archive ({why}). Download it again.")


def _member_findings(members: Mapping[str, str]) -> Iterator[str]:
    for member in members:
        # torch's reader ignores the case of names
        folded, shown = member.casefold(), clean_text(member, limit=80)
        if folded.startswith(COMPILED) or folded.endswith(COMPILED_ENDINGS):
            yield f"It holds compiled code ({shown})"
        elif folded.startswith((WEIGHTS, CONSTANTS)) and folded.endswith(".pt"):
            yield f"Its weights are a pickle ({shown}), as older versions of torch wrote them"
        elif folded.startswith("data/sample_inputs/") and member != SAMPLE_INPUTS:
            yield f"It holds another pickle ({shown})"


def _pickle_findings(data: bytes) -> Iterator[str]:
    """Why torch's safe unpickler cannot read the example inputs, so that torch takes the unsafe one."""
    if not data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
        if inflated > len(data):
            yield "Its example inputs are a decompression bomb"
            return
        wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
        if not wanted:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return
    except Exception as error:  # whatever a hostile pickle provokes, torch would try the other way
        why = clean_text(str(error).partition("\n")[0], limit=80)
        yield f"Its example inputs are a pickle that torch's safe unpickler cannot read ({why})"
        return
    shown = ", ".join(clean_text(entry, limit=80) for entry in wanted[:MAX_LISTED])
    yield f"Its example inputs are a pickle that runs {shown}"


def _findings(document: Any) -> Iterator[str]:
    """What torch would execute of a document; every key that matters, wherever it is."""
    stack = [document]
    while stack:
        entry = stack.pop()
        if isinstance(entry, dict):
            for key, value in entry.items():
                check = CHECKS.get(key)
                if check is not None and (finding := check(value)) is not None:
                    yield finding
                stack.append(value)
            for key in TABLES & entry.keys():
                if isinstance(entry[key], dict):
                    names = (_name_finding(name, PATH) for name in entry[key])
                    yield from (finding for finding in names if finding is not None)
        elif isinstance(entry, list):
            stack += entry


def _operator_finding(target: Any) -> str | None:
    if isinstance(target, str) and target in PYTHON_OPERATORS:
        return None
    match = OPERATOR.fullmatch(target) if isinstance(target, str) else None
    if match is None or match[1] not in LIBRARIES or match[2] in FORBIDDEN_OPERATORS:
        return f"It calls {clean_text(str(target), limit=80)}"
    return None


def _name_finding(name: Any, pattern: re.Pattern[str] = IDENTIFIER) -> str | None:
    if name is None or (isinstance(name, str) and pattern.fullmatch(name)):
        return None
    return f"It hides code in the name {clean_text(str(name), limit=80)!r}"


def _path_finding(name: Any) -> str | None:
    return _name_finding(name, PATH)


def _expression_finding(text: Any) -> str | None:
    return None if _is_arithmetic(text) else f"It evaluates {clean_text(str(text), limit=80)!r}"


def _guards_finding(guards: Any) -> str | None:
    texts = guards if isinstance(guards, list) else [guards]
    return next((finding for text in texts if (finding := _expression_finding(text))), None)


def _arguments_finding(names: Any) -> str | None:
    plain = [name.lstrip("*") if isinstance(name, str) else name for name in names or ()]
    return next((finding for name in plain if (finding := _name_finding(name))), None)


def _pickled_finding(pickled: Any) -> str | None:
    return None if pickled is False else "It holds a pickle among its tensors (use_pickle)"


def _payload_finding(path: Any) -> str | None:
    if isinstance(path, str) and re.fullmatch(r"(weight|tensor)_\d+", path, re.ASCII):
        return None
    return f"It unpickles an object or reads an odd record ({clean_text(str(path), limit=60)})"


def _object_finding(_: Any) -> str:
    return "It holds an object of a custom class"


def _graph_finding(_: Any) -> str:
    return "It calls a higher-order operator"


def _structure_finding(text: Any) -> str | None:
    """The structure of inputs or outputs: torch imports what its enumerations and defaults name."""
    finding = f"It imports what {clean_text(str(text), limit=80)!r} names"
    try:
        stack = [json.loads(text)[1]]
        while stack:
            entry = stack.pop()
            context = entry["context"]
            names = None if context is None else json.loads(context)
            plain = names is None or (
                isinstance(names, list)
                and all(isinstance(n, str) and PATH.fullmatch(n) for n in names)
            )
            if not plain or _name_finding(entry["type"], PATH) or "defaultdict" in str(entry):
                return finding
            stack += entry["children_spec"]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return finding
    return None


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "target": _operator_finding,
    "as_operator": _operator_finding,
    "as_graph": _graph_finding,
    "as_custom_obj": _object_finding,
    "custom_obj": _object_finding,
    "use_pickle": _pickled_finding,
    "path_name": _payload_finding,
    "expr_str": _expression_finding,
    "guards_code": _guards_finding,
    "in_spec": _structure_finding,
    "out_spec": _structure_finding,
    "forward_arg_names": _arguments_finding,
    "name": _name_finding,
    "as_name": _name_finding,
    "fqn": _path_finding,
    "parameter_name": _path_finding,
    "buffer_name": _path_finding,
    "tensor_constant_name": _path_finding,
    "user_input_name": _path_finding,
}
"""Key of the JSON -> what it would execute, or None."""
TABLES = {"config", "tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values"}
"""Keys whose values are named by their keys."""


def _is_arithmetic(text: Any) -> bool:
    """True for an expression that only computes on sizes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    # sympy parses strings again, so none may stand where an operand is expected
    quoted = {id(part) for node in ast.walk(tree) for part in _quoted(node)}
    return all(
        isinstance(node, ARITHMETIC)
        and _is_plain(node)
        and (not isinstance(node, ast.Constant) or id(node) in quoted or _is_number(node.value))
        for node in ast.walk(tree)
    )


def _quoted(node: ast.AST) -> Iterator[ast.expr]:
    """Strings in the only places for them: `Symbol('s0')` and `L['x']`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        parts = node.args[:1] if node.func.id == "Symbol" and len(node.args) == 1 else []
    else:
        parts = [node.slice] if isinstance(node, ast.Subscript) else []
    for part in parts:
        value = part.value if isinstance(part, ast.Constant) else None
        if isinstance(value, str) and IDENTIFIER.fullmatch(value):
            yield part


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in FUNCTIONS | CONSTANTS_OF_SYMPY or bool(SYMBOL.fullmatch(name))
        case ast.Attribute(value=ast.Name(id="math"), attr=name):
            return name in ROUNDING
        case ast.Attribute(attr=name):
            return name in SIZES
        case ast.Call(func=ast.Name(id=name)):
            return name in FUNCTIONS
        case ast.Call(func=ast.Attribute()):
            return True
        case ast.Call():
            return False
    return True
