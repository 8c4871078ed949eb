"""Fine-pruning, ANP, RNP and CLP against their formulas, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from auditor.classifier import Classifier
from auditor.errors import UnsuitableModel
from auditor.inputs import blank_spec
from auditor.masks import MaskSite
from auditor.progress import silent
from auditor.purifiers import base
from auditor.purifiers.anp import AdversarialNeuronPruning, bias_sites
from auditor.purifiers.base import Batches, Purifier, Task, last_layer, parted
from auditor.purifiers.clp import ChannelLipschitzPruning, outliers, prunable
from auditor.purifiers.fine_pruning import FinePruning, has_inputs
from auditor.purifiers.finetune import FineTuning
from auditor.purifiers.prune import THRESHOLDS, pruned
from auditor.purifiers.rnp import ReconstructiveNeuronPruning, unlearned_at
from auditor.results.facts import Output
from tests.changeable import CLASSES, WHITE, classifier, opened
from tests.exported import FORMATS, reopened
from tests.test_purifiers import FIT, IMAGES, LABELS, QUICK, judged, linear, same, task

METHODS: tuple[str, ...] = ("fine-pruning", "anp", "rnp", "clp")
MASKED = {True: ("1", "4"), False: ("0", "2")}
"""Layers with masks, by whether there are norms."""


@pytest.fixture
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crops and no mirrors, so that a reference sees the same images."""
    monkeypatch.setattr(base, "shifted", lambda images, generator, **options: images)


def noisy(*, norms: bool = True) -> nn.Sequential:
    """Every channel counts, and no scale, shift or bias is like another."""
    network = classifier(norms=norms)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return network


def suspect(network: nn.Module, **fields: Any) -> Task:
    # labels that make a loss: the tiny classifier is right about its drawings
    wrong = (LABELS[:64] * 3 + 1) % CLASSES
    return task(network, images=IMAGES[:64], labels=wrong, **fields)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def drawn(told: Task, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    fit = parted(len(told.images), told.seed).fit
    chosen = fit[torch.randint(len(fit), (size,), generator=generator)]
    return told.images[chosen] / 255, told.labels[chosen]


def train_mode(network: nn.Module, own: dict[str, Tensor], x: Tensor) -> Tensor:
    """Without a trace of the batch in the running statistics."""
    copies = {n: t.clone() if "running" in n or "num" in n else t for n, t in own.items()}
    return functional_call(network.train(), copies, (x,))


# ---- thresholds


def test_channels_at_or_below_a_threshold_are_pruned() -> None:
    sites = [MaskSite(layer="a", kind="BatchNorm", tensors=(("a.w", 0),), channels=4)]
    own = {"a.w": torch.tensor([2.0, -3.0, 4.0, 5.0])}
    masks = {"a": torch.tensor([0.0, 0.5, 0.75, 1.0])}
    found = list(pruned(own, sites, masks, (0.9, 0.75, 0.7, 0.6, 0.5, 0.4, 0.0)))
    assert [entry.settings["threshold"] for entry in found] == ["0.9", "0.7", "0.4", "none"]
    assert [entry.settings["channels pruned"] for entry in found] == [
        "3 of 4", "2 of 4", "1 of 4", "0 of 4",
    ]  # fmt: skip
    assert [entry.tensors["a.w"].tolist() for entry in found] == [
        [0, 0, 0, 5], [0, 0, 4, 5], [0, -3, 4, 5], [2, -3, 4, 5],
    ]  # fmt: skip
    assert [entry.masks["a"].tolist() for entry in found] == [
        [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1],
    ]  # fmt: skip
    (only,) = pruned(own, sites, {"a": torch.ones(4)}, THRESHOLDS)
    assert torch.equal(only.tensors["a.w"], own["a.w"])


def test_thresholds_fall_from_nearly_one_to_zero() -> None:
    assert THRESHOLDS[:3] == (0.95, 0.9, 0.85)
    assert THRESHOLDS[-2:] == (0.05, 0.0)
    assert len(THRESHOLDS) == 20


@pytest.mark.parametrize("name", ["anp", "rnp"])
@pytest.mark.parametrize("norms", [True, False])
def test_nothing_but_pruned_channels_changes(name: str, norms: bool) -> None:
    told = task(noisy(norms=norms), max_acc_drop=2.0)
    own = told.classifier.model.tensors()
    purified = QUICK[name].purify(told, silent)
    assert purified.tensors.keys() == {
        f"{layer}.{of}"
        for layer in MASKED[norms]
        for of in (("weight",) if norms else ("weight", "bias"))
    }
    cut = 0
    for layer in MASKED[norms]:
        mask = purified.masks[layer]
        assert set(mask.tolist()) <= {0.0, 1.0}
        for channel in range(6):
            wanted = own[f"{layer}.weight"][channel] * mask[channel]
            assert torch.equal(purified.tensors[f"{layer}.weight"][channel], wanted)
        cut += int((mask == 0).sum())
    assert cut > 0
    (stage,) = purified.stages
    assert stage.settings["channels pruned"] == f"{cut} of 12"
    assert purified.trained == 12
    assert purified.lower_bounds == (0.0, 0.0)


@pytest.mark.parametrize("name", ["anp", "rnp"])
def test_a_network_without_channels_is_refused(name: str) -> None:
    with pytest.raises(UnsuitableModel, match="no layer whose channels could be pruned"):
        QUICK[name].purify(task(linear()), silent)


# ---- ANP


def anp_reference(
    told: Task, steps: int, *, norms: bool, alpha: float, eps: float, lr: float
) -> dict[str, Tensor]:
    """The loss as its formula, one sign step, SGD with momentum, clip."""
    network, layers = noisy(norms=norms), MASKED[norms]
    own, generator = state(network), torch.Generator().manual_seed(told.seed)

    def ce(m: Any, delta: Any, xi: Any, x: Tensor, y: Tensor) -> Tensor:
        now = dict(own)
        for i, layer in enumerate(layers):
            gamma, beta, scale = own[f"{layer}.weight"], own[f"{layer}.bias"], m[i] + delta[i]
            now[f"{layer}.weight"] = torch.stack([w * s for w, s in zip(gamma, scale, strict=True)])
            now[f"{layer}.bias"] = (1 + xi[i]) * beta * (1 if norms else scale)
        return F.cross_entropy(train_mode(network, now, x), y)

    m, speed = torch.ones(2, 6), torch.zeros(2, 6)
    for _ in range(steps):
        x, y = drawn(told, 16, generator)
        noise = (2 * torch.rand(4, 6, generator=generator) - 1) * eps
        noise.requires_grad_()
        (uphill,) = torch.autograd.grad(ce(m, noise[:2], noise[2:], x, y), noise)
        delta, xi = (noise + eps * uphill.sign()).clamp(-eps, eps).detach().split(2)
        m.requires_grad_()
        loss = alpha * ce(m, 0 * delta, 0 * xi, x, y) + (1 - alpha) * ce(m, delta, xi, x, y)
        speed = 0.9 * speed + torch.autograd.grad(loss, m)[0]
        m = (m.detach() - lr * speed).clamp(0, 1)
    return dict(zip(layers, m, strict=True))


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(("alpha", "eps"), [(0.2, 0.4), (0.8, 0.1)])
def test_anp_is_its_formula(norms: bool, alpha: float, eps: float) -> None:
    told = suspect(noisy(norms=norms))
    method = AdversarialNeuronPruning(iterations=3, batch=16, lr=0.02, alpha=alpha, epsilon=eps)
    masks, run = method._masks(told, told.classifier.model.mask_sites(), silent)
    wanted = anp_reference(told, 3, norms=norms, alpha=alpha, eps=eps, lr=0.02)
    inside = torch.cat([mask[(mask > 0) & (mask < 1)] for mask in wanted.values()])
    assert len(inside) >= 3  # so that no mask is at an end by chance alone
    for layer, mask in wanted.items():
        assert torch.allclose(masks[layer], mask, atol=1e-4), layer
    assert run[:2] == (3, 48)


def test_published_settings_of_anp() -> None:
    method = AdversarialNeuronPruning()
    assert (method.alpha, method.epsilon, method.lr, method.momentum) == (0.2, 0.4, 0.2, 0.9)
    assert method.batch == 128


def test_shared_biases_are_shaken_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten())
    network[2].bias = network[1].bias
    network.append(nn.Linear(2500, CLASSES))
    model = opened(network.eval())
    (site,) = bias_sites(model.anatomy(), model.mask_sites())
    assert site.tensors == (("1.bias", 0),)


# ---- RNP


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("norms", [True, False])
def test_rnp_is_its_formula(norms: bool) -> None:
    network = noisy(norms=norms)
    told = suspect(network)
    method = ReconstructiveNeuronPruning(
        unlearning_epochs=1, recovering_epochs=1, batch=16, unlearning_lr=1e-3, recovering_lr=0.05,
        weight_decay=0.1,
    )  # fmt: skip
    fit = parted(64, 0).fit
    batches = Batches(told, torch.Generator().manual_seed(0), fit)
    unlearned, first = method._unlearned(told, batches, silent)
    masks, second = method._recovered(
        told, batches, unlearned, told.classifier.model.mask_sites(), silent
    )
    assert (first[:2], second[:2]) == ((3, 48), (3, 48))  # 48 images in batches of 16

    network, generator = noisy(norms=norms), torch.Generator().manual_seed(0)
    buffers = dict(network.named_buffers())
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    speed = {n: torch.zeros_like(w) for n, w in theta.items()}
    for _ in range(3):
        x, y = drawn(told, 16, generator)
        ascent = -F.cross_entropy(train_mode(network, {**buffers, **theta}, x), y)
        gradients = torch.autograd.grad(ascent, list(theta.values()))
        with torch.no_grad():
            for (n, w), g in zip(theta.items(), gradients, strict=True):
                speed[n] = 0.9 * speed[n] + g + 0.1 * w
                w -= 1e-3 * speed[n]
    for n, w in theta.items():
        assert torch.allclose(unlearned[n], w, atol=1e-5), n

    own = {**buffers, **{n: w.detach() for n, w in theta.items()}}
    m, pace = torch.ones(2, 6), torch.zeros(2, 6)
    for _ in range(3):
        x, y = drawn(told, 16, generator)
        m.requires_grad_()
        now = dict(own)
        for i, layer in enumerate(MASKED[norms]):
            for name in (f"{layer}.weight",) if norms else (f"{layer}.weight", f"{layer}.bias"):
                now[name] = torch.stack([w * s for w, s in zip(own[name], m[i], strict=True)])
        loss = 0.2 * F.cross_entropy(train_mode(network, now, x), y)
        pace = 0.9 * pace + torch.autograd.grad(loss, m)[0]
        m = (m.detach() - 0.05 * pace).clamp(0, 1)
    assert int(((m > 0) & (m < 1)).sum()) >= 3
    for layer, mask in zip(MASKED[norms], m, strict=True):
        assert torch.allclose(masks[layer], mask, atol=1e-4), layer


def unlearning(told: Task, **fields: Any) -> tuple[dict[str, Tensor], int]:
    method = ReconstructiveNeuronPruning(batch=16, **fields)
    batches = Batches(told, torch.Generator().manual_seed(0), parted(64, 0).fit)
    tensors, run = method._unlearned(told, batches, silent)
    return tensors, run[0]


@pytest.mark.usefixtures("unmoved")
def test_unlearning_ends_when_nothing_is_known() -> None:
    right = task(classifier(), images=IMAGES[:64], labels=LABELS[:64])
    assert unlearning(right, unlearning_lr=0.0)[1] == 60
    assert unlearning(suspect(classifier()), unlearning_lr=0.0)[1] == 3  # an epoch
    tensors, steps = unlearning(right, unlearning_lr=10.0)
    assert 3 <= steps < 60
    assert steps % 3 == 0
    after = functional_call(classifier().train(), tensors, (IMAGES[:64] / 255,)).argmax(1)
    assert float((after == LABELS[:64]).float().mean()) < 0.5


@pytest.mark.usefixtures("unmoved")
def test_unlearning_ends_before_numbers_do() -> None:
    right = task(classifier(norms=False), images=IMAGES[:64], labels=LABELS[:64])
    tensors, steps = unlearning(right, unlearning_lr=1e13)
    assert steps < 60
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    loss = functional_call(classifier(norms=False), tensors, (IMAGES[:64] / 255,))
    assert loss.isfinite().all()


@pytest.mark.parametrize(("classes", "accuracy"), [(2, 0.6), (8, 0.225), (10, 0.2), (100, 0.2)])
def test_what_counts_as_unlearned(classes: int, accuracy: float) -> None:
    assert unlearned_at(classes) == pytest.approx(accuracy)


def test_published_settings_of_rnp() -> None:
    settings = ReconstructiveNeuronPruning().settings()
    del settings["thresholds"]
    assert settings == {
        "unlearning_epochs": "20", "unlearning_lr": "0.01", "weight_decay": "0.0005",
        "recovering_epochs": "20", "recovering_lr": "0.2", "alpha": "0.2", "batch": "128",
        "momentum": "0.9",
    }  # fmt: skip


# ---- CLP


def unsettled() -> nn.Sequential:
    """BatchNorm layers that change what they normalise."""
    network = noisy()
    generator = torch.Generator().manual_seed(2)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var = 0.1 + torch.rand(6, generator=generator)
            layer.weight.data = torch.randn(6, generator=generator)
    return network


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norms", [True, False])
def test_clp_is_its_formula(norms: bool, u: float) -> None:
    network = unsettled() if norms else noisy(norms=False)
    own = {name: tensor.numpy() for name, tensor in state(network).items()}
    purified = ChannelLipschitzPruning(us=(u,)).purify(task(network), silent)
    pairs = (("0", "1"), ("3", "4")) if norms else (("0", "0"), ("2", "2"))
    assert purified.tensors.keys() == {f"{to}.{of}" for _, to in pairs for of in ("weight", "bias")}
    for conv, to in pairs:
        kernels = own[f"{conv}.weight"]
        bounds = np.array([np.linalg.svd(k.reshape(len(k), -1))[1][0] for k in kernels])
        if norms:
            bounds *= np.abs(own[f"{to}.weight"] / np.sqrt(own[f"{to}.running_var"] + 1e-5))
        out = bounds > bounds.mean() + u * bounds.std(ddof=1)
        assert 0 < out.sum() < 6
        for of in ("weight", "bias"):
            wanted = own[f"{to}.{of}"].copy()
            wanted[out] = 0
            assert np.array_equal(purified.tensors[f"{to}.{of}"].numpy(), wanted)


@pytest.mark.parametrize("norms", [True, False])
def test_clp_finds_the_planted_channel(norms: bool) -> None:
    told = task(classifier(norms=norms), WHITE)
    purified = ChannelLipschitzPruning().purify(told, silent)
    accuracy, rates = judged(told, purified, WHITE)
    assert (accuracy, rates) == (1.0, [0.0])
    (stage,) = purified.stages
    assert (stage.what, stage.steps, purified.trained) == ("pruning", 0, 12)
    assert stage.settings["channels pruned"] == "1 of 12"
    assert stage.settings["u"] == "1.5"  # 1 costs accuracy
    assert len(stage.checks) == 2


def test_one_channel_has_no_outlier_and_infinity_finds_none() -> None:
    assert not outliers(torch.tensor([3.0]), 1.0).any()
    assert not outliers(torch.tensor([3.0, 3.0]), torch.inf).any()
    assert not outliers(torch.tensor([1.0, 3.0]), torch.inf).any()


def test_batch_norms_belong_to_convolutions_before_them() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4),
        nn.BatchNorm2d(5), nn.BatchNorm2d(7), nn.Conv2d(4, 7, 3), nn.BatchNorm2d(7),
    )  # fmt: skip
    network = nn.Sequential(*network[:5], *network[6:], nn.Flatten(), nn.Linear(7, CLASSES))
    names = [(entry.layer.name, len(entry.bounds)) for entry in prunable(opened(network))]
    assert names == [("3", 4), ("4", 5), ("6", 7)]


def test_without_a_convolution_before_the_last_layer_clp_is_refused() -> None:
    head = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for network in (linear(), head.eval()):
        with pytest.raises(UnsuitableModel, match="no convolution before the layer that gives"):
            ChannelLipschitzPruning().purify(task(network), silent)


# ---- fine-pruning


def convolutional_head() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 10, 8, stride=8), nn.ReLU(), nn.Conv2d(10, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip


def calm() -> nn.Sequential:
    """Without probabilities under `LOG_FLOOR`."""
    network = noisy()
    network[-1].weight.data *= 0.1  # type: ignore[operator]
    return network


HEADS: dict[str, tuple[Callable[[], nn.Sequential], int, bool]] = {
    "linear": (noisy, 7, False),
    "softmax": (lambda: nn.Sequential(*calm(), nn.Softmax(1)), 7, True),
    "convolution": (convolutional_head, 2, False),
    "convolution, softmax": (lambda: convolutional_head().append(nn.Softmax(1)), 2, True),
}
"""A network, the place of its head, and whether it ends in a softmax."""


def asked(head: str, **fields: Any) -> tuple[Task, Tensor]:
    """A task, and the mean inputs of the network's head for the fit images."""
    build, place, softmax = HEADS[head]
    network = build().eval()
    told = task(network, **fields)
    output: Output = "probabilities" if softmax else "logits"
    suspect = Classifier(opened(network), blank_spec((3, 32, 32)), output=output)
    with torch.no_grad():
        inputs = network[:place](told.images[parted(96, told.seed).fit] / 255)
    mean = inputs.mean((0, 2, 3)) if inputs.ndim == 4 else inputs.mean(0)
    return replace(told, classifier=suspect), mean


@pytest.mark.parametrize("head", HEADS)
def test_activations_are_those_of_the_last_layers_inputs(head: str) -> None:
    told, mean = asked(head)
    method = FinePruning(batch=20)  # 72 images: three batches and a rest
    layer = last_layer(told, has_inputs, "no")
    found = method._activations(told, layer, parted(96, 0).fit, silent)
    assert torch.allclose(found / found.sum(), mean.abs() / mean.abs().sum(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_the_least_active_inputs_are_pruned(head: str) -> None:
    told, mean = asked(head)
    method = FinePruning(fractions=(0.3,), epochs=0)
    name = last_layer(told, has_inputs, "no").weight[0]
    purified = method.purify(told, silent)
    own = told.classifier.model.tensors()[name]
    out = mean.abs().argsort()[: int(0.3 * len(mean))]
    found, wanted = purified.tensors[name], own.clone()
    wanted[:, out] = 0
    if len(mean[mean.abs() < 1e-6]) > len(out):  # which of the silent ones go is all the same
        assert int((found == 0).all(0).sum()) == len(out)
        assert torch.equal(found[:, mean.abs() > 1e-6], own[:, mean.abs() > 1e-6])
    else:
        assert torch.equal(found, wanted)
    rest = {n: tensor for n, tensor in purified.tensors.items() if n != name}
    assert all(torch.equal(t, told.classifier.model.tensors()[n]) for n, t in rest.items())


@pytest.mark.usefixtures("unmoved")
def test_pruned_inputs_stay_out_of_the_fine_tuning() -> None:
    told = suspect(noisy())
    purified = FinePruning(fractions=(0.9,), epochs=1, batch=24, lr=0.2).purify(told, silent)
    keep = (purified.tensors["7.weight"] != 0).any(0)
    assert int(keep.sum()) == 96 - 86
    network, generator = noisy().train(), torch.Generator().manual_seed(0)
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    speed = {n: torch.zeros_like(w) for n, w in theta.items()}
    fit = parted(64, 0).fit
    rest = replace(told, images=told.images[fit], labels=told.labels[fit])
    for lr in (0.2, 0.1):  # 48 images: two steps along a cosine
        chosen = torch.randint(48, (24,), generator=generator)
        x, y = rest.images[chosen] / 255, rest.labels[chosen]
        now = {**buffers, **theta, "7.weight": theta["7.weight"] * keep}
        loss = F.cross_entropy(functional_call(network, now, (x,)), y)
        gradients = torch.autograd.grad(loss, list(theta.values()))
        with torch.no_grad():
            for (n, w), g in zip(theta.items(), gradients, strict=True):
                speed[n] = 0.9 * speed[n] + g + 5e-4 * w
                w -= lr * speed[n]
    wanted = {**theta, **buffers, "7.weight": theta["7.weight"] * keep}
    for n, tensor in wanted.items():
        assert torch.allclose(purified.tensors[n].double(), tensor.double(), atol=1e-4), n


def test_without_pruning_it_is_plain_fine_tuning() -> None:
    told = task(noisy())
    fit = parted(96, 0).fit
    rest = replace(told, images=told.images[fit], labels=told.labels[fit])
    plain = FineTuning(epochs=1, batch=24).purify(rest, silent)
    purified = FinePruning(fractions=(0.0,), epochs=1, batch=24).purify(told, silent)
    assert same(purified.tensors, plain.tensors)


def test_as_much_is_pruned_as_accuracy_bears() -> None:
    told = task(classifier(), WHITE)
    purified = FinePruning(epochs=0).purify(told, silent)
    accuracy, rates = judged(told, purified, WHITE)
    assert accuracy >= 0.97
    assert rates == [0.0]  # clean images do not activate what the trigger does
    (stage,) = purified.stages
    fraction = float(stage.settings["fraction"])
    assert 0.5 <= fraction <= 0.85  # 16 of 96 inputs are read
    assert stage.settings["inputs pruned"] == f"{int(fraction * 96)} of 96"
    assert stage.checks[0].acc < 0.5
    last, tuned = stage.checks[-2:]
    assert tuned == replace(last, step=last.step + 1)
    assert "Then fine-tuned: ACC 100.0%." in stage.outcome


def test_fine_pruning_needs_a_head() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CLASSES))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(2).mean(1)[:, :CLASSES] * self.scale

    with pytest.raises(UnsuitableModel, match="does not end in a linear layer or a convolution"):
        FinePruning().purify(task(Scale()), silent)


# ---- other formats


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(FORMATS.keys() - {"scripted"}))
def test_other_formats(kind: str, tmp_path: Path) -> None:
    suspect = reopened(kind, noisy(), tmp_path)
    told = Task(
        classifier=suspect, images=IMAGES[FIT], labels=LABELS[FIT], classes=CLASSES, known=(),
        max_asr=0.05, max_acc_drop=2.0, seed=0,
    )  # fmt: skip
    before = {n: t.clone() for n, t in suspect.model.tensors().items()}
    for one in METHODS:
        method: Purifier = QUICK[one]
        purified = method.purify(told, silent)
        assert all(torch.equal(tensor, before[n]) for n, tensor in suspect.model.tensors().items())
        changed = {n for n, t in purified.tensors.items() if not torch.equal(t, before[n])}
        assert changed, one
        assert all(purified.tensors[n].isfinite().all() for n in changed)
        if one == "fine-pruning":
            (stage,) = purified.stages
            assert stage.settings["inputs pruned"] == "95 of 96"
