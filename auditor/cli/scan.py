"""`auditor scan`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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
    SaveProbes,
    Seed,
    TimeBudget,
    TriggerImage,
    Trust,
    parse_time,
)
from auditor.cli.refusing import refusals
from auditor.cli.rendering import FORMATS, rendered
from auditor.cli.requests import ScanRequest
from auditor.cli.setup import Setup
from auditor.errors import OutputError
from auditor.outputs import STDOUT, check_outputs, write_text
from auditor.text import clean_text, slug

if TYPE_CHECKING:
    from auditor.results.scan import ScanResult

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
    save_probes: SaveProbes = None,
    trust: Trust = False,
) -> None:
    """Look for backdoors in MODEL and estimate their attack success rate.

    Stamps a battery of triggers on images, compares each with matched controls, and searches for
    triggers that nobody declared. Opens the file without running code from it.

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
        output=tuple(output or ()),
        force=force,
        quiet=quiet,
        device=device,
        batch_size=batch_size,
        seed=seed,
        max_images=max_images,
        trust=trust,
    )
    names = f"found.{slug(model.stem, 'model')}"
    made = save_probes is not None and not save_probes.exists()
    try:
        if save_probes is not None:
            check_folder(save_probes, names, force=force, inputs=setup.inputs)
        result, written = run_scan(setup, time_budget=time_budget)
        saved = [] if save_probes is None else saved_probes(result, save_probes, names)
    finally:
        if made and save_probes is not None:
            with suppress(OSError):  # there is something in it
                save_probes.rmdir()
    written += saved
    from auditor.terminal.scan import show_scan, verdict_line

    if STDOUT not in written:  # nothing may come after a record
        if quiet:
            typer.echo(verdict_line(result))
        else:
            show_scan(result, written)
            if save_probes is not None and not saved:
                typer.echo(
                    "No search found a trigger that counts, so --save-probes has nothing to write."
                )
    raise typer.Exit(result.judgement.verdict.exit_code)


def run_scan(setup: Setup, *, time_budget: str | None = None) -> tuple[ScanResult, list[Path]]:
    """Scan one file and write its results; what `scan` and `demo` share."""
    stem = setup.model.stem
    outputs = setup.outputs(
        FORMATS, {name: Path(f"{stem}.scan.{name}") for name in ("json", "html")}
    )
    budget = parse_time(time_budget)

    from auditor.cli.confined import in_worker, record
    from auditor.results.scan import ScanResult
    from auditor.safety.supervisor import workplace
    from auditor.terminal.progress import ProgressLine

    with (
        refusals(setup, outputs),
        workplace() as place,
        ProgressLine(quiet=setup.quiet) as notify,
    ):
        request = ScanRequest(setup=setup, time_budget=budget)
        outcome = in_worker("scan", request, setup, place, notify, budget=budget)
        result = record(outcome, ScanResult)
    for path, text in rendered(result, outputs):
        write_text(path, text)
    return result, list(outputs.values())


def check_folder(folder: Path, names: str, *, force: bool, inputs: Sequence[Path]) -> None:
    """Find out before the long work whether probe files can be written; the folder is made.

    Raises:
        OutputError: It cannot be made or written to, or files of an earlier scan are there, which are not
            to be replaced, or are inputs of this one.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--save-probes {clean_text(str(folder))} is a file; name a folder.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"--save-probes {clean_text(str(folder))}: the folder cannot be made ({error.strerror})."
        ) from None
    there = sorted(folder.glob(f"{names}.*.yaml"))
    if there and not force:
        raise OutputError(
            f"{clean_text(str(there[0]))} exists already. Add --force to replace it, or name another "
            "folder with --save-probes."
        )
    replaced = {path.name: path for path in there}
    check_outputs({"yaml": folder / f"{names}.yaml", **replaced}, force=True, inputs=inputs)


def saved_probes(result: ScanResult, folder: Path, names: str) -> list[Path]:
    """Write the searched triggers that the verdict counts as probe files, in place of earlier ones."""
    from auditor.probes import probe_text

    counted = {result.confirmations[index].trigger for index, _ in result.judgement.evidence}
    strong = {confirmed.trigger for confirmed in result.confirmations if confirmed.rivals}
    for stale in folder.glob(f"{names}.*.yaml"):
        stale.unlink()
    written = []
    for search in result.inversions:
        for found in search.found:
            if found.trigger not in counted:
                continue
            # the worker's word for it becomes a file name
            form = slug(search.search.removeprefix("search."), "search")
            identifier = f"{names}.{form}-{found.target}"
            identifier += "-strong" if found.trigger in strong else ""
            path = folder / f"{identifier}.yaml"
            name = clean_text(result.model.class_names[found.target], limit=40)
            title = f"The {search.what} that a search found for class {found.target} ({name})"
            origin = (
                f"Found by {search.search} in {clean_text(result.model.name)} (SHA-256 "
                f"{result.model.sha256[:12]}), seed {result.provenance.seed}."
            )
            write_text(path, probe_text(found, identifier, title, origin))
            written.append(path)
    return written
