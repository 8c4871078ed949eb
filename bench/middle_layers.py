"""Class inversion at a middle layer, after FreeEagle, beside the data-free margins: which tells more?

    python -m bench.middle_layers --zoo ~/zoo [--only 'signs-*']

FreeEagle (Fu et al., USENIX Security 2023): cut the network in two; for every class find the input of
the second half that this class likes best; a class that the others' favourites lean to as well is
suspicious. No images are needed. Here with Adam and the penalty of its code, three starts, and
instead of its learned threshold the outlier test that our own searches use (Grubbs' on the logs).

A cut is a module through which everything goes: with its input held, other images change nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor import api
from auditor.classifier import Classifier
from auditor.inputs import spec_of
from auditor.models.base import ModuleHandle
from auditor.search.margin import search_margins
from auditor.statistics import upper_outliers
from auditor.synthesis import smooth_noise
from bench.zoo.__main__ import ROWS
from bench.zoo.calibrate import shape_of
from bench.zoo.rows import Row, read_rows
from bench.zoo.train import read_made

DEPTHS = (0.5, 0.75)
STEPS, STARTS = 200, 3
RATE, PENALTY = 0.05, 0.0025
"""Of the spread of the layer's inputs; FreeEagle's weight of their square."""


class Cut:
    """The second half of a network, from the input of one module on."""

    def __init__(self, network: nn.Module, name: str, images: Tensor) -> None:
        self.network, self.module, self.image = network, network.get_submodule(name), images[:1]
        self.inputs = read(network, self.module, images)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores ``(K, classes)``."""
        with held(self.module, inputs):
            return self.network(self.image.expand(len(inputs), -1, -1, -1))


def held(module: nn.Module, inputs: Tensor) -> torch.utils.hooks.RemovableHandle:
    """While this lasts, a module computes on other inputs."""
    return module.register_forward_pre_hook(lambda _, given: (inputs, *given[1:]))


@torch.no_grad()
def read(network: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        network(images)
    return seen[0] if len(seen) == 1 and isinstance(seen[0], Tensor) else images


@torch.no_grad()
def cuts(network: nn.Module, images: Tensor) -> list[str]:
    """Modules through which everything goes, in the order of computation."""
    one, other = images[:2], images[2:4]
    found = []
    for name, module in network.named_modules():
        inputs = read(network, module, one)
        if not name or torch.equal(inputs, one):
            continue
        with held(module, inputs):
            if torch.equal(network(one), network(other)):
                found.append(name)
    return found


def leaning(cut: Cut, classes: int) -> Tensor:
    """Mean log-probability of each class for the favourites of the others, ``(classes,)``."""
    spread, positive = float(cut.inputs.std()), bool((cut.inputs >= 0).all())
    wanted, total = torch.arange(classes), torch.zeros(classes, classes)
    for seed in range(STARTS):
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn((classes, *cut.inputs.shape[1:]), generator=draw)
        favourite = cut.inputs.mean(0) + cut.inputs.std(0) * noise
        favourite = (favourite.clamp_min(0) if positive else favourite).requires_grad_()
        optimizer = torch.optim.Adam([favourite], lr=RATE * spread)
        for _ in range(STEPS):
            loss = F.cross_entropy(cut(favourite), wanted, reduction="sum")
            loss = loss + PENALTY * (favourite / spread).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if positive:
                with torch.no_grad():
                    favourite.clamp_(min=0)
        with torch.no_grad():
            total += cut(favourite).log_softmax(1)
    return (total / STARTS).fill_diagonal_(0).sum(0) / (classes - 1)


def line(row: Row, path: Path) -> str:
    """One network: the margins, then each depth, with the most suspicious class and its p-value."""
    model = api.load_model(path)
    assert isinstance(model, ModuleHandle)
    shape = shape_of(row)
    images = smooth_noise((64, *shape), torch.Generator().manual_seed(0)) * 2 - 1
    places = cuts(model.module, images)
    classifier = Classifier(model, spec_of(shape, "half"))
    classes = classifier.logits(images[:1]).shape[1]
    margins = torch.tensor(search_margins(classifier, classes, seed=0).margins)
    columns = [margins.log()]
    for depth in DEPTHS:
        cut = Cut(model.module, places[int(depth * len(places))], images)
        columns.append(leaning(cut, classes))
    target = getattr(row.attack.labels, "target", None) if row.attack else None
    cells = [
        f"{int(scores.argmax())}, {upper_outliers(scores.tolist(), 0.01)[1]:.4f}"
        for scores in columns
    ]
    return f"| {row.id} | {'–' if target is None else target} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=Path.home() / "zoo")
    parser.add_argument("--only", action="append", default=[])
    arguments = parser.parse_args()
    named = " | ".join(f"depth {depth:g}: class, p" for depth in DEPTHS)
    print(f"| network | target | margins: class, p | {named} |\n|---|---|---|---|---|")
    for row in read_rows(ROWS):
        wanted = any(fnmatch.fnmatchcase(row.id, p) for p in arguments.only or ["*"])
        if wanted and read_made(row, arguments.zoo) is not None:
            print(line(row, arguments.zoo / f"{row.id}.pt"), flush=True)


if __name__ == "__main__":
    main()
