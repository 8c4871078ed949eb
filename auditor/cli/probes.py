"""`auditor probes`: list, show, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auditor.cli.base import USAGE_ERROR, reporting
from auditor.errors import AuditorError

app = typer.Typer(
    rich_markup_mode=None, help="The battery of declared triggers: list, show, validate."
)


@app.command("list")
@reporting
def probes_list(
    spec: Annotated[
        str, typer.Argument(metavar="[SPEC]", help="As --probes of scan: deep, tag:blend, warp.*")
    ] = "deep",
) -> None:
    """List the probes, with what each stamps.

    Example: auditor probes list tag:blend
    """
    from rich.console import Console
    from rich.table import Table

    from auditor.api import choose_probes, search_tiers, search_titles

    selection = choose_probes(spec, extras=search_tiers())
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("id", no_wrap=True, overflow="fold")
    table.add_column("tier", no_wrap=True)
    table.add_column("triggers", justify="right", no_wrap=True)
    table.add_column("what")
    for probe in selection.probes:
        table.add_row(probe.id, probe.tier, str(len(probe.triggers)), probe.title)
    for name in selection.extras:
        table.add_row(name, search_tiers()[name], "", search_titles()[name])
    Console(highlight=False).print(table)
    counts = {
        tier: sum(len(p.triggers) for p in selection.probes if p.tier == tier)
        for tier in ("quick", "standard", "deep")
    }
    shown = ", ".join(f"{count} {tier}" for tier, count in counts.items() if count)
    if selection.probes:
        tags = sorted({tag for probe in selection.probes for tag in probe.tags})
        typer.echo(
            f"{len(selection.probes)} probes with {sum(counts.values())} triggers ({shown})."
        )
        typer.echo(f"Tags, for --probes tag:NAME: {', '.join(tags)}.")
    if selection.extras:
        typer.echo(f"{len(selection.extras)} searches, which make their triggers themselves.")


@app.command("show")
@reporting
def probes_show(
    spec: Annotated[str, typer.Argument(metavar="ID", help="An id or pattern, or a YAML file.")],
) -> None:
    """Explain a probe: what it stamps, why, and what it can miss.

    Example: auditor probes show warp.*
    """
    from auditor.api import choose_probes, search_tiers, search_titles

    chosen = choose_probes(spec, extras=search_tiers())
    for name in chosen.extras:
        typer.echo(f"{name}  {search_titles()[name]}")
        typer.echo(f"  {'tier':10} {search_tiers()[name]}")
        typer.echo("")
    for probe in chosen.probes:
        typer.echo(f"{probe.id}  {probe.title}")
        for name, text in (
            ("what", probe.what),
            ("why", probe.why),
            ("problems", probe.known_problems),
            ("tier", probe.tier),
            ("tags", " ".join(probe.tags)),
            ("source", f"{probe.library or 'generic'} (exactness {probe.exactness})"),
            ("references", " ".join(probe.references)),
        ):
            typer.echo(f"  {name:10} {' '.join(text.split())}")
        for trigger in probe.triggers:
            typer.echo(f"  trigger    {trigger!r}")
        typer.echo("")


@app.command("validate")
@reporting
def probes_validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Probe files (YAML).")],
) -> None:
    """Check probe files; says everything that is wrong with them.

    Example: auditor probes validate my-probes/sticker.yaml
    """
    from auditor.api import load_probe

    failed = False
    for file in files:
        try:
            probe = load_probe(file)
        except AuditorError as error:
            from auditor.terminal.progress import show_error

            show_error(str(error))
            failed = True
        else:
            typer.echo(f"{file}: fine, {len(probe.triggers)} triggers")
    if failed:
        raise typer.Exit(USAGE_ERROR)
