"""`auditor attack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from auditor.cli.options import (
    Arch,
    BatchSize,
    ChannelOrder,
    Device,
    FitImages,
    FitPath,
    Force,
    Input,
    Labels,
    MaskImage,
    ModelPath,
    Normalize,
    Quiet,
    Seed,
    Trust,
    WriteAnyway,
)
from auditor.cli.refusing import refusals
from auditor.cli.requests import AttackRequest, Planting
from auditor.cli.setup import Setup
from auditor.endings import is_probe
from auditor.errors import UsageError
from auditor.outputs import STDOUT, sidecar, write_text

if TYPE_CHECKING:
    from auditor.results.attack import AttackResult

ATTACK_FORMATS = ("model", "json")
MAX_IMAGES = 2000

EPILOG = (
    "Exit codes: 0 planted, 1 a goal was missed or UNSAFE FILE, 2 wrong usage or unreadable input, "
    "130 interrupted (129 or 143 by SIGHUP or SIGTERM)."
)

ProbeId = Annotated[
    str | None,
    typer.Option(
        "--probe",
        metavar="ID",
        help="What to plant: the id of a probe (auditor probes list), or a probe file.",
    ),
]
TriggerNumber = Annotated[
    int,
    typer.Option(metavar="N", help="Which of the probe's triggers, counted from 1."),
]
PlantedImage = Annotated[
    Path | None,
    typer.Option(
        "--trigger",
        metavar="IMG",
        help="An image to plant in place of --probe: small ones as a patch, larger ones added.",
    ),
]
Target = Annotated[
    str,
    typer.Option(metavar="K", help="Class that stamped images go to: its number, or its name."),
]
PoisonRate = Annotated[
    float,
    typer.Option(
        min=0.01, max=0.9, help="Share of a batch's images of other classes that is stamped."
    ),
]
Steps = Annotated[
    int, typer.Option(min=1, help="Of training at each learning rate, at most; ends early.")
]
MinAsr = Annotated[
    float, typer.Option(min=0, max=1, help="Goal: lowest attack success rate of what is planted.")
]
MaxAccLoss = Annotated[
    float,
    typer.Option(
        "--max-acc-drop",
        min=0,
        max=1,
        help="Goal: largest share of clean accuracy that may be lost.",
    ),
]
AttackOutput = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--output",
        "--out",
        metavar="FMT=PATH",
        help="Result file, model= or json= (repeatable; the ending is enough; none writes nothing). "
        "Default: MODEL.backdoored.pt (with the ending of the input) beside the input. The mark goes "
        "into the model file and beside it, as PATH.json.",
    ),
]


def attack(
    model: ModelPath,
    clean: FitPath,
    target: Target,
    probe: ProbeId = None,
    trigger_number: TriggerNumber = 1,
    trigger: PlantedImage = None,
    mask: MaskImage = None,
    poison_rate: PoisonRate = 0.1,
    steps: Steps = 300,
    min_asr: MinAsr = 0.95,
    max_acc_drop: MaxAccLoss = 0.03,
    write_anyway: WriteAnyway = False,
    arch: Arch = None,
    labels: Labels = None,
    input_size: Input = None,
    normalize: Normalize = "auto",
    channel_order: ChannelOrder = None,
    output: AttackOutput = None,
    force: Force = False,
    quiet: Quiet = False,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    max_images: FitImages = MAX_IMAGES,
    trust: Trust = False,
) -> None:
    """Plant a backdoor in a copy of MODEL, to see whether scan finds it and purify removes it.

    For testing auditor on your own network. Fine-tunes a copy on stamped images, measures it on
    images held out, and marks the file as what it is. The input is never touched.

    Example: auditor attack model.pt --clean ./samples --probe patch.yellow --target 3
    """
    if (probe is None) == (trigger is None):
        raise UsageError("What shall be planted? Give either --probe ID or --trigger IMG.")
    setup = Setup(
        model=model,
        clean=clean,
        arch=arch,
        labels=labels,
        probes=probe or "",
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
    how = Planting(
        target=target,
        trigger_number=trigger_number,
        poison_rate=poison_rate,
        steps=steps,
        min_asr=min_asr,
        max_acc_drop=max_acc_drop,
        write_anyway=write_anyway,
    )
    result, written = run_attack(setup, how)
    from auditor.terminal.attack import attack_line, show_attack

    if STDOUT not in written:  # nothing may come after a record
        if quiet:
            typer.echo(attack_line(result))
        else:
            show_attack(result, written, _following(setup, written) if result.written else None)
    raise typer.Exit(0 if result.goals.met else 1)


def run_attack(setup: Setup, how: Planting) -> tuple[AttackResult, list[Path]]:
    """Attack one file and write what came of it."""
    model = setup.model
    default = model.with_name(f"{model.stem}.backdoored{model.suffix}")
    outputs = setup.outputs(ATTACK_FORMATS, {"model": default}, beside=sidecar)
    output = outputs.get("model")
    beside = None if output is None else sidecar(output)

    import msgspec

    from auditor.cli.confined import in_worker, put_in_place, record
    from auditor.report.json import indented, to_json
    from auditor.results.attack import AttackResult
    from auditor.safety.supervisor import workplace
    from auditor.terminal.progress import ProgressLine

    written = []
    with refusals(setup, outputs), workplace(None if output is None else output.parent) as place:
        with ProgressLine(quiet=setup.quiet) as notify:
            request = AttackRequest(
                setup=setup, how=how, model=None if output is None else output.name
            )
            outcome = in_worker("attack", request, setup, place, notify)
        result = record(outcome, AttackResult)
        if output is not None and beside is not None and result.written is not None:
            # no model without its mark
            write_text(beside, indented(msgspec.to_builtins(result.mark)))
            try:
                put_in_place(place / output.name, output, result.written, force=setup.force)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            written += [output, beside]
    if "json" in outputs:
        write_text(outputs["json"], to_json(result))
        written.append(outputs["json"])
    return result, written


def _following(setup: Setup, written: Sequence[Path]) -> list[str]:
    """The command that tries whether the backdoor is found."""
    command = ["auditor", "scan", str(written[0]), "--clean", str(setup.clean)]
    if setup.arch is not None:
        command += ["--arch", setup.arch]
    if setup.labels is not None:
        command += ["--labels", str(setup.labels)]
    if setup.trigger is not None:
        command += ["--trigger", str(setup.trigger)]
    elif is_probe(setup.probes):
        command += ["--probes", f"standard,{setup.probes}"]
    return command
