"""Graphs show the same features as the networks that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.models.base import ModelHandle
from auditor.models.load import load_model
from auditor.models.script_taps import Taps
from auditor.purifiers.features import anchor_layers
from tests.exported import FORMATS
from tests.planted import handle as eager

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """May change in place, after a layer has read it, what the layer has read."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        torch.manual_seed(2)
        self.first, self.second = nn.Conv2d(3, 5, 4, stride=4), nn.Conv2d(5, 5, 3, padding=1)
        self.last = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu_(self.first(images))
        y = self.second(x)
        if self.in_place:
            x += y
        else:
            x = x + y
        return self.last(x.mean((2, 3)))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "residual":
        return Residual().eval()
    return torchvision.models.resnet18(num_classes=6).eval()


def opened(kind: str, network: nn.Module, folder: Path) -> ModelHandle:
    name, save = FORMATS[kind]
    save(network, folder / name)
    return load_model(folder / name)


def inputs_of_layers(network: nn.Module, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        m.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone())) for m in layers
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    unique: list[Tensor] = []
    for features in seen:  # a value that two layers read is one feature
        if not any(features.shape == u.shape and torch.equal(features, u) for u in unique):
            unique.append(features)
    return unique


@pytest.mark.parametrize("name", ["residual", "resnet18"])
@pytest.mark.parametrize("kind", FORMATS)
def test_features_are_what_the_layers_read(kind: str, name: str, tmp_path: Path) -> None:
    network = made(name)
    handle = opened(kind, network, tmp_path)
    names = handle.layers(IMAGES)
    expected = inputs_of_layers(network, IMAGES)
    assert len(names) == len(expected)
    own = handle.call(IMAGES)
    with handle.tapped(names) as taken:
        answers = handle.call(IMAGES)
        features = taken()
        assert taken() == []
    torch.testing.assert_close(answers, own, rtol=1e-4, atol=1e-4)
    for have, want in zip(features, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-4)
    with handle.tapped(names) as taken:
        handle.call(IMAGES)
    handle.call(IMAGES)
    with handle.tapped(names[-1:]) as taken:
        assert taken() == []  # nothing is kept outside


class Scaled(nn.Module):
    """Changes, through a view of it, what the last layer reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images)).mean((2, 3))
        x[:, :4] *= 5
        return self.last(x)


class Positions(nn.Module):
    """Has layers that read a table, a query, windows, and a product of two weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)
        self.place, self.first_of = nn.Linear(2, 8), nn.Linear(8, 8)
        self.left, self.right = nn.Parameter(torch.rand(8, 3)), nn.Parameter(torch.rand(3, 8))
        self.register_buffer("table", torch.rand(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images)).mean((2, 3)) + self.place(self.table)
        query = self.place(torch.zeros_like(x[:, :2]))  # one for all images
        windows = self.place(images.reshape(-1, 2))  # many of an image
        y = torch.zeros(x.shape)
        y[:, :4] = x[:, :4]  # through a view, so that only running it tells that it follows
        return self.last(self.first_of(y) @ torch.mm(self.left, self.right)) + (
            windows.mean() + query.mean()
        )


class Gate(nn.Module):
    """Its scripted hooks change what goes in and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.last = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.mean((2, 3)))


def halve(self: nn.Module, input: tuple[Tensor]) -> tuple[Tensor]:
    return (input[0] / 2,)


@pytest.mark.parametrize("kind", FORMATS)
def test_features_are_what_is_read_and_not_what_was_made(kind: str, tmp_path: Path) -> None:
    network = Scaled().eval()
    handle = opened(kind, network, tmp_path)
    with handle.tapped(handle.layers(IMAGES)) as taken:
        handle.call(IMAGES)
        features = taken()
    torch.testing.assert_close(features[-1], inputs_of_layers(network, IMAGES)[-1])


@pytest.mark.parametrize("kind", [*FORMATS, "eager"])
def test_anchors_tell_images_apart(kind: str, tmp_path: Path) -> None:
    """Tables of positions, products of weights, what is learnt for all images, windows: none do."""
    network = Positions().eval()
    if kind == "eager":
        handle: ModelHandle = eager(network)
    else:
        handle = opened(kind, network, tmp_path)
    classifier = Classifier(handle, blank_spec((3, 32, 32)))
    names = anchor_layers(classifier, (IMAGES * 255).to(torch.uint8))
    with handle.tapped(names) as taken:
        handle.call(IMAGES)
        features = taken()
    assert [tuple(f.shape) for f in features] == [(3, 8)] * len(features)
    assert len(features) >= 1
    assert not any(torch.equal(f[0], f[1]) for f in features)


class Twice(nn.Module):
    """Changes its input in place; looks a second time at pictures that are dark; names an argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.again, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        images.sub_(0.5)
        x = self.first(images.mean((2, 3)))
        if float(images.mean()) < 0.25:
            x = self.again(x)
        return self.last(input=self.again(x))


@pytest.mark.parametrize("kind", ["eager", "scripted"])
def test_networks_that_look_again_or_change_their_input_have_anchors(
    kind: str, tmp_path: Path
) -> None:
    network = Twice().eval()
    handle = eager(network) if kind == "eager" else opened(kind, network, tmp_path)
    classifier = Classifier(handle, blank_spec((3, 32, 32)))
    bright = torch.full((2, 3, 32, 32), 250, dtype=torch.uint8)
    names = anchor_layers(classifier, bright)
    assert len(names) >= 1
    if kind == "eager":
        assert names == ["last"]  # "again" is not used as often for every picture


def test_a_network_without_layers_has_no_anchors(tmp_path: Path) -> None:
    handle = opened("scripted", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), tmp_path)
    classifier = Classifier(handle, blank_spec((3, 32, 32)))
    assert anchor_layers(classifier, (IMAGES * 255).to(torch.uint8)) == []


def test_a_network_whose_hooks_would_be_left_out_shows_nothing(tmp_path: Path) -> None:
    network = Gate()
    network.register_forward_pre_hook(halve)
    handle = opened("scripted", network.eval(), tmp_path)
    assert handle.layers(IMAGES) == []
    torch.testing.assert_close(handle.call(IMAGES), network(IMAGES))


@pytest.mark.parametrize("kind", FORMATS)
def test_features_follow_other_numbers_and_have_gradients(kind: str, tmp_path: Path) -> None:
    handle = opened(kind, Residual(in_place=False).eval(), tmp_path)
    weights = {n: (0.5 * t).requires_grad_() for n, t in handle.weights().items()}
    assert len(weights) == 6
    with handle.tapped(handle.layers(IMAGES)) as taken:
        handle.call(IMAGES)
        before = taken()
        handle.call(IMAGES, weights)
        after = taken()
    assert torch.equal(before[0], after[0])  # the images
    torch.testing.assert_close(after[1], 0.5 * before[1])
    after[-1].sum().backward()
    moved = [n for n, t in weights.items() if t.grad is not None and t.grad.any()]
    assert len(moved) == 4  # of both convolutions


@pytest.mark.parametrize("kind", ["traced", "frozen"])
def test_a_graph_that_cannot_stand_alone_shows_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = opened(kind, made("residual"), tmp_path)
    expected = handle.call(IMAGES)

    def refused(*_: object) -> object:
        raise RuntimeError("no such graph")

    monkeypatch.setattr(Taps, "_with", refused)
    assert handle.layers(IMAGES) == []
    torch.testing.assert_close(handle.call(IMAGES), expected)


def test_features_in_train_mode_are_those_of_train_mode(tmp_path: Path) -> None:
    handle = opened("scripted", made("resnet18"), tmp_path)
    (last,) = handle.layers(IMAGES)[-1:]
    with handle.tapped([last]) as taken:
        handle.call(IMAGES)
        handle.call(IMAGES, train=True)
        first, second = taken()
    assert not torch.allclose(first, second)
