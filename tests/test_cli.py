"""The commands as a person runs them: verdicts, files, exit codes, and clear words for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from auditor import report
from auditor.cli import app, parse_time
from auditor.cli.base import reporting
from auditor.cli.setup import Setup
from auditor.errors import OutputError, UsageError
from auditor.outputs import write_text
from auditor.progress import silent
from auditor.results.facts import Verdict
from auditor.results.scan import ScanResult
from tests import changeable
from tests.conftest import PairFiles

FAST = ("--probes", "quick,-search.margin", "--batch-size", "64")
ONE = ("--probes", "patch.yellow", "--batch-size", "64", "--input", "3x32x32")
"""Where the files that are written are looked at, and not what is found."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def scan(*arguments: object, code: int) -> ScanResult:
    done = run("scan", *arguments, *FAST, "-o", "json=r.json", "--force")
    assert done.exit_code == code, done.output + done.stderr
    return report.from_json(Path("r.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def scanned(pair_files: PairFiles) -> Callable[[str], ScanResult]:
    """A file of the pair, scanned once with its images."""

    @cache
    def result(kind: str) -> ScanResult:
        code = 1 if "suspect" in kind else 0
        return scan(getattr(pair_files, kind), "--clean", pair_files.samples, code=code)

    return result


@pytest.mark.parametrize("kind", ["suspect", "suspect_onnx"])
def test_the_suspect_is_a_backdoor_with_its_class(
    kind: str, scanned: Callable[[str], ScanResult], pair_files: PairFiles
) -> None:
    result = scanned(kind)
    assert result.judgement.verdict is Verdict.BACKDOOR
    found = result.confirmations[result.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert (found.scope, found.target) == ("all-to-one", pair_files.target)
    assert result.preprocessing.spec.normalize == "half"


@pytest.mark.parametrize("kind", ["benign", "benign_onnx"])
def test_its_benign_twin_shows_nothing(kind: str, scanned: Callable[[str], ScanResult]) -> None:
    result = scanned(kind)
    assert result.judgement.verdict is Verdict.NO_EVIDENCE


def test_pytorch_and_onnx_count_the_same(scanned: Callable[[str], ScanResult]) -> None:
    module, graph = scanned("suspect"), scanned("suspect_onnx")
    assert module.images == graph.images
    different = sum(
        a.hits != b.hits for a, b in zip(module.responses, graph.responses, strict=True)
    )
    assert different <= len(module.responses) // 10  # an image at a tie may fall either way


@pytest.mark.slow  # a third of a minute on a quiet core; made images are also scanned in test_scan
def test_without_images_the_suspect_is_found_and_the_twin_is_not_cleared(
    pair_files: PairFiles,
) -> None:
    found = scan(pair_files.suspect, code=1)
    assert found.judgement.verdict is Verdict.BACKDOOR
    best = found.confirmations[found.judgement.reasons[0].confirmation]  # type: ignore[index]
    assert best.target == pair_files.target
    twin = scan(pair_files.benign, code=3)
    assert twin.judgement.verdict is Verdict.INCONCLUSIVE
    assert "--clean" in twin.judgement.headline


@pytest.mark.slow
def test_onnx_without_labels_is_inconclusive_and_says_what_to_pass(pair_files: PairFiles) -> None:
    result = scan(pair_files.suspect_onnx, code=3)
    assert "--normalize" in result.judgement.headline
    told = scan(pair_files.suspect_onnx, "--normalize", "half", code=1)
    assert told.judgement.verdict is Verdict.SUSPICIOUS  # no class impressions without gradients


def test_default_outputs_are_beside_and_never_overwritten(pair_files: PairFiles) -> None:
    arguments = ("scan", pair_files.suspect, "--clean", pair_files.samples, *ONE)
    done = run(*arguments)
    assert done.exit_code == 1
    assert "✖ BACKDOOR" in done.stdout
    assert sorted(p.name for p in Path().iterdir()) == ["suspect.scan.html", "suspect.scan.json"]
    before = Path("suspect.scan.json").read_bytes()
    again = run(*arguments)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert Path("suspect.scan.json").read_bytes() == before
    assert run(*arguments, "--force").exit_code == 1


def test_no_folder_for_probes_is_left_where_no_search_found_any(pair_files: PairFiles) -> None:
    Path("there").mkdir()
    for folder in ("new", "there"):
        done = run(
            "scan", pair_files.benign, "--clean", pair_files.samples, *FAST, "-o", "none",
            "--save-probes", folder,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "--save-probes has nothing to write" in " ".join(done.stdout.split())
    assert [str(path) for path in Path().iterdir()] == ["there"]


def test_quiet_and_standard_output(pair_files: PairFiles) -> None:
    arguments = ("scan", pair_files.suspect, "--clean", pair_files.samples, *ONE)
    quiet = run(*arguments, "-q", "-o", "none")
    assert quiet.stdout.startswith("BACKDOOR  suspect.pt  asr=")
    assert quiet.stdout.count("\n") == 1
    piped = run(*arguments, "-o", "json=-")
    assert json.loads(piped.stdout)["judgement"]["verdict"] == "BACKDOOR"
    assert list(Path().iterdir()) == []


def test_report_renders_again_and_notices_edits(scanned: Callable[[str], ScanResult]) -> None:
    Path("r.json").write_text(report.to_json(scanned("suspect")), "utf-8")
    assert run("report", "r.json", "-o", "html=r.html", "-o", "md=r.md").exit_code == 0
    assert "BACKDOOR" in Path("r.html").read_text("utf-8")
    record = json.loads(Path("r.json").read_text("utf-8"))
    record["judgement"]["verdict"] = "NO EVIDENCE FOUND"
    Path("edited.json").write_text(json.dumps(record), "utf-8")
    edited = run("report", "edited.json")
    assert edited.exit_code == 1
    assert "its own counts say BACKDOOR" in edited.stderr
    Path("broken.json").write_text("{", "utf-8")
    broken = run("report", "broken.json")
    assert broken.exit_code == 2
    assert "broken.json: The result is not readable as JSON" in " ".join(broken.stderr.split())
    assert run("report", "missing.json").exit_code == 2


# ---- bad input: exit code 2, one message that says what to do, no traceback, nothing written


def linked(name: str, target: str) -> str:
    Path(name).symlink_to(target)
    return name


class Weird(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        scores = self.layer(images).mean((2, 3))
        if self.kind == "detector":
            return scores, scores[:, :4]
        if self.kind == "segmentation":
            return self.layer(images)
        return scores / torch.zeros_like(scores)


def weird(kind: str) -> Path:
    with torch.no_grad():
        traced = torch.jit.trace(Weird(kind).eval(), torch.zeros(1, 3, 32, 32), strict=False)
    traced.save("weird.pt")
    return Path("weird.pt")


def written_text(name: str) -> Path:
    Path(name).write_text("")
    return Path(name)


def pictures(folder: str, *classes: str) -> Path:
    for number, name in enumerate(classes):
        Path(folder, name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(Path(folder, name, "1.png"))
    Path(folder).mkdir(exist_ok=True)
    return Path(folder)


def written(name: str, data: bytes) -> Path:
    Path(name).write_bytes(data)
    return Path(name)


def saved(content: object, name: str = "m.pt") -> Path:
    torch.save(content, name)
    return Path(name)


BAD = {
    "missing file": (lambda f: ["nothing.pt"], "no such file"),
    "empty file": (lambda f: [written("m.pt", b"")], "is empty"),
    "LFS pointer": (
        lambda f: [written("m.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")],
        "git lfs pull",
    ),
    "truncated zip": (lambda f: [written("m.pt", f.suspect.read_bytes()[:-300])], "ends early"),
    "text file": (lambda f: [written("m.pt", b"<!DOCTYPE html><title>404</title>")], "text file"),
    "weights without network": (
        lambda f: [saved(nn.Linear(4, 2).state_dict())],
        "Add --arch",
    ),
    "wrong architecture": (
        lambda f: [saved(nn.Linear(4, 2).state_dict()), "--arch", "resnet18"],
        "they do not fit",
    ),
    "unknown architecture": (lambda f: [f.suspect, "--arch", "resnet81"], "did you mean"),
    "detector": (lambda f: [weird("detector"), "--clean", f.samples], "may be a detector"),
    "segmentation": (lambda f: [weird("segmentation"), "--clean", f.samples], "segmentation"),
    "NaN outputs": (
        lambda f: [weird("nan"), "--clean", f.samples, "--input", "3x32x32"],
        "NaN or infinite scores",
    ),
    "class folders": (
        lambda f: [f.suspect, "--clean", pictures("c", "a", "b", "c")],
        "3 class folders, the model has 8 outputs",
    ),
    "no images": (lambda f: [f.suspect, "--clean", pictures("c")], "no images found"),
    "missing images": (lambda f: [f.suspect, "--clean", "nowhere"], "no such folder"),
    "directory for a file": (lambda f: [pictures("c", "a")], "is a directory"),
    "unwritable output": (
        lambda f: [f.suspect, "-o", "json=/proc/x.json"],
        "not writable",
    ),
    "output folder": (lambda f: [f.suspect, "-o", "json=none/x.json"], "does not exist"),
    "output over input": (lambda f: [f.suspect, "-o", f"json={f.suspect}"], "never overwritten"),
    "output over an image": (
        lambda f: [f.suspect, "--clean", pictures("c", "a"), "-o", "json=c/a/1.png", "--force"],
        "never overwritten",
    ),
    "output over code": (
        lambda f: [f.suspect, "--arch", f"{written_text('n.py')}:f", "-o", "html=n.py", "--force"],
        "never overwritten",
    ),
    "output format": (lambda f: [f.suspect, "-o", "pdf=x.pdf"], 'no format "pdf"'),
    "probe": (lambda f: [f.suspect, "--probes", "patch.yelow"], 'did you mean "patch.yellow"'),
    "trigger": (lambda f: [f.suspect, "--trigger", "none.png"], "none.png"),
    "mask alone": (lambda f: [f.suspect, "--mask", "m.png"], "--mask needs --trigger"),
    "input": (lambda f: [f.suspect, "--input", "32x32"], "channels x height x width"),
    "input that does not run": (
        lambda f: [f.suspect, "--input", "3x64x64"],
        "does not run on it",
    ),
    "normalize": (lambda f: [f.suspect, "--normalize", "imagnet"], 'did you mean "imagenet"'),
    "batch size": (lambda f: [f.suspect, "--batch-size", "many"], "--batch-size many"),
    "time budget": (lambda f: [f.suspect, "--time-budget", "soon"], "90s, 5m or 1h"),
    "device": (lambda f: [f.suspect, "--device", "abacus"], "--device abacus"),
    "labels": (lambda f: [f.suspect, "--labels", "none.txt"], "--labels none.txt"),
    "nothing to try": (lambda f: [f.suspect, "--probes", "quick,-*"], "nothing is left"),
    "probe file": (lambda f: [f.suspect, "--probes", "/dev/zero"], "no such probe file"),
    "device node": (lambda f: [f.suspect, "-o", "json=/dev/null", "--force"], "not a regular file"),
    "one place for two": (
        lambda f: [f.suspect, "-o", "json=x", "-o", "html=x"],
        "cannot go to one place",
    ),
    "one place by two names": (
        lambda f: [f.suspect, "-o", "json=x", "-o", f"html={Path.cwd()}/x"],
        "cannot go to one place",
    ),
    "no path": (lambda f: [f.suspect, "-o", "json="], "the path is missing"),
    "a link to nothing": (lambda f: [linked("m.pt", "gone.pt")], "is a link, and what it leads to"),
    "probes of a file that is none": (
        lambda f: [written("m.pt", b"nothing"), "--save-probes", "probes"],
        "text file",
    ),
    "endless numbers": (lambda f: [f.suspect, "--normalize", "inf/1"], "--normalize inf/1"),
    "unknown option": (lambda f: [f.suspect, "--claen", "x"], "--claen"),
}


def test_a_probe_file_is_an_input(tmp_path: Path) -> None:
    probe, picture = tmp_path / "p.yaml", tmp_path / "p.png"
    for path in (probe, picture, tmp_path / "other.html"):
        path.write_text("")
    for probes in (f"quick, {probe}", str(tmp_path)):
        setup = Setup(model=tmp_path / "m.pt", probes=probes, max_images=1, force=True)
        for path in (probe, picture) if probes == str(tmp_path) else (probe,):
            with pytest.raises(OutputError, match="never overwritten"):
                replace(setup, output=(f"json={path}",)).outputs(("json",), {})
        assert replace(setup, output=(f"json={tmp_path / 'other.html'}",)).outputs(("json",), {})


def test_a_gpu_multiplies_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backdoor could hide in the digits that TF32 leaves out."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    path = changeable.saved(tmp_path, changeable.classifier())
    Setup(model=path, probes="quick", max_images=1, device="cpu").suspect(None, silent)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_bad_input(name: str, pair_files: PairFiles) -> None:
    make, words = BAD[name]
    arguments = make(pair_files)
    before = set(Path().rglob("*"))
    fast = () if name in ("probe", "batch size", "nothing to try", "probe file") else FAST
    done = run("scan", *arguments, *fast)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.output + done.stderr
    assert set(Path().rglob("*")) == before


def test_hostile_names_do_not_reach_the_terminal(pair_files: PairFiles) -> None:
    images = np.load(pair_files.samples)
    names = ["\x1b[31mred", "[bold]b", "<script>c", "d\u202ed", "e", "f", "\x1b[bold]g\u202e", "h"]
    assert "g" in names[pair_files.target], "the one that is surely told"
    for number, name in enumerate(names):
        folder = Path("c", f"{number}{name}")
        folder.mkdir(parents=True)
        for index, image in enumerate(images["images"][images["labels"] == number][:12]):
            Image.fromarray(image).save(folder / f"{index}.png")
    done = run("scan", pair_files.suspect, "--clean", "c", *FAST)
    assert done.exit_code == 1, done.output + done.stderr
    assert not set("\x1b\u202e") & set(done.stdout)
    assert "[bold]g" in done.stdout
    assert "<script>" not in Path("suspect.scan.html").read_text("utf-8")


@pytest.mark.slow  # test_sandbox interrupts the same command, and sees its worker end too
def test_interrupting_leaves_nothing_behind(pair_files: PairFiles) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "auditor", "scan", str(pair_files.suspect), "--probes", "deep"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first line of progress
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # on a busy machine the signal may come while libraries are loading; to a shell both are 130
    assert process.returncode in (130, -signal.SIGINT), errors
    assert b"Traceback" not in errors
    assert list(Path().iterdir()) == []


class Endless(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        total = images.mean()
        while bool(total > -1.0):
            total = total * 0.5
        return images.mean((2, 3)) + total


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_never_answers_can_be_interrupted() -> None:
    torch.jit.script(Endless()).save("endless.pt")
    process = subprocess.Popen(
        [sys.executable, "-m", "auditor", "scan", "endless.pt"], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


# ---- probes


def test_probes_are_listed_shown_and_validated() -> None:
    listed = run("probes", "list", "quick")
    assert listed.exit_code == 0
    assert "patch.yellow" in listed.stdout
    assert "search.margin" in listed.stdout
    shown = run("probes", "show", "patch.yellow")
    assert "Patch(" in shown.stdout
    assert "https://" in shown.stdout
    assert "24 probes with 29 triggers (29 quick)" in listed.stdout
    assert "Smallest patch" in run("probes", "show", "search.patch").stdout
    from auditor.resources import resource_dir

    fine = resource_dir("probes") / "patch.yellow.yaml"
    assert run("probes", "validate", fine).exit_code == 0
    Path("bad.yaml").write_text(fine.read_text("utf-8").replace("title:", "titel:"), "utf-8")
    bad = run("probes", "validate", "bad.yaml", fine)
    assert bad.exit_code == 2
    assert 'did you mean "title"' in bad.stderr


def test_no_command_is_a_short_help() -> None:
    done = run()
    assert done.exit_code == 0
    assert "scan" in done.stdout
    assert run("--version").stdout.startswith("auditor ")
    assert run("scna").exit_code == 2


@pytest.mark.parametrize("command", [("scan",), ("demo",), ("report",), ("probes", "list"), ("probes", "show"), ("probes", "validate")])  # fmt: skip
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    text = run(*command, "--help").stdout
    assert "Example: auditor" in text


def test_times() -> None:
    assert [parse_time(text) for text in ("90", "90s", "5m", "1.5h")] == [90, 90, 300, 5400]
    for text in ("0", "-1s", "5 days", ""):
        with pytest.raises(UsageError):
            parse_time(text)


def test_a_bug_of_ours_is_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    @reporting
    def broken() -> None:
        raise KeyError("nobody thought of this")

    with pytest.raises(typer.Exit) as ended:
        broken()
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "nobody thought of this" in said
    assert "This is a bug" in said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_unwind(number: signal.Signals, code: int) -> None:
    # whoever started the tests may have had it ignored
    ignored = "signal.default_int_handler" if number == signal.SIGINT else "signal.SIG_DFL"
    lines = (
        "import os, time",
        "from auditor.cli.base import reporting",
        "import signal",
        f"signal.signal({int(number)}, {ignored})",
        "def command():",
        "    try:",
        f"        os.kill(os.getpid(), {int(number)})",
        "        time.sleep(20)",
        "    finally:",
        "        os.kill(os.getpid(), signal.SIGTERM)",
        "        time.sleep(0.1)",
        "        print('cleaned up', flush=True)",
        "import typer",
        "app = typer.Typer()",
        "app.command()(reporting(command, stopped='Stopped here.'))",
        "app()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (code, "cleaned up\n")
    assert done.stderr == "Stopped here.\n"


def test_a_record_on_standard_output_is_all_that_is_there(pair_files: PairFiles) -> None:
    done = run("scan", pair_files.suspect, *ONE, "-q", "-o", "json=-")
    assert json.loads(done.stdout)["schema"] == "auditor.scan/1"
    both = run("inspect", pair_files.suspect, "--json", "-o", "md=-")
    assert both.exit_code == 2
    assert "standard output" in both.stderr


def test_a_pipe_may_take_no_more_than_ascii() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "auditor", "probes", "list", "standard"],
        capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_record_is_utf_8_whatever_the_pipe_is(
    scanned: Callable[[str], ScanResult],
) -> None:
    text = report.to_json(scanned("suspect"))
    assert not text.isascii()
    Path("r.json").write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "auditor", "report", "r.json", "-o", "json=-"],
        capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8") == text


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 245 + ".json")
    write_text(path, "all of it")
    assert path.read_text("utf-8") == "all of it"
