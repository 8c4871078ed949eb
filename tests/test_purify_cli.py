"""`auditor purify` as a person runs it: files, exit codes, what is said, and what is left alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import auditor.purification.purify as purification
from auditor import changing, report
from auditor.classifier import as_float
from auditor.cli import app
from auditor.models.load import load_model
from auditor.progress import Notify
from auditor.purifiers import informed
from auditor.purifiers.base import Purified, Task
from auditor.purifiers.informed import Informed
from auditor.results.facts import Verdict
from auditor.results.purify import PurifyResult
from auditor.safety import supervisor
from auditor.verdict import rejudge_purification
from tests.changeable import ARCH, PROBE, TARGET, WHITE, classifier, samples, saved
from tests.conftest import PairFiles
from tests.exported import exported
from tests.planted import drawings

FAST = ("--probes", PROBE, "--normalize", "none", "--batch-size", "64", "--no-baseline")
JSON = ("-o", "json=r.json", "-o", "model=out.pt")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and larger steps; the tiny classifier needs no more."""
    attempts = (
        informed.Attempt(what="masks", lr=0.08, steps=12),
        informed.Attempt(what="weights", lr=2e-3, steps=30),
    )
    monkeypatch.setattr(informed, "ATTEMPTS", attempts)


@pytest.fixture
def plain(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the map of features as well, which takes longer than all the rest."""
    monkeypatch.setattr(purification, "embed", lambda *arguments, **options: None)


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with suspect.pt, benign.pt and samples.npz."""
    folder = tmp_path_factory.mktemp("small")
    saved(folder, classifier())
    saved(folder, classifier(strength=0), "benign.pt")
    samples(folder, 120).rename(folder / "samples.npz")
    return folder


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(done: Any) -> str:
    """Everything on the screen, without line breaks."""
    return " ".join((done.stdout + done.stderr).split())


def purified(*arguments: object, code: int, output: tuple[str, ...] = JSON) -> PurifyResult:
    done = run("purify", *FAST, *arguments, *output)
    assert done.exit_code == code, done.output + done.stderr + repr(done.exception)
    return record()


def record(path: str = "r.json") -> PurifyResult:
    result = report.from_json(Path(path).read_text("utf-8"))
    assert isinstance(result, PurifyResult)
    return result


def left() -> list[str]:
    """Every file in the current folder, hidden ones as well."""
    return sorted(str(path) for path in Path().rglob("*"))


def obeys(path: Path | str, arch: str | None = None) -> float:
    """How often a tiny classifier's file sends stamped images to the target."""
    images, labels = drawings(80, seed=7)
    stamped = WHITE(as_float(images))[labels != TARGET]
    with torch.inference_mode():
        predicted = load_model(Path(path), arch=arch).call(stamped).argmax(1)
    return float((predicted == TARGET).float().mean())


def accuracy(path: Path | str, arch: str | None = None) -> float:
    images, labels = drawings(80, seed=7)
    with torch.inference_mode():
        predicted = load_model(Path(path), arch=arch).call(as_float(images)).argmax(1)
    return float((predicted == labels).float().mean())


# ---- a trained network with a backdoor, purified once


@dataclasses.dataclass(frozen=True)
class Whole:
    """One purification with everything on, and where it left its files."""

    folder: Path
    result: PurifyResult
    screen: str
    digest: str
    """Of the suspect, before."""


@pytest.fixture(scope="module")
def whole(pair_files: PairFiles, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    digest = hashlib.sha256(pair_files.suspect.read_bytes()).hexdigest()
    attempts = (
        informed.Attempt(what="masks", lr=0.05, steps=16),
        informed.Attempt(what="weights", lr=2e-3, steps=40),
    )
    with pytest.MonkeyPatch.context() as patch, supervisor.in_process():
        patch.chdir(folder)
        patch.setattr(informed, "ATTEMPTS", attempts)
        done = run(
            "purify", pair_files.suspect, "--clean", pair_files.samples, "--stress",
            "--probes", "patch.yellow", "--batch-size", "64", "-o", "model=out.pt",
            "-o", "json=r.json", "-o", "html=r.html", "-o", "md=r.md",
        )  # fmt: skip
        assert done.exit_code == 0, done.output + done.stderr + repr(done.exception)
        return Whole(folder, record(), said(done), digest)


def test_a_trained_backdoor_goes_and_the_accuracy_stays(whole: Whole) -> None:
    result = whole.result
    assert result.goals.met
    assert "GOALS MET" in whole.screen
    assert result.evidence.judgement.verdict is Verdict.BACKDOOR
    assert result.after is not None
    assert result.after.judgement.verdict is not Verdict.BACKDOOR
    (outcome,) = result.outcomes
    assert (outcome.origin, outcome.scope, outcome.target) == ("found", "all-to-one", 6)
    assert outcome.hits.before > 0.9 * outcome.eligible
    assert outcome.hits.after <= 0.05 * outcome.eligible
    assert result.accuracy.before - result.accuracy.after <= 0.03 * result.judge.images
    assert rejudge_purification(result) == result.goals


def test_the_written_file_counts_what_the_result_says(
    whole: Whole, pair_files: PairFiles, suspect_pair: Any
) -> None:
    """Counted again by the file itself, in plain torch, on the judge images."""
    arrays = np.load(pair_files.samples)
    result = whole.result
    network = torch.load(whole.folder / "out.pt", weights_only=False).eval()
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(arrays["labels"])
    from auditor.images.opening import open_images
    from auditor.images.source import split

    _, judge = split(open_images(pair_files.samples), 0.4, limit=2000, seed=0)
    chosen = judge._indices
    seen, truth = as_float(images[chosen]), labels[chosen]
    assert len(chosen) == result.judge.images == 160
    with torch.inference_mode():
        right = int((network(seen * 2 - 1).argmax(1) == truth).sum())
        stamped = suspect_pair.trigger(seen) * 2 - 1
        hits = int(((network(stamped).argmax(1) == 6) & (truth != 6)).sum())
    assert right == result.accuracy.after
    assert hits == result.outcomes[0].hits.after
    assert int((truth != 6).sum()) == result.outcomes[0].eligible


def test_the_file_is_a_drop_in(whole: Whole, pair_files: PairFiles) -> None:
    before = torch.load(pair_files.suspect, weights_only=False)
    after = torch.load(whole.folder / "out.pt", weights_only=False)
    assert type(before) is type(after)
    assert str(before) == str(after)
    own, new = before.state_dict(), after.state_dict()
    assert list(own) == list(new)
    assert all((own[n].shape, own[n].dtype) == (new[n].shape, new[n].dtype) for n in own)
    changed = {name for name in own if not torch.equal(own[name], new[name])}
    masked = {f"{entry.layer}.weight" for entry in whole.result.masks}
    assert changed
    assert changed <= masked | {entry.name for entry in whole.result.tensors}
    assert hashlib.sha256(pair_files.suspect.read_bytes()).hexdigest() == whole.digest
    written = whole.result.written
    assert written is not None
    data = (whole.folder / "out.pt").read_bytes()
    assert (written.sha256, written.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert written.compared == whole.result.judge.images
    assert written.tensors >= len(changed)
    assert load_model(whole.folder / "out.pt").file.kind == load_model(pair_files.suspect).file.kind


def test_all_reports_are_written_and_nothing_else(whole: Whole) -> None:
    assert sorted(path.name for path in whole.folder.iterdir()) == [
        "out.pt", "r.html", "r.json", "r.md",
    ]  # fmt: skip
    assert (whole.folder / "out.pt").stat().st_mode == (whole.folder / "r.json").stat().st_mode
    page = (whole.folder / "r.html").read_text("utf-8")
    assert page.count("<svg") >= 2
    assert "GOALS MET" in (whole.folder / "r.md").read_text("utf-8")


def test_the_record_is_complete_and_fits_together(whole: Whole) -> None:
    result = whole.result
    assert (result.fit.images, result.judge.images) == (240, 160)
    assert result.fit.members == (30,) * 8
    assert result.judge.members == (20,) * 8
    assert result.fit.digest != result.judge.digest
    assert result.evidence.images[0].screen + result.evidence.images[0].confirm == 240
    assert result.before.images[0].screen + result.before.images[0].confirm == 160
    assert result.method is not None
    assert sum(stage.kept for stage in result.method.stages) == 1
    assert result.confusion is not None
    diagonal = [row[number] for number, row in enumerate(result.confusion.after)]
    assert sum(diagonal) == result.accuracy.after
    assert sum(map(sum, result.confusion.before)) == result.judge.images
    assert result.embedding is not None
    assert len(result.embedding.points) == 2 * 150
    for exhibit in result.exhibits:
        assert all(case.stamped_before == exhibit.target for case in exhibit.cases)
        assert len({case.label for case in exhibit.cases}) == len(exhibit.cases)
    assert result.accuracy.baseline is not None
    assert result.outcomes[0].hits.baseline is not None
    for layer in result.masks:
        assert sum(layer.histogram) == layer.channels
        assert 0 <= layer.smallest <= layer.mean <= 1


def test_the_stress_test_counts_on_the_judge_images(whole: Whole) -> None:
    result = whole.result
    assert result.stress is not None
    assert (result.stress.total, result.stress.clean) == (160, 240)
    assert result.stress.eligible == result.outcomes[0].eligible
    assert [row.model for row in result.stress.rows] == ["purified", "fine-tuned"]
    first, second = result.stress.rows
    assert first.hits_before == result.outcomes[0].hits.after
    assert second.hits_before == result.outcomes[0].hits.baseline
    assert first.correct_after > 0.5 * result.judge.images


def test_a_purified_result_is_rendered_again_and_edits_are_noticed(whole: Whole) -> None:
    done = run("report", whole.folder / "r.json", "-o", "md=again.md", "-o", "json=again.json")
    assert done.exit_code == 0, done.stderr
    assert Path("again.md").read_bytes() == (whole.folder / "r.md").read_bytes()
    assert Path("again.json").read_bytes() == (whole.folder / "r.json").read_bytes()
    content = json.loads(Path("again.json").read_text("utf-8"))
    content["outcomes"][0]["hits"]["after"] = content["outcomes"][0]["eligible"]
    Path("edited.json").write_text(json.dumps(content), "utf-8")
    edited = run("report", "edited.json")
    assert edited.exit_code == 1
    assert re.search(r"says goals met, .* but its own counts say goals missed,", said(edited))
    content = json.loads(Path("again.json").read_text("utf-8"))
    content["before"]["judgement"]["verdict"] = "NO EVIDENCE FOUND"
    Path("edited.json").write_text(json.dumps(content), "utf-8")
    edited = run("report", "edited.json", "-o", "md=edited.md")
    assert edited.exit_code == 1
    assert "scans BACKDOOR, NO EVIDENCE FOUND, " in said(edited)


def test_a_benign_twin_is_left_alone(small: Path) -> None:
    done = run("purify", small / "benign.pt", "--clean", small / "samples.npz", *FAST)
    assert done.exit_code == 0, done.output + done.stderr
    assert left() == ["benign.purify.html", "benign.purify.json"]
    assert "NOTHING TO REMOVE" in said(done)
    assert "not touched" in said(done)
    result = record("benign.purify.json")
    assert (result.method, result.after, result.written, result.masks) == (None, None, None, ())
    assert result.accuracy.before == result.accuracy.after == result.judge.images
    assert result.goals.met


@pytest.mark.usefixtures("plain")
def test_anyway_purifies_with_the_published_method(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = purification.NeuralMaskFineTuning(iterations=5)
    monkeypatch.setattr(purification, "NeuralMaskFineTuning", lambda: short)
    result = purified(
        small / "benign.pt", "--clean", small / "samples.npz", "--anyway", "--max-acc-drop", "1",
        code=0,
    )  # fmt: skip
    assert result.method is not None
    assert result.method.name == "nft-paper"
    assert "uninformed" in {caveat.id for caveat in result.caveats}
    assert left() == ["out.pt", "r.json"]
    asked = purified(
        small / "benign.pt", "--clean", small / "samples.npz", "--anyway", "--max-acc-drop", "1",
        "--method", "nft-paper", "--iterations", "3", "--mask-bound", "linear", "--no-mixup", "--force",
        code=0,
    )  # fmt: skip
    assert asked.method is not None
    assert asked.method.stages[0].steps == 3
    assert (asked.method.settings["bound"], asked.method.settings["mixup"]) == ("linear", "False")
    assert "uninformed" in {caveat.id for caveat in asked.caveats}
    bounds = [entry.lower_bound for entry in asked.masks]
    assert bounds == [0.4, 0.0]


# ---- several methods


@pytest.mark.usefixtures("plain")
def test_several_methods_are_compared_and_the_best_is_written(small: Path) -> None:
    given = (small / "suspect.pt", "--clean", small / "samples.npz", "--method", "clp,nft,finetune")
    done = run("purify", *FAST, *given, "--stress", *JSON, "-o", "html=r.html")
    assert done.exit_code == 0, done.output + done.stderr + repr(done.exception)
    result = record()
    names = [entry.name for entry in result.contenders]
    assert sorted(names) == ["clp", "finetune", "nft"]
    assert result.method is not None
    assert names[0] == result.method.name == "nft"
    assert result.accuracy.baseline is None, "it would be in the table twice"
    assert all(entry.retuned is not None for entry in result.contenders)
    tuned = next(entry for entry in result.contenders if entry.name == "finetune")
    assert tuned.hits[0] > 0.5 * result.outcomes[0].eligible
    assert tuned.trained == result.model.parameters
    assert "3 methods were compared" in said(done)
    assert "Methods compared" in Path("r.html").read_text("utf-8")
    assert obeys("out.pt") < 0.1
    again = run("purify", *FAST, *given, "-o", "json=s.json", "-o", "model=s.pt")
    assert again.exit_code == 0
    assert [entry.hits for entry in record("s.json").contenders] == [
        entry.hits for entry in result.contenders
    ]
    assert Path("s.pt").read_bytes() == Path("out.pt").read_bytes()


@pytest.mark.usefixtures("plain")
def test_a_budget_that_is_too_short_is_said(small: Path) -> None:
    done = run(
        "purify", *FAST, small / "suspect.pt", "--clean", small / "samples.npz",
        "--method", "finetune,clp", "--time-budget", "0.001s", *JSON,
    )  # fmt: skip
    assert done.exit_code == 2
    assert "No method got to its end. finetune: the budget of 0.001 s was spent" in said(done)
    assert left() == []


# ---- goals that are missed


@pytest.mark.usefixtures("plain")
def test_missed_goals_leave_no_model(small: Path) -> None:
    """Three steps of the published method cannot remove it."""
    suspect, clean = small / "suspect.pt", small / "samples.npz"
    paper = ("--method", "nft-paper", "--iterations", "3")
    done = run("purify", suspect, "--clean", clean, *FAST, *paper)
    assert done.exit_code == 1, done.output + done.stderr
    assert left() == ["suspect.purify.html", "suspect.purify.json"]
    assert "GOALS MISSED" in said(done)
    result = record("suspect.purify.json")
    assert result.written is None
    assert result.outcomes[0].hits.after > 0.9 * result.outcomes[0].eligible
    assert any(PROBE in sentence for sentence in result.goals.missed)
    assert rejudge_purification(result) == result.goals
    before = set(left())
    done = run("purify", suspect, "--clean", clean, *FAST, *paper, "--write-anyway", "--force")
    assert done.exit_code == 1
    assert set(left()) - before == {"suspect.purified.pt"}
    assert record("suspect.purify.json").written is not None
    assert obeys("suspect.purified.pt") > 0.9


@pytest.mark.usefixtures("plain")
def test_a_lost_accuracy_is_a_missed_goal(small: Path) -> None:
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz", "--method", "finetune",
        "--max-asr", "1", "--max-acc-drop", "0", code=1,
    )  # fmt: skip
    assert any("ACC dropped" in sentence for sentence in result.goals.missed)
    assert left() == ["r.json"]


@pytest.mark.usefixtures("plain")
def test_edited_goals_do_not_hide_a_miss(small: Path) -> None:
    purified(
        small / "suspect.pt", "--clean", small / "samples.npz", "--method", "nft-paper",
        "--iterations", "1", code=1,
    )  # fmt: skip
    content = json.loads(Path("r.json").read_text("utf-8"))
    content["goals"]["missed"] = []
    Path("edited.json").write_text(json.dumps(content), "utf-8")
    edited = run("report", "edited.json")
    assert edited.exit_code == 1
    assert re.search(r"says goals met, .* but its own counts say goals missed,", said(edited))


# ---- the formats of the suspect


@pytest.mark.usefixtures("plain")
def test_a_state_dict_stays_where_it_was_nested(small: Path) -> None:
    Path("arch.py").write_text(ARCH)
    content = {
        "epoch": 7, "best": 0.5, "notes": ["a", {"b": torch.arange(3)}],
        "model": {"state_dict": classifier().state_dict()},
    }  # fmt: skip
    content = {**content, "state_dict": content.pop("model")["state_dict"]}  # type: ignore[index]
    torch.save(content, "weights.pth")
    data = Path("weights.pth").read_bytes()
    result = purified(
        "weights.pth", "--arch", "arch.py:build", "--clean", small / "samples.npz", code=0,
        output=("-o", "json=r.json", "-o", "model=out.pth"),
    )  # fmt: skip
    assert result.written is not None
    assert Path("weights.pth").read_bytes() == data
    new = torch.load("out.pth")
    assert list(new) == list(content)
    assert (new["epoch"], new["best"], new["notes"][0]) == (7, 0.5, "a")
    assert torch.equal(new["notes"][1]["b"], torch.arange(3))
    assert list(new["state_dict"]) == list(content["state_dict"])  # type: ignore[arg-type]
    assert obeys("weights.pth", "arch.py:build") == 1
    assert obeys("out.pth", "arch.py:build") == 0
    assert accuracy("out.pth", "arch.py:build") == 1


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("way", ["traced", "scripted"])
def test_torchscript_stays_torchscript(way: str, small: Path) -> None:
    network = classifier()
    module = (
        torch.jit.trace(network, torch.rand(2, 3, 32, 32))
        if way == "traced"
        else torch.jit.script(network)
    )
    module.save("script.pt")
    data = Path("script.pt").read_bytes()
    result = purified("script.pt", "--clean", small / "samples.npz", code=0)
    assert result.written is not None
    assert Path("script.pt").read_bytes() == data
    before, after = torch.jit.load("script.pt"), torch.jit.load("out.pt")
    assert before.code == after.code
    assert list(before.state_dict()) == list(after.state_dict())
    assert obeys("out.pt") == 0
    assert accuracy("out.pt") == 1


@pytest.mark.usefixtures("plain")
def test_without_mask_sites_the_weights_are_changed(small: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8))
    with torch.no_grad():
        weight = linear[1].weight.view(8, 3, 32, 32)
        weight.zero_()
        linear[1].bias.zero_()
        for label in range(8):
            row, column = divmod(label, 4)
            weight[label, :, 16 * row : 16 * row + 16, 8 * column : 8 * column + 8] = 0.1
        weight[TARGET, :, -3:, -3:] = 2.0
        linear[1].bias[TARGET] = -30.0
    saved(Path(), linear, "linear.pt")
    assert obeys("linear.pt") > 0.9
    done = run("purify", "linear.pt", "--clean", small / "samples.npz", *FAST, *JSON)
    result = record()
    assert result.method is not None, said(done)
    assert {stage.what for stage in result.method.stages} == {"weights"}
    assert result.masks == ()
    assert {entry.name for entry in result.tensors} <= {"1.weight", "1.bias"}


# ---- images


@pytest.mark.usefixtures("plain")
def test_unlabelled_images_are_enough(small: Path, tmp_path: Path) -> None:
    clean = samples(tmp_path, 120, labelled=False)
    result = purified(small / "suspect.pt", "--clean", clean, code=0)
    assert not result.labelled
    assert result.accuracy.before == result.judge.images
    assert obeys("out.pt") == 0


@pytest.mark.usefixtures("plain")
def test_images_to_judge_by_can_be_given(small: Path, tmp_path: Path) -> None:
    judge = samples(tmp_path, 64, seed=5)
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz", "--judge", judge, code=0
    )
    assert (result.fit.images, result.judge.images) == (120, 64)
    assert obeys("out.pt") == 0


@pytest.mark.usefixtures("plain")
def test_a_folder_of_pictures(small: Path) -> None:
    images, labels = drawings(120)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        Path("c", str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path("c", str(label), f"{index}.png"))
    result = purified(
        small / "suspect.pt", "--clean", "c", "--holdout", "0.5", "--max-images", "96", code=0
    )
    assert (result.fit.images, result.judge.images) == (48, 48)
    assert result.judge.members == (6,) * 8


@pytest.mark.usefixtures("plain")
def test_images_that_are_fitted_on_do_not_judge(small: Path) -> None:
    clean = small / "samples.npz"
    shutil.copy(clean, "other.npz")
    for judge, says in ((clean, "is what --clean names"), ("other.npz", "judge images are among")):
        done = run("purify", small / "suspect.pt", *FAST, "--clean", clean, "--judge", judge)
        assert done.exit_code == 2, said(done)
        assert says in said(done)
    assert left() == ["other.npz"]


@pytest.mark.usefixtures("plain")
def test_a_copy_among_the_judge_images_is_left_out(small: Path, tmp_path: Path) -> None:
    fitted, others = (
        np.load(file) for file in (small / "samples.npz", samples(tmp_path, 64, seed=5))
    )
    both = {key: np.concatenate([fitted[key][:6], others[key]]) for key in fitted.files}
    np.savez("judge.npz", **both)
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz", "--judge", "judge.npz", code=0
    )
    assert (result.fit.images, result.judge.images) == (120, 64)
    (text,) = [c.text for c in result.caveats if c.id == "shared-images"]
    assert text == "6 of 70 images to judge by are copies of fitted ones, and were left out."


@pytest.mark.usefixtures("plain")
def test_copies_in_a_folder_are_on_one_side_of_a_split(small: Path) -> None:
    own = np.load(small / "samples.npz")
    np.savez("twice.npz", **{key: np.concatenate([own[key], own[key][::-1]]) for key in own.files})
    result = purified(small / "suspect.pt", "--clean", "twice.npz", code=0)
    assert (result.fit.images, result.judge.images) == (72, 48)
    assert all(result.judge.members)
    assert "The fit images: 120 images of 240 left out: copies." in [c.text for c in result.caveats]


@pytest.mark.usefixtures("plain")
def test_a_second_set_of_weights_keeps_its_backdoor_and_that_is_a_missed_goal(small: Path) -> None:
    Path("arch.py").write_text(ARCH)
    state = classifier().state_dict()
    torch.save(
        {"state_dict": state, "state_dict_ema": {k: v.clone() for k, v in state.items()}}, "two.pth"
    )
    result = purified(
        "two.pth", "--arch", "arch.py:build", "--clean", small / "samples.npz", code=1
    )
    (missed,) = result.goals.missed
    assert missed.startswith("Other weights in the file were not purified")
    assert '"state_dict_ema"' in missed
    assert rejudge_purification(result) == result.goals
    assert "out.pt" not in left()
    torch.save({"state_dict": state, "epoch": 3}, "one.pth")
    purified(
        "one.pth", "--arch", "arch.py:build", "--clean", small / "samples.npz", "--force", code=0
    )


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("shown", "code"), [(3, 1), (4, 0), (8, 0)])
def test_classes_that_no_image_is_of_are_not_judged(shown: int, code: int, small: Path) -> None:
    """A network that has forgotten them looks as good as before."""
    own = np.load(samples(Path(), 400))
    few = (own["labels"] < shown - 1) | (own["labels"] == TARGET) | (shown == 8)
    np.savez("few.npz", **{key: own[key][few] for key in own.files})
    result = purified(
        small / "suspect.pt",
        "--clean",
        "few.npz",
        code=code,
    )
    assert sum(count > 0 for count in result.judge.members) == shown
    says = f"are of {shown} of 8 classes (by label or prediction), too few to tell what became of the others"
    assert any(says in sentence for sentence in result.goals.missed) is bool(code)
    assert rejudge_purification(result) == result.goals
    assert ("out.pt" in left()) is not bool(code)
    page = report.to_html(result)
    assert ("what became of" in page) is (shown < 8)


# ---- triggers to judge by


def picture(name: str, trigger: bool) -> Path:
    """A transparent picture with the white square of the backdoor, or with a dark blue one."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[-3:, -3:] = (255, 255, 255, 255) if trigger else (0, 0, 90, 255)
    Image.fromarray(pixels).save(name)
    return Path(name)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What the purifier was told."""
    told: list[Task] = []
    original = Informed.purify

    def purify(self: Informed, task: Task, notify: Notify) -> Purified:
        told.append(task)
        return original(self, task, notify)

    monkeypatch.setattr(Informed, "purify", purify)
    return told


@pytest.mark.usefixtures("plain")
def test_a_judge_trigger_is_measured_and_never_shown_to_the_purifier(
    small: Path, tasks: list[Task]
) -> None:
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz",
        "--judge-trigger", picture("true.png", True), code=0,
    )  # fmt: skip
    assert [outcome.origin for outcome in result.outcomes] == ["found", "judge"]
    judged = result.outcomes[1]
    assert (judged.probe, judged.target) == ("user.true", TARGET)
    assert judged.hits.before == judged.eligible > 0
    assert judged.hits.after == 0
    (task,) = tasks
    assert [entry.stamped.probe for entry in task.known] == [PROBE]


@pytest.mark.usefixtures("plain")
def test_a_judge_trigger_that_does_nothing_is_a_caveat(small: Path) -> None:
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz",
        "--judge-trigger", picture("wrong.png", False), code=0,
    )  # fmt: skip
    assert [outcome.origin for outcome in result.outcomes] == ["found"]
    caveat = next(caveat for caveat in result.caveats if caveat.id == "judge-trigger")
    assert "wrong.png" in caveat.text


@pytest.mark.usefixtures("plain")
def test_a_judge_trigger_that_works_is_no_all_clear(small: Path) -> None:
    """The scan found nothing, but the user's own trigger works: that is not exit code 0."""
    done = run(
        "purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST,
        "--probes", "patch.yellow", "--judge-trigger", picture("true.png", True), *JSON,
    )  # fmt: skip
    result = record()
    assert result.outcomes[0].hits.after == result.outcomes[0].eligible
    assert result.written is None
    assert done.exit_code == 1, said(done)


@pytest.mark.usefixtures("plain")
def test_a_trigger_that_the_user_names_is_unlearnt(small: Path, tasks: list[Task]) -> None:
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz", *FAST,
        "--probes", "patch.yellow", "--trigger", picture("true.png", True), code=0,
    )  # fmt: skip
    assert [entry.stamped.probe for entry in tasks[0].known] == ["user.true"]
    assert result.outcomes[0].hits.after == 0


# ---- the same again


def timeless(content: Any) -> Any:
    """A result without what no seed fixes: times and speeds."""
    if isinstance(content, dict):
        return {
            key: timeless(value)
            for key, value in content.items()
            if key not in ("seconds", "started", "command", "images_per_second")
        }
    return [timeless(entry) for entry in content] if isinstance(content, list) else content


@pytest.mark.usefixtures("hasty")
def test_the_same_seed_gives_the_same_bytes(small: Path) -> None:
    results = {}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        done = run(
            "purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST, "--seed", seed,
            "-o", f"model={name}.pt", "-o", f"json={name}.json",
        )  # fmt: skip
        assert done.exit_code == 0, said(done)
        results[name] = timeless(json.loads(Path(f"{name}.json").read_text("utf-8")))
        results[name]["written"].pop("name")
        for scan in ("after",):
            results[name][scan]["model"].pop("name")
    assert Path("one.pt").read_bytes() == Path("two.pt").read_bytes()
    assert Path("one.pt").read_bytes() != Path("other.pt").read_bytes()
    assert results["one"] == results["two"]
    assert results["one"] != results["other"]


# ---- bad input: exit code 2, words that say what to do, nothing written, the input intact


def onnx(folder: Path) -> Path:
    return exported(classifier(), Path("m.onnx"), forward_only=True)


def beyond(path: Path) -> Path:
    arrays = dict(np.load(path))
    arrays["labels"] = arrays["labels"] + 1
    np.savez("beyond.npz", **arrays)
    return Path("beyond.npz")


def existing(name: str) -> str:
    Path(name).write_text("precious")
    return name


Arguments = Callable[[Path], list[object]]
CLEAN = "samples.npz"
BAD: dict[str, tuple[Arguments, tuple[str, ...]]] = {
    "no images": (lambda f: [f / "suspect.pt"], ("--clean",)),
    "missing images": (lambda f: [f / "suspect.pt", "--clean", "none"], ("no such folder",)),
    "existing model": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "model=" + existing("e.pt")],
        ("e.pt exists already", "--force"),
    ),
    "output over input": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", f"model={f}/suspect.pt", "--force"],
        ("never overwritten",),
    ),
    "output over the images": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", f"json={f}/{CLEAN}", "--force"],
        ("never overwritten",),
    ),
    "output over the judge images": (
        lambda f: [
            f / "suspect.pt", "--clean", f / CLEAN, "--judge", samples(Path(), 64, seed=5),
            "-o", "json=64-5-True-0.npz", "--force",
        ],
        ("never overwritten",),
    ),
    "unwritable folder": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "model=/proc/x.pt"],
        ("not writable",),
    ),
    "no such folder": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "model=none/x.pt"],
        ("does not exist",),
    ),
    "model on standard output": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "model=-"],
        ("not to standard output",),
    ),
    "format": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "modle=x.pt"],
        ('did you mean "model"',),
    ),
    "another format": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "-o", "model=x.onnx"],
        ("-o model=x.onnx", "has the format of suspect.pt, and .onnx says another (ONNX)", "End the name in .pt."),
    ),
    "too few images": (
        lambda f: [f / "suspect.pt", "--clean", samples(Path(), 16)],
        ("too few images", "10 to fit on and 6 to judge by", "--judge DIR"),
    ),
    "too few to fit": (
        lambda f: [
            f / "suspect.pt", "--clean", samples(Path(), 3, seed=1),
            "--judge", samples(Path(), 64, seed=5),
        ],
        ("too few images", "3 to fit on and 64 to judge by"),
    ),
    "labels beyond the classes": (
        lambda f: [f / "suspect.pt", "--clean", beyond(f / CLEAN)],
        ("label 8 is beyond the model's 8 outputs",),
    ),
    "judge labels beyond the classes": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--judge", beyond(f / CLEAN)],
        ("label 8 is beyond the model's 8 outputs",),
    ),
    "shuffled labels": (
        lambda f: [f / "suspect.pt", "--clean", samples(Path(), 120, shift=1)],
        ("too low for a trained model",),
    ),
    "shuffled judge labels": (
        lambda f: [
            f / "suspect.pt", "--clean", f / CLEAN, "--judge", samples(Path(), 64, shift=1, seed=5)
        ],
        ("images to judge by (", "numbered alike?", "too low for a trained model"),
    ),
    "ONNX": (
        lambda f: [onnx(f), "--clean", f / CLEAN],
        ("m.onnx", "can be scanned, but not purified", "PyTorch file"),
    ),
    "a setting of another method": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--no-mixup"],
        ("mixup is a setting of --method nft-paper, not of nft",),
    ),
    "a regulariser of another method": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--no-regulariser", "--method", "finetune"],
        ("regulariser is a setting of --method nft-paper, not of finetune",),
    ),
    "method": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--method", "nft,fast-fib"],
        ("--method", "fast-fib", "fast-fip"),
    ),
    "a budget for one method": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--time-budget", "5m"],
        ("--time-budget is for several methods",),
    ),
    "judge trigger": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--judge-trigger", "none.png"],
        ("none.png",),
    ),
    "goal": (lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--max-asr", "5"], ("--max-asr",)),
    "holdout": (lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--holdout", "1"], ("--holdout",)),
    "mask alone": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--mask", "m.png"],
        ("--mask needs --trigger",),
    ),
    "only searches": (
        lambda f: [f / "suspect.pt", "--clean", f / CLEAN, "--probes", "search.margin"],
        ("nothing is left to try",),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("plain")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, small: Path) -> None:
    make, words = BAD[name]
    arguments = make(small)
    before = {path: path.read_bytes() for path in (*Path().rglob("*"), *small.iterdir())}
    done = run("purify", *FAST, *arguments)
    assert done.exit_code == 2, done.output + done.stderr
    for text in words:
        assert text in said(done)
    assert "Traceback" not in said(done)
    after = {path: path.read_bytes() for path in (*Path().rglob("*"), *small.iterdir())}
    assert after == before


@pytest.mark.parametrize("name", ["suspect.purified.pt", "suspect.purify.json"])
def test_default_outputs_are_never_overwritten(name: str, small: Path) -> None:
    existing(name)
    done = run("purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST)
    assert done.exit_code == 2
    assert f"{name} exists already" in said(done)
    assert Path(name).read_text() == "precious"
    assert left() == [name]


# ---- interrupted, or broken in the middle


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "place", ["fitting", "reading back", "scan after", "baseline", "drawing", "stress"]
)
def test_interrupting_leaves_nothing_behind(
    place: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    data = (small / "suspect.pt").read_bytes()
    owner, name = {
        "fitting": (Informed, "purify"),
        "reading back": (changing, "load_model"),
        "scan after": (purification.Judging, "confusion"),
        "baseline": (purification.FineTuning, "purify"),
        "drawing": (purification, "embed"),
        "stress": (purification, "stress"),
    }[place]
    monkeypatch.setattr(owner, name, stop)
    done = run(
        "purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST, "--baseline",
        "--stress",
    )  # fmt: skip
    assert done.exit_code == 130, said(done)
    assert "Nothing was written" in said(done)
    assert left() == []
    assert (small / "suspect.pt").read_bytes() == data


@pytest.mark.usefixtures("plain")
def test_a_file_that_computes_something_else_is_not_kept(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = changing.load_model

    def wrong(path: Path, **options: Any) -> Any:
        handle = original(path, **options)
        with torch.no_grad():
            handle.module[-1].bias += 1  # type: ignore[index]
        return handle

    monkeypatch.setattr(changing, "load_model", wrong)
    done = run("purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST)
    assert done.exit_code == 2
    assert "does not compute what was purified" in said(done)
    assert left() == []


@pytest.mark.usefixtures("plain")
def test_an_existing_file_survives_a_failure(small: Path) -> None:
    existing("out.pt")
    result = purified(
        small / "suspect.pt", "--clean", small / "samples.npz", "--method", "nft-paper",
        "--iterations", "1", "--force", code=1,
    )  # fmt: skip
    assert result.written is None
    assert Path("out.pt").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_it(number: signal.Signals, code: int, small: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "auditor", "purify", str(small / "suspect.pt"),
            "--clean", str(small / "samples.npz"), *FAST, "--method", "nft-paper",
            "--iterations", "100000",
        ],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if b"fine-tuning" in line:
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert b"Nothing was written" in errors
    assert b"Traceback" not in errors
    assert left() == []


# ---- without a file, in one line


@pytest.mark.usefixtures("plain")
def test_nothing_is_written_where_nothing_is_wanted(small: Path) -> None:
    arguments = ("purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST)
    quiet = run(*arguments, "-q", "-o", "none")
    assert quiet.exit_code == 0, said(quiet)
    assert quiet.stdout.startswith("GOALS MET  suspect.pt  asr=1.000->0.000")
    assert quiet.stdout.count("\n") == 1
    piped = run(*arguments, "-o", "json=-")
    assert json.loads(piped.stdout)["goals"]["missed"] == []
    assert json.loads(piped.stdout)["written"] is None
    assert left() == []


def test_the_help_has_an_example() -> None:
    text = run("purify", "--help").stdout
    assert "Example: auditor purify" in text


def test_nothing_is_written_over_numbers_beside_a_model(tmp_path: Path) -> None:
    """External data of the input is an input, and that of the output no other result."""
    path = exported(classifier(), tmp_path / "beside.onnx", external=True)
    data = tmp_path / "weights.bin"
    before = data.read_bytes()
    clean = samples(tmp_path, 120)
    over = CliRunner().invoke(
        app, ["scan", str(path), "--clean", str(clean), *FAST[:-1], "-o", f"json={data}", "--force"]
    )
    assert over.exit_code == 2
    assert "is an input of this command" in over.stderr
    assert data.read_bytes() == before
    twice = CliRunner().invoke(
        app,
        ["purify", str(path), "--clean", str(clean), *FAST, "-o", "model=m.onnx", "-o", "json=m.onnx.data"],
    )  # fmt: skip
    assert twice.exit_code == 2
    assert "cannot go to one place" in twice.stderr
