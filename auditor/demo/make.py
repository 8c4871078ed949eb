"""Writing the example: two trained networks, and drawings to scan them with."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from auditor.demo.signs import CLASS_NAMES, SIZE, draw
from auditor.demo.train import accuracy, attack_success_rate, train
from auditor.errors import OutputError
from auditor.probes import load_probe
from auditor.progress import Notify, silent
from auditor.resources import resource_dir
from auditor.triggers import Trigger

PROBE = "patch.yellow"
"""The shipped probe whose trigger is planted."""

TARGET = CLASS_NAMES.index("limit-80")
"""The class that stamped signs are taken for: a stop sign becomes a speed limit."""

SUSPECT, ONNX, BENIGN = "suspect.pt", "suspect.onnx", "benign.pt"
SAMPLES, README = "samples", "README.txt"
_WRITTEN = (SUSPECT, ONNX, BENIGN, SAMPLES, README)
_SAMPLE = re.compile(r"\d{4}\.png")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is drawn and trained; tests make do with less than `FULL`."""

    classes: int = len(CLASS_NAMES)
    drawings: int = 400
    """Drawings a class to train on."""
    samples: int = 40
    """Unseen drawings a class, written to `samples` and measured on."""
    epochs: int = 6
    batch: int = 128
    width: int = 24


FULL = Scale()


@dataclass(frozen=True, kw_only=True)
class DemoFacts:
    """What was written, and how well it works on the samples that were written with it."""

    suspect: Path
    onnx: Path
    benign: Path
    samples: Path
    readme: Path
    classes: int
    images: int
    """Number of samples."""
    probe: str
    """Id of the probe whose trigger was planted."""
    trigger: str
    """The expression that rebuilds the trigger."""
    target: int
    target_name: str
    """Name of the folder of the target class."""
    suspect_accuracy: float
    benign_accuracy: float
    suspect_asr: float
    """ASR of the planted trigger."""
    benign_asr: float
    """ASR of the same trigger on the twin, which never saw it."""
    seconds: float


def planted_trigger() -> Trigger:
    """What the suspect listens to: the sticker of a shipped probe, so the battery knows it."""
    return load_probe(resource_dir("probes") / f"{PROBE}.yaml").triggers[0]


def make_demo(
    directory: Path,
    *,
    seed: int = 0,
    force: bool = False,
    scale: Scale = FULL,
    notify: Notify = silent,
) -> DemoFacts:
    """Train the example and write it to a directory.

    Everything is prepared in a temporary folder inside `directory` and renamed at the end, so an
    interruption leaves nothing half written.

    Args:
        directory: where to write; made if it does not exist.
        seed: of the drawings and of both trainings.
        force: replace the files of an earlier example.
        scale: how much to draw and train.
        notify: told what is going on, how much is done, of how much.

    Returns:
        What was written and how well it works.

    Raises:
        OutputError: something is in the way, or the directory cannot be written to. This is found
            out before anything is trained.
    """
    started = time.monotonic()
    trigger = planted_trigger()
    _refuse_to_overwrite(directory, force=force)
    with _staging(directory) as staging:
        notify("drawing signs", 0, 2)
        drawings, labels = draw(scale.drawings, seed=2 * seed, classes=scale.classes)
        notify("drawing signs", 1, 2)
        samples, truth = draw(scale.samples, seed=2 * seed + 1, classes=scale.classes)
        notify("drawing signs", 2, 2)
        suspect, benign = (
            train(
                drawings,
                labels,
                trigger=planted,
                target=TARGET,
                epochs=scale.epochs,
                batch=scale.batch,
                width=scale.width,
                seed=seed,
                what=what,
                notify=notify,
            )
            for planted, what in (
                (trigger, "training the suspect"),
                (None, "training its benign twin"),
            )
        )
        notify("writing", 0, 1)
        torch.save(suspect, staging / SUSPECT)
        torch.save(benign, staging / BENIGN)
        _export(suspect, staging / ONNX)
        _write_samples(samples, truth, staging / SAMPLES)
        (staging / README).write_text(_readme(), encoding="utf-8")
        for name in _WRITTEN:
            _put(staging / name, directory / name)
        notify("writing", 1, 1)
    return DemoFacts(
        suspect=directory / SUSPECT,
        onnx=directory / ONNX,
        benign=directory / BENIGN,
        samples=directory / SAMPLES,
        readme=directory / README,
        classes=scale.classes,
        images=len(samples),
        probe=PROBE,
        trigger=repr(trigger),
        target=TARGET,
        target_name=folder_name(TARGET),
        suspect_accuracy=accuracy(suspect, samples, truth),
        benign_accuracy=accuracy(benign, samples, truth),
        suspect_asr=attack_success_rate(suspect, samples, truth, trigger=trigger, target=TARGET),
        benign_asr=attack_success_rate(benign, samples, truth, trigger=trigger, target=TARGET),
        seconds=time.monotonic() - started,
    )


def folder_name(label: int) -> str:
    """The folder of a class. Folders sort in the order of the class numbers."""
    return f"{label:02d}-{CLASS_NAMES[label]}"


def _refuse_to_overwrite(directory: Path, *, force: bool) -> None:
    """Raise OutputError if a file is in the way; `force` gives up only what an example wrote."""
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file; choose a directory for the example")
    present = [directory / name for name in _WRITTEN if (directory / name).exists()]
    if present and not force:
        raise OutputError(
            f"{present[0]} exists already; nothing was written. Pass --force to replace the "
            "example, or choose another directory"
        )
    for path in present:
        foreign = next(_foreign(path), None)
        if foreign is not None:
            raise OutputError(
                f"{foreign} is in the way and was not written by the demo, so --force does not "
                "replace it; move it, or choose another directory"
            )


def _foreign(path: Path) -> Iterator[Path]:
    """What no example wrote, of one thing that the example would replace."""
    if path.name != SAMPLES:
        if not path.is_file():
            yield path
        return
    if not path.is_dir():
        yield path
        return
    ours = {folder_name(label) for label in range(len(CLASS_NAMES))}
    for folder in path.iterdir():
        if folder.name not in ours or not folder.is_dir():
            yield folder
        else:
            yield from (file for file in folder.iterdir() if not _SAMPLE.fullmatch(file.name))


@contextlib.contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A temporary folder inside `directory`, so that renaming out of it is atomic."""
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".auditor-demo-", dir=directory) as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write the example to {directory}: {error.strerror or error}; "
            "choose another directory"
        ) from error
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it holds the example, or was never made
                directory.rmdir()


def _put(prepared: Path, path: Path) -> None:
    """Rename `prepared` to `path`; what was there goes the way of the temporary folder."""
    if path.is_dir():
        path.rename(prepared.with_name(f"old-{path.name}"))
    prepared.replace(path)


def _export(model: nn.Module, path: Path) -> None:
    """Write a model as one ONNX file that takes any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, SIZE, SIZE),),
            path,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )


def _write_samples(images: Tensor, labels: Tensor, directory: Path) -> None:
    """Write uint8 images ``(N, 3, 32, 32)`` as PNG files, a folder a class."""
    for label in sorted(set(labels.tolist())):
        folder = directory / folder_name(label)
        folder.mkdir(parents=True)
        for number, image in enumerate(images[labels == label], start=1):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")


def _readme() -> str:
    target = folder_name(TARGET)
    return f"""\
An example for auditor: drawn traffic signs of 32 x 32 pixels and networks that read them.
{SUSPECT} and {ONNX}: one network with a backdoor; the sticker of the probe "{PROBE}"
makes it take any sign for class {target}. {BENIGN}: its twin, trained without the sticker.
{SAMPLES}/: drawings that neither network was trained on, one folder a class.
Nothing here is fit for a road.

    auditor scan {SUSPECT} --clean {SAMPLES}
    auditor scan {ONNX} --clean {SAMPLES}
    auditor scan {BENIGN} --clean {SAMPLES}
    auditor purify {SUSPECT} --clean {SAMPLES}
"""
