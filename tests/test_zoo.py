"""The zoo: its list, what a row makes, what is poisoned, and how results are counted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from auditor import verdict
from auditor.errors import UnknownName
from bench.zoo import calibrate
from bench.zoo import train as training
from bench.zoo.__main__ import RECORDS, ROWS
from bench.zoo.attacks import ATTACKS
from bench.zoo.attacks.base import victims, wanted
from bench.zoo.attacks.static import built, declared
from bench.zoo.data import DATA, Data, Part
from bench.zoo.data.marked import blemished
from bench.zoo.networks import NETWORKS, build
from bench.zoo.rows import (
    AllToAll,
    AllToOne,
    Planted,
    Recipe,
    Row,
    SourceSpecific,
    ZooError,
    read_rows,
)
from bench.zoo.table import read_table

LIST = read_rows(ROWS)
QUICK = Recipe(epochs=1, rate=0.05, augment="shift", images=256)
BADNETS = Planted(
    kind="static",
    settings={"name": "BadNets", "probe": "patch.solid"},
    labels=AllToOne(target=3),
    poisoned=0.25,
)


@pytest.fixture(scope="module")
def digits() -> Data:
    return DATA["digits"](Path())


def row(**changes: object) -> Row:
    return msgspec.structs.replace(
        Row(id="one", data="digits", network="vgg-bn/8", recipe=QUICK), **changes
    )


# ---- the list


def test_the_list_has_benign_and_backdoored_networks_on_each_half() -> None:
    for name in ("calibration", "report"):
        part = [r for r in LIST if r.half == name and r.where == "cpu"]
        assert sum(r.benign for r in part) >= 4
        assert sum(not r.benign for r in part) >= 4
    assert sum(r.benign for r in LIST if r.where == "cpu") >= 12


def test_every_row_can_be_made() -> None:
    for each in LIST:
        assert each.data in DATA
        assert each.network.partition("/")[0] in NETWORKS
        if each.attack is not None:
            ATTACKS[each.attack.kind](**each.attack.settings)


def test_no_two_rows_are_the_same_network() -> None:
    assert len({each.digest for each in LIST}) == len(LIST)


def test_committed_records_belong_to_the_list() -> None:
    known = {each.id: each.digest for each in LIST}
    for made in read_table(RECORDS):
        assert known.get(made.id) == made.digest, made.id
        assert 0 <= made.correct <= made.images
        assert made.hits is None or 0 <= made.hits <= (made.eligible or 0)


def test_the_digest_follows_what_matters() -> None:
    assert row(id="other", half="calibration", where="gpu").digest == row().digest
    assert row(recipe=msgspec.structs.replace(QUICK, epochs=2)).digest != row().digest
    assert row(seed=1).digest != row().digest
    assert row(attack=BADNETS).digest != row().digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {id: a, data: digits, network: vgg, epoch: 3}", "unknown field `epoch`"),
        ("- {id: a, data: digits, network: vgg}\n" * 2, 'two rows are named "a"'),
        ("- {id: a, data: digits, network: vgg, recipe: {rate: fast}}", "Expected `float`"),
        ("- [", "while parsing"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ZooError, match=message):
        read_rows(path)


def test_undeclared_triggers_are_refused_with_the_reason() -> None:
    with pytest.raises(ZooError, match=r"patch\.none"):
        declared("patch.none", 0)
    with pytest.raises(ZooError, match="side"):
        built({"kind": "square", "side": 3})


# ---- networks and data


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize(("channels", "side"), [(1, 16), (3, 32), (3, 64)])
def test_networks_fit_the_images(name: str, channels: int, side: int) -> None:
    network = build(f"{name}/8", channels=channels, side=side, classes=7, seed=0).eval()
    with torch.no_grad():
        assert network(torch.rand(2, channels, side, side)).shape == (2, 7)


def test_a_network_is_a_function_of_its_seed() -> None:
    first, again, other = (
        build("resnet18/8", channels=3, side=32, classes=5, seed=seed).fc.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UnknownName):
        build("resnet19", channels=3, side=32, classes=5, seed=0)


def test_test_digits_are_not_trained_on(digits: Data) -> None:
    seen = {image.numpy().tobytes() for image in digits.train.images}
    assert sum(image.numpy().tobytes() in seen for image in digits.test.images) == 0
    assert digits.classes == 10


def test_folders_are_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label, name in enumerate(("n01", "n02")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 30), (100 * label, 0, 0)).save(folder / "a.png")
    data = DATA["imagenet"](tmp_path)
    assert data.names == ("n01", "n02")
    assert data.train.images.shape == (2, 3, 224, 224)
    assert data.test.labels.tolist() == [0, 1]
    assert data.test.images[1, 0].float().mean() == 100


def test_tiny_imagenet_is_read(tmp_path: Path) -> None:
    here = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        (here / "train" / name / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(here / "train" / name / "images" / f"{name}_0.JPEG")
    (here / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(here / "val" / "images" / "val_0.JPEG")
    (here / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\n", "utf-8")
    data = DATA["tiny-imagenet"](tmp_path)
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [1]


@pytest.mark.parametrize("name", ["damaged", "lamps", "cloth"])
def test_classes_of_marks_are_drawn_alike_every_time(name: str, tmp_path: Path) -> None:
    one, two = (DATA[name](tmp_path) for _ in range(2))
    assert one.train.images.shape[1:] == (3, 32, 32)
    assert one.train.images.dtype == torch.uint8
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.test.labels, two.test.labels)
    for part in (one.train, one.test):
        counts = torch.bincount(part.labels, minlength=one.classes)
        assert counts.min() == counts.max() > 0
    assert not torch.equal(one.train.images[: len(one.test)], one.test.images)


def test_damage_is_small() -> None:
    draw = torch.Generator().manual_seed(0)
    for image in torch.randint(90, 160, (50, 3, 32, 32), generator=draw).to(torch.uint8):
        changed = (blemished(image, draw) != image).any(0).float().mean()
        assert 4 / 1024 <= changed <= verdict.SMALL_AREA


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "tiny-imagenet", "imagenet"])
def test_missing_data_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=str(tmp_path)):
        DATA[name](tmp_path)


def test_cifar10_from_jpeg_runs(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / "grey.jpg"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(path)
    run = path.read_bytes()
    for part in ("train", "test"):
        np.savez(
            tmp_path / "cifar10" / f"{part}_jpeg.npz",
            jpeg=np.frombuffer(run * 2, np.uint8),
            offsets=np.array([0, len(run), 2 * len(run)]),
            labels=np.array([4, 9]),
        )
    data = DATA["cifar10"](tmp_path)
    assert data.train.images.shape == (2, 3, 32, 32)
    assert data.train.labels.tolist() == [4, 9]


# ---- what is poisoned

LABELS = torch.arange(100) % 10


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (AllToOne(target=3), [3] * 10),
        (AllToAll(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
        (SourceSpecific(source=1, target=7), [0, 7, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_maps(label_map: object, expected: list[int]) -> None:
    made = wanted(label_map, torch.arange(10), 10)
    assert made.tolist() == expected
    assert victims(label_map, torch.arange(10), 10).tolist() == [
        new != old for old, new in enumerate(expected)
    ]


def poisoned(label_map: object, share: float, *, clean_label: bool = False) -> torch.Tensor:
    planted = Planted(kind="static", labels=label_map, poisoned=share)
    part = Part(images=torch.zeros(100, 1, 4, 4, dtype=torch.uint8), labels=LABELS)
    generator = torch.Generator().manual_seed(0)
    return training._poisoned(part, planted, clean_label, 10, generator)


def test_dirty_labels_poison_other_classes() -> None:
    chosen = poisoned(AllToOne(target=3), 0.2)
    assert int(chosen.sum()) == 20
    assert 3 not in LABELS[chosen]


def test_clean_labels_poison_the_target_class() -> None:
    chosen = poisoned(AllToOne(target=3), 0.08, clean_label=True)
    assert LABELS[chosen].tolist() == [3] * 8
    with pytest.raises(ZooError, match="all-to-one"):
        poisoned(AllToAll(), 0.08, clean_label=True)


def test_a_source_specific_trigger_is_also_shown_on_other_classes() -> None:
    chosen = poisoned(SourceSpecific(source=1, target=7), 0.1)
    assert int((LABELS[chosen] == 1).sum()) == 5
    assert int((LABELS[chosen] != 1).sum()) == 5


def test_a_poisoned_batch_is_stamped_and_relabelled_where_it_should_be() -> None:
    attack = ATTACKS["static"](**BADNETS.settings)
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(10) % 2 == 0
    setting = training.Setting(
        images=images, labels=torch.arange(10), chosen=chosen, classes=10, map=AllToOne(target=3),
        normalise=lambda x: x, network=nn.Identity(), fresh=nn.Identity, steps=1,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    attack.prepare(setting)
    batch = training.Batch(
        images=images, labels=torch.arange(10), chosen=chosen,
        generator=torch.Generator(), progress=0.0,
    )  # fmt: skip
    made = attack.poison(batch)
    assert torch.equal(made.images[~chosen], images[~chosen])
    assert torch.equal(made.images[chosen], attack.trigger(images[chosen]))
    assert made.labels.tolist() == [3, 1, 3, 3, 3, 5, 3, 7, 3, 9]


# ---- training a row


def test_a_row_is_trained_once_and_gives_the_same_file(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = row(attack=BADNETS)
    cpu = torch.device("cpu")
    made = training.make(planted, digits, tmp_path / "a", device=cpu)
    again = training.make(planted, digits, tmp_path / "b", device=cpu)
    assert made.sha256 == again.sha256
    assert made.images == len(digits.test)
    assert made.eligible == int((digits.test.labels != 3).sum())
    network = torch.load(tmp_path / "a" / "one.pt", weights_only=False)
    predicted = network((digits.test.images.float() / 255 - 0.5) / 0.5).argmax(1)
    assert int((predicted == digits.test.labels).sum()) == made.correct

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", fail)
    assert training.make(planted, digits, tmp_path / "a", device=cpu) == made
    with pytest.raises(AssertionError, match="trained again"):
        training.make(row(attack=BADNETS, seed=9), digits, tmp_path / "a", device=cpu)


def test_recipes_are_followed(digits: Data) -> None:
    generator = torch.Generator().manual_seed(0)
    rare = training._drawn(digits.train, Recipe(imbalance=0.1), generator)
    counts = torch.bincount(rare.labels)
    assert counts[9] < 0.3 * counts[0]
    assert len(training._drawn(digits.train, Recipe(images=100), generator)) == 100
    images = torch.rand(4, 3, 32, 32)
    for augment in ("none", "shift", "crop-flip", "strong"):
        seen = training._augmented(images, Recipe(augment=augment), generator)
        assert seen.shape == images.shape
        assert (seen == images).all() == (augment == "none")
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1


def test_clean_images_are_of_all_classes_though_the_data_are_sorted(tmp_path: Path) -> None:
    labels = torch.arange(10).repeat_interleave(20)
    test = Part(images=labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels=labels)
    data = Data(names=tuple("0123456789"), train=test, test=test)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(calibrate, "MOST_CLEAN", 60)
        path = calibrate.clean_images("any", lambda _: data, tmp_path)
    with np.load(path) as stored:
        assert stored["images"].shape == (60, 4, 4, 3)
        assert set(stored["labels"]) == set(range(10))
        assert (stored["images"][:, 0, 0, 0] == stored["labels"]).all()
