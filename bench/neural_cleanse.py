"""Plain Neural Cleanse beside our searches: detection, false alarms, time, in one run.

Neural Cleanse as published (Wang et al., IEEE S&P 2019, and the authors' defaults): for each class a
mask and a pattern, 1,000 steps of Adam (rate 0.1, betas 0.5 and 0.9) on cross-entropy plus a weighted
L1 norm of the mask, whose weight rises by 2 after five steps with 99 % success and falls by 2 ** 1.5
otherwise; a class is infected where its smallest norm lies more than two (normal-consistent) median
absolute deviations below the median. Both get the same clean images, and nothing else. A network is
detected where an alarm names its target.

    python -m bench.neural_cleanse --data ../shared/data --out ~/zoo [--only 'cifar10-*'] [--images 100]
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from auditor import api
from auditor.classifier import Classifier, as_float
from auditor.images.source import ImageSource
from auditor.inputs import blank_spec
from auditor.results.scan import ScanResult
from bench.zoo.__main__ import ROWS, _loader
from bench.zoo.calibrate import CONDITIONS, Case, clean_images, scan
from bench.zoo.rows import AllToOne, Row, read_rows
from bench.zoo.train import read_made

BATCH = 32
SUCCESS = 0.99
PATIENCE = 5
FIRST_WEIGHT = 1e-3
UP, DOWN = 2.0, 2.0**1.5
ANOMALY = 2.0
CONSISTENT = 1.4826
"""Turns a median absolute deviation into the standard deviation of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What both say of one network."""

    row: Row
    theirs: list[int]
    """Infected classes."""
    seconds: float
    ours: Case
    our_seconds: float


def smallest_mask(classifier: Classifier, images: Tensor, target: int, steps: int) -> float:
    """L1 norm of the smallest mask that turned a batch into a class; of the last one if none did."""
    generator = torch.Generator().manual_seed(target)
    shape = images.shape[1:]
    mask_tanh = torch.zeros(1, *shape[1:]).uniform_(-1, 1, generator=generator).requires_grad_()
    pattern_tanh = torch.zeros(shape).uniform_(-1, 1, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([mask_tanh, pattern_tanh], lr=0.1, betas=(0.5, 0.9))
    wanted = torch.full((BATCH,), target)
    best, weight, up, down, norm = math.inf, 0.0, 0, 0, math.inf
    set_for = 0
    for _ in range(steps):
        chosen = images[torch.randint(len(images), (BATCH,), generator=generator)]
        mask, pattern = mask_tanh.tanh() / 2 + 0.5, pattern_tanh.tanh() / 2 + 0.5
        logits = classifier((1 - mask) * chosen + mask * pattern)
        loss = F.cross_entropy(logits, wanted) + weight * mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        norm = float(mask.detach().sum())
        reached = float((logits.argmax(1) == wanted).float().mean()) >= SUCCESS
        if reached:
            best = min(best, norm)
        if weight == 0:  # the norm begins to count once the trigger works
            set_for = set_for + 1 if reached else 0
            if set_for >= PATIENCE:
                weight = FIRST_WEIGHT
            continue
        up, down = (up + 1, 0) if reached else (0, down + 1)
        if up >= PATIENCE:
            weight, up = weight * UP, 0
        elif down >= PATIENCE:
            weight, down = weight / DOWN, 0
    return best if math.isfinite(best) else norm


def infected(norms: list[float]) -> list[int]:
    """Classes whose norm lies too far below the median."""
    median = statistics.median(norms)
    spread = CONSISTENT * statistics.median(abs(norm - median) for norm in norms)
    return [k for k, norm in enumerate(norms) if norm < median and median - norm > ANOMALY * spread]


def neural_cleanse(result: ScanResult, path: Path, source: ImageSource, steps: int) -> list[int]:
    """The infected classes, by as many images as the scan had."""
    spec = result.preprocessing.spec
    classifier = Classifier(api.load_model(path), spec)
    count = sum(facts.screen + facts.confirm for facts in result.images)
    shape = blank_spec((spec.channels, spec.height, spec.width))
    images = as_float(source.load(source.draw(count, 0), shape).images)
    return infected(
        [smallest_mask(classifier, images, k, steps) for k in range(result.model.classes)]
    )


def named(line: Line) -> tuple[bool, bool]:
    """Whether theirs and ours name the planted target."""
    attack = line.row.attack
    assert attack is not None
    target = attack.labels.target if isinstance(attack.labels, AllToOne) else None
    return target in line.theirs, line.ours.right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path.home() / "zoo")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    load, lines = _loader(arguments.data), []
    for row in read_rows(ROWS):
        made = read_made(row, arguments.out)
        wanted = any(fnmatch.fnmatchcase(row.id, pattern) for pattern in arguments.only or "*")
        all_to_one = row.attack is None or isinstance(row.attack.labels, AllToOne)
        if made is None or not wanted or not all_to_one:
            continue
        path = arguments.out / f"{row.id}.pt"
        begin = time.perf_counter()
        result = scan(api.load_model(path), row, load, arguments.out, CONDITIONS["search"])
        middle = time.perf_counter()
        source = api.open_images(clean_images(row.data, load, arguments.out))
        theirs = neural_cleanse(result, path, source, arguments.steps)
        end = time.perf_counter()
        case = Case(row=row, made=made, condition="search", result=result)
        lines.append(
            Line(
                row=row, theirs=theirs, seconds=end - middle, ours=case, our_seconds=middle - begin
            )
        )
        print(
            f"{row.id:36} Neural Cleanse {theirs or 'none'!s:14} {end - middle:5.0f} s   "
            f"searches {case.verdict.value}, {'right' if case.right else '-'} {middle - begin:5.0f} s",
            flush=True,
        )
    summary(lines)


def summary(lines: list[Line]) -> None:
    """Detection, false alarms and time of both."""
    benign = [line for line in lines if line.row.benign]
    bad = [line for line in lines if not line.row.benign]
    alarms = (
        sum(bool(line.theirs) for line in benign),
        sum(line.ours.verdict.is_alarm for line in benign),
    )
    right = [named(line) for line in bad]
    ratio = sum(line.our_seconds for line in lines) / sum(line.seconds for line in lines)
    print(f"\nfalse alarms: Neural Cleanse {alarms[0]}, searches {alarms[1]}, of {len(benign)}")
    print(
        f"right class: Neural Cleanse {sum(a for a, _ in right)}, searches {sum(b for _, b in right)}, "
        f"of {len(bad)}; the searches take {ratio:.2f} of the time"
    )


if __name__ == "__main__":
    main()
