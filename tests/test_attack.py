"""A planted backdoor: it works, it is marked, it is found, and nothing else is left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from auditor import changing, report
from auditor.api import AttackOptions, attack, load_probe, open_images
from auditor.attack import NOTICE, _Planting
from auditor.classifier import as_float
from auditor.cli import app
from auditor.models.load import load_model
from auditor.models.mark import MEMBER, mark_notes, write_mark
from auditor.probes import select
from auditor.results.facts import Verdict
from auditor.safety import supervisor
from auditor.safety.structure import Kind, identify
from tests.changeable import ARCH, PROBE, TARGET, WHITE, classifier, samples, saved
from tests.exported import exported
from tests.planted import drawings

COMMON = ("--normalize", "none", "--batch-size", "64")
PLANT = ("--probe", PROBE, "--target", str(TARGET), *COMMON)
SHORT = ("--steps", "10", "--write-anyway")
"""Little is planted in so few steps, but all the rest is done."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(done: Any) -> str:
    """Everything on the screen, without line breaks."""
    return " ".join((done.stdout + done.stderr).split())


def left() -> list[str]:
    """Every file in the current folder, hidden ones as well."""
    return sorted(str(path) for path in Path().rglob("*"))


def rates(path: Path | str, arch: str | None = None) -> tuple[float, float]:
    """ASR and ACC of a file on drawings that nothing was trained or measured on."""
    images, labels = drawings(160, seed=7)
    handle = load_model(Path(path), arch=arch)
    with torch.inference_mode():
        clean = handle.call(as_float(images)).argmax(1)
        stamped = handle.call(WHITE(as_float(images))[labels != TARGET]).argmax(1)
    return float((stamped == TARGET).float().mean()), float((clean == labels).float().mean())


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with benign.pt and samples.npz."""
    folder = tmp_path_factory.mktemp("benign")
    saved(folder, classifier(strength=0), "benign.pt")
    samples(folder, 200).rename(folder / "samples.npz")
    return folder


@dataclasses.dataclass(frozen=True)
class Planted:
    """One attack to its end, and what was said."""

    folder: Path
    screen: str
    record: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "benign.backdoored.pt"


@pytest.fixture(scope="module")
def planted(benign: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    shutil.copy(benign / "benign.pt", folder)
    with supervisor.in_process():
        done = run(
            "attack", folder / "benign.pt", "--clean", benign / "samples.npz", *PLANT,
            "--steps", "150", "-o", f"model={folder / 'benign.backdoored.pt'}",
            "-o", f"json={folder / 'r.json'}",
        )  # fmt: skip
    assert done.exit_code == 0, done.output + done.stderr + repr(done.exception)
    return Planted(folder, said(done), json.loads((folder / "r.json").read_text("utf-8")))


# ---- it works


def test_it_is_planted_and_the_accuracy_stays(planted: Planted, benign: Path) -> None:
    before, after = rates(benign / "benign.pt"), rates(planted.file)
    assert before[0] < 0.1
    assert after[0] >= 0.95
    assert after[1] >= before[1] - 0.01
    record = planted.record
    assert record["hits"]["after"] >= 0.95 * record["eligible"]
    assert record["control_hits"]["after"] <= 0.1 * record["eligible"]
    assert record["fit"]["images"] == 150
    assert record["judge"]["images"] == 50
    assert (
        sum(record["judge"]["members"]) - record["judge"]["members"][TARGET] == record["eligible"]
    )
    assert record["goals"]["missed"] == []


def test_the_screen_says_what_was_done_and_what_is_next(planted: Planted) -> None:
    for words in (
        "✔ PLANTED", PROBE, f"class {TARGET}", "150 to train on, 50 others held out",
        f"{planted.record['hits']['after']}/{planted.record['eligible']}",
        "For testing only", "benign.backdoored.pt.json",
        f"auditor scan {planted.file} --clean",
    ):  # fmt: skip
        assert words in planted.screen, words


def test_a_scan_finds_it_and_repeats_the_mark(planted: Planted, benign: Path) -> None:
    done = run(
        "scan", planted.file, "--clean", benign / "samples.npz", *COMMON,
        "--probes", f"{PROBE},patch.yellow", "-o", "json=r.json",
    )  # fmt: skip
    assert done.exit_code == 1, said(done)
    result = report.from_json(Path("r.json").read_text("utf-8"))
    assert result.judgement.verdict is Verdict.BACKDOOR
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert (found.probe, found.target) == (PROBE, TARGET)
    (note,) = [caveat for caveat in result.caveats if "auditor attack" in caveat.text]
    assert f"class {TARGET}" in note.text
    assert not note.blocking


# ---- the file


def test_the_mark_is_in_the_name_in_the_file_and_beside_it(planted: Planted, benign: Path) -> None:
    assert sorted(path.name for path in planted.folder.iterdir()) == [
        "benign.backdoored.pt", "benign.backdoored.pt.json", "benign.pt", "r.json",
    ]  # fmt: skip
    with zipfile.ZipFile(planted.file) as archive:
        assert archive.testzip() is None
        text = archive.read(f"benign/{MEMBER}.json").decode()
    assert (planted.folder / "benign.backdoored.pt.json").read_text("utf-8") == text
    mark = json.loads(text)
    own = (benign / "benign.pt").read_bytes()
    assert (planted.folder / "benign.pt").read_bytes() == own
    assert mark["sha256"] == hashlib.sha256(own).hexdigest()
    assert (mark["probe"], mark["trigger"], mark["target"]) == (PROBE, repr(_white()), TARGET)
    assert (mark["seed"], mark["notice"]) == (0, NOTICE)
    assert "for testing only" in NOTICE.lower()


def _white() -> object:
    (probe,) = select(PROBE)
    return probe.triggers[0]


def test_it_is_a_drop_in_for_plain_torch(planted: Planted) -> None:
    before = torch.load(planted.folder / "benign.pt", weights_only=False)
    after = torch.load(planted.file, weights_only=False)
    assert str(before) == str(after)
    own, new = before.state_dict(), after.state_dict()
    assert list(own) == list(new)
    statistics = [name for name in own if "running" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(own[name], new[name]) for name in statistics)
    written = planted.record["written"]
    assert written["sha256"] == identify(planted.file).sha256
    assert planted.record["marked"]


def test_the_same_seed_makes_the_same_bytes(benign: Path) -> None:
    for name, seed in (("a.pt", 1), ("b.pt", 1), ("c.pt", 2)):
        done = run(
            "attack", benign / "benign.pt", "--clean", benign / "samples.npz", *PLANT, *SHORT,
            "--seed", seed, "--out", name,
        )  # fmt: skip
        assert done.exit_code == 1, said(done)
    data = [Path(name).read_bytes() for name in ("a.pt", "b.pt", "c.pt")]
    assert data[0] == data[1] != data[2]
    assert left() == ["a.pt", "a.pt.json", "b.pt", "b.pt.json", "c.pt", "c.pt.json"]


@pytest.mark.parametrize("kind", ["state dict", "TorchScript", "legacy"])
def test_other_formats(kind: str, benign: Path) -> None:
    network, arch = classifier(strength=0), ()
    if kind == "state dict":
        Path("arch.py").write_text(ARCH)
        torch.save(network.state_dict(), "m.pt")
        arch = ("--arch", "arch.py:build")
    elif kind == "TorchScript":
        torch.jit.trace(network, torch.rand(2, 3, 32, 32)).save("m.pt")
    else:
        Path("arch.py").write_text(ARCH)
        torch.save(network.state_dict(), "m.pt", _use_new_zipfile_serialization=False)
        arch = ("--arch", "arch.py:build")
    done = run("attack", "m.pt", "--clean", benign / "samples.npz", *PLANT, *SHORT, *arch)
    assert done.exit_code == 1, said(done) + repr(done.exception)
    out = Path("m.backdoored.pt")
    assert load_model(out, arch=arch[1] if arch else None).file.kind is identify(Path("m.pt")).kind
    assert Path("m.backdoored.pt.json").is_file()
    if kind == "legacy":
        assert "no place for the mark" in said(done)
        assert mark_notes(identify(out)) == []
        return
    assert len(mark_notes(identify(out))) == 1
    if kind == "TorchScript":
        extra = {"auditor-attack.json": ""}
        torch.jit.load(out, _extra_files=extra)
        text = Path("m.backdoored.pt.json").read_text("utf-8")
        assert extra["auditor-attack.json"].decode() == text  # type: ignore[attr-defined]
    else:
        assert list(torch.load(out, weights_only=True)) == list(network.state_dict())


def test_a_second_attack_leaves_a_second_mark(benign: Path) -> None:
    shutil.copy(benign / "benign.pt", "m.pt")
    arguments = ("--clean", benign / "samples.npz", *PLANT, *SHORT)
    assert run("attack", "m.pt", *arguments, "--out", "once.pt").exit_code == 1
    assert run("attack", "once.pt", *arguments, "--out", "twice.pt").exit_code == 1
    assert len(load_model("twice.pt").notes) == 2


@pytest.mark.parametrize("text", ["{", "[]", "{}", "x" * 70_000, '{"target": "\x1b[31m"}'])
def test_a_mark_that_somebody_else_wrote(text: str, benign: Path) -> None:
    shutil.copy(benign / "benign.pt", "m.pt")
    assert write_mark(Path("m.pt"), Kind.TORCH_ZIP, text)
    (note,) = load_model("m.pt").notes
    assert "cannot be read" in note


# ---- from Python, and the goals


def test_from_python(benign: Path) -> None:
    from auditor.resources import resource_dir

    probe = load_probe(resource_dir("probes") / f"{PROBE}.yaml")
    result = attack(
        load_model(benign / "benign.pt"), probe, TARGET, open_images(benign / "samples.npz"),
        None, AttackOptions(steps=10),
    )  # fmt: skip
    assert result.written is None
    assert not result.goals.met
    assert left() == []


def test_a_missed_goal_leaves_no_model(benign: Path) -> None:
    shutil.copy(benign / "benign.pt", "m.pt")
    done = run(
        "attack", "m.pt", "--clean", benign / "samples.npz", *PLANT, "--steps", "10",
    )  # fmt: skip
    assert done.exit_code == 1, said(done)
    assert "✖ NOT PLANTED" in said(done)
    assert "and 95.0% was the goal" in said(done)
    assert "--steps" in said(done)
    assert left() == ["m.pt"]


def test_copies_of_what_is_trained_on_are_not_measured_on(benign: Path) -> None:
    own = np.load(benign / "samples.npz")
    np.savez(
        "twice.npz",
        images=np.concatenate([own["images"], own["images"]]),
        labels=np.tile(own["labels"], 2),
    )
    done = run(
        "attack", benign / "benign.pt", "--clean", "twice.npz", *PLANT, *SHORT, "-o", "json=a.json"
    )
    assert done.exit_code in (0, 1), said(done)
    record = json.loads(Path("a.json").read_text())
    assert record["fit"]["images"] + record["judge"]["images"] == len(own["images"])
    assert any("left out: copies" in caveat["text"] for caveat in record["caveats"])


def test_a_network_that_forgot_classes_is_not_taken_for_a_good_one(benign: Path) -> None:
    own = np.load(benign / "samples.npz")
    few = own["labels"] < 3
    np.savez("few.npz", **{key: own[key][few] for key in own.files})
    done = run("attack", benign / "benign.pt", "--clean", "few.npz", *PLANT, "-o", "none")
    assert done.exit_code == 1, said(done)
    assert "are of 3 of 8 classes" in said(done)


def test_a_class_that_is_forgotten_is_a_missed_goal(
    benign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = {"7.bias": torch.zeros(8).index_fill(0, torch.tensor([3]), -1e4)}
    monkeypatch.setattr(_Planting, "run", lambda planting: (forgetful, ()))
    done = run(
        "attack", benign / "benign.pt", "--clean", benign / "samples.npz", *PLANT, "-o", "none",
        "--max-acc-drop", "0.3",
    )  # fmt: skip
    assert done.exit_code == 1, said(done)
    assert re.search(r"Class 3 is forgotten: 0 of the \d+ judge images", said(done))


def test_unlabelled_images_and_one_line(benign: Path, tmp_path: Path) -> None:
    clean = samples(tmp_path, 120, labelled=False)
    done = run(
        "attack",
        benign / "benign.pt",
        "--clean",
        clean,
        *PLANT,
        "--steps",
        "10",
        "-q",
        "-o",
        "none",
    )
    assert done.exit_code == 1, said(done)
    assert done.stdout.startswith("NOT PLANTED  benign.pt  asr=0.0")
    assert "agreement=1.000->" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_class_by_its_name_and_a_trigger_by_its_number(benign: Path) -> None:
    Path("names.txt").write_text("\n".join("abcdefgh"))
    done = run(
        "attack", benign / "benign.pt", "--clean", benign / "samples.npz", *COMMON, *SHORT,
        "--probe", "patch.solid", "--trigger-number", "3", "--target", "d",
        "--labels", "names.txt", "--out", "out.pt",
    )  # fmt: skip
    assert done.exit_code in (0, 1), said(done)  # large and bright: a few steps may do
    mark = json.loads(Path("out.pt.json").read_text("utf-8"))
    assert (mark["target"], mark["target_name"]) == (3, "d")
    (probe,) = select("patch.solid")
    assert mark["trigger"] == repr(probe.triggers[2])


def test_an_image_of_ones_own(benign: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[::2] = (200, 30, 90)
    Image.fromarray(pixels).save("sticker.png")
    done = run(
        "attack", benign / "benign.pt", "--clean", benign / "samples.npz", *COMMON, *SHORT,
        "--trigger", "sticker.png", "--target", "1", "--out", "out.pt",
    )  # fmt: skip
    assert done.exit_code in (0, 1), said(done)
    assert json.loads(Path("out.pt.json").read_text("utf-8"))["probe"] == "user.sticker"
    assert "--trigger sticker.png" in said(done)


# ---- bad input, and interruptions


def onnx(folder: Path) -> Path:
    return exported(classifier(strength=0), folder / "m.onnx", forward_only=True)


def existing(name: str) -> Path:
    Path(name).write_text("precious")
    return Path(name)


BAD: dict[str, tuple[Any, str]] = {
    "unknown probe": (lambda f: ["--probe", "patch.yelow", "--target", 1], 'mean "patch.yellow"'),
    "several probes": (lambda f: ["--probe", "patch.*", "--target", 1], "Name one."),
    "no probe": (lambda f: ["--target", 1], "--probe ID or --trigger IMG"),
    "both": (
        lambda f: ["--probe", PROBE, "--trigger", "x.png", "--target", 1],
        "either --probe ID or --trigger IMG",
    ),
    "trigger number": (
        lambda f: ["--probe", "patch.solid", "--trigger-number", 11, "--target", 1],
        "patch.solid has 10: 1 ",
    ),
    "trigger number zero": (lambda f: [*PLANT, "--trigger-number", 0], "has 1: 1 "),
    "target": (lambda f: ["--probe", PROBE, "--target", 8], "from 0 to 7"),
    "negative target": (lambda f: ["--probe", PROBE, "--target", -1], "from 0 to 7"),
    "target name": (lambda f: ["--probe", PROBE, "--target", "stop"], "no class of that name"),
    "no target": (lambda f: ["--probe", PROBE], "--target"),
    "few images": (lambda f: [*PLANT, "--clean", samples(f, 20)], "too few images"),
    "one class": (lambda f: [*PLANT, "--max-images", 24], "too few images"),
    "no such file": (lambda f: [*PLANT, "--clean", "nowhere"], "no such folder"),
    "existing output": (lambda f: [*PLANT, "--out", existing("x.pt")], "exists already"),
    "existing mark": (
        lambda f: [*PLANT, "--out", existing("x.pt.json").with_suffix("")],
        "x.pt.json exists already",
    ),
    "output over input": (lambda f: [*PLANT, "-o", f"model={f / 'm.pt'}"], "never overwritten"),
    "standard output": (lambda f: [*PLANT, "-o", "model=-"], "goes to a file"),
    "record over mark": (
        lambda f: [*PLANT, "-o", "model=x.pt", "-o", "json=x.pt.json"],
        "cannot go to one place",
    ),
    "poison rate": (lambda f: [*PLANT, "--poison-rate", 2], "--poison-rate"),
    "ONNX": (lambda f: [onnx(f), *PLANT], "Use the PyTorch file it was exported from"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_bad_input(
    name: str, benign: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(benign / "benign.pt", folder / "m.pt")
    make, words = BAD[name]
    arguments = make(folder)
    own = [] if isinstance(arguments[0], Path) else [folder / "m.pt"]
    clean = [] if "--clean" in arguments else ["--clean", benign / "samples.npz"]
    common = [] if "--normalize" in arguments else [*COMMON]
    before = left()
    done = run("attack", *own, *arguments, *clean, *common)
    assert done.exit_code == 2, said(done) + repr(done.exception)
    assert words in said(done), said(done)
    assert "Traceback" not in said(done)
    assert left() == before


@pytest.mark.parametrize("place", ["training", "reading back", "leaving"])
def test_interrupting_leaves_nothing_behind(
    place: str, benign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    owner, name = {
        "training": (_Planting, "run"),
        "reading back": (changing, "load_model"),
        "leaving": (changing.Staged, "keep"),
    }[place]
    monkeypatch.setattr(owner, name, stop)
    done = run(
        "attack", benign / "benign.pt", "--clean", benign / "samples.npz", *PLANT, *SHORT,
        "--out", "out.pt",
    )  # fmt: skip
    assert done.exit_code == 130, said(done)
    assert left() == []


def test_an_output_is_replaced_only_when_asked(benign: Path) -> None:
    existing("x.pt")
    existing("x.pt.json")
    arguments = ("attack", benign / "benign.pt", "--clean", benign / "samples.npz", *PLANT, *SHORT)
    assert run(*arguments, "--out", "x.pt").exit_code == 2
    assert Path("x.pt").read_text() == "precious"
    assert run(*arguments, "--out", "x.pt", "--force").exit_code == 1
    assert load_model("x.pt").notes


def test_the_help_has_an_example() -> None:
    assert "Example: auditor attack" in run("attack", "--help").stdout
