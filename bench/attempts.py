"""Each attempt of the default purifier on its own: what its kept-back images say, and what others do.

    python -m bench.attempts --data ../shared/data --zoo ~/zoo --suspects DIR --only 'signs-*'
        [--sizes 180,60] [--draws 0,1] [--steps 200]

The purifier is told what the quick battery finds on the fit images, or the true trigger where that is
nothing. "ACC lost" and "ASR left" are counted on up to 2,000 other images, the latter by the true trigger.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from auditor import api, changing
from auditor.measure import Stamped, all_to_one, predictions
from auditor.progress import silent
from auditor.purification.known import shown_triggers
from auditor.purifiers import informed
from auditor.purifiers.base import Known, Task, changed_classifier, measured, seeded
from auditor.scanning.battery import stamped_triggers
from bench.methods import Network, asked_for, saved

MOST_JUDGES = 2000


def attempts(network: Network, size: int, draw: int, steps: int | None) -> None:
    """Print a line for masks, all weights, and gentle weights."""
    generator = torch.Generator().manual_seed(1000 + draw)
    order = torch.randperm(len(network.labels), generator=generator)
    drawn, others = order[:size], order[size:][:MOST_JUDGES]
    images, labels = network.images[others], network.labels[others].long()
    model = api.load_model(network.path, arch=network.arch)
    probes = api.choose_probes("quick").probes
    with tempfile.TemporaryDirectory() as name:
        fit = saved(Path(name), "fit", network.images[drawn], network.labels[drawn])
        options = api.ScanOptions(
            given=api.GivenInput(normalize=network.normalize), searches=(), max_images=size
        )
        found = api.scan(model, probes, fit, options)
    classifier, classes = changing.settled(model, found), found.model.classes
    (after,) = predictions(classifier, images, [network.trigger])
    true = Known(
        stamped=Stamped(probe="true", title="the true trigger", trigger=network.trigger),
        mapping=all_to_one(int(after.bincount().argmax()), classes).mapping,
    )
    known = shown_triggers(found, stamped_triggers(model, probes)) or [true]
    task = Task(
        classifier=classifier, images=network.images[drawn], labels=network.labels[drawn].long(),
        classes=classes, known=tuple(known), max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip
    accuracy, (rate,) = measured(classifier, images, labels, [true])
    told = "the true trigger" if known == [true] else f"{len(known)} that the battery found"
    print(f"{network.id}, {size} images, draw {draw}, told {told}: {rate:.1%} / {accuracy:.1%}")
    with seeded(task.seed):
        run = informed._Run(informed.Informed(), task, silent)
        for attempt in (*informed.ATTEMPTS, informed.GENTLER):
            if steps is not None and attempt.what == "weights":
                attempt = replace(attempt, steps=steps)
            made = run.attempt(attempt).made
            purified = changed_classifier(classifier, made.tensors)
            kept, (left,) = measured(purified, images, labels, [true])
            print(
                f"  {attempt.what:8} lr {attempt.lr:g}, {attempt.steps} steps: kept back ASR {made.asr:.1%}, "
                f"ACC {made.accuracy - run.scales.accuracy:+.1%}, divergence {made.damage:.3f}; others: "
                f"ACC lost {accuracy - kept:.1%}, ASR left {left:.1%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--zoo", "--suspects"):
        parser.add_argument(name, type=Path, required=name == "--data")
    parser.add_argument("--only", action="append", default=[], help="ids; * and ? are wildcards")
    parser.add_argument("--sizes", default="180")
    parser.add_argument("--draws", default="0")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    for network in asked_for(arguments):
        if network.judges is not None and network.judge_labels is not None:
            # the clean images of the published suspects were trained on
            network = replace(network, images=network.judges, labels=network.judge_labels)
        for size in map(int, arguments.sizes.split(",")):
            for draw in map(int, arguments.draws.split(",")):
                attempts(network, size, draw, arguments.steps)


if __name__ == "__main__":
    main()
