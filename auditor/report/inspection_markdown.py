"""The summary of an inspection in Markdown."""

from __future__ import annotations

from auditor.inspecting.record import Inspection
from auditor.report.inspection_view import ability_words, fact_rows, finding_lines, headline
from auditor.report.markdown import MARKDOWN_ROWS, code, cut, inert, more
from auditor.report.numbers import byte_size
from auditor.report.page import SYMBOLS


def inspection_markdown(found: Inspection) -> str:
    """A summary for a pull request or a ticket, at most 65,536 characters."""
    content = found.content
    findings = finding_lines(content)
    lines = [
        f"## {SYMBOLS[found.safety]} {found.safety}: {code(found.name)}",
        "",
        inert(headline(found), limit=600),
        "",
        f"{code(found.kind, 60)} · {byte_size(found.bytes)} · sha256 {code(found.sha256, 64)} · "
        f"auditor {inert(found.auditor, 40)}",
        "",
    ]
    if findings:
        lines += ["### What it does", ""]
        lines += [f"- {inert(text, limit=600)}" for text in findings[:MARKDOWN_ROWS]]
        lines += more(len(findings), MARKDOWN_ROWS, "findings")
        lines += ["", "### Ways out", "", *(f"- {inert(way, 400)}" for way in found.ways_out), ""]
    refused = [entry.name for entry in content.wanted if not entry.allowed]
    if refused:
        lines += ["### Its pickles ask for", ""]
        lines += [f"- {code(name, 120)}" for name in refused[:MARKDOWN_ROWS]]
        lines += [*more(len(refused), MARKDOWN_ROWS, "names"), ""]
    lines += ["### What it holds", ""]
    lines += [f"- {name}: {inert(value, limit=400)}" for name, value in fact_rows(content)]
    lines += [f"- {inert(entry)}" for entry in content.entries[:MARKDOWN_ROWS]]
    lines += [
        f"- fits {code(fit.arch, 60)}: {'wholly' if fit.exact else f'{fit.score:.0%}'}, {inert(fit.title)}"
        for fit in content.fits[:MARKDOWN_ROWS]
    ]
    lines += [
        f"- auditor {command} {inert(ability_words(ability), limit=400)}"
        for command, ability in (("scan", found.scan), ("purify", found.purify))
    ]
    return cut("\n".join(lines).rstrip("\n") + "\n")
