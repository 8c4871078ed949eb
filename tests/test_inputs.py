"""Preprocessing is found where it can be found, and said to be unknown elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditor import inputs
from auditor.classifier import Classifier
from auditor.errors import UnsuitableModel, UsageError
from auditor.images.opening import open_images
from auditor.images.source import CleanSet
from auditor.inputs import (
    NORMALIZATIONS,
    GivenInput,
    Resolution,
    parse_input,
    parse_normalize,
    resolve,
    resolve_size,
)
from auditor.results.facts import InputSpec
from auditor.scores import output_of, scores_of
from auditor.synthesis import dead_leaves
from tests.planted import drawings, handle, written


class Normalised(nn.Module):
    """Expects inputs of one normalisation: it undoes it, and is at chance under others."""

    def __init__(self, name: str, *, bgr: bool = False, batchnorm: bool = False) -> None:
        super().__init__()
        mean, std = NORMALIZATIONS[name]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.bgr = bgr
        self.norm = nn.BatchNorm2d(3) if batchnorm else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        images = inputs * self.std + self.mean
        images = self.norm(images)
        if self.bgr:
            images = images.flip(1)
        # eight classes by the level of red, fine enough that a wrong normalisation shows
        level = images[:, 0].mean((1, 2)) * 8
        return -((level.unsqueeze(1) - torch.arange(8.0) - 0.5) ** 2)


def coloured(count: int = 96) -> tuple[Tensor, Tensor]:
    """Images whose red level is their class; green and blue are shifted classes."""
    labels = torch.arange(count) % 8
    noise = torch.randint(-6, 7, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    levels = torch.stack([labels, (labels + 3) % 8, (labels + 5) % 8], 1) * 32 + 16
    return (levels.view(count, 3, 1, 1) + noise).to(torch.uint8), labels


def resolved(network: nn.Module, *, labelled: bool = True, **given: object) -> Resolution:
    images, labels = coloured()
    clean = CleanSet(images=images, labels=labels if labelled else None)
    return resolve(handle(network), (3, 32, 32), "given", clean, None, GivenInput(**given))


@pytest.mark.parametrize("name", ["none", "half", "imagenet", "0-255", "gtsrb", "mnist"])
def test_labelled_images_tell_the_normalisation(name: str) -> None:
    found = resolved(Normalised(name)).preprocessing
    assert found.source == "measured"
    best = found.candidates[0]
    assert best.correct == best.images
    mean, std = NORMALIZATIONS[name]
    assert found.spec.mean == pytest.approx(mean, abs=0.02)
    assert found.spec.std == pytest.approx(std, rel=0.05)
    assert found.candidates[1].spec.normalize in found.reason


def test_labelled_images_tell_the_channel_order() -> None:
    found = resolved(Normalised("none", bgr=True)).preprocessing
    assert found.spec.order == "bgr"
    assert found.candidates[0].correct == found.candidates[0].images


def test_a_few_more_hits_do_not_make_it_bgr() -> None:
    """Grey pictures but for some, of which chance makes one or two more in BGR."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, inputs: Tensor) -> Tensor:
            first = (inputs[:, :1].mean((1, 2, 3)) > 0.5).float() - 0.5
            return torch.stack([-first, first], 1) + 0 * self.norm(inputs).mean((1, 2, 3))[:, None]

    labels = torch.arange(96) % 2
    grey = (labels * 160 + 40).view(96, 1, 1, 1).repeat(1, 3, 32, 32)
    for odd, order in ((2, "rgb"), (40, "bgr")):
        images = grey.clone()
        images[:odd, 0] = (1 - labels[:odd]).view(-1, 1, 1) * 160 + 40  # red misleads
        clean = CleanSet(images=images.to(torch.uint8), labels=labels)
        found = resolve(
            handle(Either()), (3, 32, 32), "given", clean, None, GivenInput(normalize="none")
        )
        assert found.preprocessing.spec.order == order
        assert "BatchNorm" not in found.preprocessing.reason


def test_images_that_are_no_squares_are_tried_as_they_are(tmp_path: Path) -> None:
    class Wide(nn.Module):
        """Tells classes by the brightness of the left edge, which the middle does not show."""

        def forward(self, inputs: Tensor) -> Tensor:
            level = inputs[..., :4].mean((1, 2, 3)) * 8
            return -((level.unsqueeze(1) - torch.arange(8.0) - 0.5) ** 2)

    labels = torch.arange(64) % 8
    images = torch.randint(256, (64, 3, 28, 72), generator=torch.Generator().manual_seed(0))
    images[..., :4] = (labels * 32 + 16).view(64, 1, 1, 1)
    path = written(tmp_path / "wide.npz", images.to(torch.uint8), labels)
    found = resolve_size(handle(Wide()), open_images(path), GivenInput(), 0)
    assert found[:3] == (3, 28, 72)


def test_what_is_given_is_taken() -> None:
    found = resolved(Normalised("none"), normalize="imagenet").preprocessing
    assert (found.spec.normalize, found.source) == ("imagenet", "given")


def test_batchnorm_statistics_tell_without_labels() -> None:
    images, _ = coloured()
    network = Normalised("imagenet", batchnorm=True)
    floats = images.float() / 255
    network.norm.running_mean.copy_(floats.mean((0, 2, 3)))
    network.norm.running_var.copy_(floats.var((0, 2, 3)))
    found = resolved(network, labelled=False).preprocessing
    assert (found.spec.normalize, found.source) == ("imagenet", "measured")


def test_nothing_to_go_by_is_unresolved() -> None:
    found = resolved(Normalised("imagenet"), labelled=False).preprocessing
    assert found.source == "unresolved"
    assert "--normalize" in found.advice


def test_made_images_stand_in_where_there_are_none() -> None:
    made = dead_leaves((64, 3, 32, 32), torch.Generator().manual_seed(0))
    network = Normalised("half", batchnorm=True)
    floats = made.float() / 255
    network.norm.running_mean.copy_(floats.mean((0, 2, 3)))
    network.norm.running_var.copy_(floats.var((0, 2, 3)))
    found = resolve(handle(network), (3, 32, 32), "given", None, made, GivenInput()).preprocessing
    assert (found.spec.normalize, found.source) == ("half", "measured")
    assert "made images" in found.reason


def test_a_guessed_size_is_unresolved() -> None:
    images, labels = coloured()
    clean = CleanSet(images=images, labels=labels)
    found = resolve(handle(Normalised("none")), (3, 32, 32), "", clean, None, GivenInput())
    assert found.preprocessing.source == "unresolved"
    assert "--input" in found.preprocessing.advice


class Sized(nn.Module):
    """Accepts one size only."""

    def __init__(self, side: int, channels: int = 3) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1), (64, 3), (96, 1)])
def test_the_only_size_that_runs(side: int, channels: int) -> None:
    size = resolve_size(handle(Sized(side, channels)), None, GivenInput(), 0)
    assert size[:3] == (channels, side, side)
    assert size[3]


def test_a_size_that_does_not_run_is_refused() -> None:
    with pytest.raises(UnsuitableModel, match="--input 3x30x30"):
        resolve_size(handle(Sized(32)), None, GivenInput(channels=3, height=30, width=30), 0)
    with pytest.raises(UnsuitableModel, match="none of the usual inputs"):
        resolve_size(handle(Sized(33)), None, GivenInput(), 0)


def test_probabilities_become_their_logs() -> None:
    network = nn.Sequential(Normalised("none"), nn.Softmax(1))
    found = resolved(network)
    assert found.output == "probabilities"
    images, _ = coloured()
    spec = found.preprocessing.spec
    plain = Classifier(handle(Normalised("none")), spec).logits(images)
    logs = Classifier(handle(network), spec, output="probabilities").logits(images)
    assert torch.allclose(logs - logs[:, :1], plain - plain[:, :1], atol=1e-3)
    assert output_of([plain]) == "logits"


def test_nan_outputs_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            scores = torch.zeros(len(inputs), 8)
            scores[::3] = torch.nan
            return scores

    with pytest.raises(UnsuitableModel, match=r"NaN or infinite scores for 33 of 96"):
        resolved(Broken())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ((torch.zeros(2, 4), torch.zeros(2)), "may be a detector"),
        ([{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(1, 4)}], "may be a detector"),
        ({"out": torch.zeros(1), "aux": torch.zeros(1)}, "may be a detector"),
        (torch.zeros(2, 19, 8, 8), "segmentation"),
        (torch.zeros(2, 0), "not one score a class but of shape 2×0"),
        (
            torch.zeros(2).long(),
            "not one score a class but of shape 2, as if it had chosen a class",
        ),
        (torch.zeros(2, 1).long(), "of shape 2×1, as if it had chosen a class already"),
        ("text", "returns a str"),
    ],
)
def test_outputs_that_are_no_class_scores(raw: object, words: str) -> None:
    with pytest.raises(UnsuitableModel, match=words):
        scores_of(raw, "m.pt")


def test_outputs_of_one_by_one_maps_are_flattened() -> None:
    assert scores_of([torch.zeros(2, 5, 1, 1)], "m").shape == (2, 5)
    assert scores_of({"logits": torch.zeros(2, 5)}, "m").shape == (2, 5)


def test_networks_that_take_something_else_say_what() -> None:
    class Two(nn.Module):
        def forward(self, images: Tensor, offset: Tensor) -> Tensor:
            return images.mean((2, 3)) + offset

    with pytest.raises(UnsuitableModel, match=r"takes more than a batch of images .*offset"):
        resolve_size(handle(Two()), None, GivenInput(), 0)
    four = nn.Sequential(nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsuitableModel, match="takes 4 channels; auditor tests networks for grey"):
        resolve_size(handle(four), None, GivenInput(), 0)


def test_options() -> None:
    assert parse_input("3x32x48") == (3, 32, 48)
    assert parse_input(None) is None
    for text in ("32", "4x32x32", "3x0x32", "axbxc"):
        with pytest.raises(UsageError, match="--input"):
            parse_input(text)
    assert parse_normalize("0.5/0.25", 3) == ("custom", (0.5,) * 3, (0.25,) * 3)
    assert parse_normalize("0.1,0.2,0.3/1,2,3", 3) == ("custom", (0.1, 0.2, 0.3), (1, 2, 3))
    assert parse_normalize("auto", 3) is None
    for text in ("imagnet", "1/0", "1,2/3,4", "1"):
        with pytest.raises(UsageError, match="--normalize"):
            parse_normalize(text, 3)
    with pytest.raises(UsageError, match='did you mean "imagenet"'):
        parse_normalize("imagnet", 3)


def test_normalisation_is_exact() -> None:
    spec = InputSpec(
        channels=3, height=32, width=32, normalize="custom",
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2), order="bgr",
    )  # fmt: skip
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return inputs.mean((2, 3))

    images, _ = drawings(4)
    Classifier(handle(Recorder()), spec).logits(images)
    floats = images.float() / 255
    expected = (floats[:, [2, 1, 0]] - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)  # fmt: skip
    assert torch.allclose(seen[0], expected, atol=1e-5)


class Scaled(nn.Module):
    """Runs on any size; on those of some sides it misses the first classes of eight, else all."""

    def __init__(self, missed: Mapping[int, int]) -> None:
        super().__init__()
        self.missed = missed

    def forward(self, inputs: Tensor) -> Tensor:
        level = inputs[:, 0].mean((1, 2)) * 8
        wrong = torch.where(level < self.missed.get(inputs.shape[-1], math.inf), 3, 0)
        return -(((level + wrong).unsqueeze(1) - torch.arange(8.0) - 0.5) ** 2)


@pytest.mark.parametrize(
    ("trained", "stored"), [(32, 32), (64, 32), pytest.param(64, 48, marks=pytest.mark.slow)]
)
def test_labelled_images_tell_the_size(trained: int, stored: int, tmp_path: Path) -> None:
    images, labels = coloured()
    scaled = nn.functional.interpolate(images.float(), stored).to(torch.uint8)
    np.savez(tmp_path / "a.npz", images=scaled.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    source = open_images(tmp_path / "a.npz")
    size = resolve_size(handle(Scaled({trained: 0})), source, GivenInput(), 0)
    assert size[:3] == (3, trained, trained)
    assert "100%" in size[3]


@pytest.mark.parametrize(("more", "chosen"), [(1, 32), (4, 28)])
def test_another_size_must_be_clearly_better(more: int, chosen: int, tmp_path: Path) -> None:
    """Than that of the images, at which they were most likely trained on."""
    images, labels = coloured()
    written(tmp_path / "a.npz", images, labels)
    source = open_images(tmp_path / "a.npz")
    assert source.sizes(range(8)) == {(32, 32)}
    size = resolve_size(handle(Scaled({28: 1, 32: 1 + more})), source, GivenInput(), 0)
    assert size[:3] == (3, chosen, chosen)


@pytest.mark.parametrize(("missed", "tried"), [(3, False), (6, True)])
def test_larger_sizes_are_not_tried_for_ever(
    missed: int, tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the network is fair at the size of the images; where it is bad, another must be right."""
    monkeypatch.setattr(inputs, "SIZE_SECONDS", 0.0)
    images, labels = coloured()
    written(tmp_path / "a.npz", images, labels)
    source = open_images(tmp_path / "a.npz")
    size = resolve_size(handle(Scaled({32: missed, 64: 0})), source, GivenInput(), 0)
    assert size[:3] == ((3, 64, 64) if tried else (3, 32, 32))
    assert ("no time to try 28x28, 64x64" in size[3]) is not tried


def test_the_channel_order_is_found_where_the_normalisation_is_given() -> None:
    found = resolved(Normalised("half", bgr=True), normalize="half").preprocessing
    assert (found.source, found.spec.normalize, found.spec.order) == ("given", "half", "bgr")
    assert "normalize=half (BGR): clean accuracy" in found.reason
    plain = resolved(Normalised("half"), normalize="half").preprocessing
    assert plain.spec.order == "rgb"
    assert "next half (BGR)" in plain.reason
    told = resolved(Normalised("half", bgr=True), normalize="half", order="rgb").preprocessing
    assert told.spec.order == "rgb"


def test_a_given_channel_order_is_not_overruled() -> None:
    found = resolved(Normalised("caffe", bgr=True), order="rgb").preprocessing
    assert {candidate.spec.order for candidate in found.candidates} == {"rgb"}


def test_sizes_of_which_none_is_right_are_no_error(tmp_path: Path) -> None:
    """Images of a size that the network does not take, and no size at which it is right."""

    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2] >= 64
            return torch.nn.functional.one_hot(torch.zeros(len(images)).long(), 100).float()

    images, labels = drawings(64)
    written(tmp_path / "small.npz", images[:, :, ::2, ::2], labels + 1)
    source = open_images(tmp_path / "small.npz")
    assert resolve_size(handle(Wrong()), source, GivenInput(), 0)[1] >= 64
