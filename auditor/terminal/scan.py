"""What a person sees of a scan, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from auditor.report import SYMBOLS, bound_text, percent, power_text, screened_probes, wilson
from auditor.results.facts import ImageFacts, Verdict
from auditor.results.scan import ScanResult
from auditor.text import clean_text, counted

STYLES = {
    Verdict.BACKDOOR: "bold red",
    Verdict.SUSPICIOUS: "bold yellow",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.NO_EVIDENCE: "bold green",
}
ROWS = 12
"""Probes in the terminal's table; the others are summed up in a line."""
SKIPPED_ROWS = 6
SEARCHES = 8
"""Searches that are named; there are fewer, unless the result was made up."""


def show_scan(result: ScanResult, written: Sequence[Path]) -> None:
    """The result of a scan on stdout."""
    console = Console(highlight=False)
    _show_facts(console, result)
    _show_responses(console, result)
    _show_skipped(console, result)
    _show_verdict(console, result)
    for path in written:
        console.print(f"  written  {escape(clean_text(str(path)))}", soft_wrap=True)


def verdict_line(result: ScanResult) -> str:
    """The result of a scan in one line, for scripts."""
    parts = [str(result.judgement.verdict), clean_text(result.model.name)]
    first = next((r for r in result.judgement.reasons if r.confirmation is not None), None)
    if (
        first is not None
        and first.confirmation is not None
        and first.verdict is not Verdict.NO_EVIDENCE
    ):
        found = result.confirmations[first.confirmation]
        low, high = wilson(found.hits, found.eligible)
        parts.append(f"asr={found.hits / found.eligible:.3f} [{low:.3f},{high:.3f}]")
        parts.append(f"probe={found.probe}")
        if found.target is not None:
            parts.append(f"target={found.target}")
    return "  ".join(parts)


def _show_facts(console: Console, result: ScanResult) -> None:
    model, chosen = result.model, result.preprocessing
    spec = chosen.spec
    size = (
        f"{model.bytes / 1e6:.1f} MB" if model.bytes >= 100_000 else f"{model.bytes / 1e3:.1f} kB"
    )
    parameters = "" if model.parameters is None else f" · {model.parameters / 1e6:.2f} M parameters"
    lines = [
        (
            "model",
            f"{clean_text(model.name)}  {size}  sha256 {model.sha256[:8]}…{model.sha256[-4:]}",
        ),
        (
            "",
            f"{model.format} · {clean_text(model.architecture)} · input "
            f"{spec.channels}×{spec.height}×{spec.width} · {model.classes} classes{parameters}",
        ),
        (
            "input",
            f"normalize={spec.normalize} ({chosen.source}): {clean_text(chosen.reason, limit=300)}",
        ),
    ]
    lines += [("images", _images_line(facts)) for facts in result.images]
    judgement, searches = result.judgement, _searches(result)
    lines.append(
        (
            "plan",
            f"{counted(sum(probe.triggers for probe in result.probes), 'trigger')} of "
            f"{counted(len(result.probes), 'probe')} · "
            + (f"searches: {', '.join(searches)} · " if searches else "")
            + f"{judgement.comparisons:,} comparisons screened · {result.provenance.device} · "
            f"seed {result.provenance.seed} · {result.provenance.seconds:.0f} s",
        )
    )
    for name, text in lines:
        console.print(Text.assemble((f"  {name:8}", "dim"), text), soft_wrap=True)
    console.print()


def _searches(result: ScanResult) -> list[str]:
    """Which searches ran, without what their ids share."""
    names = [search.search.removeprefix("search.") for search in result.inversions[:SEARCHES]]
    return ["margin"] * (result.margin is not None) + [clean_text(name, limit=20) for name in names]


def _images_line(facts: ImageFacts) -> str:
    total = facts.screen + facts.confirm
    if facts.family != "clean":
        return f"{total} made images: {facts.family}"
    halves = (
        f"{facts.screen} to screen, {facts.confirm} others to confirm"
        if facts.confirm
        else "not split"
    )
    text = f"{total} of {facts.files} clean images, {halves}"
    if facts.correct is not None:
        low, high = wilson(facts.correct, total)
        text += f" · clean accuracy {facts.correct / total:.1%} ({low:.1%} to {high:.1%})"
    return text if facts.labelled else text + " · no labels: clean predictions stand for them"


def _show_responses(console: Console, result: ScanResult) -> None:
    probes = sorted(screened_probes(result), key=lambda group: -group.rows[0].asr.share)
    if not probes:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    probe", no_wrap=True)
    for header in ("ASR", "95%", "hits"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("to class", no_wrap=True, max_width=16)
    table.add_column("control", justify="right", no_wrap=True, min_width=7)
    controls = _worst_controls(result)
    for group in probes[:ROWS]:
        best = group.rows[0]
        low, high = best.asr.low, best.asr.high
        control = controls.get((best.response.trigger, group.family, best.target))
        target = "" if best.target is None else clean_text(result.model.class_names[best.target])
        family = "" if group.family == "clean" else f" ({group.family})"
        table.add_row(
            escape(f"    {clean_text(group.probe, limit=32)}{family}"),
            percent(best.asr.share),
            f"{low:.1%}–{high:.1%}",
            f"{best.asr.hits}/{best.asr.total}",
            escape(target),
            "" if control is None else percent(control),
        )
    console.print(table)
    if len(probes) > ROWS:
        most = percent(probes[ROWS].rows[0].asr.share)
        console.print(f"    … {len(probes) - ROWS} more probes, none above {most}")
    console.print(
        "    On the screening images. Controls are measured where a trigger stands out.",
        style="dim",
        soft_wrap=True,
    )


def _show_skipped(console: Console, result: ScanResult) -> None:
    for entry in result.skipped[:SKIPPED_ROWS]:
        console.print(
            f"    not run: {escape(clean_text(entry.what))} ({escape(clean_text(entry.reason))})",
            style="dim",
            soft_wrap=True,
        )
    if len(result.skipped) > SKIPPED_ROWS:
        more = len(result.skipped) - SKIPPED_ROWS
        console.print(f"    not run: {more} more (see the report)", style="dim")
    if result.responses or result.skipped:
        console.print()


def _worst_controls(result: ScanResult) -> dict[tuple[str, str, int | None], float]:
    return {
        (c.trigger, c.family, c.target): max(control.hits for control in c.controls) / c.eligible
        for c in result.confirmations
        if c.scope == "all-to-one" and c.controls and c.eligible
    }


def _show_verdict(console: Console, result: ScanResult) -> None:
    judgement = result.judgement
    words = f"  {SYMBOLS[judgement.verdict]} {judgement.verdict}"
    console.print(Text.assemble((words, STYLES[judgement.verdict])))
    console.print(Padding(escape(clean_text(judgement.headline, limit=900)), (0, 0, 0, 4)))
    shown = [r for r in judgement.reasons if r.verdict is not Verdict.NO_EVIDENCE]
    for reason in [r for r in shown if r.text != judgement.headline][:3]:
        console.print(Padding(f"also: {escape(clean_text(reason.text, limit=600))}", (0, 0, 0, 4)))
    console.print()
    notes: list[str] = []
    if (bound := bound_text(result)) is not None:
        notes.append(bound)
    blocked = any(caveat.blocking for caveat in result.caveats)  # then no number means anything
    power = power_text(result)
    if power is not None and result.responses and not blocked:
        notes.append(f"Power: {power[0].lower()}{power[1:]}")
    if judgement.verdict is Verdict.NO_EVIDENCE:
        notes.append(
            "This does not prove that the model is clean: it says that no trigger that was tried counts as "
            "evidence. Triggers outside the battery can stay hidden."
        )
    notes += [
        f"Note: {clean_text(caveat.text, limit=600)}"
        for caveat in result.caveats
        if caveat.text != judgement.headline
    ]
    for note in notes:
        console.print(Padding(escape(note), (0, 0, 0, 4)), style="dim")
    console.print()
