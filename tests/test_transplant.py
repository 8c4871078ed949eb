"""What a class's own images lend to images of others."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.measure import Half
from auditor.results.scan import Transplants
from auditor.scanning.transplant import transplants
from auditor.verdict import FAINT_CHANGE
from tests.planted import Planted, drawings, handle

NEVER = float("inf")


class Spotted(nn.Module):
    """Two colours, and class 2: a bright spot of 3x3 pixels, in the left half or anywhere.

    If firm, it is sure of a whole spot, and just as sure that anything less is none.
    """

    def __init__(self, reach: int = 32, *, firm: bool = False) -> None:
        super().__init__()
        self.reach, self.firm = reach, firm

    def forward(self, images: Tensor) -> Tensor:
        hue = images.flatten(2).median(2).values[:, :2] * 20
        spots = nn.functional.avg_pool2d(images[..., : self.reach], 3, 1).amin(1).amax((1, 2))
        score = (spots - 0.9)[:, None] * 200
        score = torch.where(score > 0, 30.0, -30.0) if self.firm else score
        return torch.cat([hue, score], 1)


class Ribbed(nn.Module):
    """Two colours, and class 2: columns of unlike brightness, anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        ribs = images.mean((1, 2)).std(1)
        return torch.cat([images.mean((2, 3))[:, :2] * 20, (ribs - 0.03)[:, None] * 2000], 1)


def spotted(count: int = 60, spots: int = 1) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(40, 60, (count, 3, 32, 32), generator=draw)
    images[torch.arange(count), labels.clamp(max=1)] += 40
    corners = []
    for image in images[2::3]:
        for _ in range(spots):
            y, x = torch.randint(30, (2,), generator=draw).tolist()
            image[:, y : y + 3, x : x + 3] = 250
        corners.append((y, x))
    return images.to(torch.uint8), labels, corners


Halves = tuple[Half, Half]


def halves(classifier: Classifier, images: Tensor, labels: Tensor) -> Halves:
    before = classifier.predict(images)
    screen, confirm = (
        Half(images=images[part], groups=labels[part], before=before[part])
        for part in (slice(0, None, 2), slice(1, None, 2))
    )
    return screen, confirm


def shown(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Classifier, Halves]:
    classifier = Classifier(handle(network.eval()), blank_spec((3, *images.shape[-2:])))
    return classifier, halves(classifier, images, labels)


def lent(
    network: nn.Module, images: Tensor, labels: Tensor, target: int = 2
) -> tuple[Transplants, Transplants, Half]:
    """By pieces and by textures, and the images."""
    classifier, both = shown(network, images, labels)
    found = transplants(classifier, *both, target, deadline=NEVER)
    pieces, textures = (one.counts for one in found)
    assert all((one.typical is None) == (one.counts.moved == ()) for one in found)
    assert (pieces.kind, textures.kind) == ("piece", "texture")
    assert pieces.target == textures.target == target
    assert pieces.eligible == textures.eligible == int((both[1].groups != target).sum())
    return pieces, textures, both[1]


@pytest.mark.parametrize("firm", [False, True])
@pytest.mark.parametrize("spots", [1, 3])
def test_pieces_of_a_class_of_marks_make_it_of_all_others(spots: int, firm: bool) -> None:
    """Wherever a mark is, a piece holds it whole; faintly it is no mark."""
    images, labels, _ = spotted(spots=spots)
    pieces, textures, _ = lent(Spotted(firm=firm), images, labels)
    assert pieces.moved == (20,) * 8
    assert textures.moved == (0,) * 8
    assert pieces.size == pytest.approx(25 / 1024)


def test_the_texture_of_a_class_of_textures_makes_it_of_all_others() -> None:
    """Of which no piece is enough."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randint(90, 120, (60, 3, 32, 32), generator=draw)
    images[torch.arange(60), labels.clamp(max=1)] += 40
    spacing = torch.randint(5, 12, (20, 1), generator=draw)
    waves = 16 * torch.sin(2 * torch.pi * torch.arange(32) * spacing / 32)
    images[2::3] += waves.round().long()[:, None, None, :]
    pieces, textures, _ = lent(Ribbed(), images.to(torch.uint8), labels)
    assert max(pieces.moved) == 0
    assert min(textures.moved) >= 19
    assert textures.size == FAINT_CHANGE


@pytest.mark.parametrize("target", range(8))
def test_a_class_of_drawings_lends_nothing(target: int) -> None:
    """Also where a trigger was planted for it: its clean images carry none."""
    images, labels = drawings(200)
    network = Planted(behaviour="all-to-one", target=target)
    for found in lent(network, images, labels, target)[:2]:
        assert len(found.moved) == 8
        assert max(found.moved) < 0.1 * found.eligible


def test_images_that_go_there_anyway_do_not_count() -> None:
    images, labels, _ = spotted()
    labels[5::12] = 1  # some spots, all of them in the confirming half
    pieces, _, confirm = lent(Spotted(), images, labels)
    unstamped = (confirm.groups != 2) & (confirm.before == 2)
    assert int(unstamped.sum()) == 5
    assert max(pieces.moved) == pieces.eligible - 5


def test_a_piece_stays_at_its_place() -> None:
    images, labels, corners = spotted()
    pieces, _, _ = lent(Spotted(reach=16), images, labels)
    left = sum(x <= 13 for _, x in corners)
    assert 0 < left < len(corners)  # the others are no class 2 to this network, and lend nothing
    assert pieces.moved == (pieces.eligible,) * min(8, left)


def test_without_images_of_the_class_nothing_is_lent() -> None:
    images, labels, _ = spotted()
    others = labels != 2
    pieces, textures, _ = lent(Spotted(), images[others], labels[others])
    assert pieces.moved == textures.moved == ()


def test_no_time_no_counts() -> None:
    images, labels, _ = spotted()
    classifier, both = shown(Spotted(), images, labels)
    for one in transplants(classifier, *both, 2, deadline=time.monotonic() - 1):
        assert one.counts.moved == ()
        assert one.typical is None


def test_each_image_that_lends_is_progress() -> None:
    images, labels, _ = spotted()
    classifier, both = shown(Spotted(), images, labels)
    told: list[tuple[int, int]] = []

    def notify(what: str, done: int, total: int) -> None:
        assert what == "what class 2 stands for"
        told.append((done, total))

    transplants(classifier, *both, 2, deadline=NEVER, notify=notify)
    assert told == [(done, 8) for done in range(8)]


def test_scores_that_are_no_numbers_are_none_that_tell() -> None:
    class Broken(Spotted):
        def forward(self, images: Tensor) -> Tensor:
            scores = super().forward(images)
            return torch.where(images[:, :1, 0, 0] > 0.9, torch.nan, scores)

    images, labels, _ = spotted()
    images[:, :, 0, 0] = 50
    images[2::3, :, 0, 0] = 255  # what lends, breaks it at its corner
    network = Broken()
    classifier, both = shown(network, images, labels.clamp(max=1))
    for one in transplants(classifier, *both, 0, deadline=NEVER):
        assert all(0 <= count <= one.counts.eligible for count in one.counts.moved)


def test_the_typical_one_is_of_the_middle() -> None:
    images, labels, _ = spotted()
    classifier, both = shown(Spotted(reach=16), images, labels.clamp(max=1))
    (pieces, _) = transplants(classifier, *both, 0, deadline=NEVER)
    assert pieces.typical is not None
    others = both[1].groups != 0
    after = classifier.predict(pieces.typical(both[1].images[others].float() / 255))
    count = int(((after == 0) & (both[1].before[others] != 0)).sum())
    assert count == sorted(pieces.counts.moved)[len(pieces.counts.moved) // 2]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 200), (8, 400), (300, 2)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    images = torch.randint(255, (30, 3, *size), generator=torch.Generator().manual_seed(0))
    images, labels = images.to(torch.uint8), torch.arange(30) % 3

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    for found in lent(Mean(), images, labels, 1)[:2]:
        assert all(0 <= count <= found.eligible for count in found.moved)
