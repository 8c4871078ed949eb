"""The corpus of hostile files: nothing of them runs, and what they are is said.

For those that carry code, the same test shows that the usual loaders do run it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import onnx
import pytest
from typer.testing import CliRunner

from auditor import report
from auditor.cli import app
from auditor.inspecting.record import Inspection, Safety
from auditor.safety import sandbox, supervisor
from tests.changeable import PROBE, classifier, samples, saved
from tests.hostile import CORPUS, NAIVE, archived, benign, edited, graph, members, put
from tests.hostile import saved as pickled
from tests.sample_inspection import hostile_inspection
from tests.test_report import HOSTILE, Page

SECONDS = 10.0
HARMLESS = {
    "onnx: odd texts", "safetensors: odd metadata", "onnx: data before its file",
    "zip: paths upwards", "zip: odd names",
}  # fmt: skip
"""These may be scanned: what is odd about them does nothing."""
CARRIERS = ("pickle", "script", "pt2")
UNSAFE = {
    *(name for name, item in CORPUS.items() if item.kind in CARRIERS and "nested" not in name),
    "zip: duplicate", "zip: duplicate first", "zip: case variant", "zip: two roots", "zip: bomb",
    "zip: two archives", "zip: two directories",
    "zip: bomb of code", "zip: absurd sizes", "zip: storage viewed larger",
    "onnx: data outside", "onnx: data of the system", "onnx: data in a link",
    "onnx: data in a hard link", "onnx: data with an overlong name",
    "onnx: data with a zero in its name", "onnx: data in two places",
    "onnx: custom operators", "onnx: custom operators inside",
    "onnx: recursive functions", "onnx: laughing functions",
}  # fmt: skip
"""Findings; the others are damaged or absurd, which is an error."""


class Naive:
    """A process that opens files in the way that their authors hope for."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NAIVE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def tell(self, loader: str, path: Path, *, here: bool) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([loader, str(path), here]) + "\n")
        self._process.stdin.flush()

    def open(self, loader: str, path: Path) -> None:
        self.tell(loader, path, here=False)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Naive]:
    loader = Naive()
    fine = put(tmp_path_factory.mktemp("fine") / "m.pt2", benign("pt2"))
    loader.tell("export", fine, here=True)
    yield loader
    loader.end()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "given").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    return tmp_path / "given"


FAST = ("--probes", PROBE, "--normalize", "none", "--input", "3x32x32", "--batch-size", "64")
HASTY = (*FAST, "--time-budget", "1s")
"""For files that may be scanned: no images are given, and to make some takes seconds."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, item in CORPUS.items() if not item.apart])
def test_nothing_of_it_runs(name: str, given: Path, naive: Naive) -> None:
    marker = given / "marker"
    path = CORPUS[name].make(given, marker)
    before, content = tree(given), path.read_bytes()
    begin = time.process_time()
    scanned = run("scan", path, *HASTY)
    inspected = run("inspect", path, "--json")
    assert time.process_time() - begin < SECONDS
    assert not marker.exists()
    assert tree(given) == before
    assert path.read_bytes() == content
    for done in (scanned, inspected):
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        assert "\x1b" not in done.output
        assert "\u202e" not in done.output
    written = sorted(entry.name for entry in Path().iterdir())
    if name in UNSAFE:
        assert scanned.exit_code == inspected.exit_code == 1, scanned.output
        assert "✖ UNSAFE FILE" in scanned.output
        assert "Ways out" in scanned.output
        assert written == [f"{path.stem}.scan.html", f"{path.stem}.scan.json"]
        told = json.loads(Path(f"{path.stem}.scan.json").read_text("utf-8"))
        assert told["schema"] == "auditor.inspection/1"
        assert told["content"]["findings"]
        assert told == json.loads(inspected.output)
    elif scanned.exit_code in (0, 1, 3):
        assert name in HARMLESS, scanned.output
    else:
        assert scanned.exit_code == 2
        assert written == []
    if (loader := CORPUS[name].naive) is not None:
        naive.open(loader, path)
        assert marker.exists(), f"{loader} does not run it any more"


# ---- through the worker, as users have it

CONFINED = (
    "pickle: os system", "zip: bomb", "onnx: constant of shape",
    *(
        pytest.param(name, marks=pytest.mark.slow)  # the same, of other formats
        for name in (
            "script: setstate", "pt2: expression", "onnx: data outside", "safetensors: header bomb",
        )
    ),
)  # fmt: skip


@pytest.fixture
def tasks_in_worker(tasks_in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it, in place of what is faster for all other tests."""
    monkeypatch.setattr(supervisor, "_in_process", False)


@pytest.mark.skipif(sandbox.unavailable() is not None, reason="no sandbox here")
@pytest.mark.usefixtures("tasks_in_worker")
@pytest.mark.parametrize("name", CONFINED)
def test_one_of_each_kind_in_the_sandbox(name: str, given: Path) -> None:
    path = CORPUS[name].make(given, given / "marker")
    done = run("scan", path, *FAST, "-o", "r.json")
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == (1 if name in UNSAFE else 2), done.output
    assert "Traceback" not in done.output
    assert ("✖ UNSAFE FILE" in done.output) is (done.exit_code == 1), done.output
    assert not list(given.rglob("marker"))
    assert [entry.name for entry in Path().iterdir()] == (["r.json"] if name in UNSAFE else [])


# ---- the commands that write models


@pytest.mark.parametrize("command", ["purify", "attack"])
def test_a_refused_suspect_is_not_written(command: str, given: Path) -> None:
    path = CORPUS["pickle: os system"].make(given, given / "marker")
    clean = samples(given, 60)
    more = ("--probe", PROBE, "--target", "0") if command == "attack" else ()
    reports = ("-o", "json=r.json", *(("-o", "md=r.md") if command == "purify" else ()))
    done = run(command, path, "--clean", clean, *more, *reports, "-o", "model=m.pt")
    assert done.exit_code == 1, done.output
    assert "✖ UNSAFE FILE" in done.output
    written = sorted(entry.name for entry in Path().iterdir())
    assert written == (["r.json"] if command == "attack" else ["r.json", "r.md"])
    assert not (given / "marker").exists()
    quiet = run(command, path, "--clean", clean, *more, "-o", "none", "-q")
    assert quiet.exit_code == 1
    assert quiet.stdout.count("\n") == 1
    assert quiet.stdout.startswith("UNSAFE FILE m.pt: loading it calls")


def test_reports_of_a_refusal_can_be_made_again(given: Path) -> None:
    path = CORPUS["pickle: os system"].make(given, given / "marker")
    formats = ("json", "html", "md")
    assert run("scan", path, *(f"-o{name}=scan.{name}" for name in formats)).exit_code == 1
    assert run("inspect", path, *(f"-o{name}=own.{name}" for name in formats)).exit_code == 1
    done = run("report", "scan.json", "-o", "html=again.html", "-o", "md=again.md")
    assert done.exit_code == 0, done.output
    assert "✖ UNSAFE FILE" in done.output
    for name in formats:
        texts = {Path(f"{made}.{name}").read_text("utf-8") for made in ("scan", "own")}
        texts |= {Path(f"again.{name}").read_text("utf-8")} if name != "json" else set()
        assert len(texts) == 1, name
    printed = run("scan", path, "-o", "json=-")
    assert json.loads(printed.stdout)["schema"] == "auditor.inspection/1"
    told = json.loads(Path("scan.json").read_text("utf-8"))
    told["scan"]["works"] = True
    put(Path("lie.json"), json.dumps(told).encode())
    assert run("report", "lie.json").exit_code == 2


def test_what_is_merely_damaged_is_an_error(given: Path) -> None:
    whole = benign("torch")
    flipped = bytearray(whole)
    flipped[whole.index(b"data/0") + 200] ^= 1
    legacy = benign("legacy")
    for data in (
        whole[:-100],
        bytes(flipped),
        legacy[:200],
        legacy[: len(legacy) // 2],
        b"\x08" * 9,
    ):
        path = put(given / "m.pt", data)
        for command in ("scan", "inspect"):
            done = run(command, path)
            assert done.exit_code == 2, (len(data), command, done.output)
    assert list(Path().iterdir()) == []


def _garbled_text(folder: Path) -> Path:
    return put(folder / "m.onnx", benign("onnx").replace(b"Conv", b"Co\xff\xfe"))


def _unknown_type(folder: Path) -> Path:
    model = onnx.load_from_string(benign("onnx"))
    model.graph.initializer[0].data_type = 111
    return put(folder / "m.onnx", model.SerializeToString())


def _list_for_an_operator(folder: Path) -> Path:
    fine = put(folder / "m.pt2", benign("pt2"))
    return edited(fine, lambda document: graph(document)["nodes"][0].update(target=["aten"]))


def _no_number_in_code(folder: Path) -> Path:
    content = members(benign("frozen"))
    code = {
        n: d.replace(b"CONSTANTS.c", b"CONSTANTS.x")
        for n, d in content.items()
        if n.endswith(".py")
    }
    return put(folder / "m.pt", archived(content | code))


def _endless_string(folder: Path) -> Path:
    """Of 2 ** 62 bytes, in the pickle of a legacy file."""
    return put(folder / "m.pt", benign("legacy")[:60] + b"\x8d" + b"\0" * 7 + b"\x40" + b"x" * 99)


FOUND = (_garbled_text, _unknown_type, _list_for_an_operator, _no_number_in_code, _endless_string)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", FOUND)
def test_what_fuzzing_found_is_a_message(make: Callable[[Path], Path], given: Path) -> None:
    path, clean = make(given), samples(given, 120)
    for command in ("scan", "inspect"):
        done = run(command, path, *((*FAST, "--clean", clean) if command == "scan" else ()))
        assert isinstance(done.exception, SystemExit | None), repr(done.exception)
        assert done.exit_code in ((1, 2) if command == "scan" else (0, 1, 2))


# ---- names and texts

NAMES = (
    *(f"a{text}.pt" for text in ("\x1b[31m\x1b]0;t\x07", "\u202egnp", "\n## x\n- y", "x" * 240)),
    '"><script>alert(1)<&script>.pt',
    "[l](javascript:1) `c` | @octocat {{7*7}}.pt",
)


def harmless_page(text: str) -> None:
    page = Page(text)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for tag in ("script", "img", "iframe", "object", "link", "base", "form"):
        assert page.all(tag) == [], tag
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert all(link["href"].startswith("#") for link in page.all("a") if link["href"])
    visible(text)


def outside_code(markdown: str) -> str:
    return re.sub(r"(?s)(`+).*?\1", "", markdown)


def visible(text: str) -> None:
    assert not set("\x1b\x07\u202e\u2066\0\r") & set(text)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_of_files_are_text(name: str, given: Path) -> None:
    path = given / name
    CORPUS["pickle: os system"].make(given, given / "marker").rename(path)
    done = run("scan", path, "-o", "html=r.html", "-o", "md=r.md", "-o", "json=r.json")
    assert done.exit_code == 1, done.output
    visible(done.output)
    harmless_page(Path("r.html").read_text("utf-8"))
    summary = Path("r.md").read_text("utf-8")
    visible(summary)
    assert "\n## x" not in summary
    assert "<script" not in outside_code(summary)
    path.write_bytes(path.read_bytes()[:-40])
    damaged = run("scan", path, "-o", "none")
    assert damaged.exit_code == 2
    visible(damaged.output)


def test_texts_of_a_record_are_text() -> None:
    made = hostile_inspection()
    assert made.safety is Safety.UNSAFE
    harmless_page(report.to_html(made))
    summary = report.to_markdown(made)
    assert len(summary) <= report.MARKDOWN_CHARACTERS
    visible(summary)
    markup = r"(?<!\\)\[link\]\(|<script|<img|@octocat|^## heading"
    assert not re.search(markup, outside_code(summary), re.MULTILINE)
    visible(report.to_json(made))
    assert msgspec.json.decode(report.to_json(made), type=Inspection) == made


def test_labels_are_text(given: Path) -> None:
    suspect = saved(given, classifier())
    (given / "labels.txt").write_text(
        "\n".join(
            f"{place} {text.splitlines()[0]}"[:400] for place, text in enumerate(HOSTILE[:8])
        ),
        "utf-8",
    )
    done = run(
        "scan", suspect, "--clean", samples(given, 120), "--labels", given / "labels.txt", *FAST,
        "-o", "html=r.html", "-o", "md=r.md", "-o", "json=r.json",
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    visible(done.output)
    text = Path("r.html").read_text("utf-8")
    page = Page(text)
    assert page.all("script") == []
    assert all(
        (image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img")
    )
    for kind in ("html", "md", "json"):
        visible(Path(f"r.{kind}").read_text("utf-8"))
    assert "<script" not in outside_code(Path("r.md").read_text("utf-8"))


def test_texts_in_a_checkpoint_are_text(given: Path) -> None:
    content = {"net": classifier().state_dict(), **dict.fromkeys(HOSTILE[:-1], HOSTILE[0])}
    path = put(given / "m.pt", pickled(content))
    for command in (("inspect",), ("scan",)):
        visible(run(*command, path, "-o", "none").output)
    run("inspect", path, "-o", "html=r.html", "-o", "md=r.md")
    harmless_page(Path("r.html").read_text("utf-8"))
    visible(Path("r.md").read_text("utf-8"))
