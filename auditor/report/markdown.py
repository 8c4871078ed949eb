"""Markdown in which nothing of a result is markup, a link or a mention."""

from __future__ import annotations

import re

from auditor.report.numbers import Rate, interval
from auditor.text import clean_text

MARKDOWN_CHARACTERS = 65_536
MARKDOWN_ROWS = 20


def cut(text: str) -> str:
    """At most as long as a comment on a pull request may be."""
    if len(text) <= MARKDOWN_CHARACTERS:
        return text
    notice = "\n\n*Cut here: too long for a comment. The JSON and HTML reports have all.*\n"
    kept = text[: MARKDOWN_CHARACTERS - len(notice)]
    return kept[: kept.rfind("\n")] + notice


def counted(rate: Rate) -> str:
    """The counts behind a rate, and its interval."""
    return f"{rate.hits} of {rate.total}, 95% interval {interval(rate)}"


def more(total: int, shown: int, what: str) -> list[str]:
    """The line after a table that was cut."""
    return (
        ["", f"… and {total - shown} more {what}, in the JSON and HTML reports."]
        if total > shown
        else []
    )


def inert(text: str, limit: int = 200) -> str:
    """Text that Markdown renders as itself: no markup, no link, no mention, one line."""
    shown = clean_text(text, limit=limit).replace("@", "＠")
    shown = re.sub(r"(?i)(www)\.", r"\1[.]", shown)
    shown = re.sub(r"#(?=\d)", "＃", shown)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", shown)
    shown = shown.replace("://", r":\//")  # of any scheme, whatever stands before it
    return re.sub(r"^(\d*)([-+#=.)])", r"\1\\\2", shown)


def fenced(command: str) -> list[str]:
    """A command as a block of code that nothing in it can close."""
    shown = clean_text(command, limit=2000)
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    return [fence + "text", shown, fence]


def code(text: str, limit: int = 80) -> str:
    """Text as code: nothing in it is markup, a link or a mention."""
    shown = clean_text(text, limit=limit).replace("`", "ˋ").replace("|", "¦").strip()
    return f"`{shown}`" if shown else "(empty)"
