"""At which size does a form of trigger make benign networks sure? What `Form.JUDGED` is set by.

    python -m bench.judged blend --data ../shared/data --zoo ~/zoo [--only 'signs-*'] [--sizes 4,8,12,16]

For every network of the zoo: what the search needs for the first three classes, and the triggers of
these classes, made as strong as they get at each of the sizes (in 255ths): the largest share of 200
held-out images on which one makes the model surer than it is of half of the unstamped images, and
that it moves.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path

import torch

from auditor import api, measure
from auditor.classifier import Classifier, as_float
from auditor.inputs import spec_of
from auditor.measure import Half
from auditor.progress import silent
from auditor.search.forms import FORMS
from auditor.search.inversion import STEPS, _Inversion
from auditor.search.pace import USUAL
from bench.zoo.__main__ import ROWS, _loader
from bench.zoo.calibrate import shape_of
from bench.zoo.rows import read_rows
from bench.zoo.train import read_made

SEARCHED, HELD_OUT = 100, 200
CLASSES = 3


def line(
    classifier: Classifier, images: torch.Tensor, classes: int, form: str, sizes: list[int]
) -> str:
    """What one network gives: sizes of the first classes, then share surer and share moved a size."""
    said = classifier.logits(as_float(images)).argmax(1)
    searched, held_out = (
        Half(images=images[part], groups=said[part], before=said[part])
        for part in (slice(SEARCHED), slice(SEARCHED, None))
    )
    search = _Inversion(
        classifier,
        searched.images,
        searched.groups,
        range(classes),
        form,
        0,
        silent,
        float("inf"),
        USUAL,
    )
    spec = classifier.spec
    shape = (spec.channels, spec.height, spec.width)
    found = FORMS[form](len(search.classes), shape, search.draw)
    needed = search._smallest(found, found.explored, STEPS)
    first = needed.argsort().tolist()[:CLASSES]
    usual = measure.usual_margin(classifier.logits(searched.images)) or float("inf")
    parts = [" ".join(f"{float(needed[row]) * 255:.0f} ({search.classes[row]})" for row in first)]
    for size in sizes:
        shares = []
        for row in first:
            target = search.classes[row]
            trigger = search._strengthened(found, row, size=size / 255)
            driven = measure.driven(classifier, held_out, trigger, [target] * classes)
            margins = driven[held_out.groups != target]
            surer, moved = (margins > usual).float().mean(), (margins > 0).float().mean()
            shares.append((float(surer), float(moved)))
        parts.append(f"{max(shares)[0]:.0%} / {max(shares)[1]:.0%}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judged")
    parser.add_argument("form", choices=list(FORMS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--zoo", type=Path, default=Path.home() / "zoo")
    parser.add_argument("--only", action="append", default=[], help="ids; * and ? are wildcards")
    parser.add_argument("--sizes", default="4,6,8,10,12,16,20,26", help="in 255ths")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    load = _loader(arguments.data)
    print(f"| network | half | needed | {' | '.join(f'{size}/255' for size in sizes)} |")
    print(f"|---|---|---|{'---|' * len(sizes)}")
    for row in read_rows(ROWS):
        wanted = any(fnmatch.fnmatchcase(row.id, p) for p in arguments.only or ["*"])
        if not wanted or read_made(row, arguments.zoo) is None:
            continue
        test = load(row.data).test
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(5))
        images = test.images[order[: SEARCHED + HELD_OUT]]
        classes = int(test.labels.max()) + 1
        model = api.load_model(arguments.zoo / f"{row.id}.pt")
        classifier = Classifier(model, spec_of(shape_of(row), "half"))
        given = line(classifier, images, classes, arguments.form, sizes)
        print(f"| {row.id} | {row.half} | {given} |", flush=True)


if __name__ == "__main__":
    main()
