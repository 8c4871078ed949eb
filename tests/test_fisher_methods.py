"""FIP and Fast-FIP against their formulas, on every kind of file that can be changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from auditor.errors import UnsuitableModel
from auditor.progress import silent
from auditor.purifiers import base, fisher
from auditor.purifiers.base import Purifier, Task, parted
from auditor.purifiers.fast_fip import FastFisherPurification, spectra, spectrum
from auditor.purifiers.fip import FisherPurification
from auditor.purifiers.fisher import FlatMinimum, anchor, fisher_trace, sampled, shortened, slopes
from auditor.purifiers.fst import FeatureShiftTuning
from tests.changeable import CLASSES, classifier
from tests.exported import FORMATS, reopened
from tests.test_purifiers import FIT, IMAGES, LABELS, noisy, task, transformer

FISHER: dict[str, type[FlatMinimum]] = {
    "fip": FisherPurification, "fast-fip": FastFisherPurification,
}  # fmt: skip
METHODS: dict[str, Purifier] = {
    "fip": FisherPurification(iterations=3, batch=16, every=2),
    "fast-fip": FastFisherPurification(iterations=3, batch=16, every=2),
    "fst": FeatureShiftTuning(fewest_steps=2, epochs=1, batch=32, alphas=(0.1,)),
}


@pytest.fixture
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crops and no mirrors, so that a reference sees the same images."""
    monkeypatch.setattr(base, "shifted", lambda images, generator, **options: images)


# ---- the trace


def small() -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Two layers, and log p(y|x) of five images."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=generator)
    y = torch.tensor([0, 1, 2, 2, 1])
    theta = [torch.randn(6, 4, generator=generator), torch.randn(3, 6, generator=generator)]
    theta = [tensor.requires_grad_() for tensor in theta]
    return (
        theta,
        lambda: -F.cross_entropy((x @ theta[0].T).tanh() @ theta[1].T, y, reduction="none"),
    )


def squared_norms() -> Tensor:
    """(1/B) sum_i ||grad log p(y_i|x_i)||^2, image by image."""
    theta, likelihoods = small()
    per_image = [torch.autograd.grad(one, theta, retain_graph=True) for one in likelihoods()]
    return torch.stack([g.square().sum() for gs in per_image for g in gs]).sum().detach() / 5


def test_the_trace_is_the_mean_of_squared_gradients_over_all_signs() -> None:
    theta, likelihoods = small()
    every = [torch.tensor(signs) for signs in itertools.product((-1, 1), repeat=5)]
    estimates = [fisher_trace(likelihoods(), signs, theta) for signs in every]
    mean = torch.stack(estimates).mean().detach()
    assert float(mean) == pytest.approx(float(squared_norms()), rel=1e-4)
    assert float(torch.stack(estimates).detach().std()) > 0.1 * float(
        mean
    )  # single ones are not it


def test_the_trace_can_be_differentiated() -> None:
    theta, likelihoods = small()
    every = [torch.tensor(signs) for signs in itertools.product((-1, 1), repeat=5)]
    mean = torch.stack([fisher_trace(likelihoods(), signs, theta) for signs in every]).mean()
    found = torch.cat([slope.flatten() for slope in slopes(mean, theta)])
    step, exact = 1e-2, torch.zeros(2)
    assert found.shape == (42,)
    for place in range(2):  # the slope along each layer, by differences
        values = []
        for sign in (1, -1):
            moved, of_moved = small()
            with torch.no_grad():
                moved[place].mul_(1 + sign * step)
            per = [torch.autograd.grad(one, moved, retain_graph=True) for one in of_moved()]
            values.append(sum(float(g.square().sum()) for gs in per for g in gs) / 5)
        exact[place] = (values[0] - values[1]) / (2 * step)
    along = [(slope * tensor).sum() for slope, tensor in zip(slopes_of(found), theta, strict=True)]
    assert torch.allclose(torch.stack(along).detach(), exact, rtol=5e-3)


def slopes_of(flat: Tensor) -> list[Tensor]:
    return [flat[:24].view(6, 4), flat[24:].view(3, 6)]


def test_drawn_signs_give_the_trace_within_three_sigma() -> None:
    theta, likelihoods = small()
    generator, draws = torch.Generator().manual_seed(0), 2000
    method = FisherPurification(labels="true")
    logits = likelihoods()[:, None] * torch.tensor([1.0, 0.0, 0.0])
    labels = torch.zeros(5, dtype=torch.int64)
    estimates = [method._trace(logits, labels, theta, generator).item() for _ in range(draws)]
    per_image = [
        torch.autograd.grad(one, theta, retain_graph=True) for one in logits.log_softmax(1)[:, 0]
    ]
    wanted = sum(float(g.square().sum()) for gs in per_image for g in gs) / 5
    values = torch.tensor(estimates)
    assert abs(float(values.mean()) - wanted) < 3 * float(values.std()) / math.sqrt(draws)


def test_sampled_labels_follow_the_probabilities() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    drawn = sampled(p.log().expand(20_000, 3), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / 20_000
    assert (shares - p).abs().max() < 4 * math.sqrt(0.25 / 20_000)


def test_the_trace_asks_for_the_labels_that_it_is_told_to() -> None:
    """One image, so that signs do not matter: a network that is sure is flat by its own labels."""
    theta = [torch.tensor([30.0, 0.0], requires_grad=True)]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.tensor([1])
    own = FisherPurification()._trace(theta[0][None], wrong, theta, generator)
    given = FisherPurification(labels="true")._trace(theta[0][None], wrong, theta, generator)
    assert float(own) < 1e-6
    assert float(given) == pytest.approx(2)  # (-1, 1) squared


def test_a_gradient_is_shortened_to_a_length_and_never_stretched() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    half = shortened(gradients, torch.tensor(2.5))
    assert torch.allclose(half[0], torch.tensor([1.5, 0]))
    assert torch.allclose(half[1], torch.tensor([[2.0]]))
    for same in (shortened(gradients, torch.tensor(5.5)), shortened(gradients, torch.tensor(5.0))):
        assert torch.allclose(same[1], gradients[1])
    nothing = shortened([torch.zeros(3)], torch.tensor(0.0))
    assert torch.equal(nothing[0], torch.zeros(3))


def test_the_anchor_is_zero_at_the_start_and_right_elsewhere() -> None:
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    weight = {"a": torch.tensor([2.0, 0.5]), "b": torch.tensor([[10.0]])}
    theta = fisher.fresh(start)
    value = anchor(theta, start, weight)
    assert float(value) == 0
    assert all(float(slope.abs().max()) == 0 for slope in slopes(value, list(theta.values())))
    with torch.no_grad():
        theta["a"] += torch.tensor([1.0, 2.0])
        theta["b"] -= 0.5
    value = anchor(theta, start, weight)
    assert float(value) == pytest.approx((2 * 1 + 0.5 * 4 + 10 * 0.25) / 2)
    of_a, of_b = slopes(value, list(theta.values()))
    assert torch.allclose(of_a, torch.tensor([2.0, 1.0]))  # Fbar (theta - theta_bd)
    assert torch.allclose(of_b, torch.tensor([[-5.0]]))


# ---- the whole formula, in plain torch


def suspect() -> Task:
    # labels that make a loss: the tiny classifier is right about its drawings
    return task(noisy(), images=IMAGES[:64], labels=(LABELS[:64] * 3 + 1) % CLASSES)


def shapes(name: str) -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """theta at the start, and theta -> weights, written anew."""
    own = {n: p.detach().clone() for n, p in noisy().named_parameters()}
    if name == "fip":
        return own, dict
    parts = {
        n: torch.linalg.svd(w.flatten(1), full_matrices=False) for n, w in own.items() if w.ndim > 1
    }

    def weights(delta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: (u @ torch.diag((s + delta[n]).clamp_min(0)) @ vt).view(own[n].shape)
            for n, (u, s, vt) in parts.items()
        }

    return {n: torch.zeros_like(s) for n, (_, s, _) in parts.items()}, weights


def reference(
    told: Task, method: FlatMinimum, name: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """The loss by its formula and SGD by its own, three iterations with the method's draws."""
    eta_f, eta_r = method.strengths[0]
    start, weights = shapes(name)
    theta = {n: tensor.clone().requires_grad_() for n, tensor in start.items()}
    places, network, fit = list(theta.values()), noisy(), parted(len(told.images), 0).fit
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    kept = {n: p.detach() for n, p in network.named_parameters()}
    fbar = [torch.zeros_like(tensor) for tensor in places]
    for i in fit:
        out = functional_call(
            network.eval(), {**kept, **weights(theta)}, (told.images[i][None] / 255,)
        )
        gradient = torch.autograd.grad(out.log_softmax(1)[0, told.labels[i]], places)
        fbar = [f + g**2 / len(fit) for f, g in zip(fbar, gradient, strict=True)]
    generator, factors = torch.Generator().manual_seed(told.seed), []
    speed = [torch.zeros_like(tensor) for tensor in places]
    for number in range(3):
        chosen = fit[torch.randint(len(fit), (16,), generator=generator)]
        x, y = told.images[chosen] / 255, told.labels[chosen]
        pull = [torch.zeros_like(tensor) for tensor in places]
        if number % 2 == 0:
            now = {**kept, **buffers, **weights(theta)}
            logp = functional_call(network.eval(), now, (x,)).log_softmax(1)
            if method.labels == "sampled":
                uniform = torch.rand(16, CLASSES, generator=generator)
                z = (logp.detach() - (-uniform.log()).log()).argmax(1)
            else:
                z = y
            r = torch.randint(2, (16,), generator=generator) * 2.0 - 1
            total = (r * logp[torch.arange(16), z]).sum()
            g = torch.autograd.grad(total, places, create_graph=True)
            trace = sum((part**2).sum() for part in g) / 16
            pull = [eta_f * part for part in torch.autograd.grad(trace, places)]
        now = {**kept, **buffers, **weights(theta)}
        ce = F.cross_entropy(functional_call(network.train(), now, (x,)), y)
        slope = torch.autograd.grad(ce, places)
        lengths = [math.sqrt(sum(float((g**2).sum()) for g in of)) for of in (slope, pull)]
        factors.append(min(1.0, lengths[0] / max(lengths[1], 1e-30)))
        with torch.no_grad():
            for i, (n, tensor) in enumerate(theta.items()):
                back = eta_r * fbar[i] * (tensor - start[n])
                speed[i] = 0.95 * speed[i] + slope[i] + factors[-1] * pull[i] + back
                tensor -= method.lr * speed[i]
    return {n: w.detach() for n, w in weights(theta).items()}, buffers, factors


STRENGTHS: dict[tuple[str, str], tuple[float, float, float]] = {
    ("fip", "sampled"): (3e-4, 10.0, 0.2),
    ("fip", "true"): (3e-4, 10.0, 0.2),
    ("fast-fip", "sampled"): (3.0, 30.0, 2.0),
    ("fast-fip", "true"): (0.02, 10.0, 2.0),
}
"""Method and labels -> eta_F whose trace is not shortened, eta_F whose trace is, eta_r."""


def quick(name: str, labels: str, eta_f: float, eta_r: float) -> FlatMinimum:
    return FISHER[name](
        iterations=3, batch=16, every=2, lr=1e-3, strengths=((eta_f, eta_r),),
        labels=labels,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("name", "labels"), STRENGTHS)
def test_both_are_their_formula(name: str, labels: str, short: bool) -> None:
    told, (low, high, eta_r) = suspect(), STRENGTHS[name, labels]
    method = quick(name, labels, high if short else low, eta_r)
    weights, buffers, factors = reference(told, method, name)
    assert (factors[0] < 1) is short
    purified = method.purify(told, silent)
    own = told.classifier.model.tensors()
    for wanted in (weights, buffers):
        for n, tensor in wanted.items():
            found = purified.tensors.get(n, own[n])
            assert torch.allclose(found.double(), tensor.double(), atol=2e-5), n
    assert purified.trained == sum(t.numel() for t in shapes(name)[0].values())
    if name == "fast-fip":
        assert not any(n.endswith("bias") for n in purified.tensors)

    # and a term that is left out would be seen
    for pair in ((0.0, eta_r), (method.strengths[0][0], 0.0)):
        other, _, _ = reference(told, quick(name, labels, *pair), name)
        assert max(float((other[n] - weights[n]).abs().max()) for n in weights) > 1e-4


# ---- spectral shifts


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 3), 0), ((3, 5), 1), ((4, 2, 3, 3), 0), ((2, 6, 3, 3), 1), ((1, 4), 0)]
)
def test_shifted_spectra(shape: tuple[int, ...], axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    found = spectrum(weight, axis)
    delta = torch.randn(found.values.shape, generator=generator) * 2
    delta[0] = -100.0  # ReLU
    matrix = weight.transpose(0, axis).reshape(shape[axis], -1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    wanted = (u @ torch.diag((s + delta).clamp_min(0)) @ vt).view(weight.transpose(0, axis).shape)
    assert torch.allclose(found.shifted(delta), wanted.transpose(0, axis), atol=1e-5)
    nothing = torch.zeros_like(found.values)
    assert torch.equal(found.shifted(nothing), weight)
    again = (found.left @ torch.diag(found.values) @ found.right).view_as(wanted)
    assert torch.allclose(again.transpose(0, axis), weight, atol=1e-5)


def test_spectra_are_those_of_matrices_and_kernels() -> None:
    model = task(classifier()).classifier.model
    assert {n: len(s.values) for n, s in spectra(model).items()} == {
        "0.weight": 6, "3.weight": 6, "7.weight": 8,
    }  # fmt: skip
    attention = spectra(task(transformer()).classifier.model)
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in attention
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.Flatten(), nn.LazyLinear(CLASSES))
    transposed(torch.zeros(1, 3, 32, 32))
    found = spectra(task(transposed.eval()).classifier.model)
    assert (found["0.weight"].axis, found["0.weight"].left.shape) == (1, (5, 5))


def test_a_network_without_matrices_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CLASSES))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(2).mean(1)[:, :CLASSES] * self.scale

    with pytest.raises(UnsuitableModel, match="no weight with singular values"):
        FastFisherPurification().purify(task(Scale()), silent)


# ---- choosing


@pytest.mark.parametrize("name", FISHER)
def test_the_strongest_that_holds_is_taken(name: str) -> None:
    told = task(classifier())
    method = FISHER[name](
        iterations=6, batch=16, lr=1e-4, strengths=((0.0, 1e15), (1e-3, 5.0), (1e-4, 5.0))
    )
    purified = method.purify(told, silent)
    held, beyond = purified.stages  # the gentlest was not needed
    assert (held.kept, beyond.kept) == (True, False)
    assert held.settings == {"eta_F": "0.001", "eta_r": "5"}
    assert beyond.checks[-1].acc < 0.9 < held.checks[-1].acc
    assert held.steps == 6
    assert all(stage.what == method.what for stage in purified.stages)
    assert beyond.settings["eta_r"] == "1e+15"
    assert all(tensor.isfinite().all() for tensor in purified.tensors.values())


def test_training_ends_where_numbers_do() -> None:
    method = FisherPurification(iterations=50, batch=16, lr=1.0, strengths=((0.0, 1e30),))
    (stage,) = method.purify(task(noisy()), silent).stages
    assert stage.steps < 10
    assert "beyond the loss that is allowed" in stage.outcome


def test_training_ends_half_way_where_it_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(classifier())
    method = FisherPurification(iterations=6, batch=16, lr=1e-5, strengths=((1e-3, 5.0),))
    (stage,) = method.purify(told, silent).stages
    assert stage.steps == 6
    monkeypatch.setattr(fisher, "hopeless", lambda task, tensors: True)
    strict = FisherPurification(iterations=7, batch=16, lr=1e-5, strengths=((1e-3, 5.0),))
    (stage,) = strict.purify(told, silent).stages
    assert stage.steps == 4  # the fourth found that it is


@pytest.mark.parametrize(("allowed", "hopeless"), [(0.0, True), (0.1, True), (0.2, False)])
def test_what_is_hopeless(allowed: float, hopeless: bool) -> None:
    told = task(classifier(strength=0.0), max_acc_drop=allowed)
    assert not fisher.hopeless(told, {})
    # all images of one class: one of eight is right
    ruined = {"7.weight": torch.zeros(CLASSES, 96), "7.bias": torch.arange(CLASSES) * 1.0}
    assert fisher.hopeless(told, ruined) is hopeless


def test_published_settings() -> None:
    assert FisherPurification().settings() == {
        "iterations": "400", "batch": "128", "lr": "0.005", "momentum": "0.95", "every": "5",
        "labels": "sampled", "strengths": "((0.005, 5), (0.001, 5), (0.0001, 5), (0.0001, 50))",
    }  # fmt: skip


# ---- other formats


def reading(kind: str, network: nn.Module, folder: Path) -> Task:
    return Task(
        classifier=reopened(kind, network, folder), images=IMAGES[FIT], labels=LABELS[FIT], classes=CLASSES, known=(),
        max_asr=0.05, max_acc_drop=0.03, seed=0,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats(kind: str, tmp_path: Path) -> None:
    told = reading(kind, noisy(), tmp_path)
    before = {n: t.clone() for n, t in told.classifier.model.tensors().items()}
    for name, method in METHODS.items():
        purified = method.purify(told, silent)
        after = told.classifier.model.tensors()
        assert all(torch.equal(tensor, before[n]) for n, tensor in after.items())
        changed = {n for n, t in purified.tensors.items() if not torch.equal(t, before[n])}
        assert changed & told.classifier.model.weights().keys(), name
        assert all(purified.tensors[n].isfinite().all() for n in changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_second_derivatives_are_those_of_the_network(kind: str, tmp_path: Path) -> None:
    """At each call anew: TorchScript rewrites what it has run a few times."""
    # exporters fold normalisations away, and class tokens are then no weights
    network = transformer() if kind in ("traced", "pt2") else classifier(norms=False)
    told, eager = reading(kind, network, tmp_path), task(network)
    found: list[list[float]] = [[], []]
    for lengths, one in zip(found, (eager.classifier, told.classifier), strict=True):
        theta = list(fisher.fresh(one.model.weights()).values())
        for call in range(4):
            generator = torch.Generator().manual_seed(call)
            images, labels = IMAGES[8 * call :][:8] / 255, (LABELS[8 * call :][:8] + 1) % CLASSES
            with fisher.twice_differentiable(one.model):
                logits = one(images, dict(zip(one.model.weights(), theta, strict=True)))
                trace = FisherPurification(labels="true")._trace(logits, labels, theta, generator)
                lengths += [float(trace.detach()), float(fisher.norm(slopes(trace, theta)))]
    assert min(found[0]) > 1
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_attention_of_another_format(tmp_path: Path) -> None:
    told = reading("onnx", transformer(), tmp_path)
    purified = FisherPurification(iterations=1, batch=8).purify(told, silent)
    assert purified.tensors.keys() & told.classifier.model.weights().keys()


def test_operations_without_second_derivative_are_refused() -> None:
    class Fused(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            x = self[0](images)
            moved, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)
            scores: Tensor = self[1](moved.mean((2, 3)))
            return scores

    network = Fused(nn.Conv2d(3, 3, 1), nn.Linear(3, CLASSES)).eval()
    with pytest.raises(UnsuitableModel, match="cannot be differentiated twice"):
        FisherPurification(iterations=1, batch=8).purify(task(network), silent)
