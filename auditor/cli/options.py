"""The options that several commands share, and how their values are understood."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from auditor.errors import UsageError


class Order(StrEnum):
    """Channel order of the network's input."""

    RGB = "rgb"
    BGR = "bgr"


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The suspect: PyTorch (.pt, .pth, .pt2, TorchScript), safetensors or ONNX file.",
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
        "--arch",  # named, since typer 0.27 takes a metavar that equals the name for it
        metavar="ARCH",
        help="For weights without a network, if it is not found: a name (resnet18, "
        "cifar:preact_resnet18) or your own code (my_model.py:build), which is run.",
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
        help="An image that may be the trigger; tried in the usual ways: a small one as a patch in and "
        "near each corner and in the centre; others added, blended, written over the image, and pasted at "
        "their own size.",
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
SaveProbes = Annotated[
    Path | None,
    typer.Option(
        "--save-probes",
        metavar="DIR",
        help="Write triggers that a search found and the verdict counts as probe files, to try them "
        "on other models: --probes DIR/.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 2, help="Of every random choice. Same seed, same result."),
]
MaxImages = Annotated[
    int, typer.Option(min=1, help="Draw at most so many of the clean images, evenly over classes.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Open MODEL without the sandbox. Only if you trust whoever made it: TorchScript files carry "
        "code, which is refused where there is no sandbox (it needs Linux).",
    ),
]

# ---- options of the commands that change a model


FitPath = Annotated[
    Path,
    typer.Option(
        "--clean",
        metavar="DIR",
        help="Clean images: DIR/<class>/*.png, or a flat folder (labels.csv optional), or .npz.",
    ),
]
WriteAnyway = Annotated[
    bool, typer.Option("--write-anyway", help="Write the model although a goal was missed.")
]
FitImages = Annotated[
    int, typer.Option("--max-images", min=1, help="Draw at most so many of the clean images.")
]


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
