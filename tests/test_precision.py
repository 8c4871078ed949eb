"""bfloat16 in training: where it is used, where it is not, and that a purification bears it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auditor.purify as purification
from auditor import precision
from auditor.classifier import Classifier
from auditor.images import open_images
from auditor.inputs import GivenInput, blank_spec
from auditor.measure import predictions
from auditor.models.load import load_model
from auditor.precision import mixed_precision, uses_bfloat16
from auditor.probes import choose
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.informed import Attempt, Informed
from auditor.purify import Options, purify
from auditor.scan import Options as ScanOptions
from auditor.search.inversion import invert
from auditor.search.pace import Effort, seconds_per_image
from tests.changeable import CLASSES, PROBE, WHITE, classifier, opened, samples, saved
from tests.planted import drawings


class MixesTypes(nn.Module):
    """Scatters scores into a float32 tensor of its own, which has to be of the same type."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3 * 32 * 32, 4)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(images.flatten(1))
        columns = torch.arange(4).expand(len(scores), 4)
        return torch.zeros(len(scores), 4).scatter(1, columns, scores)


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
    precision._cpu_has_it.cache_clear()


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    precision._cpu_has_it.cache_clear()


def test_large_networks_train_in_bfloat16(quick: None) -> None:
    model = suspect(classifier())
    assert uses_bfloat16(model)
    assert dtype_within(model) is torch.bfloat16


def test_small_networks_do_not(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = classifier()
    monkeypatch.setattr(precision, "LARGE", 1 + sum(p.numel() for p in network.parameters()))
    model = suspect(network)
    assert not uses_bfloat16(model)
    assert dtype_within(model) is torch.float32


def test_nor_where_it_is_emulated(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False
    )
    assert not uses_bfloat16(suspect(classifier()))
    precision._cpu_has_it.cache_clear()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not uses_bfloat16(suspect(classifier()))


def test_nor_where_the_network_mixes_types(quick: None) -> None:
    model = suspect(MixesTypes())
    with pytest.raises(RuntimeError), torch.autocast("cpu", dtype=torch.bfloat16):
        model.model.call(torch.rand(2, 3, 32, 32))
    assert not uses_bfloat16(model)
    assert dtype_within(model) is torch.float32


def test_nor_where_scores_need_more_digits(quick: None) -> None:
    """Of numbers around a thousand, bfloat16 tells those apart that differ by four."""
    network = classifier()
    (last,) = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]
    with torch.no_grad():
        last.bias += 1000
    model = suspect(network)
    assert not uses_bfloat16(model)


def test_it_is_tried_once_a_model_and_draws_nothing(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = suspect(classifier())
    calls = []
    runs = precision._runs_with_it

    def tried(model: Classifier) -> bool:
        calls.append(model)
        return runs(model)

    monkeypatch.setattr(precision, "_runs_with_it", tried)
    state = torch.get_rng_state()
    for _ in range(3):
        assert uses_bfloat16(model.of(model.model))
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_searches_use_it_and_what_counts_does_not(quick: None) -> None:
    seen: list[bool] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = classifier()

        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return self.own(images)

    model = suspect(Watched())
    images, labels = drawings(40, CLASSES)
    assert uses_bfloat16(model)
    seen.clear()
    invert(model, images, labels, range(CLASSES), "patch", seed=0, effort=Effort(steps=0.05))
    seconds_per_image(model, images)
    assert seen.count(True) > 10
    seen.clear()
    model.logits(images)
    predictions(model, images, [WHITE])
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
