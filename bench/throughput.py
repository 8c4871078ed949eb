"""What does the battery cost beside the same number of plain forward passes?

Runs the standard battery's screen and, in turns, the same number of plain forward passes of the
same network at its best batch size and memory format, and prints the ratio of wall times, median
of five. Stamping, batching, transfers and counting are in the numerator.

    python bench/throughput.py [--device auto] [--images 128] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from auditor import measure
from auditor.classifier import BATCH_SIZES, Classifier, as_float, synchronize
from auditor.inputs import blank_spec
from auditor.measure import Family, Half, Stamped
from auditor.models.base import ModuleHandle
from auditor.models.load import resolve_device
from auditor.probes import choose
from auditor.results.facts import ImageFacts
from auditor.safety.structure import FileFacts, Kind
from auditor.synthesis import dead_leaves


def small_vgg() -> nn.Module:
    """Six 3x3 convolutions with BatchNorm and ELU, 0.3 M parameters: the published suspects' kind."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 10))


NETWORKS = {
    "small VGG, 32 px": (small_vgg, 32),
    "resnet18, 64 px": (lambda: torchvision.models.resnet18(num_classes=10), 64),
}


@torch.inference_mode()
def plain_seconds(network: nn.Module, images: Tensor, passes: int, batch: int) -> float:
    """Wall time of forward passes and nothing else; the inputs are ready on the device."""
    synchronize(images.device)
    begin = time.perf_counter()
    done = 0
    while done < passes:
        network(images[: min(batch, passes - done)])
        done += batch
    synchronize(images.device)
    return time.perf_counter() - begin


def best_plain(network: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, int]:
    """The fastest batch size and memory format for plain forward passes."""
    sizes = [size for size in BATCH_SIZES if size <= (256 if images.device.type == "cpu" else 1024)]
    best = (float("inf"), torch.contiguous_format, sizes[0])
    for layout in (torch.contiguous_format, torch.channels_last):
        network, images = network.to(memory_format=layout), images.contiguous(memory_format=layout)
        for batch in sizes:
            plain_seconds(network, images, batch, batch)
            fastest = min(plain_seconds(network, images, 512, batch) for _ in range(2))
            best = min(best, (fastest, layout, batch), key=lambda entry: entry[0])
    _, layout, batch = best
    return network.to(memory_format=layout), images.contiguous(memory_format=layout), batch


def family(images: Tensor, classifier: Classifier) -> Family:
    before = classifier.predict(images)
    half = Half(images=images.to(classifier.device), groups=before, before=before)
    facts = ImageFacts(
        family="clean", labelled=False, screen=len(images), confirm=0, screen_members=(),
        confirm_members=(), predicted=(), correct=None, digest="",
    )  # fmt: skip
    return Family(facts=facts, screen=half, confirm=half, held_out=False)


def battery_seconds(classifier: Classifier, images: Family, entries: list[Stamped]) -> float:
    synchronize(classifier.device)
    begin = time.perf_counter()
    after = measure.screen(classifier, images, entries)
    for entry, predicted in zip(entries, after, strict=True):
        measure.response(entry, images, predicted, 10)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--probes", default="standard")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{device.type} {name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    entries = [
        Stamped(probe=probe.id, title=probe.title, trigger=trigger)
        for probe in choose(arguments.probes).probes
        for trigger in probe.triggers
    ]
    for title, (make, side) in NETWORKS.items():
        torch.manual_seed(0)
        images = dead_leaves((arguments.images, 3, side, side), torch.Generator().manual_seed(0))
        file = FileFacts(path=Path("bench"), kind=Kind.TORCH_ZIP, bytes=0, sha256="")
        handle = ModuleHandle(file, make(), architecture=title, device=device)
        classifier = Classifier(handle, blank_spec((3, side, side)))
        classifier.tune_batch_size()
        screen = family(images, classifier)
        plain = make().eval().requires_grad_(False).to(device)
        pool = as_float(images.to(device)).repeat(-(-1024 // len(images)), 1, 1, 1)
        network, inputs, batch = best_plain(plain, pool)
        passes = len(entries) * len(images)
        battery_seconds(classifier, screen, entries)
        ratios, times = [], []
        for _ in range(arguments.repeats):
            ours = battery_seconds(classifier, screen, entries)
            theirs = plain_seconds(network, inputs, passes, batch)
            ratios.append(ours / theirs)
            times.append((ours, theirs))
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{title}: {len(entries)} triggers x {len(images)} images; battery {ours:.2f} s at batch "
            f"{classifier.batch_size}, plain {theirs:.2f} s at batch {batch}; ratio median "
            f"{statistics.median(ratios):.3f} (all: {', '.join(f'{r:.3f}' for r in ratios)})"
        )


if __name__ == "__main__":
    main()
