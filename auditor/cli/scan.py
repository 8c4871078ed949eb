"""`auditor scan`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from auditor.cli.options import (
    Arch,
    BatchSize,
    ChannelOrder,
    CleanPath,
    Device,
    Force,
    Input,
    Labels,
    MaskImage,
    MaxImages,
    ModelPath,
    Normalize,
    Output,
    ProbeSpec,
    Quiet,
    Seed,
    TimeBudget,
    TriggerImage,
    parse_time,
)
from auditor.cli.rendering import FORMATS, rendered
from auditor.cli.setup import Setup
from auditor.outputs import STDOUT, write_text

if TYPE_CHECKING:
    from auditor.results import ScanResult

MAX_IMAGES = 768


def scan(
    model: ModelPath,
    clean: CleanPath = None,
    arch: Arch = None,
    labels: Labels = None,
    probes: ProbeSpec = "standard",
    trigger: TriggerImage = None,
    mask: MaskImage = None,
    input_size: Input = None,
    normalize: Normalize = "auto",
    channel_order: ChannelOrder = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    time_budget: TimeBudget = None,
    seed: Seed = 0,
    max_images: MaxImages = MAX_IMAGES,
) -> None:
    """Look for backdoors in MODEL and estimate their attack success rate.

    Stamps a battery of triggers on images, compares each with matched controls, and searches for
    classes that are unusually easy to reach. Opens the file without running code from it.

    Example: auditor scan model.pt --clean ./samples

    Example: auditor scan weights.pth --arch my_model.py:build --clean ./samples --probes deep
    """
    setup = Setup(
        model=model,
        clean=clean,
        arch=arch,
        labels=labels,
        probes=probes,
        trigger=trigger,
        mask=mask,
        input_size=input_size,
        normalize=normalize,
        channel_order=channel_order,
        output=output or [],
        force=force,
        quiet=quiet,
        device=device,
        batch_size=batch_size,
        seed=seed,
        max_images=max_images,
    )
    result, written = run_scan(setup, time_budget=time_budget)
    from auditor.terminal import show_scan, verdict_line

    if quiet:
        typer.echo(verdict_line(result))
    elif STDOUT not in written:
        show_scan(result, written)
    raise typer.Exit(result.judgement.verdict.exit_code)


def run_scan(setup: Setup, *, time_budget: str | None = None) -> tuple[ScanResult, list[Path]]:
    """Scan one file and write its results; what `scan` and `demo` share."""
    stem = setup.model.stem
    outputs = setup.outputs(
        FORMATS, {name: Path(f"{stem}.scan.{name}") for name in ("json", "html")}
    )
    budget = parse_time(time_budget)

    from auditor.terminal import ProgressLine

    with ProgressLine(quiet=setup.quiet) as notify:
        notify("loading", 0, 1)
        from auditor import api

        names = setup.class_names()
        selection = setup.selection(searches_suffice=True)
        options = replace(setup.scan_options(selection.extras, names), time_budget=budget)
        suspect = setup.opened()
        result = api.scan(suspect, selection.probes, setup.images(names), options, notify)
    for path, text in rendered(result, outputs):
        write_text(path, text)
    return result, list(outputs.values())
