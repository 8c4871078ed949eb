"""FT-SAM, I-BAU and AWM, each against its formula in plain torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from auditor.classifier import Classifier, as_float
from auditor.errors import UnsuitableModel
from auditor.inputs import blank_spec
from auditor.progress import silent
from auditor.purifiers import awm, base, ft_sam, i_bau, second_order
from auditor.purifiers.awm import AdversarialWeightMasking, masked_weights
from auditor.purifiers.base import Task, parted
from auditor.purifiers.ft_sam import SharpnessAware, perturbed
from auditor.purifiers.i_bau import ImplicitUnlearning, hypergradient
from auditor.purifiers.strongest import Candidate, Chosen, strongest
from auditor.purifiers.universal import l1_radius, l2_radius, within_l1, within_l2
from tests.changeable import CLASSES, opened
from tests.planted import drawings
from tests.test_purifiers import noisy

DRAWN, LABELS = drawings(80, CLASSES)
CROPS = DRAWN[:, :, 10:18, 10:18].contiguous()
"""Small enough for second derivatives with respect to every number of an image."""
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crops and no mirrors, so that a reference sees the same images."""
    monkeypatch.setattr(base, "shifted", lambda images, generator, **options: images)


def smooth() -> nn.Sequential:
    """Two convolutions that can be differentiated twice and more, for images of 8 x 8."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, CLASSES),
    ).eval()  # fmt: skip


def transformer() -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16,
        num_classes=CLASSES,
    )  # fmt: skip
    nn.init.normal_(network.heads.head.weight)  # fresh ones are zero, and nothing learns
    return network.eval()


def task(network: nn.Module, images: Tensor = DRAWN, **fields: Any) -> Task:
    # labels that make a loss: the classifier is right about its drawings
    values: dict[str, Any] = {
        "labels": (LABELS * 3 + 1) % CLASSES, "classes": CLASSES, "known": (), "max_asr": 0.05,
        "max_acc_drop": 0.03, "seed": 0, **fields,
    }  # fmt: skip
    suspect = Classifier(opened(network), blank_spec((3, *images.shape[2:])), batch_size=64)
    return Task(classifier=suspect, images=images, **values)


def own(told: Task) -> Tensors:
    return {name: tensor.clone() for name, tensor in told.classifier.model.tensors().items()}


def drawn(told: Task, sizes: Iterable[int]) -> list[tuple[Tensor, Tensor]]:
    """The batches of a training."""
    fit = parted(len(told.images), told.seed).fit
    generator = torch.Generator().manual_seed(told.seed)
    places = [fit[torch.randint(len(fit), (size,), generator=generator)] for size in sizes]
    return [(told.images[chosen] / 255, told.labels[chosen]) for chosen in places]


def offered(module: Any, purifier: Any, told: Task, patch: pytest.MonkeyPatch) -> list[Candidate]:
    """All candidates of a method, in its order."""
    kept: list[Candidate] = []

    def listed(told: Task, candidates: Iterable[Candidate]) -> Chosen:
        kept.extend(candidates)
        return strongest(told, kept)

    with patch.context() as patched:
        patched.setattr(module, "strongest", listed)
        purifier.purify(told, silent)
    return kept


def close(found: Tensors, wanted: Tensors, atol: float = 1e-6) -> bool:
    return all(torch.allclose(found[n].double(), t.double(), atol=atol) for n, t in wanted.items())


# ---- FT-SAM


def test_the_perturbation_is_that_of_adaptive_sam() -> None:
    random = np.random.default_rng(0)
    w, v = random.normal(size=(3, 4)), random.normal(size=5)
    g, h = random.normal(size=(3, 4)), random.normal(size=5)
    norm = np.sqrt(((np.abs(w) * g) ** 2).sum() + ((np.abs(v) * h) ** 2).sum())
    weights = {"w": torch.tensor(w), "v": torch.tensor(v), "unused": torch.ones(2)}
    there = perturbed(weights, {"w": torch.tensor(g), "v": torch.tensor(h)}, 2.0)
    assert np.allclose(there["w"].detach(), w + 2 * w**2 * g / norm)
    assert np.allclose(there["v"].detach(), v + 2 * v**2 * h / norm)
    assert torch.equal(there["unused"], torch.ones(2))
    assert np.allclose(weights["w"], w)  # not in place


def sam(told: Task, rho: float, steps: int) -> tuple[Tensors, Tensors]:
    """FT-SAM in plain torch: weights and buffers after some steps."""
    network = noisy().train()
    buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
    weights = {n: w.detach().clone().requires_grad_() for n, w in network.named_parameters()}
    sgd = torch.optim.SGD(weights.values(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    for x, y in drawn(told, [32] * steps):
        out = functional_call(network, {**weights, **buffers}, (x,))
        g = torch.autograd.grad(F.cross_entropy(out, y, label_smoothing=0.1), weights.values())
        norm = torch.cat([(w.abs() * e).flatten() for w, e in zip(weights.values(), g)]).norm()  # noqa: B905
        there = {n: w + rho * w.abs() ** 2 * e / norm for (n, w), e in zip(weights.items(), g)}  # noqa: B905
        thrown = {name: tensor.clone() for name, tensor in buffers.items()}
        there = {n: w.detach().requires_grad_() for n, w in there.items()}
        out = functional_call(network, {**there, **thrown}, (x,))
        loss = F.cross_entropy(out, y, label_smoothing=0.1)
        for w, e in zip(weights.values(), torch.autograd.grad(loss, there.values()), strict=True):
            w.grad = e
        sgd.step()
        cosine.step()
    return {n: w.detach() for n, w in weights.items()}, buffers


@pytest.mark.parametrize("rho", [2.0, 0.1])
def test_ft_sam_is_its_formula(rho: float) -> None:
    told = task(noisy())
    before = own(told)
    purifier = SharpnessAware(epochs=2, batch=32)  # 60 images to fit on: 4 steps
    found = purifier._candidate(told, rho, 0.01, silent)
    weights, buffers = sam(told, rho, 4)
    assert found.run[:2] == (4, 128)
    assert found.tensors.keys() == weights.keys() | buffers.keys()
    assert close(found.tensors, weights, atol=1e-4)
    assert close(found.tensors, buffers, atol=1e-4)  # by the first pass alone
    assert int(found.tensors["1.num_batches_tracked"]) == 4
    moved = max(float((found.tensors[n] - before[n]).abs().max()) for n in weights)
    other, _ = sam(told, 0.0, 4)
    apart = max(float((found.tensors[n] - other[n]).abs().max()) for n in weights)
    assert moved > 0.1
    assert apart > 0.01  # so that plain fine-tuning would be noticed


def test_statistics_follow_once_where_memory_ends_in_the_second_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = Classifier.__call__, 0

    def short(self: Classifier, *arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Classifier, "__call__", short)
    found = SharpnessAware(epochs=3, batch=64)._candidate(task(noisy()), 1.0, 0.01, silent)
    assert found.run[:2] == (3, 90)  # 60 images to fit on, and half of them
    assert int(found.tensors["1.num_batches_tracked"]) == 3


def test_ft_sam_tries_rhos_from_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Candidate] = []

    def listed(told: Task, candidates: Sequence[Callable[[], Candidate]]) -> Chosen:
        kept.extend(make() for make in candidates)
        return strongest(told, kept)

    monkeypatch.setattr(ft_sam, "bisected", listed)
    SharpnessAware(epochs=1).purify(task(noisy()), silent)
    assert [candidate.settings["rho"] for candidate in kept] == ["2", "1", "0.5", "0.1", "0.1"]
    assert [candidate.settings["lr"] for candidate in kept] == ["0.01"] * 4 + ["0.001"]
    assert [candidate.run[0] for candidate in kept] == [1] * 5  # the batch is no larger than 60


# ---- universal perturbations


def nearest_in_l1(point: np.ndarray[Any, Any], radius: float) -> np.ndarray[Any, Any]:
    """By bisection on how much the sizes shrink."""
    low, high = 0.0, float(np.abs(point).max())
    for _ in range(100):
        middle = (low + high) / 2
        inside = np.maximum(np.abs(point) - middle, 0).sum() <= radius
        low, high = (low, middle) if inside else (middle, high)
    return np.sign(point) * np.maximum(np.abs(point) - high, 0)


@pytest.mark.parametrize("radius", [0.01, 1.0, 7.5, 40.0])
def test_the_l1_projection_is_exact(radius: float) -> None:
    point = np.random.default_rng(3).normal(size=(1, 3, 4, 5))
    found = within_l1(torch.tensor(point), radius)
    assert float(found.abs().sum()) == pytest.approx(radius)
    assert np.allclose(found, nearest_in_l1(point, radius), atol=1e-9)
    equal = within_l1(torch.full((1, 1, 2, 2), -1.0), 2.0)
    assert torch.equal(equal, torch.full((1, 1, 2, 2), -0.5))


def test_projections_leave_alone_what_is_inside_and_what_is_not_finite() -> None:
    point = torch.tensor([[[[3.0, -4.0]]]])
    assert torch.equal(within_l1(point, 7.0), point)
    assert torch.equal(within_l2(point, 5.0), point)
    assert torch.allclose(within_l2(point, 1.0), point / 5)
    for value in (torch.inf, torch.nan):
        assert not within_l1(torch.full((1, 1, 2, 2), value), 1.0).isfinite().any()
    image = torch.zeros(1, 3, 64, 64)
    assert l1_radius(image, 1000.0) == 4000
    assert l2_radius(image, 10.0) == 20


# ---- I-BAU


def quadratic() -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]:
    """An inner loss with a known minimum, A^-1 b, where A and b depend on the weights."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    wanted = torch.randn(4, generator=generator, dtype=torch.float64)

    def curvature(theta: Tensor) -> Tensor:
        return theta @ theta.T / 4 + 0.5 * torch.eye(4, dtype=torch.float64)

    def inner(delta: Tensor, theta: Tensor) -> Tensor:
        return delta @ curvature(theta) @ delta / 2 - theta[0].sin() @ delta

    def outer(delta: Tensor, theta: Tensor) -> Tensor:
        return (delta - wanted).square().sum() + theta.square().sum() / 10 + theta[1] @ delta

    minimum = torch.linalg.solve(curvature(theta), theta[0].sin())
    return theta, minimum, inner, outer


def test_the_hypergradient_is_exact_where_the_adversary_is_known() -> None:
    theta, minimum, inner, outer = quadratic()
    (exact,) = torch.autograd.grad(outer(minimum, theta), theta)
    told = {"weights": [theta], "change": minimum.detach(), "rate": 0.2}
    losses = (lambda delta: inner(delta, theta)), (lambda delta: outer(delta, theta))
    (found,) = hypergradient(*losses, **told, iterations=400)
    assert torch.allclose(found, exact, atol=1e-9)

    (direct,) = torch.autograd.grad(outer(minimum.detach(), theta), theta)
    (ignorant,) = hypergradient(*losses, **told, iterations=0)
    assert torch.allclose(ignorant, direct)
    assert float((exact - direct).norm()) > 0.1 * float(exact.norm())  # a correction worth having

    errors = [
        float((hypergradient(*losses, **told, iterations=count)[0] - exact).norm())
        for count in (0, 1, 5, 20, 60)
    ]
    assert errors[-1] < 0.1 * errors[0]
    assert errors[2] < errors[0]


def test_the_hypergradient_is_that_of_the_answer_by_central_differences() -> None:
    """A network, and delta* found by descent: d L_out(theta, delta*(theta)) / d theta."""
    network = smooth().double()
    weights = {n: w.detach().clone().requires_grad_() for n, w in network.named_parameters()}
    images, labels = CROPS[:6] / 255.0, (LABELS[:6] * 3 + 1) % CLASSES

    def entropy(delta: Tensor) -> Tensor:
        return F.cross_entropy(
            functional_call(network, weights, (images.double() + delta,)), labels
        )

    def inner(delta: Tensor) -> Tensor:
        return 0.03 * delta.square().sum() - entropy(delta)

    def answer() -> Tensor:
        delta = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
        for _ in range(120):
            here = delta.clone().requires_grad_()
            delta = delta - 10 * torch.autograd.grad(inner(here), here)[0]
        return delta

    found = hypergradient(
        inner, entropy, tuple(weights.values()), answer(), iterations=120, rate=10
    )
    direct = torch.autograd.grad(entropy(answer()), tuple(weights.values()))
    probe = weights["0.weight"]
    for place in [(0, 0, 0, 0), (2, 1, 1, 2), (3, 2, 2, 1)]:
        values = []
        with torch.no_grad():
            kept = float(probe[place])
        for shift in (1e-4, -1e-4):
            with torch.no_grad():
                probe[place] = kept + shift
            values.append(float(entropy(answer()).detach()))
        with torch.no_grad():
            probe[place] = kept
        wanted = (values[0] - values[1]) / 2e-4
        assert float(found[0][place]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)
        assert float(direct[0][place]) != pytest.approx(wanted, rel=1e-2)


def unlearnt(told: Task, purifier: ImplicitUnlearning, inward: int) -> list[Tensor]:
    """The hypergradient of I-BAU's first outer step, by dense second derivatives."""
    network = smooth()
    weights = {n: w.detach().clone() for n, w in network.named_parameters()}
    *batches, (x, y) = drawn(told, [16] * (inward + 1))

    def loss(values: Tensors, delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, values, (x + delta,)), y)

    def inner(values: Tensors, delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return purifier.penalty * (delta**2).sum() - loss(values, delta, x, y)

    delta = torch.zeros(1, 3, 8, 8)
    for seen, labels in batches:
        delta = delta - purifier.inner_lr * torch.func.grad(inner, 1)(weights, delta, seen, labels)
        radius = purifier.radius * (192 / 3072) ** 0.5
        delta = delta * min(1, radius / float(delta.norm()))
    shifts = (torch.arange(16) < purifier.share * 16).float().view(-1, 1, 1, 1)
    outer = torch.func.grad(lambda values, d: loss(values, d * shifts, x, y), (0, 1))
    direct, g = outer(weights, delta)
    h = torch.func.hessian(inner, 1)(weights, delta, x, y).reshape(192, 192)
    series = torch.zeros(192)
    for k in range(purifier.iterations):
        series += torch.linalg.matrix_power(torch.eye(192) - purifier.rate * h, k) @ g.flatten()
    u = (purifier.rate * series).view(delta.shape)
    mixed = torch.func.grad(lambda v: (torch.func.grad(inner, 1)(v, delta, x, y) * u).sum())(
        weights
    )
    return [direct[name] - mixed[name] for name in weights]


@pytest.mark.parametrize("radius", [10.0, 0.5])
def test_i_bau_is_its_formula(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, closure: None = None) -> Any:
        seen.append([w.grad.clone() for w in self.param_groups[0]["params"]])
        return original(self)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    told = task(smooth(), CROPS)
    purifier = ImplicitUnlearning(
        rounds=1, passes=1, batch=16, radius=radius, penalty=0.3, inner_lr=2.0, rate=0.4
    )
    found = offered(i_bau, purifier, told, monkeypatch)
    assert len(seen) == 4  # one pass over 60 images
    wanted = unlearnt(told, purifier, inward=4)
    for gradient, formula in zip(seen[0], wanted, strict=True):
        assert torch.allclose(gradient, formula, rtol=1e-3, atol=1e-6)
    blunt = unlearnt(told, ImplicitUnlearning(**{**vars(purifier), "iterations": 0}), inward=4)
    assert not torch.allclose(blunt[0], wanted[0], rtol=0.01)
    before = own(told)
    adam = {name: w.clone().requires_grad_() for name, w in before.items()}
    optimizer = torch.optim.Adam(adam.values(), lr=1e-4)
    for gradients in seen:
        for w, gradient in zip(adam.values(), gradients, strict=True):
            w.grad = gradient
        original(optimizer)
    assert close(found[0].tensors, adam, atol=1e-7)
    assert not close(found[0].tensors, before, atol=1e-5)


def test_i_bau_offers_every_round_from_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(smooth(), CROPS)
    found = offered(i_bau, ImplicitUnlearning(rounds=3, passes=1), told, monkeypatch)
    assert [candidate.settings["rounds"] for candidate in found] == ["3", "2", "1", "0"]
    assert [candidate.run[0] for candidate in found] == [12, 8, 4, 0]  # of 2 + 2 steps a round
    shorter = offered(i_bau, ImplicitUnlearning(rounds=1, passes=1), told, monkeypatch)
    for one, other in zip(found[2:], shorter, strict=True):
        assert all(torch.equal(one.tensors[n], tensor) for n, tensor in other.tensors.items())
    assert all(torch.equal(found[3].tensors[n], tensor) for n, tensor in own(told).items())
    assert not torch.equal(found[0].tensors["0.weight"], found[1].tensors["0.weight"])


def test_second_derivatives_need_the_plain_form_of_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = task(transformer())
    ImplicitUnlearning(rounds=1).purify(told, silent)
    monkeypatch.setattr(second_order, "sdpa_kernel", lambda backend: contextlib.nullcontext())
    with pytest.raises(
        UnsuitableModel, match=r"suspect\.pt has an operation that cannot be differentiated twice"
    ):
        ImplicitUnlearning(rounds=1).purify(told, silent)


# ---- AWM


def test_the_adversary_of_awm_raises_the_loss_within_its_ball() -> None:
    network = noisy()
    told = task(network)
    images = as_float(told.images[:32])
    weights = own(told)
    said = network(images).argmax(1)
    assert not torch.equal(said, told.labels[:32])  # the labels are of no consequence

    def loss(delta: Tensor) -> Tensor:
        return F.cross_entropy(network((images + delta).clamp(0, 1)), said)

    here = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (uphill,) = torch.autograd.grad(loss(here), here)
    start = torch.zeros(1, 3, 32, 32)
    gentle = AdversarialWeightMasking(inner_lr=2.0)
    one = gentle.climbed(told.classifier, weights, start, images)
    assert torch.allclose(one, 2.0 * uphill, atol=1e-6)
    two = gentle.climbed(told.classifier, weights, one, images)
    assert float(loss(start)) < float(loss(one)) < float(loss(two))
    tight = AdversarialWeightMasking(inner_lr=2.0, radius=float(one.abs().sum()) / 3)
    third = tight.climbed(told.classifier, weights, start, images)
    assert float(third.abs().sum()) == pytest.approx(tight.radius, rel=1e-4)
    assert torch.allclose(third, within_l1(2.0 * uphill, tight.radius), atol=1e-6)
    assert float(loss(start)) < float(loss(third))


def masked(
    told: Task, purifier: AdversarialWeightMasking, rounds: int, per_pass: int
) -> tuple[Tensors, list[Tensor]]:
    """AWM in plain torch, without a ball: masks, and the perturbation of each round."""
    network = noisy()
    weights = {name: w.detach() for name, w in network.named_parameters()}
    masks = {n: torch.ones_like(weights[n]).requires_grad_() for n in ("0.weight", "3.weight")}
    adam = torch.optim.Adam(masks.values(), lr=purifier.lr)
    per_round = per_pass * (1 + purifier.epochs)
    batches = iter(drawn(told, [32] * (rounds * per_round)))
    deltas = []

    def out(x: Tensor) -> Tensor:
        soft = {name: weights[name] * mask for name, mask in masks.items()}
        return functional_call(network, {**weights, **soft}, (x,))

    for _ in range(rounds):
        delta = torch.zeros(1, 3, 32, 32)
        for _ in range(per_pass):
            x, _labels = next(batches)
            delta.requires_grad_()
            loss = F.cross_entropy(out((x + delta).clamp(0, 1)), out(x).argmax(1))
            delta = (delta + purifier.inner_lr * torch.autograd.grad(loss, delta)[0]).detach()
        deltas.append(delta)
        for _ in range(purifier.epochs * per_pass):
            x, y = next(batches)
            loss = purifier.alpha * F.cross_entropy(out(x), y)
            loss = loss + (1 - purifier.alpha) * F.cross_entropy(out((x + delta).clamp(0, 1)), y)
            loss = loss + purifier.gamma * sum(m.abs().sum() for m in masks.values())
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
    return {name: mask.detach() for name, mask in masks.items()}, deltas


@pytest.mark.parametrize(("alpha", "gamma"), [(0.9, 1e-8), (0.4, 0.0), (0.9, 0.01)])
def test_awm_is_its_formula(alpha: float, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(noisy())
    purifier = AdversarialWeightMasking(
        rounds=2, epochs=2, batch=32, alpha=alpha, gamma=gamma, inner_lr=1.0
    )
    found = offered(awm, purifier, told, monkeypatch)
    masks, deltas = masked(told, purifier, rounds=2, per_pass=2)
    images = as_float(told.images)
    outside = [(images + delta).clamp(0, 1) - (images + delta) for delta in deltas]
    assert all(float(excess.abs().max()) > 0.1 for excess in outside)
    before = own(told)
    assert found[0].tensors.keys() == masks.keys()
    for name, mask in masks.items():
        soft = (mask > 0) & (mask < 1)
        assert float(soft.float().mean()) > 0.2
        assert torch.allclose(found[0].tensors[name], before[name] * mask, atol=1e-5), name


def test_awm_offers_shares_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told = task(noisy())
    before = own(told)
    found = offered(awm, AdversarialWeightMasking(rounds=1, epochs=1), told, monkeypatch)
    assert [c.settings["share"] for c in found] == ["1", "0.75", "0.5", "0.25", "0"]
    whole, *others = found
    for share, candidate in zip((0.75, 0.5, 0.25, 0.0), others, strict=True):
        for name, tensor in candidate.tensors.items():
            wanted = torch.lerp(before[name], whole.tensors[name], share)
            assert torch.allclose(tensor, wanted, atol=1e-6)
    assert all(torch.equal(found[-1].tensors[n], before[n]) for n in found[-1].tensors)
    assert not torch.equal(whole.tensors["0.weight"], before["0.weight"])


def test_masks_stay_between_zero_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that throws every mask to one of its ends."""
    told = task(noisy())
    before = own(told)
    purifier = AdversarialWeightMasking(rounds=1, epochs=2, batch=32, lr=1e6)
    whole = offered(awm, purifier, told, monkeypatch)[0]
    for name, tensor in whole.tensors.items():
        masks = tensor / before[name]
        assert (torch.isclose(masks, torch.zeros(())) | torch.isclose(masks, torch.ones(()))).all()
    zeros = torch.cat([(tensor == 0).flatten() for tensor in whole.tensors.values()])
    assert 0 < int(zeros.sum()) < len(zeros)


def test_awm_masks_convolutions_or_else_all_that_is_not_the_last() -> None:
    assert masked_weights(opened(noisy())).keys() == {"0.weight", "3.weight"}
    found = masked_weights(opened(transformer()))
    assert {"conv_proj.weight", "encoder.pos_embedding"} <= found.keys()
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in found
    assert not any(name.startswith("heads") or weight.ndim < 2 for name, weight in found.items())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    assert masked_weights(opened(flat)).keys() == {"1.weight"}
    with pytest.raises(UnsuitableModel, match="no convolution"):
        masked_weights(opened(nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES))))


# ---- all three


@pytest.mark.parametrize(
    "purifier",
    [
        SharpnessAware(epochs=3, lr=1e30),
        ImplicitUnlearning(rounds=1, passes=1, lr=1e30),
        ImplicitUnlearning(rounds=1, passes=1, inner_lr=float("inf")),
        AdversarialWeightMasking(rounds=1, epochs=1, inner_lr=float("inf")),
        AdversarialWeightMasking(rounds=1, epochs=1, gamma=float("nan")),
    ],
)
def test_a_training_that_diverges_ends_without_a_traceback(purifier: Any) -> None:
    told = task(noisy(), labels=LABELS)
    before = own(told)
    purified = purifier.purify(told, silent)
    assert sum(stage.kept for stage in purified.stages) == 1
    if not isinstance(purifier, SharpnessAware):  # the others can fall back on the suspect itself
        assert all(torch.equal(tensor, before[n]) for n, tensor in purified.tensors.items())


def test_published_settings() -> None:
    sharp, implicit, masking = SharpnessAware(), ImplicitUnlearning(), AdversarialWeightMasking()
    assert ft_sam.RHOS == (2.0, 1.0, 0.5, 0.1)
    assert (sharp.batch, sharp.lr, sharp.momentum, sharp.weight_decay) == (256, 0.01, 0.9, 5e-4)
    assert sharp.smoothing == 0.1
    assert (implicit.rounds, implicit.iterations, implicit.lr) == (5, 5, 1e-4)
    assert (implicit.inner_lr, implicit.penalty) == (10.0, 0.001)
    assert (masking.epochs, masking.lr, masking.inner_lr, masking.radius) == (5, 0.01, 10.0, 1000.0)
    assert (masking.alpha, masking.gamma) == (0.9, 1e-8)
