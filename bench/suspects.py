"""What does a scan say of published suspects, as they come and exported to ONNX?

Needs a folder with suspects (`--suspects`, with their network file) and CIFAR-10 test images
(`--clean`); neither is part of this repository.

    python bench/suspects.py --suspects DIR --clean DIR
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from auditor.models.load import load_model


def exported(path: Path, arch: str, folder: Path, *, dynamo: bool) -> Path:
    """The suspect as an ONNX file."""
    network = load_model(path, arch=arch).module
    assert network is not None
    target = folder / f"{path.stem}.{'dynamo' if dynamo else 'legacy'}.onnx"
    images = torch.zeros(2, 3, 32, 32)
    batch = {0: torch.export.Dim("n")} if dynamo else {0: "n"}
    options = {"dynamic_shapes": (batch,)} if dynamo else {"dynamic_axes": {"images": batch}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images,), target, dynamo=dynamo, input_names=["images"],
            external_data=False, verbose=False, **options,
        )  # fmt: skip
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suspects", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.suspects
    arch = f"{folder / 'small_vgg.py'}:build"
    clean = ["--clean", str(arguments.clean)]
    runs: list[tuple[str, list[str]]] = []
    with tempfile.TemporaryDirectory() as name:
        for path in sorted(folder.glob("*.pth")):
            weights = [str(path), "--arch", arch]
            runs.append((f"{path.name}", [*weights, *clean]))
            runs.append((f"{path.name}, no images", weights))
            for dynamo in (False, True):
                onnx = exported(path, arch, Path(name), dynamo=dynamo)
                runs.append((onnx.name, [str(onnx), *clean]))
                if "l2inv" in path.name:
                    trigger = ["--trigger", str(folder / "trigger_l2inv.png"), "--probes", "quick"]
                    runs.append((f"{onnx.name} --trigger", [str(onnx), *clean, *trigger]))
            if "l2inv" in path.name:
                trigger = ["--trigger", str(folder / "trigger_l2inv.png"), "--probes", "quick"]
                runs.append((f"{path.name} --trigger", [*weights, *clean, *trigger]))
        for title, options in runs:
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "auditor", "scan", *options, "-q", "-o", "none"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - begin
            said = f"{done.stdout.strip()} {done.stderr.strip()}"
            print(f"{title}: exit {done.returncode}, {seconds:.0f} s: {said}", flush=True)


if __name__ == "__main__":
    main()
