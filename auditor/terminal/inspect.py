"""What a person sees of `auditor inspect`, and of a command that refuses its suspect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from auditor.inspecting.record import Ability, Content, Inspection
from auditor.report.inspection_view import classes_words, finding_lines, input_words
from auditor.report.numbers import byte_size
from auditor.text import clean_text

FINDINGS = 12
"""That are listed."""
WANTED = 12
"""Harmless globals that are listed; those that are not, all of them."""


def show_inspection(
    found: Inspection, written: Sequence[Path] = (), console: Console | None = None
) -> None:
    """The record, on stdout where no console is given."""
    console = console or Console(highlight=False)
    content = found.content
    _show_facts(console, found)
    console.print()
    _show_wanted(console, content)
    _show_fits(console, content)
    if found.dangerous:
        _show_findings(console, found)
    else:
        console.print(Text(f"  ✔ {found.safety}", style="bold green"))
        console.print(
            "    This says nothing of backdoors in its numbers: that is what scan is for.",
            style="dim",
        )
    console.print()
    for command, ability in (("scan", found.scan), ("purify", found.purify)):
        console.print(_ability(command, ability), soft_wrap=True)
    show_written(console, written)


def show_refusal(
    found: Inspection, written: Sequence[Path], console: Console | None = None
) -> None:
    """Why a command did not open the suspect, on stdout where no console is given."""
    console = console or Console(highlight=False)
    _show_facts(console, found)
    console.print()
    _show_findings(console, found)
    show_written(console, written)


def refusal_line(found: Inspection) -> str:
    """The finding in one line."""
    name, finding = (
        clean_text(found.name, limit=80),
        clean_text(found.content.findings[0], limit=200),
    )
    return f"{found.safety} {name}: {finding}"


def show_written(console: Console, written: Sequence[Path]) -> None:
    """The files that were written."""
    for path in written:
        console.print(f"  written  {escape(clean_text(str(path)))}", soft_wrap=True)


def _show_findings(console: Console, found: Inspection) -> None:
    console.print(Text(f"  ✖ {found.safety}: do not open it", style="bold red"))
    lines = [*finding_lines(found.content)[:FINDINGS]]
    if more := len(found.content.findings) - FINDINGS:
        lines += [f"… {more} more, in the JSON record"] if more > 0 else []
    for line in lines:
        console.print(Padding(escape(clean_text(line, limit=600)), (0, 0, 0, 4)))
    console.print(Text("  auditor ran nothing of it. Ways out:", style="dim"))
    for way in found.ways_out:
        console.print(Padding(escape(way), (0, 0, 0, 4)))


def _show_facts(console: Console, found: Inspection) -> None:
    content = found.content
    for name, text in (
        ("file", f"{clean_text(found.name)}  {byte_size(found.bytes)}  {clean_text(found.kind)}"),
        ("sha256", clean_text(found.sha256)),
        ("holds", clean_text(content.what, limit=400)),
        ("", _numbers(content)),
        *(("" if place else "entries", line) for place, line in enumerate(content.entries)),
        ("input", input_words(content)),
    ):
        if text:
            shown = clean_text(text, limit=400)
            console.print(Text.assemble((f"  {name:8}", "dim"), shown), soft_wrap=True)


def _numbers(content: Content) -> str:
    parts = []
    if content.tensors is not None:
        parts.append(f"{content.tensors:,} tensors")
    if content.parameters is not None:
        parts.append(f"{content.parameters:,} numbers")
    if content.dtypes:
        parts.append(", ".join(f"{count} {name}" for name, count in content.dtypes.items()))
    if content.classes is not None:
        shown = classes_words(content.classes)
        parts.append(shown if content.classes == 1 else f"{shown} classes")
    return " · ".join(parts)


def _show_wanted(console: Console, content: Content) -> None:
    if not content.wanted:
        return
    refused = [entry for entry in content.wanted if not entry.allowed]
    allowed = [entry for entry in content.wanted if entry.allowed]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    its pickles ask for", overflow="fold")
    table.add_column("")
    for entry in refused:
        mark = Text("not allowed", style="bold red")
        table.add_row(escape(f"    {clean_text(entry.name, limit=100)}"), mark)
    for entry in allowed[:WANTED]:
        table.add_row(escape(f"    {clean_text(entry.name, limit=100)}"), "harmless")
    console.print(table)
    if len(allowed) > WANTED:
        console.print(f"    … {len(allowed) - WANTED} more, harmless")
    console.print()


def _show_fits(console: Console, content: Content) -> None:
    if not content.fits:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    --arch", overflow="fold")
    table.add_column("fits", justify="right", no_wrap=True)
    table.add_column("what")
    for fit in content.fits:
        share = "all" if fit.exact else f"{fit.score:.0%}"
        said = fit.title if fit.exact else "; ".join(fit.differences)
        arch = escape(f"    {clean_text(fit.arch, limit=60)}")
        table.add_row(arch, share, escape(clean_text(said, limit=300)))
    console.print(table)
    console.print()


def _ability(command: str, ability: Ability) -> Text:
    mark = ("works" if ability.works else "refuses it", "green" if ability.works else "red")
    why = f". {clean_text(ability.why, limit=300)}" if ability.why else ""
    return Text.assemble((f"  {command:8}", "dim"), mark, why)
