"""Purify published suspects, judged by their true triggers on images that nothing was tuned on.

Ours (told what the scan found), the paper's NFT and plain fine-tuning side by side, with the same fit
images and in the same run; what is timed is the purifier alone. Needs a folder with the suspects, and
clean and test images; none of them is part of this repository.

    python bench/purify_suspects.py --suspects DIR --clean DIR --test DIR [--sizes 500,100,10]
        [--only badnets] [--iterations 1000] [--searched]

"Evidence": for badnets what the battery finds, for l2inv `--trigger trigger_l2inv.png`. With
`--searched` no trigger is declared, and all evidence is what the searches find; plain fine-tuning
and the paper's method, which need none, are then left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from auditor import api
from auditor.classifier import Classifier
from auditor.images.source import PartSource
from auditor.inputs import blank_spec
from auditor.measure import Stamped, all_to_one
from auditor.purifiers import PURIFIERS
from auditor.purifiers.base import Known, Task, changed_classifier, measured

SEARCHED = ("search.margin", "search.patch", "search.additive")


def white_square(folder: Path) -> Path:
    """The true trigger of badnets as a picture: rows and columns 27 to 30."""
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (27, 27, 31, 31))
    picture.save(folder / "trigger_badnets.png")
    return folder / "trigger_badnets.png"


def row(title: str, accuracy: float, rate: float, seconds: float | None, note: str = "") -> None:
    took = "" if seconds is None else f"{seconds:7.1f} s"
    print(f"  {title:22} ASR {rate:6.1%}  ACC {accuracy:6.1%} {took}  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suspects", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--sizes", default="500,100,10")
    parser.add_argument("--only", choices=("badnets", "l2inv"))
    parser.add_argument("--paper-sizes", default="500")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--probes", default="standard")
    parser.add_argument("--searched", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.suspects
    arch = f"{folder / 'small_vgg.py'}:build"
    clean, test = api.open_images(arguments.clean), api.open_images(arguments.test)
    with tempfile.TemporaryDirectory() as name:
        for suspect, target in (("badnets", 8), ("l2inv", 0)):
            if arguments.only not in (None, suspect):
                continue
            path = folder / f"cifar10_vgg_{suspect}.pth"
            picture = folder / "trigger_l2inv.png"
            true = picture if suspect == "l2inv" else white_square(Path(name))
            trigger = api.probe_from_image(true).triggers[0]
            probes = list(api.choose_probes(arguments.probes).probes)
            if arguments.searched:
                probes = []
            elif suspect == "l2inv":
                probes.insert(0, api.probe_from_image(picture))
            for size in map(int, arguments.sizes.split(",")):
                model = api.load_model(path, arch=arch)
                source = PartSource(clean, clean.draw(size, 0))
                print(f"{suspect}, {size} images, judged on {test.count}:", flush=True)
                compare(model, arch, probes, source, test, trigger, target, arguments, size)


def compare(model, arch, probes, source, test, trigger, target, arguments, size) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "purified.pth"
        result = api.purify(
            model, probes, source, output,
            api.PurifyOptions(
                arch=arch, baseline=False, write_anyway=True,
                scan=api.ScanOptions(searches=SEARCHED if arguments.searched else ()),
            ),
            judge=test,
        )  # fmt: skip
        spec = result.preprocessing.spec
        shape = blank_spec((spec.channels, spec.height, spec.width))
        suspect = Classifier(model, spec)
        judge = test.load(range(test.count), shape)
        fit = source.load(range(source.count), shape)
        known = Known(
            stamped=Stamped(probe="true", title="the true trigger", trigger=trigger),
            mapping=all_to_one(target, 10).mapping,
        )

        def judged(classifier: Classifier) -> tuple[float, float]:
            accuracy, rates = measured(classifier, judge.images, judge.labels, [known])
            return accuracy, rates[0]

        row("before", *judged(suspect), None)
        ours = None
        if result.method is None:
            print("  ours: nothing found")
        else:
            ours = result.method.seconds
            purified = Classifier(api.load_model(output, arch=arch), spec)
            kept = "+".join(stage.what for stage in result.method.stages if stage.kept)
            row("ours", *judged(purified), ours, f"{kept}; {len(result.outcomes)} triggers found")
            for entry in result.method.rounds:
                print(f"    told of {entry.known}; searched again (seed {entry.seed}): ", end="")
                print("; ".join(entry.found) or "nothing found")
            if result.after is not None:
                print(f"    scan of the result: {result.after.judgement.verdict.value}: ", end="")
                print(result.after.judgement.headline)
    if arguments.searched:
        return
    task = Task(
        classifier=suspect, images=fit.images, labels=fit.labels, classes=10, known=(),
        max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip
    methods = [("plain fine-tuning", PURIFIERS["finetune"]())]
    if str(size) in arguments.paper_sizes.split(","):
        methods.append(("paper", replace(PURIFIERS["paper"](), iterations=arguments.iterations)))
    for title, method in methods:
        begin = time.perf_counter()
        tensors = method.purify(task, lambda what, done, total: None).tensors
        seconds = time.perf_counter() - begin
        note = ""
        if title == "paper" and ours is not None:
            whole = seconds * 1000 / arguments.iterations
            note = f"{arguments.iterations} iterations; ours takes {ours / whole:.2f} of 1,000"
        row(title, *judged(changed_classifier(suspect, tensors)), seconds, note)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
