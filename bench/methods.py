"""All methods side by side: what is left of the true trigger, what accuracy costs, how long it takes.

    python -m bench.methods run --data ../shared/data --zoo ~/zoo --suspects DIR --out DIR
        [--only 'signs-*'] [--sizes 500,100,class] [--seeds 0,1,2] [--methods all] [--stress]
        [--told battery] [--device auto]
    python -m bench.methods ablate ...        NFT as published, without its parts one by one
    python -m bench.methods table --out DIR   the tables of what was run

Networks: the published suspects (`--suspects`, CIFAR-10) and the backdoored networks of the zoo whose
trigger is a function of the image (fixed, or made by the attack's generator), all-to-one. Fit images are
drawn from images that no network was trained on (but the suspects' clean folder, which they were), the
judges are others. Each run is `auditor.purify` with several methods: a scan of the fit images by the
standard battery is all that "nft" is told; where it finds nothing, NFT runs as published instead, as with
`--anyway`. With `--told searches` no trigger is declared, and "nft" is told what the searches find; with
`--told both`, as users run it, what either finds (give each an `--out` of its own). The true trigger is a
judge trigger, which no method sees. `class` means one image a class. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from auditor import api
from auditor.cli.requests import METHODS, method_names
from auditor.errors import AuditorError
from auditor.images.source import ImageSource
from auditor.inputs import blank_spec
from auditor.models.load import resolve_device
from auditor.outputs import write_text
from auditor.probes import load_probe
from auditor.purifiers import PURIFIERS, Purifier
from auditor.purifiers.nft import NeuralMaskFineTuning
from auditor.results.purify import Contender, MethodFacts, PurifyResult
from auditor.triggers import Trigger
from bench.purify_suspects import SEARCHED, white_square
from bench.zoo.__main__ import ROWS, _loader
from bench.zoo.attacks import ATTACKS, Attack
from bench.zoo.rows import AllToOne, Row, read_rows
from bench.zoo.train import read_made

Told = Literal["battery", "searches", "both"]
MOST_JUDGES = 1000
SUSPECTS = ("badnets", "l2inv")
PAPER = {
    "none": "100/92.96", "anp": "4.87/85.92", "i-bau": "2.84/85.96", "awm": "5.72/87.85",
    "ft-sam": "4.34/86.17", "rnp": "2.75/88.46", "nft-paper": "1.74/90.82",
}  # fmt: skip
"""BadNets on CIFAR-10 with a full-width ResNet-18 in the NFT paper (ASR/ACC), 500 images."""


@dataclass(frozen=True, kw_only=True)
class Ablated(NeuralMaskFineTuning):
    """NFT as published with one part changed, by a name of its own."""

    label: str = ""

    @property
    def name(self) -> str:
        """Which part is changed."""
        return self.label


ABLATIONS: tuple[Purifier, ...] = (
    Ablated(label="as published"),
    Ablated(label="no regulariser", regulariser=0.0),
    Ablated(label="regulariser x 50", regulariser=0.05),
    Ablated(label="no MixUp", mixup=False),
    Ablated(label="mu: none", bound="none"),
    Ablated(label="mu: linear", bound="linear"),
    Ablated(label="mu: cosine", bound="cosine"),
    Ablated(label="BatchNorm kept", statistics=False),
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backdoored network, its true trigger, and images that it was not trained on."""

    id: str
    path: Path
    arch: str | None
    normalize: str
    trigger: Trigger
    images: Tensor
    """``(N, C, H, W)`` uint8, to draw fit images from."""
    labels: Tensor
    judges: Tensor | None = None
    """Judge images; None: those that are not fitted on."""
    judge_labels: Tensor | None = None


def suspects(folder: Path | None, data: Path) -> Iterator[Network]:
    """The published suspects."""
    if folder is None:
        return
    clean = api.open_images(data / "cifar10" / "clean500")
    test = api.open_images(data / "cifar10" / "test")
    with tempfile.TemporaryDirectory() as drawn:  # kept while the trigger is used
        for name in SUSPECTS:
            picture = folder / "trigger_l2inv.png"
            true = picture if name == "l2inv" else white_square(Path(drawn))
            size = blank_spec((3, 32, 32))
            fit, judge = (part.load(range(part.count), size) for part in (clean, test))
            assert fit.labels is not None
            assert judge.labels is not None
            yield Network(
                id=f"suspect-{name}", path=folder / f"cifar10_vgg_{name}.pth", normalize="auto",
                arch=f"{folder / 'small_vgg.py'}:build", images=fit.images, labels=fit.labels,
                trigger=api.probe_from_image(true).triggers[0],
                judges=judge.images, judge_labels=judge.labels,
            )  # fmt: skip


def zoo(folder: Path | None, data: Path) -> Iterator[Network]:
    """The zoo's networks with an all-to-one trigger that is a function of the image, where it took."""
    if folder is None:
        return
    load = _loader(data)
    for row in read_rows(ROWS):
        made = read_made(row, folder)
        if made is None or (made.success or 0) < 0.5:
            continue
        test = load(row.data).test
        trigger = planted(row, folder, test.images)
        if trigger is None:
            continue
        yield Network(
            id=row.id, path=folder / f"{row.id}.pt", arch=None, normalize="half", trigger=trigger,
            images=test.images, labels=test.labels,
        )  # fmt: skip


def asked_for(arguments: argparse.Namespace) -> Iterator[Network]:
    """The suspects and the zoo's networks that are asked for, one after the other."""
    both = (suspects(arguments.suspects, arguments.data), zoo(arguments.zoo, arguments.data))
    for network in chain.from_iterable(both):
        if any(fnmatch.fnmatchcase(network.id, wanted) for wanted in arguments.only or ["*"]):
            yield network


@dataclass(frozen=True, kw_only=True, repr=False)
class Planted(Trigger):
    """What an attack of the zoo stamps, as a trigger: one function of the image."""

    id: str
    """Of the row."""
    attack: Attack = field(repr=False)

    def stamp(self, images: Tensor) -> Tensor:
        """As the attack did; it rounds itself, if at all."""
        return self.attack.stamp(images)

    def control(self, seed: int) -> Planted:
        """None: judge triggers are held against nothing."""
        raise NotImplementedError


def planted(row: Row, folder: Path, images: Tensor) -> Planted | None:
    """The trigger of an all-to-one attack, with the generator that it was trained with, if any."""
    attack = row.attack
    if attack is None or not isinstance(attack.labels, AllToOne):
        return None
    made = ATTACKS[attack.kind](**attack.settings)
    if not made.of_one_image:
        return None
    path = folder / f"{row.id}.attack.pt"
    state = torch.load(path, weights_only=True) if path.exists() else {}
    made.restore(state, channels=images.shape[1], side=images.shape[-1])
    return Planted(id=row.id, attack=made, rounding="none")


def saved(folder: Path, name: str, images: Tensor, labels: Tensor) -> ImageSource:
    path = folder / f"{name}.npz"
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    return api.open_images(path)


def parts(network: Network, size: int | None, seed: int, folder: Path) -> list[ImageSource]:
    """Images to fit on, and to judge by; without a size, one image a class to fit on."""
    order = torch.randperm(len(network.labels), generator=torch.Generator().manual_seed(seed))
    if size is None:
        labels = network.labels[order]
        chosen = torch.stack([order[labels == k][0] for k in labels.unique()])
    else:
        chosen = order[:size]
    fit = saved(folder, "fit", network.images[chosen], network.labels[chosen])
    if network.judges is not None and network.judge_labels is not None:
        return [fit, saved(folder, "judge", network.judges, network.judge_labels)]
    others = order[~torch.isin(order, chosen)][:MOST_JUDGES]
    return [fit, saved(folder, "judge", network.images[others], network.labels[others])]


def run(
    network: Network,
    methods: Sequence[Purifier],
    size: int | None,
    seed: int,
    *,
    stress: bool = False,
    told: Told = "battery",
    device: str = "cpu",
) -> PurifyResult:
    """One comparison, judged by the true trigger."""
    shown = load_probe(Path(__file__).parents[1] / "probes" / "patch.solid.yaml")
    true = replace(shown, id="true", title="The true trigger", triggers=(network.trigger,))
    with tempfile.TemporaryDirectory() as name:
        fit, judge = parts(network, size, seed, Path(name))
        return api.purify(
            api.load_model(network.path, arch=network.arch, device=resolve_device(device)),
            () if told == "searches" else api.choose_probes("standard").probes,
            fit,
            None,
            api.PurifyOptions(
                methods=tuple(methods),
                scan=api.ScanOptions(
                    given=api.GivenInput(normalize=network.normalize),
                    searches=() if told == "battery" else SEARCHED,
                ),
                judge_probes=(true,),
                stress=stress,
                anyway=True,
                arch=network.arch,
                seed=seed,
            ),
            judge=judge,
        )


def measure(networks: Iterable[Network], arguments: argparse.Namespace) -> None:
    ablating = arguments.do == "ablate"
    chosen: Sequence[Purifier] = [PURIFIERS[n]() for n in method_names(arguments.methods)]
    for network in networks:
        for text in arguments.sizes.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                label = f"{network.id}.{text}.{seed}{'.ablation' if ablating else ''}.json"
                path = arguments.out / label
                if path.exists():
                    continue
                size = None if text == "class" else int(text)
                methods = ABLATIONS if ablating else chosen
                try:
                    result = run(
                        network, methods, size, seed,
                        stress=arguments.stress, told=arguments.told,
                        device=arguments.device,
                    )  # fmt: skip
                    true_place(result)
                except AuditorError as error:
                    print(f"{label}: {error}", flush=True)
                    continue
                arguments.out.mkdir(parents=True, exist_ok=True)
                write_text(path, api.to_json(replace(result, exhibits=(), embedding=None)))
                print(label, *lines(result), sep="\n", flush=True)


def true_place(result: PurifyResult) -> int:
    """Where the true trigger is among the outcomes.

    Raises:
        AuditorError: The suspect does not obey it on these images.
    """
    places = [i for i, outcome in enumerate(result.outcomes) if outcome.origin == "judge"]
    if not places:
        raise AuditorError(f"{result.model.name} does not obey its true trigger")
    return places[0]


def lines(result: PurifyResult) -> Iterator[str]:
    place, total = true_place(result), result.judge.images
    outcome = result.outcomes[place]
    yield (
        f"  before: ASR {outcome.hits.before / outcome.eligible:.1%}, "
        f"ACC {result.accuracy.before / total:.1%}; "
        f"{sum(entry.origin == 'found' for entry in result.outcomes)} triggers found"
    )
    if result.method is not None and not result.contenders:
        yield (
            f"  {result.method.name:16} ASR {outcome.hits.after / outcome.eligible:6.1%}  "
            f"ACC {result.accuracy.after / total:6.1%}  {result.method.seconds:6.1f} s; rounds: "
            + "; ".join(f"told {r.known}, then found {len(r.found)}" for r in result.method.rounds)
        )
    for entry in result.contenders:
        again = "" if entry.retuned is None else f", re-tuned {entry.retuned}"
        yield (
            f"  {entry.name:16} ASR {entry.hits[place] / outcome.eligible:6.1%}  "
            f"ACC {entry.correct / total:6.1%}  {entry.seconds:6.1f} s  {entry.trained:>10,}{again}"
        )
    for missing in result.not_compared:
        yield f"  {missing.name:16} {missing.why}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one network with so many images and one seed."""

    network: str
    size: str
    seed: int
    method: str
    asr: float
    acc: float
    seconds: float
    trained: float
    """Share of the network's numbers."""


def cells(folder: Path, *, ablation: bool) -> list[Cell]:
    found = []
    for path in sorted(folder.glob("*.json")):
        network, size, seed, *rest = path.name.removesuffix(".json").rsplit(
            ".", 3 if path.name.endswith(".ablation.json") else 2
        )
        if bool(rest) != ablation:
            continue
        result = api.from_json(path.read_text("utf-8"))
        assert isinstance(result, PurifyResult)
        place, total = true_place(result), result.judge.images
        outcome, numbers = result.outcomes[place], result.model.parameters or 1

        def cell(method: str, hits: int, right: int, entry: Contender | MethodFacts | None) -> Cell:
            return Cell(
                network=network, size=size, seed=int(seed), method=method,  # noqa: B023
                asr=hits / outcome.eligible, acc=right / total,  # noqa: B023
                seconds=0.0 if entry is None else entry.seconds,
                trained=0.0 if entry is None else entry.trained / numbers,  # noqa: B023
            )  # fmt: skip

        found.append(cell("none", outcome.hits.before, result.accuracy.before, None))
        alone = result.method
        if alone is not None and not result.contenders:
            found.append(cell(alone.name, outcome.hits.after, result.accuracy.after, alone))
        entries = {entry.name: entry for entry in result.contenders}
        if not ablation and "nft-paper" in entries:  # what runs for it where nothing was found
            entries.setdefault("nft", entries["nft-paper"])
        found += [
            cell(name, entry.hits[place], entry.correct, entry) for name, entry in entries.items()
        ]
    return found


def spread(values: Sequence[float]) -> str:
    """Mean in percent, and half a 95 % interval by Student's t where there are several seeds."""
    mean = 100 * sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    deviation = math.sqrt(sum((100 * v - mean) ** 2 for v in values) / (len(values) - 1))
    student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    return f"{mean:.1f}±{student * deviation / math.sqrt(len(values)):.1f}"


def table(folder: Path, *, ablation: bool) -> None:
    """Networks x methods, ASR/ACC of the true trigger in percent; then means over networks."""
    every = cells(folder, ablation=ablation)
    for size in dict.fromkeys(cell.size for cell in every):
        chosen = [cell for cell in every if cell.size == size]
        methods = list(dict.fromkeys(cell.method for cell in chosen))
        if not ablation:
            methods = [name for name in ("none", *METHODS) if name in methods]
        networks = list(dict.fromkeys(cell.network for cell in chosen))
        images = "one image a class" if size == "class" else f"{size} images"
        print(f"\n{images}:\n\n| network | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
        for network in networks:
            row = []
            for method in methods:
                own = [c for c in chosen if c.network == network and c.method == method]
                asr, acc = spread([c.asr for c in own] or [0]), spread([c.acc for c in own] or [0])
                row.append(f"{asr} / {acc}" if own else "–")
            print(f"| {network} | {' | '.join(row)} |")
        whole = [
            network
            for network in networks
            if {c.method for c in chosen if c.network == network} >= set(methods)
        ]
        print("\n| method | mean ASR | mean ACC | time, of NFT as published | trained |")
        print("|---|---:|---:|---:|---:|")
        for method in methods:
            own = [c for c in chosen if c.method == method and c.network in whole]
            if own:
                print(_mean_row(method, own, chosen))
    if not ablation:
        shown = ", ".join(f"{name} {numbers}" for name, numbers in PAPER.items())
        print(f"\nThe NFT paper, BadNets, ResNet-18, CIFAR-10, 500 images (ASR/ACC): {shown}")


def _mean_row(method: str, own: Sequence[Cell], every: Sequence[Cell]) -> str:
    def mean(values: Iterable[float]) -> float:
        given = list(values)
        return sum(given) / len(given)

    paper = {(c.network, c.seed): c.seconds for c in every if c.method == "nft-paper"}
    ratios = [c.seconds / paper[c.network, c.seed] for c in own if paper.get((c.network, c.seed))]
    time = f"{mean(ratios):.2f}" if ratios and method != "none" else "–"
    return (
        f"| {method} ({len({c.network for c in own})} networks) | {mean(c.asr for c in own):.1%} | "
        f"{mean(c.acc for c in own):.1%} | {time} | {mean(c.trained for c in own):.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods")
    parser.add_argument("do", choices=("run", "ablate", "table"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--suspects", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("methods"))
    parser.add_argument("--only", action="append", default=[], help="ids; * and ? are wildcards")
    parser.add_argument("--sizes", default="500")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--stress", action="store_true")
    parser.add_argument("--told", choices=get_args(Told), default="battery", help="what nft is")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.do == "table":
        table(arguments.out, ablation=False)
        table(arguments.out, ablation=True)
        return

    measure(asked_for(arguments), arguments)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
