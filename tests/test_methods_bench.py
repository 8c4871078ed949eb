"""What the comparison of methods is judged by: the attack's own trigger, none that resembles it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.methods import planted, suspects
from bench.zoo.attacks import ATTACKS
from bench.zoo.rows import AllToAll, AllToOne, LabelMap, Planted, Row
from tests.test_zoo_attacks import QUICK, trained


def row(kind: str, labels: LabelMap | None = None) -> Row:
    attack = Planted(kind=kind, labels=labels or AllToOne(target=1), settings=QUICK.get(kind, {}))
    return Row(id="one", data="signs", network="vgg-bn/4", attack=attack)


@pytest.mark.parametrize("kind", sorted(set(ATTACKS) - {"cba"}))
def test_a_planted_trigger_stamps_as_the_attack_did(kind: str, tmp_path: Path) -> None:
    attack, known = trained(kind)
    if attack.state():
        torch.save(attack.state(), tmp_path / "one.attack.pt")
    images = known.images[:6].float() / 255
    trigger = planted(row(kind), tmp_path, known.images)
    assert trigger is not None
    assert torch.equal(trigger(images), attack.stamp(images).clamp(0, 1))
    assert not torch.equal(trigger(images), images)


def test_what_needs_other_images_or_has_no_one_target_is_not_compared(tmp_path: Path) -> None:
    images = torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    assert planted(row("cba"), tmp_path, images) is None
    assert planted(row("wanet", AllToAll()), tmp_path, images) is None


def test_the_triggers_of_the_published_suspects_can_be_stamped(tmp_path: Path) -> None:
    for place in ("cifar10/clean500/0", "cifar10/test/0"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (32, 32), (40, 80, 120)).save(tmp_path / place / "one.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "trigger_l2inv.png")
    images = torch.zeros(1, 3, 32, 32)
    stamped = [network.trigger(images).sum() for network in suspects(tmp_path, tmp_path)]
    assert stamped[0] == 3 * 16  # a white square of 4 x 4
    assert stamped[1] > 0
