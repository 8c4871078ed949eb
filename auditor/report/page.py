"""What all pages share: the style sheet, the templates' filters, and how a class is named."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import jinja2
from markupsafe import Markup

from auditor.inspecting.record import Safety
from auditor.report.numbers import (
    byte_size,
    duration,
    fine_percent,
    interval,
    moment,
    number,
    percent,
    wilson,
)
from auditor.report.purify_view import ENDING_SYMBOLS, ENDING_TONES, Ending
from auditor.resources import resource_dir
from auditor.results.facts import Verdict
from auditor.text import clean_text

SYMBOLS: Mapping[Verdict | Safety, str] = {
    Verdict.BACKDOOR: "✖",
    Verdict.SUSPICIOUS: "!",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NO_EVIDENCE: "–",
    Safety.UNSAFE: "✖",
    Safety.INERT: "✔",
}
TONES: Mapping[Verdict | Safety, str] = {
    Verdict.BACKDOOR: "bad",
    Verdict.SUSPICIOUS: "warn",
    Verdict.INCONCLUSIVE: "open",
    Verdict.NO_EVIDENCE: "none",
    Safety.UNSAFE: "bad",
    Safety.INERT: "none",
}

# What a page shows at most; the rest is counted, and is in the JSON.
LONG_TEXT = 3000
RAW_CHARACTERS = 200_000
LIMITS: Mapping[str, int] = {
    "open_confirmations": 12,
    "open_reasons": 5,
    "confirmations": 100,
    "responses": 400,
    "searches": 5,
    "found": 16,
    "chart": 20,
    "classes": 200,
    "unreadable": 50,
    "skipped": 100,
}


def render(template: str, styles: Sequence[str], names: Sequence[str], **parts: object) -> str:
    """A page from a template, with its style sheets inside and its class names at hand."""
    folder = resource_dir("templates")
    css = "".join((folder / name).read_text(encoding="utf-8") for name in styles)
    return (
        _environment()
        .get_template(template)
        .render(
            css=Markup(css),  # noqa: S704 - our own files
            css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
            label=lambda number: label(number, names),
            plain_label=lambda number: plain_label(number, names),
            **parts,
        )
    )


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_dir("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalized,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "fine_percent": fine_percent,
        "interval": interval,
        "short": lambda text, limit: clean_text(str(text), limit=limit),
        "number": number,
        "bytes": byte_size,
        "seconds": duration,
        "moment": moment,
        "count": lambda value: f"{value:,}",
    }
    environment.filters.update(filters)
    environment.globals.update(
        symbols=dict(SYMBOLS) | dict(ENDING_SYMBOLS),
        tones=dict(TONES) | dict(ENDING_TONES),
        wilson=wilson,
        Verdict=Verdict,
        Ending=Ending,
        LIMITS=LIMITS,
    )
    return environment


def _finalized(value: object) -> object:
    """Every text that a template writes: hidden characters made visible, and not too long."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean_text(value, limit=LONG_TEXT)
    return value


def label(index: int, names: Sequence[str]) -> Markup:
    """A class by name and number; the name cannot reorder what stands around it."""
    name = clean_text(names[index], limit=48) if 0 <= index < len(names) else str(index)
    if name == str(index):
        return Markup('<span class="class">class&nbsp;{}</span>').format(index)
    return Markup('<bdi class="class">{}</bdi> <span class="quiet">({})</span>').format(name, index)


def plain_label(index: int, names: Sequence[str], limit: int = 18) -> str:
    """A class by name, for places that hold no markup."""
    name = clean_text(names[index], limit=limit) if 0 <= index < len(names) else str(index)
    return f"class {index}" if name == str(index) else name


def preformatted(text: str) -> Markup:
    """Text of an element, not of an attribute: quotes stay, and nothing is shortened."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(escaped)  # noqa: S704 - escaped in the line above
