"""Which classes stand for a mark? What `verdict.MARK_RATE` is held against.

    python -m bench.marks --data ../shared/data --zoo ~/zoo [--only 'signs-*'] [--classes 4]

For every network of the zoo and some of its classes (the target of its backdoor, its last class, and
others evenly): the share of other images that go to the class with a typical small piece, or the
typical texture, of one of its own clean images.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
from pathlib import Path

import torch

from auditor import api
from auditor.classifier import Classifier
from auditor.inputs import spec_of
from auditor.measure import Half
from auditor.scanning.transplant import transplants
from auditor.verdict import typical_share
from bench.zoo.__main__ import ROWS, _loader
from bench.zoo.calibrate import clean_images, shape_of
from bench.zoo.rows import AllToAll, Row, read_rows
from bench.zoo.train import read_made

SCREENING, IMAGES = 170, 768


def halves(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> tuple[Half, Half]:
    """The images as a scan splits them."""
    before = classifier.predict(images)
    screen, confirm = (
        Half(images=images[part], groups=labels[part], before=before[part])
        for part in (slice(SCREENING), slice(SCREENING, None))
    )
    return screen, confirm


def examined(row: Row, classes: int, count: int) -> list[int]:
    """The planted target, the last class, and others evenly."""
    chosen = {int(k) for k in torch.linspace(0, classes - 1, count).round()}
    if row.attack is not None and not isinstance(row.attack.labels, AllToAll):
        chosen.add(row.attack.labels.target)
    return sorted(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.marks")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="ids; * and ? are wildcards")
    parser.add_argument("--classes", type=int, default=4)
    arguments = parser.parse_args()
    load = _loader(arguments.data)
    for row in read_rows(ROWS):
        wanted = any(fnmatch.fnmatchcase(row.id, p) for p in arguments.only or ["*"])
        if not wanted or read_made(row, arguments.zoo) is None:
            continue
        spec = spec_of(shape_of(row), "half")
        source = api.open_images(clean_images(row.data, load, arguments.zoo))
        clean = source.load(source.draw(IMAGES, row.seed), spec)
        assert clean.labels is not None
        model = api.load_model(arguments.zoo / f"{row.id}.pt")
        classifier = Classifier(model, spec)
        both = halves(classifier, clean.images, clean.labels)
        for k in examined(row, load(row.data).classes, arguments.classes):
            shares = " ".join(
                f"{one.counts.kind} {typical_share(one.counts):6.1%}"
                for one in transplants(classifier, *both, k, deadline=math.inf)
                if one.counts.moved
            )
            planted = row.attack is not None and (
                isinstance(row.attack.labels, AllToAll) or row.attack.labels.target == k
            )
            print(f"{row.id:28} {k:3}{'*' if planted else ' '} {shares}", flush=True)


if __name__ == "__main__":
    main()
