"""Scanning the zoo: what the program says of networks whose truth is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auditor import api
from auditor.models.base import ModelHandle
from auditor.outputs import write_text
from auditor.results.facts import Verdict
from auditor.results.scan import Confirmation, Judgement, ScanResult
from auditor.statistics import lower_bound
from auditor.verdict import further_bound, is_small, moved_bound, typical_excess_bound
from bench.zoo.data import Data
from bench.zoo.rows import AllToAll, AllToOne, Row, SourceSpecific
from bench.zoo.train import Made, read_made


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the zoo is scanned."""

    title: str
    images: int | None
    """Clean images that the scan is given; None are none at all."""
    probes: str
    forward_only: bool = False
    """Without gradients, as what only onnxruntime can compute."""


CONDITIONS: Mapping[str, Condition] = {
    "400": Condition(
        title="400 images", images=400, probes="standard,-search.patch,-search.additive"
    ),
    "100": Condition(
        title="100 images", images=100, probes="standard,-search.patch,-search.additive"
    ),
    "default": Condition(title="as users run it, 768 images", images=768, probes="standard"),
    "most": Condition(
        title="2,000 images, the battery alone",
        images=2000,
        probes="standard,-search.*",
    ),
    "deep": Condition(
        title="every probe, 768 images, the battery alone", images=768, probes="deep,-search.*"
    ),
    "none": Condition(title="no images", images=None, probes="standard"),
    "search": Condition(
        title="searches alone, 100 images",
        images=100,
        probes="search.margin,search.patch,search.additive",
    ),
    "search-400": Condition(
        title="searches alone, 400 images",
        images=400,
        probes="search.margin,search.patch,search.additive",
    ),
    "forward": Condition(
        title="no gradients, 400 images, search alone",
        images=400,
        probes="search.template",
        forward_only=True,
    ),
}
"""The battery with data-free margins, everything that runs by default, and the searches alone."""
MOST_CLEAN = 5000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan of one network."""

    row: Row
    made: Made
    condition: str
    result: ScanResult

    @cached_property
    def judgement(self) -> Judgement:
        """By the thresholds as they are now, not as they were when it was scanned."""
        return api.rejudge(self.result)

    @property
    def verdict(self) -> Verdict:
        """What the scan says."""
        return self.judgement.verdict

    @property
    def right(self) -> bool:
        """Whether the verdict is one, and one of its reasons names what was planted."""
        judged, attack = self.judgement, self.row.attack
        if attack is None or not judged.verdict.is_alarm:
            return False
        named = [reason for reason in judged.reasons if reason.verdict is judged.verdict]
        if any(
            planted(self.row, self.result.confirmations[reason.confirmation], self.result)
            for reason in named
            if reason.confirmation is not None
        ):
            return True
        return (
            any(reason.confirmation is None for reason in named)
            and not isinstance(attack.labels, AllToAll)
            and attack.labels.target in {*judged.outlier_classes, *judged.search_classes}
        )

    @property
    def score(self) -> float:
        """What a ROC is drawn by: lower bounds at 95 % of the ASR and of its excess, the smaller.

        The excess is that above the better half of the controls, or where there are rivals the share
        that goes further than under them; the best confirmation counts, of those that the verdict
        looks at. No threshold of `verdict` but its sizes goes in.
        """
        return max((_strength(c) for c in self.result.confirmations if self._counts(c)), default=-1)

    def _counts(self, found: Confirmation) -> bool:
        held_out = found.held_out or self.condition == "none"
        broad = found.scope == "source-specific" and not is_small(found)
        return bool(
            held_out and found.eligible and found.controls and found.keeps_meaning and not broad
        )


def _strength(found: Confirmation) -> float:
    if found.rivals:  # what is held against others, not against its controls
        return min(moved_bound(found, 0.05), further_bound(found, 0.05))
    bounds = [moved_bound(found, 0.05), typical_excess_bound(found, 0.05)]
    if found.searched:
        bounds.append(lower_bound(found.surer or 0, found.eligible, 0.05))
    return min(bounds)


def planted(row: Row, found: Confirmation, result: ScanResult) -> bool:
    """Whether a confirmation says whom the backdoor turns into what, or a part of it."""
    if row.attack is None:
        return False
    match row.attack.labels:
        case AllToOne(target=target):
            return found.scope != "all-to-all" and found.target == target
        case AllToAll():
            if found.scope == "source-specific" and found.source is not None:
                return found.target == (found.source + 1) % result.model.classes
            return found.scope == "all-to-all" and found.shift == 1
        case SourceSpecific(target=target):
            return found.target == target
    raise AssertionError


def scan_all(
    rows: Sequence[Row],
    load: Callable[[str], Data],
    folder: Path,
    conditions: Sequence[str],
    device: torch.device,
) -> None:
    """Scan every trained row under the conditions, unless the result is there already."""
    todo = [(row, made) for row in rows if (made := read_made(row, folder)) is not None]
    for number, (row, made) in enumerate(todo, start=1):
        for condition in conditions:
            path = result_path(folder, row, made, condition)
            if path.exists():
                continue
            begin = time.perf_counter()
            model = api.load_model(folder / f"{row.id}.pt", device=device)
            result = scan(model, row, load, folder, CONDITIONS[condition])
            path.parent.mkdir(exist_ok=True)
            write_text(path, api.to_json(replace(result, exhibits=())))
            print(
                f"{number}/{len(todo)} {row.id}, {condition}: "
                f"{result.judgement.verdict.value} ({time.perf_counter() - begin:.0f} s) "
                f"{result.judgement.headline[:110]}",
                flush=True,
            )


def scan(
    model: ModelHandle, row: Row, load: Callable[[str], Data], folder: Path, condition: Condition
) -> ScanResult:
    """One scan, told how images are normalised: preprocessing is not what is calibrated here."""
    source, images = None, condition.images
    channels, height, width = shape_of(row)
    chosen = api.choose_probes(condition.probes, extras=api.search_tiers())
    if images is not None:
        source = api.open_images(clean_images(row.data, load, folder))
    options = api.ScanOptions(
        given=api.GivenInput(
            normalize="half", channels=channels, height=height, width=width,
        ),
        max_images=images or api.ScanOptions.max_images,
        searches=chosen.extras,
        seed=row.seed,
    )  # fmt: skip
    if condition.forward_only:
        model = ForwardOnly(model)
    return api.scan(model, chosen.probes, source, options)


class ForwardOnly(ModelHandle):
    """A suspect that gives no gradients."""

    def __init__(self, model: ModelHandle) -> None:
        super().__init__(model.file, architecture=model.architecture, device=model.device)
        self._model = model

    def call(
        self,
        inputs: torch.Tensor,
        overrides: Mapping[str, torch.Tensor] | None = None,
        *,
        train: bool = False,
    ) -> Any:
        """What the suspect answers."""
        with torch.no_grad():
            return self._model.call(inputs, overrides, train=train)


def shape_of(row: Row) -> tuple[int, int, int]:
    """Channels, height and width of the images that a row is trained on."""
    side = {"digits": 16, "tiny-imagenet": 64, "imagenet": 224}.get(row.data, 32)
    return 1 if row.data == "digits" else 3, side, side


def clean_images(name: str, load: Callable[[str], Data], folder: Path) -> Path:
    """Test images of a data set, drawn at random, as a file that `--clean` takes."""
    path = folder / f"clean-{name}.npz"
    if not path.exists():
        test = load(name).test
        # files are often sorted by class, so the first ones would not do
        drawn = np.random.default_rng(0).permutation(len(test))[:MOST_CLEAN]
        images = test.images[drawn].permute(0, 2, 3, 1).numpy()
        partial = path.with_suffix(".part.npz")
        np.savez(partial, images=images, labels=test.labels[drawn].numpy())
        partial.replace(path)
    return path


def result_path(folder: Path, row: Row, made: Made, condition: str) -> Path:
    """Where a result is kept; a network that was trained again is scanned again."""
    return folder / "scans" / f"{row.id}.{made.sha256[:8]}.{condition}.json"


def read_cases(rows: Sequence[Row], folder: Path) -> list[Case]:
    """All results that are there."""
    cases = []
    for row in rows:
        made = read_made(row, folder)
        for condition in CONDITIONS if made is not None else ():
            path = result_path(folder, row, made, condition)
            if path.exists():
                result = api.from_json(path.read_text("utf-8"))
                assert isinstance(result, ScanResult)
                cases.append(Case(row=row, made=made, condition=condition, result=result))
    return cases
