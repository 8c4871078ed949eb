"""What the README says is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auditor import verdict
from auditor.cli import FORMATS, app
from auditor.probes import load_probe, shipped_probes
from auditor.results.facts import Verdict
from auditor.search.forms import AdditiveForm, PatchForm
from auditor.statistics import MIN_CLASSES_FOR_OUTLIERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def command_help(name: str) -> str:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    return f"```\n$ auditor {name} --help\n" + done.stdout.strip() + "\n```"


def scan_help() -> str:
    return command_help("scan")


def purify_help() -> str:
    return command_help("purify")


def attack_help() -> str:
    return command_help("attack")


def inspect_help() -> str:
    return command_help("inspect")


def probe_table() -> str:
    rows = ["| id | tier | triggers | what |", "|---|---|---|---|"]
    rows += [
        f"| `{probe.id}` | {probe.tier} | {len(probe.triggers)} | {probe.title} |"
        for probe in shipped_probes()
    ]
    return "\n".join(rows)


def words(text: str) -> set[str]:
    """Without layout, and without metavars and types: these differ between versions of typer."""
    return {word for word in text.split() if word != "MODEL" and not set("<>{}=[]") & set(word)}


GENERATED = {
    "help:scan": scan_help,
    "help:purify": purify_help,
    "help:attack": attack_help,
    "help:inspect": inspect_help,
    "probes": probe_table,
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_current(name: str, request: pytest.FixtureRequest) -> None:
    text = README.read_text("utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
    made = GENERATED[name]() + "\n"
    if request.config.getoption("--update-golden"):
        README.write_text(pattern.sub(lambda m: m[1] + made + m[3], text), "utf-8")
        text = README.read_text("utf-8")
    found = pattern.search(text)
    assert found is not None
    assert words(found[2]) == words(made), "rewrite it with: pytest --update-golden"


def test_exit_codes() -> None:
    text = README.read_text("utf-8")
    for kind in Verdict:
        assert f"| {kind} | {kind.exit_code} |" in text


def test_the_thresholds_that_the_readme_names() -> None:
    text = " ".join(README.read_text("utf-8").split())
    for words in (
        f"moves {verdict.SCREEN_RATE:.0%} to one class",
        f"or {verdict.SCREEN_CELL_RATE:.0%} of one source class",
        f"bounds at level {verdict.ALPHA}",
        f"ASR at least {verdict.BACKDOOR_ASR:.0%} *and* at least {verdict.EXCESS * 100:.0f} points",
        f"at least a quarter of the classes, {verdict.FEWEST_SOURCES} at least (all-to-one), or so many classes, 3",
        f"a trigger moves at least {verdict.OBEYED_ASR:.0%}, {verdict.EXCESS * 100:.0f} points above "
        f"half of its controls, and (a) is a mark on at most {verdict.SMALL_AREA:.1%} of the pixels",
        f"half of the real images, on more than {verdict.SURER:.0%} of them; and where a small",
        f"sends {verdict.FEWEST_PERMUTED} or more classes round in circles of "
        f"{verdict.SHORTEST_CIRCLE} or more (most of {verdict.PERMUTED_IMAGES} or more images a class, at least {verdict.BACKDOOR_ASR:.0%}",
        f"at least {verdict.SUSPICIOUS_ASR:.0%} and {verdict.EXCESS * 100:.0f} points above the worst",
        f"of one source class only: {verdict.CELL_ASR:.0%} and {verdict.EXCESS * 100:.0f} points",
        f"BACKDOOR then needs {verdict.MADE_ASR:.0%}",
        f"with controls below {verdict.MADE_CONTROL:.0%}",
        f"moves at least {verdict.OBEYED_ASR:.0%}, {verdict.EXCESS * 100:.0f} points above half of its",
        f"half of the real images on more than {verdict.SURER:.0%}, *and*",
        f"at most {PatchForm.AREA:.0%} of the pixels",
        f"{AdditiveForm.JUDGED * 255:.0f}/255 RMS",
        f"({MIN_CLASSES_FOR_OUTLIERS} classes or more)",
    ):
        assert words in text, words


def test_the_example_probe_is_valid(tmp_path: Path) -> None:
    example = README.read_text("utf-8").split("<!-- probe -->\n```yaml\n")[1].split("```")[0]
    path = tmp_path / "mine.sticker.yaml"
    path.write_text(example, "utf-8")
    assert len(load_probe(path).triggers) == 3


def test_every_flag_in_the_readme_exists() -> None:
    text = README.read_text("utf-8").split("<!-- help:scan -->")[0]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    helps = scan_help() + purify_help() + attack_help() + inspect_help()
    assert flags <= set(re.findall(r"--[a-z-]+", helps))
    assert set(FORMATS) == {"json", "html", "md"}


def test_ci_calls_the_readme_test_command() -> None:
    commands = re.findall(r"^pip install .*pytest$", README.read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 1
    assert "grep -m 1 -E '^pip install .*pytest' README.md" in (ROOT / ".ci" / "run").read_text(
        "utf-8"
    )


def test_the_changelog_has_entries() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## Unreleased" in text
    assert text.count("\n- ") >= 5


@pytest.mark.slow
def test_the_wheel_ships_probes_and_templates(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.startswith("auditor/_data/probes/") for name in names) == len(shipped_probes())
    assert "auditor/_data/templates/scan.html.j2" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "probes/"))]


def test_every_dependency_has_a_bound_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for dependency in tomllib.loads(text)["project"]["dependencies"]:
        assert ">=" in dependency
        assert re.search(rf'"{re.escape(dependency)}", +#', text), dependency
