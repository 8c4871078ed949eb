"""Feature Shift Tuning against its formula; other formats are in test_fisher_methods."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from auditor.errors import UnsuitableModel
from auditor.progress import silent
from auditor.purifiers import base, fst
from auditor.purifiers.base import Task, last_layer, parted
from auditor.purifiers.fine_pruning import FinePruning
from auditor.purifiers.fst import FeatureShiftTuning, bring_to_norm, is_matrix
from tests.changeable import CLASSES, classifier
from tests.test_purifiers import IMAGES, LABELS, noisy, same, task

HEAD, BIAS = "7.weight", "7.bias"


@pytest.fixture
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crops and no mirrors, so that a reference sees the same images."""
    monkeypatch.setattr(base, "shifted", lambda images, generator, **options: images)


def tuned(told: Task, steps: int, alpha: float, **fields: Any) -> dict[str, Tensor]:
    settings: dict[str, Any] = {"batch": 16, "lr": 0.05, "epochs": 1, **fields}
    method = FeatureShiftTuning(fewest_steps=steps, alphas=(alpha,), **settings)
    purified = method.purify(told, silent)
    assert purified.stages[0].steps == steps
    return purified.tensors


def suspect() -> Task:
    # 16 images to fit on, so that one step is an epoch
    return task(noisy(), images=IMAGES[:16], labels=(LABELS[:16] * 3 + 1) % CLASSES)


def reference(told: Task, steps: int, alpha: float) -> tuple[dict[str, Tensor], list[float]]:
    """FST in plain torch, with the method's draws: first the head, then batches."""
    network, fit = noisy().train(), parted(len(told.images), told.seed).fit
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    original = theta[HEAD].detach().clone()
    generator = torch.Generator().manual_seed(told.seed)
    speed = {n: torch.zeros_like(p) for n, p in theta.items()}
    norms = []
    with torch.no_grad():
        for name in (HEAD, BIAS):  # d = 96 inputs
            drawn = torch.rand(theta[name].shape, generator=generator)
            theta[name].copy_((2 * drawn - 1) / math.sqrt(96))
        theta[HEAD] *= original.norm() / theta[HEAD].norm()
    for number in range(steps):
        chosen = fit[torch.randint(len(fit), (16,), generator=generator)]
        x, y = told.images[chosen] / 255, told.labels[chosen]
        loss = F.cross_entropy(functional_call(network, {**theta, **buffers}, (x,)), y)
        loss = loss + alpha * (theta[HEAD] * original).sum()
        gradients = torch.autograd.grad(loss, list(theta.values()))
        lr = 0.05 * (1 + math.cos(math.pi * number / steps)) / 2
        with torch.no_grad():
            for (name, p), gradient in zip(theta.items(), gradients, strict=True):
                speed[name] = 0.9 * speed[name] + gradient
                p -= lr * speed[name]
            norms.append(float(theta[HEAD].norm() / original.norm()))
            theta[HEAD] *= original.norm() / theta[HEAD].norm()
    return {**buffers, **{n: p.detach() for n, p in theta.items()}}, norms


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("alpha", [0.2, 0.003, 0.0])
def test_fst_is_its_formula(alpha: float) -> None:
    told = suspect()
    wanted, norms = reference(told, 3, alpha)
    found = tuned(told, 3, alpha)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].double(), tensor.double(), atol=1e-5), name
    assert (
        max(abs(norm - 1) for norm in norms) > 5e-5
    )  # so that a projection that is left out would be seen
    other, _ = reference(told, 3, alpha + 0.001)
    assert float((other[HEAD] - wanted[HEAD]).abs().max()) > 1e-4


def test_the_head_keeps_its_norm_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told = suspect()
    wanted = float(told.classifier.model.weights()[HEAD].norm())
    norms: list[float] = []

    def watched(weight: Tensor, original: Tensor) -> None:
        bring_to_norm(weight, original)
        norms.append(float(weight.detach().norm()))

    monkeypatch.setattr(fst, "bring_to_norm", watched)
    found = tuned(told, 4, 0.1)
    assert norms == pytest.approx([wanted] * 5)  # at the start, and after each step
    assert float(found[HEAD].norm()) == pytest.approx(wanted)
    assert float(found[BIAS].norm()) > 0


def test_the_penalty_pushes_along_the_old_head_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fst, "bring_to_norm", lambda weight, original: None)
    told = suspect()
    with_it, without = tuned(told, 1, 0.2), tuned(told, 1, 0.0)
    original = told.classifier.model.weights()[HEAD]
    push = (without[HEAD] - with_it[HEAD]) / 0.05  # the learning rate
    assert torch.allclose(push, 0.2 * original, atol=1e-4)
    assert same({**with_it, HEAD: original}, {**without, HEAD: original})


def test_the_new_head_is_drawn_by_its_number_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fst, "bring_to_norm", lambda weight, original: None)
    found = tuned(suspect(), 1, 0.0, lr=0.0)
    for name in (HEAD, BIAS):
        assert 0.9 / math.sqrt(96) * (name == HEAD) < float(found[name].abs().max()) < 96**-0.5
        assert float(found[name].min()) < 0 < float(found[name].max())


@pytest.mark.parametrize(
    ("images", "steps"), [(8, 200), (375, 200), (2560, 200), (2561, 210), (5000, 400)]
)
def test_few_images_are_seen_as_often_as_many(images: int, steps: int) -> None:
    assert FeatureShiftTuning().steps(images) == steps


def test_without_epochs_the_head_stays() -> None:
    assert FeatureShiftTuning(epochs=0).steps(1000) == 0


def test_the_strongest_alpha_that_holds_is_taken() -> None:
    told = task(classifier())
    method = FeatureShiftTuning(
        epochs=1, fewest_steps=30, batch=48, lr=1e-3, alphas=(1e6, 30.0, 0.0)
    )
    purified = method.purify(told, silent)
    held, beyond = purified.stages  # the gentlest was not needed
    assert (held.settings, beyond.settings) == ({"alpha": "30"}, {"alpha": "1e+06"})
    assert (held.kept, beyond.kept) == (True, False)
    assert beyond.checks[-1].acc < 0.9 < held.checks[-1].acc
    assert purified.trained == sum(w.numel() for w in told.classifier.model.weights().values())


def test_training_ends_where_numbers_do() -> None:
    method = FeatureShiftTuning(epochs=1, fewest_steps=50, lr=1e20, batch=16, alphas=(0.0,))
    (stage,) = method.purify(suspect(), silent).stages
    assert stage.steps < 10


# ---- heads


def test_heads_are_linear_layers_or_convolutions_of_one_pixel() -> None:
    assert last_layer(task(classifier()), is_matrix, "no").name == "7"
    pixel = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, CLASSES, 1, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    told = task(pixel, images=IMAGES[:16], labels=LABELS[:16])
    assert last_layer(told, is_matrix, "no").name == "2"
    found = tuned(told, 2, 0.1)
    original = told.classifier.model.weights()["2.weight"]
    assert float(found["2.weight"].norm()) == pytest.approx(float(original.norm()))
    assert not torch.allclose(found["2.weight"], original, atol=1e-2)


def test_a_network_without_a_head_is_refused() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    nothing = nn.Sequential(
        nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten(), nn.Unflatten(1, (CLASSES, 6)),
        nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    for network in (wide, nothing):
        with pytest.raises(UnsuitableModel, match="does not end in a linear layer"):
            FeatureShiftTuning().purify(task(network), silent)


def test_published_settings() -> None:
    method = FeatureShiftTuning()
    assert method.alphas[0] == 0.2
    assert method.alphas[-1] == 0
    assert list(method.alphas) == sorted(method.alphas, reverse=True)
    assert (method.epochs, method.batch, method.lr, method.momentum) == (10, 128, 0.01, 0.9)


def test_a_layer_that_does_not_give_the_classes_is_no_head() -> None:
    class Odd(nn.Module):
        """It defines its head first."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(6, CLASSES), nn.Conv2d(3, 6, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images).mean((2, 3)))

    for method in (FeatureShiftTuning(), FinePruning()):
        with pytest.raises(UnsuitableModel, match="does not end in a linear layer"):
            method.purify(task(Odd().eval()), silent)
