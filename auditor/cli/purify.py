"""`auditor purify`."""

from __future__ import annotations

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
    ProbeSpec,
    Quiet,
    Seed,
    TriggerImage,
    Trust,
    WriteAnyway,
    parse_time,
)
from auditor.cli.refusing import refusals
from auditor.cli.rendering import FORMATS, rendered
from auditor.cli.requests import (
    EVERY_METHOD,
    METHODS,
    Bound,
    PaperSettings,
    Purification,
    PurifyRequest,
    method_names,
)
from auditor.cli.setup import Setup
from auditor.errors import UsageError
from auditor.outputs import STDOUT, write_text
from auditor.text import clean_text

if TYPE_CHECKING:
    from auditor.results.purify import PurifyResult

PURIFY_FORMATS = ("model", *FORMATS)
MAX_IMAGES = 2000

EPILOG = (
    "Exit codes: 0 goals met (or nothing to remove), 1 goals missed, UNSAFE FILE, or BACKDOOR or SUSPICIOUS "
    "with nothing that could be unlearnt, 2 wrong usage or unreadable input, 3 the scan was inconclusive and "
    "nothing was done, 130 interrupted (129 or 143 by SIGHUP or SIGTERM)."
)


JudgePath = Annotated[
    Path | None,
    typer.Option(
        "--judge",
        metavar="DIR",
        help="Images to judge by, like --clean. Left out, a share of --clean is held out.",
    ),
]
Holdout = Annotated[
    float,
    typer.Option(min=0.05, max=0.95, help="Share of --clean that is only judged by."),
]
MethodNames = Annotated[
    str,
    typer.Option(
        metavar="NAME[,NAME…]",
        help="nft: NFT informed by what the scan found. Others, which are told nothing: "
        f"{', '.join(METHODS[1:])}. Several, or {EVERY_METHOD}: compare them, keep the best.",
    ),
]
MethodBudget = Annotated[
    str | None,
    typer.Option(
        "--time-budget",
        metavar="TIME",
        help="Of several methods: those that are not done after this time, such as 90s, 10m or 1h, do "
        "not count.",
    ),
]
JudgeTrigger = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="IMG",
        help="A trigger to judge by, an image or a probe file (repeatable). The purifier never sees it.",
    ),
]
MaxAsr = Annotated[
    float, typer.Option(min=0, max=1, help="Goal: highest attack success rate that may be left.")
]
MaxAccDrop = Annotated[
    float,
    typer.Option(min=0, max=1, help="Goal: largest share of clean accuracy that may be lost."),
]
StressTest = Annotated[
    bool,
    typer.Option("--stress", help="Does it come back? Re-tune the result on 5 stamped images."),
]
Baseline = Annotated[
    bool,
    typer.Option(
        "--baseline/--no-baseline", help="Run plain fine-tuning beside it (beside one method)."
    ),
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Purify although the scan showed no trigger.")
]
Iterations = Annotated[int, typer.Option(min=1, help="Of --method nft-paper.")]
Regulariser = Annotated[
    bool, typer.Option("--regulariser/--no-regulariser", help="Of --method nft-paper: pull to 1.")
]
MixUp = Annotated[
    bool, typer.Option("--mixup/--no-mixup", help="Of --method nft-paper: mix images.")
]
MaskBound = Annotated[
    Bound, typer.Option(help="Of --method nft-paper: lower bound of masks over depth.")
]
DepthAware = Annotated[
    bool,
    typer.Option(
        "--depth-aware", help="Of --method nft-paper: stretch the bound over deep networks."
    ),
]
TrainStatistics = Annotated[
    bool,
    typer.Option(
        "--train-statistics/--keep-statistics",
        help="Of --method nft-paper: BatchNorm statistics follow the clean images, as published.",
    ),
]
PurifyOutput = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FMT=PATH",
        help="Result file, model=, json=, html= or md= (repeatable; none writes nothing). Default: "
        "MODEL.purified.pt (with the ending of the input), MODEL.purify.json and MODEL.purify.html in "
        "the current folder.",
    ),
]


def purify(
    model: ModelPath,
    clean: FitPath,
    judge: JudgePath = None,
    holdout: Holdout = 0.4,
    arch: Arch = None,
    labels: Labels = None,
    method: MethodNames = METHODS[0],
    time_budget: MethodBudget = None,
    probes: ProbeSpec = "standard",
    trigger: TriggerImage = None,
    mask: MaskImage = None,
    judge_trigger: JudgeTrigger = None,
    max_asr: MaxAsr = 0.05,
    max_acc_drop: MaxAccDrop = 0.03,
    stress: StressTest = False,
    baseline: Baseline = True,
    anyway: Anyway = False,
    write_anyway: WriteAnyway = False,
    input_size: Input = None,
    normalize: Normalize = "auto",
    channel_order: ChannelOrder = None,
    output: PurifyOutput = None,
    force: Force = False,
    quiet: Quiet = False,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    max_images: FitImages = MAX_IMAGES,
    iterations: Iterations = PaperSettings.iterations,
    regulariser: Regulariser = PaperSettings.regulariser,
    mixup: MixUp = PaperSettings.mixup,
    mask_bound: MaskBound = PaperSettings.bound,
    depth_aware: DepthAware = PaperSettings.depth_aware,
    train_statistics: TrainStatistics = PaperSettings.statistics,
    trust: Trust = False,
) -> None:
    """Remove the backdoor from MODEL with clean images, and prove it on images held out.

    Scans, purifies, writes the model in its own format, reads it back and scans again. The input is
    never touched. What counts are images that the purification has not seen.

    Example: auditor purify model.pt --clean ./samples

    Example: auditor purify model.pt --clean ./samples --trigger sticker.png --stress
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
    paper = PaperSettings(
        iterations=iterations,
        mixup=mixup,
        bound=mask_bound,
        depth_aware=depth_aware,
        statistics=train_statistics,
        regulariser=regulariser,
    )
    how = Purification(
        judge=judge,
        holdout=holdout,
        methods=method_names(method),
        time_budget=parse_time(time_budget),
        paper=paper,
        judge_triggers=tuple(judge_trigger or ()),
        max_asr=max_asr,
        max_acc_drop=max_acc_drop,
        stress=stress,
        baseline=baseline,
        anyway=anyway,
        write_anyway=write_anyway,
    )
    result, written = run_purify(setup, how)
    from auditor.terminal.purify import goals_line, show_purify

    if STDOUT not in written:  # nothing may come after a record
        if quiet:
            typer.echo(goals_line(result))
        else:
            show_purify(result, written)
    raise typer.Exit(result.exit_code)


def run_purify(setup: Setup, how: Purification) -> tuple[PurifyResult, list[Path]]:
    """Purify one file and write what came of it; what `purify` and `demo` share."""
    model = setup.model
    defaults = {
        "model": Path(f"{model.stem}.purified{model.suffix}"),
        **{name: Path(f"{model.stem}.purify.{name}") for name in ("json", "html")},
    }
    outputs = setup.outputs(PURIFY_FORMATS, defaults, (how.judge, *how.judge_triggers))
    if (
        how.judge is not None
        and setup.clean is not None
        and how.judge.resolve() == setup.clean.resolve()
    ):
        raise UsageError(
            f"--judge {clean_text(str(how.judge))} is what --clean names: what is fitted on cannot judge. "
            "Give other images, or leave --judge out, and a share of --clean is held out."
        )

    output = outputs.get("model")

    from auditor.cli.confined import in_worker, put_in_place, record
    from auditor.results.purify import PurifyResult
    from auditor.safety.supervisor import workplace
    from auditor.terminal.progress import ProgressLine

    with refusals(setup, outputs), workplace(None if output is None else output.parent) as place:
        with ProgressLine(quiet=setup.quiet) as notify:
            request = PurifyRequest(
                setup=setup, how=how, model=None if output is None else output.name
            )
            outcome = in_worker("purify", request, setup, place, notify, readable=how.readable())
            result = record(outcome, PurifyResult)
            notify("writing the report", 0, 1)
            texts = rendered(result, outputs)
        if output is not None and result.written is not None:
            put_in_place(place / output.name, output, result.written, force=setup.force)
    for path, text in texts:
        write_text(path, text)
    paths = [path for name, path in outputs.items() if name != "model" or result.written]
    return result, paths
