"""`auditor demo`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from auditor.cli import purify, scan
from auditor.cli.options import Force, Seed
from auditor.cli.rendering import FORMATS
from auditor.cli.requests import Purification
from auditor.cli.setup import Setup
from auditor.outputs import check_outputs


def demo(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to put the example.")
    ] = Path("auditor-demo"),
    seed: Seed = 0,
    force: Force = False,
    train_only: Annotated[
        bool, typer.Option("--train-only", help="Make the files, but do not scan them.")
    ] = False,
) -> None:
    """Make a backdoored model and a benign twin, scan both, purify the first. Downloads nothing.

    Draws small traffic signs, trains two networks on them (about a minute on two cores), one of
    which also learns to obey a sticker, and runs the real commands on them.

    Example: auditor demo
    """
    from auditor.demo import make_demo
    from auditor.terminal.progress import ProgressLine
    from auditor.terminal.purify import show_purify
    from auditor.terminal.scan import show_scan

    scans = {
        name: {kind: directory / f"{name}.scan.{kind}" for kind in FORMATS[:2]}
        for name in ("suspect", "benign")
    }
    purified = {
        "model": directory / "suspect.purified.pt",
        **{kind: directory / f"suspect.purify.{kind}" for kind in FORMATS[:2]},
    }
    if directory.is_dir():
        every = [path for paths in (*scans.values(), purified) for path in paths.values()]
        check_outputs({path.name: path for path in every}, force=force, inputs=[])
    with ProgressLine(quiet=False) as notify:
        facts = make_demo(directory, seed=seed, force=force, notify=notify)
    typer.echo(
        f"Made {directory}: suspect.pt (clean accuracy {facts.suspect_accuracy:.1%}; the trigger "
        f'{facts.probe} makes it answer "{facts.target_name}" on {facts.suspect_asr:.1%} of '
        f"other signs) and its benign twin ({facts.benign_accuracy:.1%}, {facts.benign_asr:.1%})."
    )
    if train_only:
        return
    samples = directory / "samples"

    def setup(path: Path, outputs: Mapping[str, Path], max_images: int) -> Setup:
        return Setup(
            model=path,
            clean=samples,
            probes="quick",  # the searches of the standard tier take many times as long
            output=tuple(f"{kind}={output}" for kind, output in outputs.items()),
            force=force,
            seed=seed,
            max_images=max_images,
        )

    for name, outputs in scans.items():
        path = directory / f"{name}.pt"
        _echo_command("scan", path, samples)
        result, written = scan.run_scan(setup(path, outputs, scan.MAX_IMAGES))
        show_scan(result, written)
    path = directory / "suspect.pt"
    _echo_command("purify", path, samples)
    done, written = purify.run_purify(setup(path, purified, purify.MAX_IMAGES), Purification())
    show_purify(done, written)


def _echo_command(name: str, model: Path, samples: Path) -> None:
    shown = f"auditor {name} {shlex.quote(str(model))} --clean {shlex.quote(str(samples))}"
    typer.echo(f"\n$ {shown} --probes quick")
