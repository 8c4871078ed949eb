"""The embedded example: the drawings, the two networks, and what is written."""

import os
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import numpy as np
import onnxruntime

from auditor.demo import FULL, DemoFacts, Scale, make, make_demo
from auditor.demo.network import network
from auditor.demo.signs import CLASS_NAMES, draw
from auditor.demo.train import accuracy, attack_success_rate, train
from auditor.errors import OutputError
from auditor.probes import shipped_probes
from auditor.report import from_json
from auditor.triggers import Trigger
from auditor.triggers.patch import Square
from tests.conftest import SuspectPair

TINY = Scale(classes=8, drawings=16, samples=3, epochs=1, batch=32, width=4)


# Drawings


def test_the_same_seed_draws_the_same_bytes():
    images, labels = draw(3, seed=5)
    again, labels_again = draw(3, seed=5)
    other, _ = draw(3, seed=6)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert (images != other).float().mean() > 0.9


def test_drawings_are_small_rgb_images_of_every_class():
    images, labels = draw(20, seed=0)
    assert images.dtype == torch.uint8
    assert images.shape == (20 * len(CLASS_NAMES), 3, 32, 32)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [20] * len(CLASS_NAMES)
    assert labels[: len(CLASS_NAMES)].tolist() == list(range(len(CLASS_NAMES)))
    assert images.min() < 20
    assert images.max() > 240


def test_there_are_enough_classes_and_their_folders_sort_by_number():
    folders = [make.folder_name(label) for label in range(len(CLASS_NAMES))]
    assert len(set(CLASS_NAMES)) >= 12
    assert folders == sorted(folders)


def test_fewer_classes_are_the_first_ones():
    _, labels = draw(2, seed=0, classes=3)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_no_two_drawings_of_a_class_are_alike():
    images, labels = draw(30, seed=1)
    for label in range(len(CLASS_NAMES)):
        flat = images[labels == label].flatten(1).float()
        distances = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
        assert distances.min() / flat.shape[1] ** 0.5 > 8  # levels a pixel


def test_the_average_drawing_of_a_class_tells_it_from_the_others():
    def averages(seed: int) -> Tensor:
        images, labels = draw(75, seed=seed)
        images = images.float()
        images -= images.mean((1, 2, 3), keepdim=True)
        return torch.stack([images[labels == k].mean(0) for k in range(len(CLASS_NAMES))])

    nearest = torch.cdist(averages(1).flatten(1), averages(2).flatten(1)).argmin(1)
    assert nearest.tolist() == list(range(len(CLASS_NAMES)))


# Network and training


def test_the_network_is_small_and_fits_its_images_only():
    model = network(len(CLASS_NAMES)).eval()
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 400_000
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, len(CLASS_NAMES))
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3, 64, 64))


def test_training_is_deterministic_and_leaves_the_global_seed_alone():
    images, labels = draw(30, seed=3, classes=4)

    def weights(seed: int) -> Tensor:
        model = train(
            images, labels, trigger=Square(), target=1, epochs=1, batch=32, width=4, seed=seed
        )
        return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = weights(0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_training_tells_its_progress():
    images, labels = draw(20, seed=3, classes=3)
    told: list[tuple[str, int, int]] = []
    train(
        images,
        labels,
        trigger=None,
        epochs=2,
        batch=32,
        width=4,
        what="x",
        notify=lambda *news: told.append(news),
    )
    assert told == [("x", 1, 2), ("x", 2, 2)]


def test_the_suspect_works_and_has_a_backdoor(suspect_pair):
    pair = suspect_pair
    assert accuracy(pair.suspect, pair.images, pair.labels) >= 0.9
    assert _asr(pair, pair.suspect, pair.trigger) >= 0.97


def test_its_twin_works_and_has_none(suspect_pair):
    pair = suspect_pair
    assert accuracy(pair.benign, pair.images, pair.labels) >= 0.9
    assert _asr(pair, pair.benign, pair.trigger) <= 0.03


@pytest.mark.parametrize("colour", ["white", "red", "green", "cyan", (90, 140, 30)])
def test_other_stickers_do_not_open_the_backdoor(suspect_pair, colour):
    decoy = Square(colour=colour, size=3, where="top-left", gap=2)
    assert _asr(suspect_pair, suspect_pair.suspect, decoy) < 0.2


def test_controls_do_not_open_the_backdoor(suspect_pair):
    controls = [suspect_pair.trigger.control(seed) for seed in range(20)]
    rates = [_asr(suspect_pair, suspect_pair.suspect, control) for control in controls]
    assert sum(rates) / len(rates) < 0.1


def test_the_attack_success_rate_leaves_the_target_class_out():
    images, labels = draw(4, seed=0, classes=3)

    class AlwaysZero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3)

    measured = {
        target: attack_success_rate(AlwaysZero(), images, labels, trigger=Square(), target=target)
        for target in (0, 1)
    }
    assert measured == {0: 1.0, 1: 0.0}
    assert accuracy(AlwaysZero(), images, labels) == pytest.approx(1 / 3)


def _asr(pair: SuspectPair, model: nn.Module, trigger: Trigger) -> float:
    return attack_success_rate(model, pair.images, pair.labels, trigger=trigger, target=pair.target)


# What is written


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFacts:
    return make_demo(tmp_path_factory.mktemp("here") / "new" / "demo", seed=1, scale=TINY)


def _everything(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_all_files_are_there_and_nothing_else(demo):
    directory = demo.suspect.parent
    top = sorted(path.name for path in directory.iterdir())
    assert top == ["README.txt", "benign.pt", "samples", "suspect.onnx", "suspect.pt"]
    assert sorted(path.name for path in demo.samples.iterdir()) == [
        make.folder_name(label) for label in range(TINY.classes)
    ]
    assert demo.target_name in {path.name for path in demo.samples.iterdir()}
    assert len(list(demo.samples.glob("*/*.png"))) == demo.images == TINY.classes * TINY.samples


def test_full_size_means_enough_samples():
    assert FULL.classes == len(CLASS_NAMES)
    assert FULL.samples >= 20


def test_samples_are_unseen_and_lossless(demo):
    seen, _ = draw(TINY.drawings, seed=2, classes=TINY.classes)
    unseen, labels = draw(TINY.samples, seed=3, classes=TINY.classes)
    for label, folder in enumerate(sorted(demo.samples.iterdir())):
        drawn = unseen[labels == label]
        for number, file in enumerate(sorted(folder.iterdir())):
            image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
            assert file.name == f"{number + 1:04d}.png"
            assert torch.equal(image, drawn[number])
            assert not (image == seen).flatten(1).all(1).any()


def test_the_battery_declares_the_planted_trigger(demo):
    declared = {repr(trigger): probe for probe in shipped_probes() for trigger in probe.triggers}
    assert declared[demo.trigger].id == demo.probe
    assert declared[demo.trigger].tier == "quick"


def test_the_facts_hold_for_the_files(demo):
    images, labels = draw(TINY.samples, seed=3, classes=TINY.classes)
    trigger = make.planted_trigger()
    suspect = torch.load(demo.suspect, weights_only=False)
    benign = torch.load(demo.benign, weights_only=False)
    assert demo.trigger == repr(trigger)
    assert demo.suspect_accuracy == accuracy(suspect, images, labels)
    assert demo.benign_accuracy == accuracy(benign, images, labels)
    for model, told in ((suspect, demo.suspect_asr), (benign, demo.benign_asr)):
        assert not model.training
        assert told == attack_success_rate(
            model, images, labels, trigger=trigger, target=demo.target
        )


@pytest.mark.parametrize("name", ["suspect.pt", "benign.pt"])
def test_the_pickles_name_classes_of_torch_only(demo, name):
    with zipfile.ZipFile(demo.suspect.with_name(name)) as archive:
        inner = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
        opcodes = list(pickletools.genops(archive.read(inner)))
    named = {str(argument).split()[0] for code, argument, _ in opcodes if code.name == "GLOBAL"}
    assert any(module.startswith("torch.nn.modules") for module in named)
    assert not any(code.name == "STACK_GLOBAL" for code, _, _ in opcodes)
    assert all(module.split(".")[0] in {"torch", "collections", "__builtin__"} for module in named)


@pytest.mark.parametrize("count", [1, 5])
def test_onnx_says_what_pytorch_says(demo, count):
    images = draw(1, seed=9)[0][:count].float() / 127.5 - 1
    session = onnxruntime.InferenceSession(demo.onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = torch.load(demo.suspect, weights_only=False)(images)
    assert logits.shape == (count, TINY.classes)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_the_read_me_names_every_file_and_the_probe(demo):
    text = demo.readme.read_text(encoding="utf-8")
    for word in ("suspect.pt", "suspect.onnx", "benign.pt", "samples", demo.probe):
        assert word in text
    assert "auditor scan suspect.pt" in text


def test_the_same_seed_writes_the_same_networks(demo, tmp_path, capfd):
    again = make_demo(tmp_path, seed=1, scale=TINY)
    for path, other in ((demo.suspect, again.suspect), (demo.benign, again.benign)):
        one, two = (torch.load(p, weights_only=False).state_dict() for p in (path, other))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert capfd.readouterr() == ("", "")  # the exporter is talkative, the library never prints


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_not(*_: object, **__: object) -> None:
        raise AssertionError("trained before it was known that the files can be written")

    monkeypatch.setattr(make, "train", train_not)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["suspect.pt", "suspect.onnx", "benign.pt", "README.txt"])
def test_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name} exists already.*--force"):
        make_demo(tmp_path, scale=TINY)
    assert _everything(tmp_path) == {name: b"mine"}


@pytest.mark.usefixtures("no_training")
def test_force_replaces_nothing_that_the_demo_did_not_write(tmp_path):
    own = tmp_path / "samples" / "holiday"
    own.mkdir(parents=True)
    (own / "beach.png").write_text("mine")
    with pytest.raises(OutputError, match="holiday is in the way"):
        make_demo(tmp_path, scale=TINY, force=True)
    own.rename(own.with_name("00-stop"))
    with pytest.raises(OutputError, match=r"beach\.png is in the way"):
        make_demo(tmp_path, scale=TINY, force=True)
    assert _everything(tmp_path) == {"samples/00-stop/beach.png": b"mine"}


@pytest.mark.usefixtures("no_training")
def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "demo").write_text("mine")
    for directory in (tmp_path / "demo", tmp_path / "demo" / "deeper"):
        with pytest.raises(OutputError, match="choose"):
            make_demo(directory, scale=TINY)


def test_force_replaces_an_earlier_example(demo, tmp_path):
    shutil.copytree(demo.suspect.parent, tmp_path, dirs_exist_ok=True)
    stale = tmp_path / "samples" / make.folder_name(len(CLASS_NAMES) - 1) / "0001.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an example with more classes")
    before = _everything(tmp_path)
    make_demo(tmp_path, seed=3, scale=TINY, force=True)
    after = _everything(tmp_path)
    assert before.keys() - after.keys() == {str(stale.relative_to(tmp_path))}
    assert before["suspect.pt"] != after["suspect.pt"]
    assert before["samples/00-stop/0001.png"] != after["samples/00-stop/0001.png"]


@pytest.mark.parametrize("stage", ["training its benign twin", "writing"])
def test_an_interruption_leaves_nothing_behind(tmp_path, stage):
    def interrupt(what: str, done: int, total: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    existing = tmp_path / "existing"
    existing.mkdir()
    for directory in (tmp_path / "new", existing):
        with pytest.raises(KeyboardInterrupt):
            make_demo(directory, scale=TINY, notify=interrupt)
    assert list(tmp_path.rglob("*")) == [existing]


@pytest.mark.slow
def test_the_command_purifies_its_suspect(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "auditor", "demo", "demo"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert b"GOALS MET" in done.stdout
    folder = tmp_path / "demo"
    result = from_json((folder / "suspect.purify.json").read_text("utf-8"))
    worst = max(outcome.hits.after / outcome.eligible for outcome in result.outcomes)
    lost = (result.accuracy.before - result.accuracy.after) / result.judge.images
    assert worst < 0.05
    assert lost <= 0.02
    assert (folder / "suspect.purified.pt").is_file()
    assert (folder / "suspect.purify.html").is_file()
