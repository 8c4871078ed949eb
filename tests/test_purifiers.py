"""What every purifier must do, NFT against ten lines of its own, and the informed method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from auditor import measure
from auditor.classifier import Classifier, as_float
from auditor.errors import ModelError, UnsuitableModel
from auditor.inputs import blank_spec
from auditor.masks import folded
from auditor.measure import Stamped, all_to_one, predictions
from auditor.models.load import load_model
from auditor.progress import silent
from auditor.purifiers import PURIFIERS, base, cost, informed, nft, reestimate
from auditor.purifiers.anp import AdversarialNeuronPruning
from auditor.purifiers.awm import AdversarialWeightMasking
from auditor.purifiers.base import Known, Purified, Purifier, Task, changed_classifier, measured
from auditor.purifiers.clp import ChannelLipschitzPruning
from auditor.purifiers.fast_fip import FastFisherPurification
from auditor.purifiers.fine_pruning import FinePruning
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.fip import FisherPurification
from auditor.purifiers.fst import FeatureShiftTuning
from auditor.purifiers.ft_sam import SharpnessAware
from auditor.purifiers.i_bau import ImplicitUnlearning
from auditor.purifiers.informed import Attempt, Informed
from auditor.purifiers.nft import NeuralMaskFineTuning
from auditor.purifiers.reestimate import reestimated
from auditor.purifiers.rnp import ReconstructiveNeuronPruning
from auditor.purifiers.strengthen import GROWTH, Strengthened
from auditor.triggers import Trigger
from auditor.triggers.patch import Square
from tests.changeable import CLASSES, GREY, TARGET, WHITE, classifier, opened
from tests.conftest import SuspectPair
from tests.planted import drawings

QUICK: dict[str, Purifier] = {
    "nft": Informed(batch=24),
    "nft-paper": NeuralMaskFineTuning(iterations=5, batch=16),
    "finetune": FineTuning(epochs=1, batch=32),
    "ft-sam": SharpnessAware(epochs=1, batch=24),
    "i-bau": ImplicitUnlearning(rounds=1, passes=1),
    "awm": AdversarialWeightMasking(rounds=1, epochs=1, lr=1e-3),
    "fip": FisherPurification(iterations=3, batch=16, strengths=((1e-3, 5.0),)),
    "fast-fip": FastFisherPurification(iterations=3, batch=16, strengths=((1e-3, 5.0),)),
    "fst": FeatureShiftTuning(epochs=1, fewest_steps=3, batch=16, alphas=(0.1,)),
    "fine-pruning": FinePruning(epochs=1, batch=24),
    "anp": AdversarialNeuronPruning(iterations=3, batch=16, lr=1e4),
    "rnp": ReconstructiveNeuronPruning(unlearning_epochs=2, recovering_epochs=2, batch=24),
    "clp": ChannelLipschitzPruning(),
}
"""Every method, with settings that take a moment."""
IDLE: dict[str, Purifier] = {
    "nft-paper": NeuralMaskFineTuning(iterations=0),
    "finetune": FineTuning(epochs=0),
    "ft-sam": SharpnessAware(epochs=0),
    "i-bau": ImplicitUnlearning(rounds=0),
    "awm": AdversarialWeightMasking(rounds=0),
    "fip": FisherPurification(iterations=0),
    "fast-fip": FastFisherPurification(iterations=0),
    "fst": FeatureShiftTuning(epochs=0),
    "fine-pruning": FinePruning(epochs=0, fractions=(0.0,)),
    "anp": AdversarialNeuronPruning(iterations=0),
    "rnp": ReconstructiveNeuronPruning(unlearning_epochs=0, recovering_epochs=0),
    "clp": ChannelLipschitzPruning(us=(math.inf,)),
}
"""Methods that shall do nothing."""
WITHOUT_DATA = {"clp"}
"""Methods that train nothing: no steps, no seed."""
DARING = {"anp", "rnp"}
"""Methods that would rather prune none of twelve channels: here accuracy may fall to nothing."""
IMAGES, LABELS = drawings(160, CLASSES)
FIT, JUDGE = slice(0, 96), slice(96, None)


def knowing(*triggers: Trigger, target: int = TARGET, classes: int = CLASSES) -> tuple[Known, ...]:
    return tuple(
        Known(
            stamped=Stamped(probe="p", title="P", trigger=trigger),
            mapping=all_to_one(target, classes).mapping,
        )
        for trigger in triggers
    )


def task(network: nn.Module, *known: Trigger, images: Tensor = IMAGES[FIT], **fields: Any) -> Task:
    spec = blank_spec((3, *images.shape[2:]))
    values: dict[str, Any] = {
        "labels": LABELS[FIT], "classes": CLASSES, "known": knowing(*known), "max_asr": 0.05,
        "max_acc_drop": 0.03, "seed": 0, **fields,
    }  # fmt: skip
    suspect = Classifier(opened(network), spec, batch_size=64)
    return Task(classifier=suspect, images=images, **values)


def judged(told: Task, purified: Purified, *triggers: Trigger) -> tuple[float, list[float]]:
    """ACC, and ASR a trigger, on images that the purifier never saw."""
    after = changed_classifier(told.classifier, purified.tensors)
    return measured(after, IMAGES[JUDGE], LABELS[JUDGE], knowing(*triggers))


def copied(told: Task) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in told.classifier.model.tensors().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ---- other networks, tiny


def transformer() -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16,
        num_classes=CLASSES,
    )  # fmt: skip
    nn.init.normal_(network.heads.head.weight)  # fresh ones are zero, and nothing learns
    return network.eval()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, CLASSES)).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norms": classifier,
    "without norms": lambda: classifier(norms=False),
    "layer norms": transformer,
}


# ---- every purifier


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = (Attempt(what="masks", lr=0.05, steps=6), Attempt(what="weights", lr=1e-3, steps=6))
    monkeypatch.setattr(informed, "ATTEMPTS", attempts)
    monkeypatch.setattr(informed, "GENTLER", Attempt(what="weights", lr=2.5e-4, steps=4))
    thorough = Attempt(what="weights", lr=1e-3, steps=4, batch=32, stamped=2 / 3)
    monkeypatch.setattr(informed, "THOROUGH", (thorough,))


def test_every_purifier_is_tested() -> None:
    assert set(QUICK) == set(PURIFIERS)
    for name, purifier in QUICK.items():
        assert type(purifier) is PURIFIERS[name]
        assert purifier.title
        assert purifier.source
        assert purifier.settings() == {key: str(value) for key, value in vars(purifier).items()}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", QUICK)
def test_laws(name: str, network: str) -> None:
    allowed = 2.0 if name in DARING else 0.03
    told = task(NETWORKS[network](), WHITE, max_acc_drop=allowed)
    before, inputs, labels = copied(told), told.images.clone(), told.labels.clone()
    purified = QUICK[name].purify(told, silent)

    assert same(copied(told), before)  # the suspect is as it was…
    assert torch.equal(told.images, inputs)
    assert torch.equal(told.labels, labels)
    module = told.classifier.model.module
    assert module is not None
    assert not any(entry.training for entry in module.modules())
    assert not any(entry._forward_pre_hooks for entry in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())

    assert purified.tensors  # …and something was made of it
    for tensor_name, tensor in purified.tensors.items():
        assert tensor.shape == before[tensor_name].shape
        assert tensor.dtype == before[tensor_name].dtype
        assert tensor.isfinite().all()
        assert not tensor.requires_grad
    assert any(not torch.equal(tensor, before[n]) for n, tensor in purified.tensors.items())

    assert purified.stages
    assert sum(stage.kept for stage in purified.stages) == 1
    assert all(stage.checks and stage.outcome for stage in purified.stages)

    assert set(purified.masks) == {site.layer for site in purified.sites}
    assert len(purified.lower_bounds) == len(purified.sites)
    if purified.masks:
        fold = folded(before, list(purified.sites), purified.masks)
        assert all(torch.equal(purified.tensors[n], tensor) for n, tensor in fold.items())
        for site, bound in zip(purified.sites, purified.lower_bounds, strict=True):
            mask = purified.masks[site.layer]
            assert mask.shape == (site.channels,)
            assert bound - 1e-6 <= float(mask.min())
            assert float(mask.max()) <= 1

    again = QUICK[name].purify(told, silent)
    assert same(again.tensors, purified.tensors)
    reseeded = task(NETWORKS[network](), WHITE, max_acc_drop=allowed, seed=1)
    other = QUICK[name].purify(reseeded, silent)
    assert same(other.tensors, purified.tensors) is (name in WITHOUT_DATA)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", IDLE)
def test_without_a_step_nothing_changes(name: str, network: str) -> None:
    told = task(NETWORKS[network](), WHITE)
    before = copied(told)
    purified = IDLE[name].purify(told, silent)
    assert all(torch.equal(tensor, before[n]) for n, tensor in purified.tensors.items())


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", QUICK)
def test_without_knowledge_and_with_one_image_a_class(name: str) -> None:
    told = task(classifier(), images=IMAGES[:CLASSES], labels=LABELS[:CLASSES])
    purified = QUICK[name].purify(told, silent)
    assert all(tensor.isfinite().all() for tensor in purified.tensors.values())


class Short(nn.Module):
    """Memory for so many images, and not at all for the first few calls."""

    def __init__(self, network: nn.Module, fits: int) -> None:
        super().__init__()
        self.network, self.fits, self.refused = network, fits, 0

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(images) > self.fits:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(images)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", sorted(QUICK.keys() - WITHOUT_DATA))
def test_out_of_memory_halves_the_batch(name: str) -> None:
    network = Short(classifier(), fits=7)
    purified = QUICK[name].purify(task(network, WHITE), silent)
    assert network.refused >= 2
    for stage in purified.stages:
        assert stage.steps > 0
        assert stage.images <= 7 * stage.steps
    with pytest.raises(ModelError, match="Out of memory at batch size"):
        QUICK[name].purify(task(Short(classifier(), fits=0), WHITE), silent)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", sorted(QUICK.keys() - WITHOUT_DATA))
def test_other_errors_are_not_swallowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(classifier(), WHITE)
    original = Classifier.__call__

    def broken(self: Classifier, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("expected scalar type Half")
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(Classifier, "__call__", broken)
    with pytest.raises(RuntimeError, match="scalar type"):
        QUICK[name].purify(told, silent)


# ---- NFT


@pytest.fixture
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crops and no mirrors, so that a reference sees the same images."""
    monkeypatch.setattr(base, "shifted", lambda images, generator, **options: images)


def noisy() -> nn.Sequential:
    """Every channel counts."""
    network = classifier()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.add_(torch.randn(layer.weight.shape, generator=generator) * 0.1)
    return network


def reference(
    told: Task, steps: int, *, mixup: bool, pull: float, lr: float, train: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """NFT in plain torch: masks on BatchNorm scales, MixUp, l1 to one, SGD, clip. Own draws."""
    network = noisy().train(train)
    own = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    masks = {layer: torch.ones(6, requires_grad=True) for layer in ("1", "4")}
    speed = {layer: torch.zeros(6) for layer in masks}
    generator = torch.Generator().manual_seed(told.seed)
    buffers = {n: t for n, t in own.items() if "running" in n or "num_batches" in n}
    for _ in range(steps):
        chosen = torch.randint(len(told.images), (16,), generator=generator)
        x, y = told.images[chosen] / 255, told.labels[chosen]
        lam = float(torch.rand((), generator=generator)) if mixup else 1.0
        pi = torch.randperm(16, generator=generator) if mixup else torch.arange(16)
        scales = {f"{layer}.weight": own[f"{layer}.weight"] * m for layer, m in masks.items()}
        out = functional_call(network, {**own, **buffers, **scales}, (lam * x + (1 - lam) * x[pi],))
        loss = lam * F.cross_entropy(out, y) + (1 - lam) * F.cross_entropy(out, y[pi])
        loss = loss + pull * sum((1 - m).abs().sum() for m in masks.values())
        gradients = torch.autograd.grad(loss, list(masks.values()))
        with torch.no_grad():
            for number, (layer, gradient) in enumerate(zip(masks, gradients, strict=True), 1):
                speed[layer] = 0.95 * speed[layer] + gradient
                masks[layer] -= lr * speed[layer]
                masks[layer].clamp_(0.8 * math.exp(-0.5 * number), 1)
    return {layer: mask.detach() for layer, mask in masks.items()}, buffers


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("mixup", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("regulariser", [0.001, 0.0, 0.2])
def test_nft_is_its_formula(mixup: bool, statistics: bool, regulariser: float) -> None:
    # labels that make a loss: the tiny classifier is right about its drawings
    told = task(noisy(), images=IMAGES[:32], labels=(LABELS[:32] * 3 + 1) % CLASSES)
    purifier = NeuralMaskFineTuning(
        iterations=3, batch=16, lr=0.01, mixup=mixup, statistics=statistics, regulariser=regulariser
    )
    purified = purifier.purify(told, silent)
    # N_c = N / K = 32 / 8
    masks, buffers = reference(
        told, 3, mixup=mixup, pull=regulariser / 4, lr=0.01, train=statistics
    )
    inside = torch.cat([mask[(mask > 0.5) & (mask < 1)] for mask in masks.values()])
    assert len(inside) >= 3  # so that no mask is at an end by chance alone
    for layer, mask in masks.items():
        assert torch.allclose(purified.masks[layer], mask, atol=1e-5), layer
    own = told.classifier.model.tensors()
    for name, tensor in buffers.items():
        found = purified.tensors.get(name, own[name])
        assert torch.allclose(found.double(), tensor.double(), atol=1e-5), name
    scales = {"1.weight", "4.weight"}
    touched = {n for n, tensor in purified.tensors.items() if not torch.equal(tensor, own[n])}
    assert scales <= touched <= scales | set(buffers)
    assert (touched == scales) is not statistics  # bit for bit
    assert set(purified.tensors) == (scales | set(buffers) if statistics else scales)


@pytest.mark.parametrize(
    ("bound", "depth_aware", "wanted"),
    [
        ("exponential", False, (0.8 * math.exp(-0.5), 0.8 * math.exp(-1))),
        ("exponential", True, (0.8 * math.exp(-0.5), 0.8 * math.exp(-1))),
        ("linear", False, (0.4, 0.0)),
        ("cosine", False, (0.4, 0.0)),
        ("none", False, (0.0, 0.0)),
    ],
)
def test_masks_stay_above_their_bounds(bound: Any, depth_aware: bool, wanted: Any) -> None:
    """A learning rate that throws every mask to one of its ends."""
    purifier = NeuralMaskFineTuning(
        iterations=4, batch=16, lr=1e6, bound=bound, depth_aware=depth_aware
    )
    purified = purifier.purify(task(classifier()), silent)
    assert purified.lower_bounds == pytest.approx(wanted)
    for site, bottom in zip(purified.sites, wanted, strict=True):
        mask = purified.masks[site.layer]
        assert float(mask.min()) == pytest.approx(bottom, abs=1e-6)
        assert float(mask.max()) == 1


def test_the_learning_rate_falls_over_five_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "PASS", 2)
    rates: list[float] = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: None = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    NeuralMaskFineTuning(iterations=10, batch=4).purify(task(classifier()), silent)
    assert rates[::2] == rates[1::2]
    assert rates[::2] == pytest.approx([0.0500, 0.0471, 0.0396, 0.0304, 0.0229], abs=5e-5)


def test_published_settings() -> None:
    settings = NeuralMaskFineTuning().settings()
    assert settings == {
        "iterations": "1000", "batch": "128", "lr": "0.05", "lr_min": "0.02", "momentum": "0.95",
        "regulariser": "0.001", "mixup": "True", "alpha": "0.8", "beta": "0.5",
        "bound": "exponential", "depth_aware": "False", "statistics": "True",
    }  # fmt: skip
    assert nft.PASS == 200


def test_a_network_without_layers_to_mask_is_refused() -> None:
    with pytest.raises(UnsuitableModel, match="no layer that a mask could act on"):
        NeuralMaskFineTuning().purify(task(linear()), silent)


# ---- informed


@pytest.mark.parametrize("told_of", [WHITE, GREY], ids=["the trigger", "a relative"])
def test_informed_removes_by_masks_where_they_change_least(told_of: Square) -> None:
    told = task(classifier(), told_of)
    accuracy, rates = judged(told, Purified(tensors={}), WHITE, GREY)
    assert (accuracy, rates) == (1.0, [1.0, 1.0])
    purified = Informed().purify(told, silent)
    accuracy, rates = judged(told, purified, WHITE, GREY)
    assert accuracy >= 0.98
    assert max(rates) <= 0.05
    stage, weights = purified.stages
    assert (stage.what, stage.kept) == ("masks", True)
    assert (weights.what, weights.kept) == ("weights", False)
    assert "reached the aims" in stage.outcome
    assert weights.outcome.endswith("Not kept: another attempt diverges less.")
    assert set(purified.tensors) == {"1.weight", "4.weight"}
    assert stage.settings["BatchNorm"] == "kept"
    assert stage.checks[-1].asr <= 0.025
    assert stage.steps == stage.checks[-1].step
    assert stage.images == stage.steps * Informed().batch


def test_weights_are_changed_where_masks_do_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Attempt(what="masks", lr=1e-4, steps=2)
    monkeypatch.setattr(informed, "ATTEMPTS", (one, Attempt(what="weights", lr=2e-3, steps=60)))
    told = task(classifier(), WHITE)
    purified = Informed().purify(told, silent)
    assert [(stage.what, stage.kept) for stage in purified.stages] == [
        ("masks", False), ("weights", True),
    ]  # fmt: skip
    masks, weights = purified.stages
    assert "did not reach the aims" in masks.outcome
    assert masks.outcome.endswith("Not kept.")
    assert weights.outcome.endswith("Kept.")
    assert masks.checks[-1].asr > 0.9
    assert (purified.masks, purified.sites, purified.lower_bounds) == ({}, (), ())
    assert set(purified.tensors) == set(told.classifier.model.weights())
    accuracy, rates = judged(told, purified, WHITE)
    assert accuracy >= 0.98
    assert rates[0] <= 0.05


def fake(monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, tuple[int, int, float]]) -> None:
    """Let each kind of attempt have hits, losses and damage on the 24 images for choosing."""
    found: list[tuple[int, int, float]] = []
    attempt = informed._Run.attempt

    def told(run: Any, one: Attempt) -> Any:
        kind = "gentler" if one is informed.GENTLER else one.what
        found.append(outcomes["thorough" if one in informed.THOROUGH else kind])
        return attempt(run, replace(one, steps=1))

    def answers(scales: Any, tensors: dict[str, Tensor]) -> cost._Answers:
        right, target = scales._labels, scales.known[0].mapping[0]
        others = (right != target).nonzero().flatten()  # of the 24, 21
        hits, lost, _ = found[-1] if tensors else (len(others), 0, 0.0)
        stamped = right.clone()
        stamped[others[:hits]] = target
        return cost._Answers(
            plain=torch.where(torch.arange(24) < lost, -1, right), stamped=stamped[None]
        )

    monkeypatch.setattr(informed._Run, "attempt", told)
    monkeypatch.setattr(cost.Scales, "_answers", answers)
    monkeypatch.setattr(cost.Scales, "_damage", lambda scales, tensors: found[-1][2])
    monkeypatch.setattr(informed._Run, "_reestimated", lambda run, tensors: {})


SPENT = {"gentler": (21, 0, 0.0), "thorough": (21, 0, 0.0)}


@pytest.mark.parametrize(
    ("outcomes", "made"),
    [
        # hits of 21, images lost of 24, nats; what is made, the one that is kept in capitals
        pytest.param({"masks": (0, 0, 0.4), "weights": (0, 0, 0.03)}, "masks WEIGHTS", id="damage"),
        pytest.param(
            {"masks": (0, 0, 0.4), "weights": (0, 1, 0.03)}, "masks WEIGHTS gentler", id="one lost"
        ),
        pytest.param(
            {"masks": (0, 0, 0.4), "weights": (1, 0, 0.03), "thorough": (0, 2, 2.5)},
            "masks WEIGHTS thorough thorough", id="one hit",
        ),
        pytest.param(
            {"masks": (0, 0, 0.04), "weights": (1, 0, 0.03), "thorough": (0, 0, 0.01)},
            "MASKS weights", id="one hit, and hardly less damage",
        ),
        pytest.param(
            {"masks": (0, 0, 0.4), "weights": (1, 0, 0.03), "thorough": (0, 0, 2.5)},
            "masks WEIGHTS thorough thorough", id="one hit, and much more damage without",
        ),
        pytest.param(
            {"masks": (3, 0, 0.4), "weights": (3, 0, 0.03), "thorough": (0, 0, 0.1)},
            "masks weights gentler THOROUGH", id="thorough",
        ),
        pytest.param(
            {"masks": (0, 22, 5.0), "weights": (2, 0, 0.03)},
            "masks WEIGHTS gentler thorough thorough", id="ruins",
        ),
        pytest.param(
            {"masks": (21, 0, 0.0), "weights": (0, 3, 0.1)}, "masks WEIGHTS gentler", id="alive"
        ),
    ],
)  # fmt: skip
def test_what_costs_least_is_kept(
    outcomes: dict[str, tuple[int, int, float]], made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, SPENT | outcomes)
    stages = Informed(batch=16).purify(task(classifier(), WHITE), silent).stages
    names = made.lower().split()
    assert [stage.what for stage in stages] == [n if n == "masks" else "weights" for n in names]
    assert [stage.kept for stage in stages] == [name.isupper() for name in made.split()]


@pytest.mark.parametrize(
    ("thorough", "made"),
    [
        pytest.param((1, 0, 2.5), "masks weights THOROUGH", id="no worse"),
        pytest.param((2, 0, 0.03), "masks WEIGHTS thorough thorough", id="one hit more"),
        pytest.param((1, 1, 0.03), "masks WEIGHTS thorough thorough", id="one image lost"),
    ],
)
def test_of_relatives_the_thorough_turn_counts_that_is_borne(
    thorough: tuple[int, int, float], made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it reaches the aim of the ASR no more than others do, and changes the network more."""
    gentle = {"masks": (3, 0, 0.4), "weights": (1, 0, 0.02)}
    fake(monkeypatch, SPENT | gentle | {"thorough": thorough})
    declared = task(classifier(), WHITE)
    relatives = tuple(replace(known, searched=True) for known in declared.known)
    stages = Informed(batch=16).purify(replace(declared, known=relatives), silent).stages
    assert [stage.kept for stage in stages] == [name.isupper() for name in made.split()]


def test_what_forgets_a_class_is_no_good() -> None:
    """Of few images for choosing the loss is small, and of a class that the user lets go it is none."""
    forgetful = {"7.bias": torch.zeros(CLASSES).index_fill(0, torch.tensor([6]), -1e4)}
    for allowed, forgotten in ((0.2, (6,)), (1.0, ())):
        scales = informed._Run(
            Informed(), task(classifier(strength=0.0), WHITE, max_acc_drop=allowed), silent
        ).scales
        own, made = (scales.candidate(tensors, 1.0) for tensors in ({}, forgetful))
        assert own.forgotten == ()
        assert own.meets_goals
        assert made.accuracy < own.accuracy
        assert made.forgotten == forgotten
        assert made.meets_goals == made.reached == (not forgotten)
        assert made.cost == pytest.approx(
            math.log10(made.damage + cost.SAME_DAMAGE) + len(forgotten)
        )


def test_forgotten_classes_are_counted_on_all_fit_images() -> None:
    """Those for choosing hold two of class 6, whose loss does not count."""
    told = task(classifier(strength=0.0), WHITE, max_acc_drop=0.2)
    scales = informed._Run(Informed(), told, silent).scales
    assert int(scales._labels.bincount()[6]) == 2
    assert scales._labels_of_all.bincount().tolist() == [12] * CLASSES
    assert scales._recognised == [12] * CLASSES


def test_numbers_that_are_none_are_the_greatest_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(classifier(), WHITE)
    run = informed._Run(Informed(), told, silent)
    huge = {"1.weight": torch.full((6,), 3e38)}
    assert run.scales._damage(huge) == math.inf
    assert run.scales.candidate(huge, 1 / 2).cost == math.inf


class Nothing(Trigger):
    """Stamps nothing."""

    def stamp(self, images: Tensor) -> Tensor:
        return images

    def control(self, seed: int) -> Trigger:
        return self


def test_what_goes_to_the_target_unstamped_is_no_backdoor() -> None:
    """A weak network takes some images for the target's: to unlearn that would cost accuracy alone."""
    labels, chosen = LABELS[FIT].clone(), base.parted(96, 0).choose
    taken = chosen[labels[chosen] == TARGET][:3]
    labels[taken] = TARGET + 1
    told = task(classifier(), Nothing(), labels=labels)
    found = informed._Run(Informed(), told, silent).scales.candidate({}, 1.0)
    concerned = int((labels[chosen] != TARGET).sum())
    assert (found.asr, found.moved, found.excess) == (3 / concerned, 0.0, 0.0)
    assert found.reached
    obeyed = informed._Run(Informed(), replace(told, known=knowing(WHITE)), silent)
    assert obeyed.scales.candidate({}, 1.0).moved == 1.0


def test_a_trigger_that_moves_nobody_hides_no_other_one() -> None:
    """One of a class that the images for choosing do not have, say."""
    told = task(classifier(), WHITE)
    (white,) = told.known
    empty = replace(white, mapping=(-1,) * CLASSES)
    alone, both = (
        informed._Run(Informed(), replace(told, known=known), silent).scales.candidate({}, 1.0)
        for known in ((white,), (white, empty))
    )
    assert (both.moved, both.excess) == (alone.moved, alone.excess)
    assert both.excess > 10


@pytest.mark.parametrize("borne", [0, 1, None])
def test_relatives_are_unlearnt_as_thoroughly_as_the_network_bears(
    borne: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which declared triggers, the attacker's own, need not be."""
    thorough = tuple(
        Attempt(
            what="weights", lr=1e-3 if place == borne else 0.5, steps=40, batch=48, stamped=share,
            acc_aim=2 / 3,
        )
        for place, share in enumerate((0.5, 0.25))
    )  # fmt: skip
    monkeypatch.setattr(informed, "THOROUGH", thorough)
    declared = task(classifier(), GREY)
    assert len(Informed().purify(declared, silent).stages) == 2
    relatives = tuple(replace(known, searched=True) for known in declared.known)
    purified = Informed().purify(replace(declared, known=relatives), silent)
    gentle, weights, *others = purified.stages
    assert gentle.what == "masks"
    assert not weights.kept
    assert gentle.kept == (borne is None)
    assert [stage.kept for stage in others] == [[True], [False, True], [False, False]][
        2 if borne is None else borne
    ]
    for stage, attempt in zip(others, thorough, strict=False):
        assert stage.settings["stamped"] == f"{attempt.stamped:.2f}"
        assert (stage.settings["batch"], stage.steps, stage.images) == ("48", 40, 40 * 48)
        assert "aim: 2.0 points less" in stage.outcome  # not the 1.0 of the gentle ones
    accuracy, rates = judged(declared, purified, WHITE)
    assert accuracy >= 0.95
    assert rates[0] <= 0.05


def test_what_no_attempt_reaches_is_tried_thoroughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with blended pictures, which take more stamped images than a patch does."""
    monkeypatch.setattr(informed, "ATTEMPTS", (Attempt(what="weights", lr=1e-6, steps=1),))
    monkeypatch.setattr(informed, "GENTLER", Attempt(what="weights", lr=1e-6, steps=1))
    weak, strong = (
        Attempt(what="weights", lr=lr, steps=steps, acc_aim=1 / 2)
        for lr, steps in ((1e-6, 1), (1e-3, 60))
    )
    told = task(classifier(), WHITE)
    monkeypatch.setattr(informed, "THOROUGH", (weak, strong))
    stages = Informed(batch=16).purify(told, silent).stages
    assert [stage.steps for stage in stages] == [1, 1, 1, 60]
    assert [stage.kept for stage in stages] == [False, False, False, True]
    monkeypatch.setattr(informed, "THOROUGH", (weak,))
    assert sum(stage.kept for stage in Informed(batch=16).purify(told, silent).stages) == 1


def test_the_best_attempt_counts_where_none_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = tuple(
        Attempt(what=what, lr=1e-5, steps=steps)  # type: ignore[arg-type]
        for what, steps in (("masks", 1), ("weights", 2))
    )
    monkeypatch.setattr(informed, "ATTEMPTS", attempts)
    monkeypatch.setattr(informed, "GENTLER", Attempt(what="weights", lr=1e-5, steps=3))
    monkeypatch.setattr(informed, "THOROUGH", ())
    purified = Informed(batch=16).purify(task(classifier(), WHITE), silent)
    assert [stage.steps for stage in purified.stages] == [1, 2, 3]
    assert sum(stage.kept for stage in purified.stages) == 1
    assert all("did not reach" in stage.outcome for stage in purified.stages)


def test_images_that_are_kept_back_are_not_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image that a step sees is one of those that are not measured on."""
    seen: list[Tensor] = []
    measured_on: list[Tensor] = []
    normalised_by: list[Tensor] = []

    def shifted(images: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(images.clone())
        return images

    def recorded(after: Any, images: Tensor, triggers: Any) -> Any:
        measured_on.append(images.clone())
        return predictions(after, images, triggers)

    def counted(images: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
        normalised_by.append(images.clone())
        return images

    monkeypatch.setattr(informed, "shifted", shifted)
    monkeypatch.setattr(measure, "predictions", recorded)
    monkeypatch.setattr(reestimate, "shifted", counted)
    told = task(classifier(), WHITE)
    Informed().purify(told, silent)
    fitted = {image.numpy().tobytes() for image in torch.cat(seen)}
    chosen = {as_float(image).numpy().tobytes() for image in torch.cat(measured_on)}
    assert len(chosen) == 96 // 4
    assert len(fitted) > 60
    assert not fitted & chosen
    counts = [image.numpy().tobytes() for image in torch.cat(normalised_by)]
    assert len(set(counts)) == 96 - 24
    assert not set(counts) & chosen


def test_few_images_serve_twice_and_the_stage_says_so() -> None:
    told = task(classifier(), WHITE, images=IMAGES[:40], labels=LABELS[:40])
    (stage, *_) = Informed(batch=16).purify(told, silent).stages
    assert "too few to keep some back" in stage.outcome


def test_informed_can_do_without_mask_sites() -> None:
    purified = Informed(batch=16).purify(task(linear(), WHITE), silent)
    assert {stage.what for stage in purified.stages} == {"weights"}
    assert purified.masks == {}


@pytest.mark.slow
def test_a_trained_backdoor_goes_when_only_a_relative_is_known(suspect_pair: SuspectPair) -> None:
    """Told of another size and shade at the same place; judged by the attacker's own."""
    relative = Square(colour=(255, 235, 60), size=4, where="top-left", gap=2)
    images, labels = suspect_pair.images, suspect_pair.labels
    fit, judge = torch.arange(len(images)) % 2 == 0, torch.arange(len(images)) % 2 == 1
    spec = blank_spec((3, 32, 32))
    half = Classifier(
        opened(suspect_pair.suspect),
        type(spec)(**{**vars(spec), "normalize": "half", "mean": (0.5,) * 3, "std": (0.5,) * 3}),
        batch_size=64,
    )
    told = Task(
        classifier=half, images=images[fit], labels=labels[fit], classes=8,
        known=knowing(relative, target=suspect_pair.target), max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip
    truth = knowing(suspect_pair.trigger, relative, target=suspect_pair.target)
    accuracy, rates = measured(half, images[judge], labels[judge], truth)
    assert min(rates) > 0.9
    purified = Informed().purify(told, silent)
    after = changed_classifier(half, purified.tensors)
    kept, left = measured(after, images[judge], labels[judge], truth)
    assert max(left) <= 0.05
    assert accuracy - kept <= 0.02


# ---- BatchNorm statistics


def misled() -> nn.Sequential:
    """A backdoor that lives in the running statistics: with those of the images it is none."""
    network = classifier(strength=8.0)
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.running_var -= 0.1  # what `changeable` adds, so that the statistics are exact
            norm.eps += 0.1
        network[1].running_mean[1] -= 5
    return network


def statistics(network: nn.Module, count: int = 96, batch: int = 96) -> dict[str, Tensor]:
    told = task(network)
    chosen = torch.arange(count)
    return reestimated(told.classifier, {}, told.images, chosen, batch=batch, seed=0, notify=silent)


@pytest.fixture
def unshifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reestimate, "shifted", lambda images, generator, **options: images)


@pytest.mark.usefixtures("unshifted")
@pytest.mark.parametrize(
    "network",
    [
        misled(),
        nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)),
        nn.Sequential(
            nn.Unflatten(1, (3, 1)), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(3072, CLASSES)
        ),
        nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Flatten(), nn.Linear(3072, CLASSES)),
    ],
    ids=["2d", "1d", "3d", "cumulative"],
)
def test_statistics_are_those_of_train_mode(network: nn.Module) -> None:
    """Every batch here is all images, so that torch's own cumulative average is of one batch."""
    network = copy.deepcopy(network).eval()
    found = statistics(network)
    plain = copy.deepcopy(network).train()
    for layer in plain.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
            layer.reset_running_stats()
    plain(as_float(IMAGES[FIT]))
    wanted = {name: tensor for name, tensor in plain.named_buffers() if "running" in name}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=0.02, atol=1e-4), name


def test_statistics_do_not_depend_on_those_before_and_leave_the_network_alone() -> None:
    network, wrong = misled(), misled()
    with torch.no_grad():
        for norm in (wrong[1], wrong[4]):
            norm.running_mean += 7
            norm.running_var *= 3
            norm.num_batches_tracked += 5
    before = copy.deepcopy(wrong.state_dict())
    found = statistics(wrong)
    assert same(found, statistics(network))
    assert same(dict(wrong.state_dict()), dict(before))
    assert not any(layer._forward_pre_hooks or layer.training for layer in wrong.modules())


def test_statistics_are_those_of_the_changed_network() -> None:
    told = task(misled())
    doubled = {"0.weight": told.classifier.model.tensors()["0.weight"] * 2}
    twice = reestimated(
        told.classifier, doubled, told.images, torch.arange(96), batch=96, seed=0, notify=silent
    )
    once = statistics(misled())
    assert torch.allclose(twice["1.running_var"], once["1.running_var"] * 4, rtol=1e-3)


def test_dropout_does_not_reach_the_statistics() -> None:
    dropping = classifier()
    dropping[2] = nn.Sequential(nn.ReLU(), nn.Dropout(0.9))
    assert same(statistics(dropping), statistics(classifier()))


@pytest.mark.usefixtures("unshifted")
def test_batches_that_memory_refuses_do_not_count() -> None:
    class Narrow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 7:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return images

    network = nn.Sequential(
        nn.BatchNorm2d(3), Narrow(), nn.Flatten(), nn.Linear(3072, CLASSES)
    ).eval()
    assert same(statistics(network, batch=24), statistics(network, batch=6))


def test_without_running_statistics_there_is_nothing_to_choose(tmp_path: Path) -> None:
    batchwise = classifier(norms=False)
    batchwise[1] = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU())
    for network in (classifier(norms=False), transformer(), batchwise):
        assert statistics(network) == {}
    script = tmp_path / "script.pt"
    torch.jit.script(classifier()).save(str(script))  # hooks cannot look into it
    told = Classifier(load_model(script), blank_spec((3, 32, 32)), batch_size=64)
    assert reestimated(told, {}, IMAGES, torch.arange(96), batch=96, seed=0, notify=silent) == {}


@pytest.mark.usefixtures("hasty")
def test_stages_of_networks_without_norms_do_not_speak_of_them() -> None:
    for stage in Informed(batch=16).purify(task(classifier(norms=False), WHITE), silent).stages:
        assert set(stage.settings) <= {"lr", "steps", "batch", "stamped", "imprints"}
        assert "BatchNorm" not in stage.outcome


@pytest.fixture(params=["masks", "weights"])
def idle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One attempt, which changes next to nothing."""
    what = request.param
    monkeypatch.setattr(informed, "ATTEMPTS", (Attempt(what=what, lr=1e-6, steps=1),))
    monkeypatch.setattr(informed, "GENTLER", Attempt(what="weights", lr=1e-7, steps=1))
    return str(what)


def test_better_statistics_are_chosen(idle: str) -> None:
    told = task(misled(), WHITE)
    accuracy, rates = judged(told, Purified(tensors={}), WHITE)
    assert (accuracy < 0.95, rates) == (True, [1.0])
    purified = Informed(batch=24).purify(told, silent)
    (stage,) = purified.stages
    assert (stage.what, stage.settings["BatchNorm"]) == (idle, "re-estimated")
    assert "BatchNorm statistics re-estimated (kept: ASR 100.0%" in stage.outcome
    assert judged(told, purified, WHITE) == (1.0, [0.0])
    own = told.classifier.model.tensors()
    running = {f"{layer}.running_{of}" for layer in (1, 4) for of in ("mean", "var")}
    trained = {"1.weight", "4.weight"} if idle == "masks" else set(told.classifier.model.weights())
    assert set(purified.tensors) == trained | running
    assert all(purified.tensors[name].shape == own[name].shape for name in running)
    fold = folded(own, list(purified.sites), purified.masks)
    assert all(torch.equal(purified.tensors[name], tensor) for name, tensor in fold.items())
    assert same(Informed(batch=24).purify(told, silent).tensors, purified.tensors)


@pytest.mark.parametrize("wrong", ["no better", "ruin", "not finite"])
def test_other_statistics_stay_as_they_are(
    wrong: str, idle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = task(classifier(), WHITE)
    own = told.classifier.model.tensors()
    found = {name: tensor.clone() for name, tensor in own.items() if "running" in name}
    if wrong == "ruin":  # all images of one class, which is not the target: no backdoor is left
        found["4.running_var"].fill_(1e12)
    if wrong == "not finite":
        found["4.running_var"].fill_(math.nan)
    monkeypatch.setattr(informed, "reestimated", lambda *args, **options: found)
    purified = Informed(batch=24).purify(told, silent)
    assert {stage.settings["BatchNorm"] for stage in purified.stages} == {"kept"}
    assert not any("running" in name for name in purified.tensors)
    if wrong == "ruin":
        assert "kept (re-estimated: ASR 0.0%, ACC" in purified.stages[0].outcome


# ---- strengthened triggers


def region(stronger: Strengthened) -> Tensor:
    return stronger._region[0] > 0


def driven(stronger: Strengthened, steps: int = 6) -> Tensor:
    """The change after some steps up the gradient of the red of all pixels minus the blue."""
    images = as_float(IMAGES[:6])
    for _ in range(steps):
        stamped = stronger(images)
        (stamped[:, 0].sum() - stamped[:, 2].sum()).backward()
        stronger.follow()
    return stronger(images).detach()


def test_stronger_relatives_stay_near_the_trigger_and_in_range() -> None:
    images = as_float(IMAGES[:6])
    stronger = Strengthened(GREY, IMAGES)
    assert torch.equal(stronger(images), GREY(images))
    assert stronger.follows
    after = driven(stronger)
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    plain = GREY(images)
    touched = (after - plain).abs().amax(1) > 0
    assert touched[0].any()
    assert not touched[:, ~region(stronger)].any()
    grow = round(GROWTH * 32)
    assert region(stronger).nonzero().amin(0).tolist() == [29 - grow, 29 - grow]
    assert [bool(image.any()) for image in touched] == [True, False, False, True, False, False]


def test_relatives_of_a_strong_trigger_are_sought_everywhere_in_its_ball() -> None:
    images, size = as_float(IMAGES[:6]), 0.05
    whole = Square(colour="white", size=14, where="bottom-right")
    assert not Strengthened(whole, IMAGES).follows
    stronger = Strengthened(whole, IMAGES, size)
    assert torch.equal(stronger(images), whole(images))
    for steps in (1, 6, 40):
        driven(stronger, steps)
        radius = float(stronger._change.detach().square().mean().sqrt())
        assert 0 < radius <= size + 1e-6
    assert radius == pytest.approx(size, rel=1e-3)
    assert (stronger._change.detach()[0, :18, :18] > 0).all()  # red up, far from the trigger


def test_stronger_relatives_climb() -> None:
    images = as_float(IMAGES[:6])
    stronger = Strengthened(GREY, IMAGES)
    after, plain = driven(stronger, steps=1), GREY(images)
    change = (after - plain)[0]
    assert float(change[0].min()) >= 0  # red up
    assert float(change[2].max()) <= 0  # blue down
    assert float(change[1].abs().max()) == 0  # green is of no consequence
    assert float(change[0].max()) > 0
    assert float(driven(stronger, steps=100).max()) <= 1
    assert float(stronger._change.detach().abs().max()) <= stronger.strength + 1e-6


def test_following_without_a_gradient_changes_nothing() -> None:
    stronger = Strengthened(GREY, IMAGES)
    stronger.follow()
    assert float(stronger._change.detach().abs().max()) == 0


def test_large_triggers_are_left_as_they_are() -> None:
    large = Square(colour="white", size=14, where="bottom-right")
    stronger = Strengthened(large, IMAGES)
    assert not stronger.follows
    images = as_float(IMAGES[:6])
    assert torch.equal(stronger(images), large(images))
    stronger.follow()
    assert torch.equal(stronger(images), large(images))
