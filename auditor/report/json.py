"""A result as JSON and back; a damaged or contradictory file is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from auditor.errors import UsageError
from auditor.inspecting.record import SCHEMA as INSPECTION_SCHEMA
from auditor.inspecting.record import Inspection
from auditor.report.checks import contradictions
from auditor.results.attack import AttackResult
from auditor.results.purify import PURIFY_SCHEMA, PurifyResult
from auditor.results.scan import SCAN_SCHEMA, ScanResult
from auditor.text import clean_text, is_hidden

RECORDS: Mapping[str, type[ScanResult] | type[PurifyResult] | type[Inspection]] = {
    SCAN_SCHEMA: ScanResult,
    PURIFY_SCHEMA: PurifyResult,
    INSPECTION_SCHEMA: Inspection,
}
AGAIN: Mapping[type, str] = {
    ScanResult: "Scan again",
    PurifyResult: "Purify again",
    Inspection: "Inspect again",
}


def to_json(result: ScanResult | PurifyResult | AttackResult | Inspection) -> str:
    """The result as JSON: keys sorted, indented, ending with a line feed, the same every time.

    Invisible and reordering characters are written as escapes. JSON has no NaN and no infinity: a
    number that is not finite (a broken model gives those) is written as 0.
    """
    return indented(msgspec.to_builtins(result))


def from_json(text: str) -> ScanResult | PurifyResult | Inspection:
    """The result that `to_json` wrote; its "schema" says of what: a scan, a purification, an inspection.

    Raises:
        UsageError: The text is no JSON, no result, of another version, or its numbers contradict
            each other.
    """
    try:
        data = text.removeprefix("\ufeff").encode()
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(
            f"The result is not readable as JSON ({clean_text(str(error), limit=120)}). Give the "
            ".json file that `auditor scan` or `auditor purify` wrote, whole and unchanged; pages (.html) "
            "and summaries (.md) are made from it and cannot be read back."
        ) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema is None:
        raise UsageError(
            'The JSON is no result: it has no "schema". Give the .json file that `auditor scan` '
            "or `auditor purify` wrote."
        )
    kind = RECORDS.get(schema) if isinstance(schema, str) else None
    if kind is None:
        raise UsageError(
            f'The result has schema "{clean_text(str(schema), limit=60)}"; this auditor reads '
            f'"{SCAN_SCHEMA}", "{PURIFY_SCHEMA}" and "{INSPECTION_SCHEMA}". Use the version of auditor '
            f"that wrote it, or run it again."
        )
    again = AGAIN[kind]
    try:
        result: ScanResult | PurifyResult | Inspection = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"The result is damaged: {clean_text(str(error), limit=160)}. {again}, or restore the "
            f"file."
        ) from None
    for problem in contradictions(result):
        raise UsageError(f"The result contradicts itself: {problem}. {again}, or restore the file.")
    return result


def indented(builtins: Any) -> str:
    """Builtins as JSON: keys sorted, one entry a line, but numbers side by side."""
    return _indented(_plain(builtins)) + "\n"


def _plain(value: Any) -> Any:
    """Builtins that JSON can hold: no NaN, no infinity, no lone surrogates."""
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _indented(plain: Any) -> str:
    """JSON, one entry a line, but numbers side by side."""
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True)
    # A line feed inside a string is escaped, so these patterns only match outside of strings.
    text = re.sub(r"\[\n\s+([^\[\]{}\"]*)\n\s+\]", lambda m: f"[{_joined(m[1])}]", text)
    counts = r"\{\n\s+((?:\"\d+\": \d+,\n\s+)*\"\d+\": \d+)\n\s+\}"
    return _visible(re.sub(counts, lambda m: f"{{{_joined(m[1])}}}", text))


def _joined(lines: str) -> str:
    return re.sub(r"\n\s+", " ", lines)


def _visible(text: str) -> str:
    """JSON with invisible characters written as escapes."""
    return re.sub(r"[^\x00-\x7e]", lambda m: _escaped(m[0]) if is_hidden(m[0]) else m[0], text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]
