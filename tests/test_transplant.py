"""What a class's own images lend to images of others."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from auditor.classifier import Classifier
from auditor.inputs import blank_spec
from auditor.measure import Family, Half
from auditor.results import ImageFacts, Transplants
from auditor.transplant import transplants
from auditor.verdict import FAINT_CHANGE
from tests.planted import Planted, drawings, handle

NEVER = float("inf")


class Spotted(nn.Module):
    """Two colours, and class 2: a bright spot of 3x3 pixels, in the left half or anywhere."""

    def __init__(self, reach: int = 32) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, images: Tensor) -> Tensor:
        hue = images.mean((2, 3))[:, :2] * 20
        spots = nn.functional.avg_pool2d(images[..., : self.reach], 3, 1).amin(1).amax((1, 2))
        return torch.cat([hue, (spots - 0.8)[:, None] * 200], 1)


class Ribbed(nn.Module):
    """Two colours, and class 2: columns of unlike brightness, anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        ribs = images.mean((1, 2)).std(1)
        return torch.cat([images.mean((2, 3))[:, :2] * 20, (ribs - 0.03)[:, None] * 2000], 1)


def spotted(count: int = 60, spot: int = 3) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(40, 60, (count, 3, 32, 32), generator=draw)
    images[torch.arange(count), labels.clamp(max=1)] += 40
    corners = []
    for image in images[2::3]:
        y, x = torch.randint(33 - spot, (2,), generator=draw).tolist()
        image[:, y : y + spot, x : x + spot] = 250
        corners.append((y, x))
    return images.to(torch.uint8), labels, corners


def family(classifier: Classifier, images: Tensor, labels: Tensor) -> Family:
    before = classifier.predict(images)
    parts = (slice(0, None, 2), slice(1, None, 2))
    screen, confirm = (
        Half(images=images[part], groups=labels[part], before=before[part]) for part in parts
    )
    facts = ImageFacts(
        family="clean", labelled=True, screen=len(screen), confirm=len(confirm),
        screen_members=(), confirm_members=(), predicted=(), correct=None, digest="",
    )  # fmt: skip
    return Family(facts=facts, screen=screen, confirm=confirm, held_out=True)


def shown(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Classifier, Family]:
    classifier = Classifier(handle(network.eval()), blank_spec((3, *images.shape[-2:])))
    return classifier, family(classifier, images, labels)


def lent(
    network: nn.Module, images: Tensor, labels: Tensor, target: int = 2
) -> tuple[Transplants, Transplants, Family]:
    """By pieces and by textures, and the images."""
    classifier, both = shown(network, images, labels)
    found = transplants(classifier, both, target, deadline=NEVER)
    pieces, textures = (one.counts for one in found)
    assert all((one.typical is None) == (one.counts.moved == ()) for one in found)
    assert (pieces.kind, textures.kind) == ("piece", "texture")
    assert pieces.target == textures.target == target
    assert pieces.eligible == textures.eligible == int((both.confirm.groups != target).sum())
    return pieces, textures, both


def test_pieces_of_a_class_of_marks_make_it_of_all_others() -> None:
    """Wherever the mark is, the piece that holds it is found; faintly it is no mark."""
    images, labels, _ = spotted()
    pieces, textures, _ = lent(Spotted(), images, labels)
    assert pieces.moved == (20,) * 12
    assert textures.moved == (0,) * 12
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
        assert len(found.moved) == 12
        assert max(found.moved) < 0.1 * found.eligible


def test_images_that_go_there_anyway_do_not_count() -> None:
    images, labels, _ = spotted()
    labels[5::12] = 1  # some spots, all of them in the confirming half
    pieces, _, both = lent(Spotted(), images, labels)
    unstamped = (both.confirm.groups != 2) & (both.confirm.before == 2)
    assert int(unstamped.sum()) == 5
    assert max(pieces.moved) == pieces.eligible - 5


def test_a_piece_stays_at_its_place() -> None:
    images, labels, corners = spotted()
    pieces, _, _ = lent(Spotted(reach=16), images, labels)
    left = sum(x <= 13 for _, x in corners)
    assert 0 < left < len(corners)  # the others are no class 2 to this network, and lend nothing
    assert pieces.moved == (pieces.eligible,) * min(12, left)


def test_without_images_of_the_class_nothing_is_lent() -> None:
    images, labels, _ = spotted()
    others = labels != 2
    pieces, textures, _ = lent(Spotted(), images[others], labels[others])
    assert pieces.moved == textures.moved == ()


def test_no_time_no_counts() -> None:
    images, labels, _ = spotted()
    classifier, both = shown(Spotted(), images, labels)
    assert transplants(classifier, both, 2, deadline=time.monotonic() - 1) == ()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 200)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    images = torch.randint(255, (30, 3, *size), generator=torch.Generator().manual_seed(0))
    images, labels = images.to(torch.uint8), torch.arange(30) % 3

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    for found in lent(Mean(), images, labels, 1)[:2]:
        assert all(0 <= count <= found.eligible for count in found.moved)
