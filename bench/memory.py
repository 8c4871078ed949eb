"""Does memory grow with the number of clean images?

Scans one model with 500 and with 20,000 images in a folder, each in a process of its own, and
prints the difference of the peak resident sizes.

    python bench/memory.py [--side 32]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn


def make(folder: Path, count: int, side: int) -> None:
    """Class folders of noise; the content does not matter here."""
    pixels = torch.randint(0, 256, (64, side, side, 3), dtype=torch.uint8).numpy()
    for index in range(count):
        place = folder / f"{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index % 64]).save(place / f"{index:05d}.png", compress_level=1)


def peak(model: Path, folder: Path) -> float:
    """Peak resident size of a scan, in MB."""
    code = (
        "import resource, sys; sys.argv = ['auditor', 'scan', sys.argv[1], '--clean', sys.argv[2], "
        "'--probes', 'quick', '--normalize', 'none', '--input', sys.argv[3], '-o', 'none', '-q']\n"
        "from auditor.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    side = Image.open(next(folder.rglob("*.png"))).width
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(folder), f"3x{side}x{side}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32)
    side = parser.parse_args().side
    assert resource.RUSAGE_SELF == 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip
        torch.save(network.eval(), root / "model.pt")
        peaks = {}
        for count in (500, 20_000):
            make(root / str(count), count, side)
            peaks[count] = peak(root / "model.pt", root / str(count))
            print(f"{count} images of {side} px: peak {peaks[count]:.0f} MB")
        print(f"growth: {peaks[20_000] - peaks[500]:.0f} MB")


if __name__ == "__main__":
    main()
