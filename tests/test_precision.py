"""bfloat16 in training: where it is used, where it is not, and that a purification bears it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auditor.purification.purify as purification
from auditor import precision
from auditor.classifier import Classifier
from auditor.images.opening import open_images
from auditor.inputs import GivenInput, blank_spec
from auditor.measure import Stamped, all_to_one, predictions
from auditor.models.load import load_model
from auditor.precision import can_train_mixed, mixed_precision
from auditor.probes import choose
from auditor.progress import silent
from auditor.purification.purify import Options, purify
from auditor.purifiers.base import Known, Task
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.informed import Attempt, Informed, _Run
from auditor.scanning.scan import Options as ScanOptions
from auditor.search.inversion import invert
from auditor.search.margin import search_margins
from auditor.search.pace import Effort, seconds_per_image
from auditor.triggers.patch import Square
from tests.changeable import CLASSES, PROBE, TARGET, WHITE, classifier, opened, samples, saved
from tests.planted import drawings


class MixesTypes(nn.Module):
    """Scatters scores into a float32 tensor of its own, which has to be of the same type."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.scores = nn.Linear(3 * 32 * 32, classes)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(images.flatten(1))
        columns = torch.arange(scores.shape[1]).expand_as(scores)
        return torch.zeros(scores.shape).scatter(1, columns, scores)


class Drawing(nn.Module):
    """Drops out in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.own = classifier()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.own(images)
        return scores + 1e-4 * torch.rand_like(scores)


def suspect(network: nn.Module) -> Classifier:
    return Classifier(opened(network.eval()), blank_spec((3, 32, 32)), batch_size=64)


def dtype_within(model: Classifier) -> torch.dtype:
    with mixed_precision(model):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every network were large, and this CPU quick with bfloat16."""
    monkeypatch.setattr(precision, "LARGE", 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    precision.cpu_instructions.cache_clear()


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    precision.cpu_instructions.cache_clear()


def test_large_networks_train_in_bfloat16(quick: None) -> None:
    model = suspect(classifier())
    assert can_train_mixed(model)
    assert dtype_within(model) is torch.bfloat16


def test_small_networks_do_not(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = classifier()
    monkeypatch.setattr(precision, "LARGE", 1 + sum(p.numel() for p in network.parameters()))
    model = suspect(network)
    assert not can_train_mixed(model)
    assert dtype_within(model) is torch.float32


def test_nor_where_it_is_emulated(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False
    )
    assert not can_train_mixed(suspect(classifier()))
    precision.cpu_instructions.cache_clear()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not can_train_mixed(suspect(classifier()))


def test_nor_where_the_network_mixes_types(quick: None) -> None:
    model = suspect(MixesTypes())
    with pytest.raises(RuntimeError), torch.autocast("cpu", dtype=torch.bfloat16):
        model.model.call(torch.rand(2, 3, 32, 32))
    assert not can_train_mixed(model)
    assert dtype_within(model) is torch.float32


def test_nor_where_scores_need_more_digits(quick: None) -> None:
    """Of numbers around a thousand, bfloat16 tells those apart that differ by four."""
    network = classifier()
    (last,) = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]
    with torch.no_grad():
        last.bias += 1000
    model = suspect(network)
    assert not can_train_mixed(model)


def test_it_is_tried_once_a_model_and_draws_nothing(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = suspect(Drawing())
    calls = []
    runs = precision._runs_with_it

    def tried(model: Classifier) -> bool:
        calls.append(model)
        return runs(model)

    monkeypatch.setattr(precision, "_runs_with_it", tried)
    state = torch.get_rng_state()
    for _ in range(3):
        assert can_train_mixed(model.of(model.model))
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_nor_where_train_mode_mixes_types(quick: None) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.mixes = classifier(), MixesTypes(8)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.mixes(images) if self.training else self.own(images)
            return scores

    assert not can_train_mixed(suspect(Trained()))


def test_the_trial_leaves_statistics_alone(quick: None) -> None:
    network = classifier()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert can_train_mixed(suspect(network))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Watched(nn.Module):
    """Remembers in which precision it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.own = classifier()
        self.seen: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(torch.is_autocast_enabled("cpu"))
        scores: Tensor = self.own(images)
        return scores


def test_neither_what_counts_nor_a_search_uses_it(quick: None) -> None:
    """A network can hide its backdoor from bfloat16."""
    network = Watched()
    model = suspect(network)
    images, labels = drawings(40, CLASSES)
    assert can_train_mixed(model)
    network.seen.clear()
    invert(model, images, labels, range(CLASSES), "patch", seed=0, effort=Effort(steps=0.05))
    search_margins(model, CLASSES, seed=0, effort=Effort(steps=0.05))
    seconds_per_image(model, images)
    model.logits(images)
    predictions(model, images, [WHITE])
    assert len(network.seen) > 10
    assert not any(network.seen)


def test_triggers_are_stamped_in_full(quick: None) -> None:
    seen: list[bool] = []

    class Stamping(Square):
        def stamp(self, images: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().stamp(images)

    network = Watched()
    known = Known(
        stamped=Stamped(probe="p", title="P", trigger=Stamping(colour="white", size=3)),
        mapping=all_to_one(TARGET, CLASSES).mapping,
    )
    images, labels = drawings(40, CLASSES)
    task = Task(
        classifier=suspect(network), images=images, labels=labels, classes=CLASSES, known=(known,),
        max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip
    _Run(Informed(strengthen=False), task, silent).attempt(
        Attempt(what="weights", lr=1e-3, steps=2)
    )
    assert any(network.seen)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("method", [Informed(), FineTuning()])
def test_a_purification_bears_it(
    quick: None, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purification, "embed", lambda *arguments, **options: None)
    attempts = (
        Attempt(what="masks", lr=0.08, steps=12),
        Attempt(what="weights", lr=2e-3, steps=30),
    )
    monkeypatch.setattr("auditor.purifiers.informed.ATTEMPTS", attempts)
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=(), batch_size=64)
    options = Options(scan=scan, baseline=False, methods=(method,))
    source = open_images(samples(tmp_path, 120))
    model = load_model(saved(tmp_path, classifier()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = purify(model, choose(PROBE).probes, source, None, options)
    assert result.provenance.options["training"] == "bfloat16"
    assert result.goals.met or isinstance(method, FineTuning)
    assert not any(tensor.dtype == torch.bfloat16 for tensor in model.tensors().values())


def test_the_record_says_what_was_trained_and_not_what_could_be(
    quick: None, tmp_path: Path
) -> None:
    model = load_model(saved(tmp_path, classifier(strength=0)))
    scan = ScanOptions(given=GivenInput(normalize="none"), searches=(), batch_size=64)
    source = open_images(samples(tmp_path, 120))
    result = purify(model, choose(PROBE).probes, source, None, Options(scan=scan, baseline=False))
    assert result.method is None
    assert result.provenance.options["training"] == "float32"
