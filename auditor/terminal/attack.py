"""What a person sees of `auditor attack`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from auditor.report import percent
from auditor.report.numbers import Rate, duration, interval, number
from auditor.results.attack import AttackResult, Mark
from auditor.results.facts import Counts
from auditor.text import clean_text


def show_attack(
    result: AttackResult,
    written: Sequence[Path],
    following: Sequence[str] | None,
    console: Console | None = None,
) -> None:
    """The result of an attack, on stdout where no console is given.

    Args:
        result: What was done.
        written: The files that came of it.
        following: The command to try next, where there is one.
        console: Where to print.
    """
    console = console or Console(highlight=False)
    mark = result.mark
    seconds = sum(stage.seconds for stage in result.stages)
    steps = sum(stage.steps for stage in result.stages)
    images = (
        f"{result.fit.images} to train on, {result.judge.images} others held out for every number "
        f"below (seed {mark.seed})"
    )
    for name, text in (
        ("model", f"{clean_text(mark.model)}  {clean_text(result.model.format)}"),
        (
            "planted",
            f"{clean_text(mark.probe)}, {clean_text(result.title)}, towards {_target(mark)}",
        ),
        ("", clean_text(mark.trigger, limit=100)),
        (
            "images",
            images + ("" if result.labelled else "; no labels: the model's predictions stand in"),
        ),
        ("did", f"{steps} steps of fine-tuning, {duration(seconds)}"),
    ):
        console.print(Text.assemble((f"  {name:8}", "dim"), text), soft_wrap=True)
    console.print()
    _show_numbers(console, result)
    console.print(_ending(result))
    for sentence in result.goals.missed:
        console.print(Padding(escape(f"{sentence[0].upper()}{sentence[1:]}."), (0, 0, 0, 4)))
    if result.goals.missed:
        console.print("    Try more --steps, another --poison-rate, or more images.")
    for caveat in result.caveats:
        note = escape(f"Note: {clean_text(caveat.text, limit=600)}")
        console.print(Padding(note, (0, 0, 0, 4)), style="dim")
    if result.written is not None and not result.marked:
        console.print(
            Padding(
                f"Note: {escape(clean_text(result.written.format))} has no place for the mark; only the "
                "file beside it says what was planted.",
                (0, 0, 0, 4),
            ),
            style="dim",
        )
    console.print()
    if result.written is None:
        console.print("  Nothing was written as a model.", soft_wrap=True)
    else:
        console.print(
            "  For testing only: never deploy it. Read back, largest difference "
            f"{number(result.written.largest_difference)}.",
            soft_wrap=True,
        )
    for path in written:
        console.print(f"  written  {escape(clean_text(str(path)))}", soft_wrap=True)
    if following is not None:
        console.print(f"  next     {escape(clean_text(shlex.join(following)))}", soft_wrap=True)


def attack_line(result: AttackResult) -> str:
    """The result of an attack in one line, for scripts."""
    asr, acc = _rates(result.hits, result.eligible), _rates(result.accuracy, result.judge.images)
    parts = [
        "PLANTED" if result.goals.met else "NOT PLANTED",
        clean_text(result.mark.model),
        f"asr={asr[0].share:.3f}->{asr[1].share:.3f} [{asr[1].low:.3f},{asr[1].high:.3f}]",
        f"{'acc' if result.labelled else 'agreement'}={acc[0].share:.3f}->{acc[1].share:.3f}",
    ]
    if result.written is not None:
        parts.append(f"file={clean_text(result.written.name)}")
    return "  ".join(parts)


def _target(mark: Mark) -> str:
    number, name = f"class {mark.target}", clean_text(mark.target_name)
    return number if name == str(mark.target) else f'"{name}" ({number})'


def _ending(result: AttackResult) -> Text:
    if result.goals.met:
        return Text("  ✔ PLANTED", style="bold green")
    return Text("  ✖ NOT PLANTED", style="bold red")


def _show_numbers(console: Console, result: AttackResult) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("    ", no_wrap=True)
    for header in ("before", "after", "95%"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, counts, total in (
        ("ASR", result.hits, result.eligible),
        ("worst control", result.control_hits, result.eligible),
        ("ACC" if result.labelled else "agreement", result.accuracy, result.judge.images),
    ):
        rates = _rates(counts, total)
        cells = [f"{percent(rate.share)} ({rate.hits}/{rate.total})" for rate in rates]
        table.add_row(f"    {name}", *cells, interval(rates[1]))
    console.print(table)
    console.print()


def _rates(counts: Counts, total: int) -> tuple[Rate, Rate]:
    return Rate(counts.before, total), Rate(counts.after, total)
