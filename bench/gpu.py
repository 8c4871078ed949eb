"""Does a GPU say what the CPU says, does the sandbox let it, and how long do searches take there?

    python -m bench.gpu formats [--device cuda]
    python -m bench.gpu cli --suspects DIR --clean DIR [--device cuda]
    python -m bench.gpu searches [--classes 10,43,1000] [--device cuda]

"formats": one network in every format, opened on both devices. Masked suspect against the written
file on the device to 1e-4 of the largest logit, as on the CPU (`bench/formats.py`); what the devices
differ by is printed. "cli": the published suspects scanned and purified by the command line, in its
sandbox, on both devices; counts and verdicts side by side. "searches": the standard searches of a
CIFAR ResNet-18 of full width from 100 images (weights drawn, not trained: the steps are the same).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision

from auditor import api
from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.masks import effective, folded
from auditor.measure import Half
from auditor.models.load import resolve_device
from auditor.search.searches import Searches
from bench.formats import FORMATS, SIDES, TOLERANCE, drawn_masks
from bench.zoo.networks import build

SEARCHES = ("search.margin", "search.patch", "search.additive")


def formats(device: torch.device) -> int:
    """Every format on both devices; the number of those that do not hold."""
    torch.manual_seed(0)
    side = SIDES["resnet18"]
    network = torchvision.models.resnet18(num_classes=10).eval()
    images = torch.rand(4, 3, side, side)
    failed = 0
    print("| format | devices differ by | masked, devices | masked against written, there |")
    print("|---|---:|---:|---:|")
    for title, form in FORMATS.items():
        with tempfile.TemporaryDirectory() as name, torch.no_grad():
            path, out = Path(name) / form.file, Path(name) / f"purified-{form.file}"
            form.save(network, images, path)
            arch = "resnet18" if title.startswith(("state", "safetensors")) else None
            try:
                here, there = (api.load_model(path, arch=arch, device=d) for d in ("cpu", device))
                masks = drawn_masks(there.mask_sites())
                placed = {key: mask.to(device) for key, mask in masks.items()}
                plain = here.call(images), there.call(images.to(device))
                overrides = effective(there.tensors(), there.mask_sites(), placed)
                masked = there.call(images.to(device), overrides)
                other = here.call(images, effective(here.tensors(), here.mask_sites(), masks))
                there.write(folded(there.tensors(), there.mask_sites(), placed), out)
                known = arch or next(iter(there.alternatives), None)
                again = api.load_model(out, arch=known, device=device)
                found = again.call(images.to(device), dict(again.tensors()))
            except Exception as error:
                failed += 1
                print(f"| {title} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
                continue
        unit = float(plain[0].abs().max())
        numbers = [
            float((one.cpu() - two.cpu()).abs().max()) / unit
            for one, two in (plain, (other, masked), (masked, found))
        ]
        failed += not numbers[-1] <= TOLERANCE
        print(f"| {title} | {' | '.join(f'{number:.1e}' for number in numbers)} |", flush=True)
    return failed


def cli(suspects: Path, clean: Path, device: str) -> None:
    """The command line in its sandbox, on both devices."""
    arch = ["--arch", f"{suspects / 'small_vgg.py'}:build"]
    runs = itertools.product((device, "cpu"), ("scan", "purify"), sorted(suspects.glob("*.pth")))
    for where, command, path in runs:
        with tempfile.TemporaryDirectory() as name:
            record = Path(name) / "record.json"
            options = ["--clean", str(clean), "--device", where, "-o", f"json={record}", "-q"]
            if command == "purify":
                options += ["-o", f"model={name}/purified.pth", "-o", f"html={name}/report.html"]
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "auditor", command, str(path), *arch, *options],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - begin
            said = _said(record) if record.is_file() else done.stderr.strip()[-500:]
        print(
            f"{command} {path.name} on {where}: exit {done.returncode}, {seconds:.0f} s, {said}",
            flush=True,
        )


def _said(record: Path) -> str:
    result = json.loads(record.read_text("utf-8"))
    if "accuracy" in result:
        outcomes = [(o["probe"], o["hits"], o["eligible"]) for o in result["outcomes"]]
        return f"ACC {result['accuracy']} of {result['judge']['images']}, {outcomes[:4]}"
    counted = [(c["probe"], c["hits"], c["eligible"]) for c in result["confirmations"]][:4]
    return f"{result['judgement']['verdict']}: {counted}; {result['provenance']['device']}"


def searches(counts: Sequence[int], device: torch.device) -> None:
    """Seconds of the standard searches, by the number of classes."""
    for classes in counts:
        network = build("resnet18", channels=3, side=32, classes=classes, seed=0)
        images = torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "network.pt"
            torch.save(network, path)
            classifier = Classifier(api.load_model(path, device=device), blank_spec((3, 32, 32)))
            timed(classifier, classes, images)


def timed(classifier: Classifier, classes: int, images: torch.Tensor) -> None:
    """One line a search."""
    groups = classifier.predict(images)
    half = Half(images=images.to(classifier.device), groups=groups, before=groups)
    run = Searches(classifier, classes, SEARCHES, sample=images, seed=0, deadline=float("inf"))
    begin = time.perf_counter()
    margin = run.margins()
    first = time.perf_counter() - begin
    found, proposed = run.inversions("clean", half, margin)
    whole = time.perf_counter() - begin
    looked = {entry.search: len(entry.classes) for entry in found}
    print(
        f"{classes} classes: margins {first:.1f} s, all {whole:.1f} s; classes searched {looked}, "
        f"{len(proposed)} triggers; skipped: {[(s.what, s.reason) for s in run.skipped]}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("formats", "cli", "searches"))
    parser.add_argument("--suspects", type=Path, default=Path("../shared/suspects"))
    parser.add_argument("--clean", type=Path, default=Path("../shared/data/cifar10/clean500"))
    parser.add_argument("--classes", default="10,43,1000")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    match arguments.do:
        case "formats":
            return int(formats(device) > 0)
        case "cli":
            cli(arguments.suspects, arguments.clean, str(device))
        case _:
            searches([int(count) for count in arguments.classes.split(",")], device)
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
