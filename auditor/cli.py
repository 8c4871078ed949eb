"""The command line: parse, call, print, exit. Only here does the program talk to a person."""

from __future__ import annotations

import functools
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

import auditor
from auditor.errors import AuditorError, UsageError
from auditor.text import clean_text
from auditor.watchdog import interruptible

if TYPE_CHECKING:
    from auditor.inputs import GivenInput
    from auditor.purifiers import Purifier
    from auditor.results import PurifyResult, ScanResult

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2
INTERRUPTED = 130
FORMATS = ("json", "html", "md")
PURIFY_FORMATS = ("model", *FORMATS)

EPILOG = (
    "Exit codes: 0 no evidence found, 1 BACKDOOR or SUSPICIOUS, 2 wrong usage or unreadable input, "
    "3 inconclusive, 130 interrupted."
)

PURIFY_EPILOG = (
    "Exit codes: 0 goals met (or nothing to remove), 1 goals missed, 2 wrong usage or unreadable input, "
    "3 the scan was inconclusive and nothing was done, 130 interrupted."
)

app = typer.Typer(
    name="auditor",
    no_args_is_help=False,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="Scan an image model that somebody else trained for backdoors, and show the evidence.",
)
probes_app = typer.Typer(
    rich_markup_mode=None, help="The battery of declared triggers: list, show, validate."
)
app.add_typer(probes_app, name="probes")


def reporting(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an `AuditorError` into one message and exit code 2, Ctrl-C into 130."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with interruptible():
                return command(*args, **kwargs)
        except AuditorError as error:
            from auditor.terminal import show_error

            show_error(str(error))
            raise typer.Exit(USAGE_ERROR) from None
        except OSError as error:
            typer.echo(f"error: cannot write the result: {error}.", err=True)
            raise typer.Exit(USAGE_ERROR) from None
        except KeyboardInterrupt:
            typer.echo("Stopped. Nothing was written.", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


# ---- option types ----------------------------------------------------------------------------


class Order(StrEnum):
    """Channel order of the network's input."""

    RGB = "rgb"
    BGR = "bgr"


class Recipe(StrEnum):
    """How to purify."""

    INFORMED = "informed"
    PAPER = "paper"
    FINETUNE = "finetune"


class Bound(StrEnum):
    """Shape of NFT's lower bound of masks over depth."""

    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    COSINE = "cosine"
    NONE = "none"


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="The suspect: PyTorch (.pt, .pth), TorchScript or ONNX file."
    ),
]
CleanPath = Annotated[
    Path | None,
    typer.Option(
        "--clean",
        metavar="DIR",
        help="Clean images: DIR/<class>/*.png, or a flat folder (labels.csv optional), or .npz. "
        "Without it, images are made; that is weaker and never ends in NO EVIDENCE FOUND.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="ARCH",
        help="For weights without a network: a torchvision name (resnet18) or your own code "
        "(my_model.py:build), which is run.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Class names, one a line, in the order of the model's outputs."
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="CxHxW", help="Input size, such as 3x32x32. Found if left out."
    ),
]
Normalize = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, none, half, imagenet, cifar10, 0-255, minmax, …, or MEAN/STD such as "
        "0.5,0.5,0.5/0.2,0.2,0.2.",
    ),
]
ChannelOrder = Annotated[
    Order | None, typer.Option(help="Order of colours that the network expects. Found if left out.")
]
ProbeSpec = Annotated[
    str,
    typer.Option(
        "--probes",
        metavar="SPEC",
        help="quick, standard or deep; also ids, patterns, tag:NAME, files and folders, and with a "
        "minus what to leave out: quick,tag:blend,./mine/,-warp.*",
    ),
]
TriggerImage = Annotated[
    Path | None,
    typer.Option(
        metavar="IMG",
        help="An image that may be the trigger; tried as patch, blend and addition.",
    ),
]
MaskImage = Annotated[
    Path | None,
    typer.Option(metavar="IMG", help="Where --trigger overwrites: white yes, black no."),
]
Output = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FMT=PATH",
        help="Result file, json=, html= or md= (repeatable; - is standard output; none writes "
        "nothing). Default: MODEL.scan.json and MODEL.scan.html in the current folder.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace result files that exist.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print one line with the verdict.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[
    str, typer.Option(metavar="N", help="Images a forward pass; auto measures the fastest.")
]
TimeBudget = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Stop after 90s, 5m or 1h; what was not tried is listed."),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 2, help="Of every random choice. Same seed, same result."),
]
MaxImages = Annotated[
    int, typer.Option(min=1, help="Draw at most so many of the clean images, evenly over classes.")
]


# ---- options of purify


FitPath = Annotated[
    Path,
    typer.Option(
        "--clean",
        metavar="DIR",
        help="Clean images: DIR/<class>/*.png, or a flat folder (labels.csv optional), or .npz.",
    ),
]
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
RecipeName = Annotated[
    Recipe,
    typer.Option(
        help="informed: unlearn what the scan found, masks first. paper: NFT as published. "
        "finetune: plain fine-tuning."
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
    bool, typer.Option("--baseline/--no-baseline", help="Run plain fine-tuning beside it.")
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Purify although the scan showed no trigger.")
]
WriteAnyway = Annotated[
    bool, typer.Option("--write-anyway", help="Write the model although a goal was missed.")
]
Iterations = Annotated[int, typer.Option(min=1, help="Of --recipe paper.")]
Regulariser = Annotated[
    bool, typer.Option("--regulariser/--no-regulariser", help="Of --recipe paper: pull to 1.")
]
MixUp = Annotated[bool, typer.Option("--mixup/--no-mixup", help="Of --recipe paper: mix images.")]
MaskBound = Annotated[
    Bound, typer.Option(help="Of --recipe paper: lower bound of masks over depth.")
]
DepthAware = Annotated[
    bool,
    typer.Option("--depth-aware", help="Of --recipe paper: stretch the bound over deep networks."),
]
TrainStatistics = Annotated[
    bool,
    typer.Option(
        "--train-statistics/--keep-statistics",
        help="Of --recipe paper: BatchNorm statistics follow the clean images, as published.",
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
PurifyImages = Annotated[
    int, typer.Option("--max-images", min=1, help="Draw at most so many of the clean images.")
]


# ---- commands --------------------------------------------------------------------------------


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"auditor {auditor.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_show_version, is_eager=True, help="Show version."
        ),
    ] = False,
) -> None:
    """Scan an image model that somebody else trained for backdoors, and show the evidence."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog=EPILOG)
@reporting
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
    max_images: MaxImages = 768,
) -> None:
    """Look for backdoors in MODEL and estimate their attack success rate.

    Stamps a battery of triggers on images, compares each with matched controls, and searches for
    classes that are unusually easy to reach. Opens the file without running code from it.

    Example: auditor scan model.pt --clean ./samples

    Example: auditor scan weights.pth --arch my_model.py:build --clean ./samples --probes deep
    """
    result, written = run_scan(
        model,
        clean=clean,
        arch=arch,
        labels=labels,
        probes=probes,
        trigger=trigger,
        mask=mask,
        input_size=input_size,
        normalize=normalize,
        order=channel_order,
        output=output or [],
        force=force,
        quiet=quiet,
        device=device,
        batch_size=batch_size,
        time_budget=time_budget,
        seed=seed,
        max_images=max_images,
    )
    from auditor.terminal import show_scan, verdict_line

    if quiet:
        typer.echo(verdict_line(result))
    elif Path("-") not in written:
        show_scan(result, written)
    raise typer.Exit(result.judgement.verdict.exit_code)


def run_scan(
    model: Path,
    *,
    clean: Path | None = None,
    arch: str | None = None,
    labels: Path | None = None,
    probes: str = "standard",
    trigger: Path | None = None,
    mask: Path | None = None,
    input_size: str | None = None,
    normalize: str = "auto",
    order: Order | None = None,
    output: list[str],
    force: bool = False,
    quiet: bool = False,
    device: str = "auto",
    batch_size: str = "auto",
    time_budget: str | None = None,
    seed: int = 0,
    max_images: int = 768,
) -> tuple[ScanResult, list[Path]]:
    """Scan one file and write its results; what `scan` and `demo` share."""
    from auditor.outputs import check_outputs, parse_outputs, write_text

    defaults = {name: Path(f"{model.stem}.scan.{name}") for name in ("json", "html")}
    outputs = parse_outputs(output, FORMATS, defaults)
    given_files = [path for path in (model, clean, trigger, mask, labels) if path is not None]
    check_outputs(outputs, force=force, inputs=given_files)
    budget = parse_time(time_budget)
    size = parse_batch_size(batch_size)
    if mask is not None and trigger is None:
        raise UsageError("--mask needs --trigger: it says where the trigger image overwrites.")

    from auditor.terminal import ProgressLine

    with ProgressLine(quiet=quiet) as notify:
        notify("loading", 0, 1)
        from auditor import api

        names = None if labels is None else api.read_class_names(labels)
        selection = api.choose_probes(probes, extras=api.search_tiers())
        chosen = list(selection.probes)
        if not chosen and not selection.extras and trigger is None:
            raise UsageError(f"--probes {clean_text(probes)}: nothing is left to try.")
        if trigger is not None:
            chosen.insert(0, api.probe_from_image(trigger, mask))
        given = _given_input(input_size, normalize, order)
        suspect = api.load_model(model, arch=arch, device=api.resolve_device(device))
        result = api.scan(
            suspect,
            chosen,
            None if clean is None else api.open_images(clean, names),
            api.ScanOptions(
                given=given,
                searches=selection.extras,
                class_names=names,
                max_images=max_images,
                batch_size=size,
                time_budget=budget,
                seed=seed,
                command=shlex.join(["auditor", *sys.argv[1:]]),
            ),
            notify,
        )
    for path, text in _rendered(result, outputs):
        write_text(path, text)
    return result, list(outputs.values())


def _given_input(input_size: str | None, normalize: str, order: Order | None) -> GivenInput:
    """What the user says of the input, checked."""
    from auditor import api

    channels, height, width = api.parse_input(input_size) or (None, None, None)
    api.parse_normalize(normalize, channels or 3)
    return api.GivenInput(
        channels=channels,
        height=height,
        width=width,
        normalize=None if normalize == "auto" else normalize,
        order=None if order is None else order.value,
    )


def _rendered(
    result: ScanResult | PurifyResult, outputs: Mapping[str, Path]
) -> list[tuple[Path, str]]:
    """Where each report goes, and its text; all are made before one is written."""
    from auditor import report

    renderers = {"json": report.to_json, "html": report.to_html, "md": report.to_markdown}
    return [(path, renderers[name](result)) for name, path in outputs.items() if name in renderers]


@app.command(epilog=PURIFY_EPILOG)
@reporting
def purify(
    model: ModelPath,
    clean: FitPath,
    judge: JudgePath = None,
    holdout: Holdout = 0.4,
    arch: Arch = None,
    labels: Labels = None,
    recipe: RecipeName = Recipe.INFORMED,
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
    max_images: PurifyImages = 2000,
    iterations: Iterations = 1000,
    regulariser: Regulariser = True,
    mixup: MixUp = True,
    mask_bound: MaskBound = Bound.EXPONENTIAL,
    depth_aware: DepthAware = False,
    train_statistics: TrainStatistics = True,
) -> None:
    """Remove the backdoor from MODEL with clean images, and prove it on images held out.

    Scans, purifies, writes the model in its own format, reads it back and scans again. The input is
    never touched. What counts are images that the purification has not seen.

    Example: auditor purify model.pt --clean ./samples

    Example: auditor purify model.pt --clean ./samples --trigger sticker.png --stress
    """
    paper: dict[str, object] = {
        "iterations": iterations,
        "mixup": mixup,
        "bound": mask_bound.value,
        "depth_aware": depth_aware,
        "statistics": train_statistics,
        **({} if regulariser else {"regulariser": 0.0}),
    }
    defaults: dict[str, object] = {
        "iterations": 1000, "mixup": True, "bound": "exponential", "depth_aware": False,
        "statistics": True,
    }  # fmt: skip
    if recipe is not Recipe.PAPER and paper != defaults:
        odd = next(name for name, value in paper.items() if defaults.get(name) != value)
        raise UsageError(f"{odd} is a setting of --recipe paper, not of {recipe}.")
    result, written = run_purify(
        model,
        clean=clean,
        judge=judge,
        holdout=holdout,
        arch=arch,
        labels=labels,
        recipe=recipe,
        settings=paper if recipe is Recipe.PAPER else {},
        probes=probes,
        trigger=trigger,
        mask=mask,
        judge_triggers=judge_trigger or [],
        max_asr=max_asr,
        max_acc_drop=max_acc_drop,
        stress=stress,
        baseline=baseline,
        anyway=anyway,
        write_anyway=write_anyway,
        input_size=input_size,
        normalize=normalize,
        order=channel_order,
        output=output or [],
        force=force,
        quiet=quiet,
        device=device,
        batch_size=batch_size,
        seed=seed,
        max_images=max_images,
    )
    from auditor.terminal_purify import goals_line, show_purify

    if quiet:
        typer.echo(goals_line(result))
    elif Path("-") not in written:
        show_purify(result, written)
    if result.recipe is None and result.goals.met:
        raise typer.Exit(result.evidence.judgement.verdict.exit_code)
    raise typer.Exit(0 if result.goals.met else 1)


def run_purify(
    model: Path,
    *,
    clean: Path,
    judge: Path | None = None,
    holdout: float = 0.4,
    arch: str | None = None,
    labels: Path | None = None,
    recipe: Recipe = Recipe.INFORMED,
    settings: dict[str, object] | None = None,
    probes: str = "standard",
    trigger: Path | None = None,
    mask: Path | None = None,
    judge_triggers: list[Path] | None = None,
    max_asr: float = 0.05,
    max_acc_drop: float = 0.03,
    stress: bool = False,
    baseline: bool = True,
    anyway: bool = False,
    write_anyway: bool = False,
    input_size: str | None = None,
    normalize: str = "auto",
    order: Order | None = None,
    output: list[str],
    force: bool = False,
    quiet: bool = False,
    device: str = "auto",
    batch_size: str = "auto",
    seed: int = 0,
    max_images: int = 2000,
) -> tuple[PurifyResult, list[Path]]:
    """Purify one file and write what came of it; what `purify` and `demo` share."""
    from auditor.outputs import check_outputs, parse_outputs, write_text

    defaults = {
        "model": Path(f"{model.stem}.purified{model.suffix}"),
        **{name: Path(f"{model.stem}.purify.{name}") for name in ("json", "html")},
    }
    outputs = parse_outputs(output, PURIFY_FORMATS, defaults)
    named = judge_triggers or []
    files = (model, clean, judge, trigger, mask, labels, *named)
    given_files = [path for path in files if path is not None]
    check_outputs(outputs, force=force, inputs=given_files)
    if outputs.get("model") == Path("-"):
        raise UsageError("-o model=-: the model goes to a file, not to standard output.")
    size = parse_batch_size(batch_size)
    if mask is not None and trigger is None:
        raise UsageError("--mask needs --trigger: it says where the trigger image overwrites.")

    from auditor.terminal import ProgressLine

    with ProgressLine(quiet=quiet) as notify:
        notify("loading", 0, 1)
        from auditor import api

        names = None if labels is None else api.read_class_names(labels)
        selection = api.choose_probes(probes, extras=api.search_tiers())
        chosen = list(selection.probes)
        if trigger is not None:
            chosen.insert(0, api.probe_from_image(trigger, mask))
        if not chosen:
            raise UsageError(f"--probes {clean_text(probes)}: nothing is left to try.")
        purifier: Purifier = api.PURIFIERS[recipe.value](**(settings or {}))
        judged_by = tuple(
            api.load_probe(path)
            if path.suffix.lower() in (".yaml", ".yml")
            else api.probe_from_image(path, None)
            for path in named
        )
        given = _given_input(input_size, normalize, order)
        suspect = api.load_model(model, arch=arch, device=api.resolve_device(device))
        command = shlex.join(["auditor", *sys.argv[1:]])
        result = api.purify(
            suspect,
            chosen,
            api.open_images(clean, names),
            outputs.get("model"),
            api.PurifyOptions(
                recipe=purifier,
                scan=api.ScanOptions(
                    given=given,
                    searches=selection.extras,
                    class_names=names,
                    batch_size=size,
                    command=command,
                ),
                holdout=holdout,
                max_images=max_images,
                max_asr=max_asr,
                max_acc_drop=max_acc_drop,
                judge_probes=judged_by,
                baseline=baseline,
                stress=stress,
                anyway=anyway,
                write_anyway=write_anyway,
                arch=arch,
                seed=seed,
                command=command,
            ),
            notify,
            None if judge is None else api.open_images(judge, names),
        )
        notify("writing the report", 0, 1)
        texts = _rendered(result, outputs)
    for path, text in texts:
        write_text(path, text)
    paths = [path for name, path in outputs.items() if name != "model" or result.written]
    return result, paths


@app.command()
@reporting
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
    from auditor.terminal import ProgressLine, show_scan
    from auditor.terminal_purify import show_purify

    scans = {
        name: {kind: directory / f"{name}.scan.{kind}" for kind in FORMATS[:2]}
        for name in ("suspect", "benign")
    }
    purified = {
        "model": directory / "suspect.purified.pt",
        **{kind: directory / f"suspect.purify.{kind}" for kind in FORMATS[:2]},
    }
    from auditor.outputs import check_outputs

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
    for name, outputs in scans.items():
        path = directory / f"{name}.pt"
        _echo_command("scan", path, samples)
        result, written = run_scan(
            path, clean=samples, output=_written_as(outputs), force=force, seed=seed
        )
        show_scan(result, written)
    path = directory / "suspect.pt"
    _echo_command("purify", path, samples)
    done, written = run_purify(
        path, clean=samples, output=_written_as(purified), force=force, seed=seed
    )
    show_purify(done, written)


def _echo_command(name: str, model: Path, samples: Path) -> None:
    typer.echo(f"\n$ auditor {name} {shlex.quote(str(model))} --clean {shlex.quote(str(samples))}")


def _written_as(outputs: Mapping[str, Path]) -> list[str]:
    return [f"{kind}={path}" for kind, path in outputs.items()]


@app.command()
@reporting
def report(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="A .json file that scan or purify wrote.")
    ],
    output: Output = None,
    force: Force = False,
) -> None:
    """Render a result again, without the model: json -> html, md.

    The verdict is recomputed from the counts in the file; if it differs from the one in the file,
    that is said, and the exit code is 1.

    Example: auditor report model.scan.json -o html=review.html -o md=summary.md
    """
    from auditor import report as rendering
    from auditor.outputs import check_outputs, parse_outputs, write_text
    from auditor.results import PurifyResult
    from auditor.terminal import show_error, show_scan
    from auditor.terminal_purify import show_purify
    from auditor.verdict import rejudge, rejudge_purification

    try:
        text = result.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{result}: there is no such result file, or it is no text.") from None
    record = rendering.from_json(text)
    outputs = parse_outputs(output or [], FORMATS, {})
    check_outputs(outputs, force=force, inputs=[result])
    for path, text in _rendered(record, outputs):
        write_text(path, text)
    silent = Path("-") in outputs.values()
    if isinstance(record, PurifyResult):
        if not silent:
            show_purify(record, list(outputs.values()))
        says, counts = (
            "met" if goals.met else "missed"
            for goals in (record.goals, rejudge_purification(record))
        )
        says, counts = f"goals {says}", f"goals {counts}"
    else:
        if not silent:
            show_scan(record, list(outputs.values()))
        says, counts = str(record.judgement.verdict), str(rejudge(record).verdict)
    if says != counts:
        show_error(
            f"the file says {says}, but its own counts say {counts}: it was edited, or written by another "
            "version."
        )
        raise typer.Exit(1)


@probes_app.command("list")
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
    quick, standard, deep = counts["quick"], counts["standard"], counts["deep"]
    typer.echo(
        f"{len(selection.probes)} probes; triggers: {quick} in quick, {quick + standard} in standard, "
        f"{quick + standard + deep} in deep."
    )
    tags = sorted({tag for probe in selection.probes for tag in probe.tags})
    typer.echo(f"Tags, for --probes tag:NAME: {', '.join(tags)}.")


@probes_app.command("show")
@reporting
def probes_show(
    spec: Annotated[str, typer.Argument(metavar="ID", help="An id or pattern, or a YAML file.")],
) -> None:
    """Explain a probe: what it stamps, why, and what it can miss.

    Example: auditor probes show warp.*
    """
    from auditor.api import choose_probes

    for probe in choose_probes(spec).probes:
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


@probes_app.command("validate")
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
            from auditor.terminal import show_error

            show_error(str(error))
            failed = True
        else:
            typer.echo(f"{file}: fine, {len(probe.triggers)} triggers")
    if failed:
        raise typer.Exit(USAGE_ERROR)


# ---- values ----------------------------------------------------------------------------------


def parse_time(text: str | None) -> float:
    """Seconds of `--time-budget`; infinite where there is none."""
    if text is None:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--time-budget {text}: write a time such as 90s, 5m or 1h.")
    return float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2] or "s", 1)


def parse_batch_size(text: str) -> int | None:
    """Images a forward pass, None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: write auto or a whole number such as 64.")
    return int(text)


def main() -> None:
    """Entry point of the `auditor` command."""
    app()
