"""Imports go down only, and what must be instant loads no torch."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "auditor"

RANKS = [
    {"errors"},
    {
        "anatomy",
        "batchnorm",
        "endings",
        "memory",
        "progress",
        "registry",
        "resources",
        "results",
        "statistics",
        "text",
    },
    {"safety", "outputs"},
    {"architectures", "images", "masks"},
    {"onnx_graph"},
    {"models", "scores", "triggers"},
    {"classifier", "probes", "inspecting"},
    {"inputs", "precision", "synthesis"},
    {"verdict"},
    {"measure"},
    {"search", "choosing"},
    {"purifiers"},
    {"changing", "report"},
    {"scanning", "demo"},
    {"purification", "attack"},
    {"terminal", "api"},
    {"cli"},
    {"__main__"},
]
"""Lowest first; a module imports only from lower ranks, or from its own package."""


def rank(module: str) -> int:
    return next(place for place, names in enumerate(RANKS) if module in names)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "auditor":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("auditor.")}
    return found


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported(path) - {own, "__version__"}:
        assert rank(other) < rank(own), f"{own} imports {other}"


def test_no_module_needs_itself() -> None:
    """Nor do those of one package go round in a circle, where a name is imported at the top."""
    named = {
        ".".join(("auditor", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in MODULES
    }
    needs: dict[str, set[str]] = {}
    for name, path in named.items():
        needs[name] = set()
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                from_package = set() if inner <= set(named) else {node.module}
                needs[name] |= ((inner & set(named)) | (from_package & set(named))) - {name}
    assert sum(map(len, needs.values())) > len(named)
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError


def test_every_module_has_a_rank() -> None:
    tops = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES}
    assert tops == set().union(*RANKS)


@pytest.mark.parametrize(
    "module", ["auditor.cli", "auditor.results.purify", "auditor.report", "auditor.verdict"]
)
def test_instant_modules_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_is_instant() -> None:
    """Under half a second of the processor's time, the best of three: the machine may be busy."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "auditor", "--help"], check=True, capture_output=True)
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    assert 0 < min(seconds) < 0.5, seconds


def test_the_public_names_are_what_api_says() -> None:
    from auditor import api

    own = {name for name in vars(api) if not name.startswith("_") and name != "annotations"}
    assert set(api.__all__) == own
    assert (
        sorted(api.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) == api.__all__
    )
