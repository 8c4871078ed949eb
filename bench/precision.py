"""How much faster is bfloat16 than float32 on this CPU, and from which size of network on?

    python -m bench.precision [--threads 1] [--seconds 2]

Images a CPU second, forward passes and passes with the gradient of the weights, of networks from the
zoo's size to a vision transformer's; what `auditor.precision.LARGE` is set by.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torchvision import models

from auditor.precision import cpu_instructions
from bench.zoo.networks import build

SMALL = ("vgg-bn/4", "resnet18/8", "convnext/4", "resnet18/4", "vgg-bn/1", "resnet18/1")
LARGE = {
    "mobilenet_v2": models.mobilenet_v2,
    "convnext_tiny": models.convnext_tiny,
    "vit_b_32": models.vit_b_32,
}


def networks() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Name, network and a batch for it."""
    for name in SMALL:
        yield name, build(name, channels=3, side=32, classes=10, seed=0), torch.rand(64, 3, 32, 32)
    for name, make in LARGE.items():
        yield name, make(num_classes=10), torch.rand(8, 3, 224, 224)


def speed(step: Callable[[], None], images: int, seconds: float) -> float:
    """Images a second of this process's time; the first step, in which much is set up, does not count."""
    step()
    done, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < seconds:
        step()
        done += images
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.precision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}: {', '.join(cpu_instructions()) or 'emulated'}"
    )
    print("| network | parameters | forward | with gradient of the weights |\n|---|---:|---:|---:|")
    for name, network, images in networks():
        network.eval()

        def forward(network: nn.Module = network, images: torch.Tensor = images) -> None:
            with torch.no_grad():
                network(images)

        def trained(network: nn.Module = network, images: torch.Tensor = images) -> None:
            network(images).float().logsumexp(1).sum().backward()

        cells = []
        for step in (forward, trained):
            plain = speed(step, len(images), arguments.seconds)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                mixed = speed(step, len(images), arguments.seconds)
            digits = 0 if plain >= 20 else 1
            cells.append(f"{plain:,.{digits}f} to {mixed:,.{digits}f} ({mixed / plain:.2f})")
        count = sum(parameter.numel() for parameter in network.parameters())
        print(f"| {name} | {count:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
