"""What a person sees of a purification in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from auditor.report import SYMBOLS, percent
from auditor.report import purify_view as view
from auditor.report.numbers import Rate, byte_size, duration, interval, number
from auditor.results.purify import PurifyResult
from auditor.terminal.scan import STYLES
from auditor.text import clean_text

ENDING_STYLES = {
    view.Ending.MET: "bold green",
    view.Ending.MISSED: "bold red",
    view.Ending.NOTHING: "bold cyan",
    view.Ending.UNTOUCHED: "bold red",
}
OUTCOME_ROWS = 8


def show_purify(
    result: PurifyResult, written: Sequence[Path], console: Console | None = None
) -> None:
    """The result of a purification, on stdout where no console is given."""
    console = console or Console(highlight=False)
    _show_facts(console, result)
    _show_numbers(console, result)
    _show_outcomes(console, result)
    _show_compared(console, result)
    _show_scans(console, result)
    _show_ending(console, result)
    for path in written:
        console.print(f"  written  {escape(clean_text(str(path)))}", soft_wrap=True)


def goals_line(result: PurifyResult) -> str:
    """The result of a purification in one line, for scripts."""
    parts = [str(view.ending(result)), clean_text(result.model.name)]
    seen, right = view.outcomes(result), view.accuracy(result)
    before, after = view.highest(seen, "before"), view.highest(seen, "after")
    if before is not None and after is not None:
        low, high = after[0].low, after[0].high
        parts.append(f"asr={before[0].share:.3f}->{after[0].share:.3f} [{low:.3f},{high:.3f}]")
    name = "acc" if result.labelled else "agreement"
    parts.append(f"{name}={right.before.share:.3f}->{right.after.share:.3f}")
    if result.written is not None:
        parts.append(f"file={clean_text(result.written.name)}")
    return "  ".join(parts)


def _show_facts(console: Console, result: PurifyResult) -> None:
    model = result.model
    lines = [
        (
            "model",
            f"{clean_text(model.name)}  {byte_size(model.bytes)}  sha256 {_short(model.sha256)}",
        ),
        ("", f"{clean_text(model.format)} · {clean_text(model.architecture)}"),
        (
            "images",
            f"{result.fit.images} to fit, {result.judge.images} others held out for every number "
            f"below (seed {result.provenance.seed})"
            + ("" if result.labelled else "; no labels: the suspect's predictions stand for them"),
        ),
    ]
    lines += [("did" if not place else "", text) for place, text in enumerate(_done(result))]
    for name, text in lines:
        console.print(Text.assemble((f"  {name:8}", "dim"), text), soft_wrap=True)
    console.print()


def _done(result: PurifyResult) -> list[str]:
    """What the purifier did, a line a stage."""
    method = result.method
    if method is None:
        return ["nothing: the model was not touched"]
    lines = [f"{clean_text(method.title)}, {duration(method.seconds)}"]
    for stage in method.stages:
        mark = "✔" if stage.kept else "–"
        lines.append(
            f"{mark} {stage.what}, {stage.steps} steps: {clean_text(stage.outcome, limit=600)}"
        )
    lines += [clean_text(sentence, limit=400) for sentence in view.round_sentences(method)]
    if result.masks:
        totals = view.mask_totals(result.masks)
        lines.append(
            f"{totals.channels:,} masks in {totals.layers} layers: {totals.near_zero:,} below 0.1, "
            f"{totals.near_one:,} above 0.9"
        )
    if result.tensors:
        lines.append(f"{len(result.tensors)} tensors changed beyond masks")
    return lines


def _show_numbers(console: Console, result: PurifyResult) -> None:
    seen, right = view.outcomes(result), view.accuracy(result)
    tuned = any(entry.rates.baseline for entry in seen) or right.baseline is not None
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    ", no_wrap=True)
    after = "purified" if view.is_touched(result) else "not touched"
    for header in ("before", after, *(["plain fine-tuning"] if tuned else [])):
        table.add_column(header, justify="right", no_wrap=True)

    def add(name: str, rates: Sequence[Rate | None]) -> None:
        shown = rates if tuned else rates[:2]
        cells = ["–" if rate is None else _with_change(rate, rates[0]) for rate in shown]
        table.add_row(f"    {name}", *cells)
        ranges = ["" if rate is None else interval(rate) for rate in shown]
        table.add_row("     95% interval", *ranges, style="dim")

    add(view.accuracy_word(result), [right.before, right.after, right.baseline])
    if seen:
        pairs = [view.highest(seen, which) for which in ("before", "after", "baseline")]
        add("highest ASR", [None if pair is None else pair[0] for pair in pairs])
    console.print(table)
    console.print()


def _with_change(rate: Rate, first: Rate | None) -> str:
    if first is None or rate is first:
        return percent(rate.share)
    change = view.difference(first, rate).removesuffix(" points")
    return f"{percent(rate.share)} {change:>6}"


def _show_outcomes(console: Console, result: PurifyResult) -> None:
    seen = view.outcomes(result)
    if not seen:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    trigger", no_wrap=True)
    table.add_column("known as", no_wrap=True)
    table.add_column("to class", no_wrap=True, max_width=16)
    for header in ("before", "after"):
        table.add_column(header, justify="right", no_wrap=True)
    for entry in seen[:OUTCOME_ROWS]:
        outcome, names = entry.outcome, result.model.class_names
        target = "" if outcome.target is None else clean_text(names[outcome.target])
        table.add_row(
            escape(f"    {clean_text(outcome.probe, limit=32)}"),
            entry.origin,
            escape(target),
            *(f"{rate.hits}/{rate.total}" for rate in (entry.rates.before, entry.rates.after)),
        )
    console.print(table)
    if len(seen) > OUTCOME_ROWS:
        console.print(f"    … {len(seen) - OUTCOME_ROWS} more triggers (see the report)")
    console.print()


def _show_compared(console: Console, result: PurifyResult) -> None:
    rows = view.compared_methods(result)
    if not rows:
        return
    stressed = any(row.retuned for row in rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    method", no_wrap=True)
    headers = ["goals", view.accuracy_word(result), "highest ASR"]
    for header in (*headers, *(["re-tuned"] if stressed else []), "trained", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        entry = row.contender
        rates = [row.accuracy, row.highest, *([row.retuned] if stressed else [])]
        table.add_row(
            escape(f"  {'▸' if row.chosen else ' '} {clean_text(entry.name, limit=32)}"),
            "missed" if entry.missed else "met",
            *("–" if rate is None else percent(rate.share) for rate in rates),
            f"{entry.trained:,}",
            duration(entry.seconds),
        )
    console.print(table)
    for missing in result.not_compared:
        console.print(
            Text(f"    {clean_text(missing.name)}: {clean_text(missing.why, limit=300)}", "dim"),
            soft_wrap=True,
        )
    console.print(Padding(escape(view.comparison_sentence(result)), (0, 0, 0, 4)), style="dim")
    console.print()


def _show_scans(console: Console, result: PurifyResult) -> None:
    for line in view.scan_lines(result)[1:]:
        mark = (f"{SYMBOLS[line.verdict]} {line.verdict}", STYLES[line.verdict])
        said = f"  {clean_text(line.headline, limit=900)}"
        console.print(
            Text.assemble((f"  scan of {line.what}: ", "dim"), mark, said), soft_wrap=True
        )
    stress = result.stress
    if stress is not None:
        for row in stress.rows:
            console.print(
                f"  stress test, {row.model}: {stress.poisoned} stamped images bring the ASR from "
                f"{percent(Rate(row.hits_before, stress.eligible).share)} to "
                f"{percent(Rate(row.hits_after, stress.eligible).share)} "
                f"({row.hits_after}/{stress.eligible}); accuracy "
                f"{percent(row.correct_after / stress.total)}",
                soft_wrap=True,
            )
    console.print()


def _show_ending(console: Console, result: PurifyResult) -> None:
    kind = view.ending(result)
    mark = f"  {view.ENDING_SYMBOLS[kind]} {kind}"
    console.print(Text.assemble((mark, ENDING_STYLES[kind])))
    paragraphs = [(view.headline(result), "")]
    paragraphs += [(caution, "dim") for caution in view.cautions(result)]
    if result.after is not None:
        paragraphs.append(
            (
                "A scan that finds nothing afterwards never means safe: triggers that were not "
                "tried can stay hidden.",
                "dim",
            )
        )
    paragraphs += [(f"Note: {caveat.text}", "dim") for caveat in result.caveats]
    for text, style in paragraphs:
        console.print(Padding(escape(clean_text(text, limit=900)), (0, 0, 0, 4)), style=style)
    console.print()
    console.print(Text.assemble(("  file     ", "dim"), _file(result)), soft_wrap=True)


def _file(result: PurifyResult) -> str:
    written = result.written
    if written is None:
        return view.written_sentence(result)
    return (
        f"{clean_text(written.name)}  sha256 {_short(written.sha256)}  loads in place of the "
        f"original; read back, largest difference {number(written.largest_difference)}"
        + "".join(f"; needs {clean_text(file.name)} beside it" for file in written.beside)
    )


def _short(digest: str) -> str:
    return f"{clean_text(digest[:8])}…{clean_text(digest[-4:])}"
