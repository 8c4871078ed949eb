"""auditor uses no network: without one it does the same, and it leaves no telemetry behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from auditor import report
from auditor.cli import app
from tests.changeable import PROBE, classifier, samples, saved
from tests.hostile import benign, put

UNSHARE = ("unshare", "-rn")
"""A namespace of the network without any interface that works."""
FAST = (
    "--probes", PROBE, "--batch-size", "64", "--normalize", "none", "--input", "3x32x32", "--force",
)  # fmt: skip
PURIFY = ("--method", "nft-paper", "--iterations", "2", "--no-baseline", "--write-anyway")


def why_not() -> str | None:
    if shutil.which("unshare") is None:
        return "there is no unshare"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or "it fails" if done.returncode else None


WHY_NOT = why_not()


def sampled(path: Path) -> dict[str, Any]:
    """A result without what differs from run to run."""
    built = msgspec.to_builtins(report.from_json(path.read_text("utf-8")))

    def pruned(value: Any) -> Any:
        if isinstance(value, dict):
            dropped = ("started", "seconds", "command", "sandbox")
            return {k: pruned(v) for k, v in value.items() if not str(k).endswith(dropped)}
        return [pruned(entry) for entry in value] if isinstance(value, list | tuple) else value

    return dict(pruned(built))


@pytest.mark.skipif(WHY_NOT is not None, reason=f"no namespace without network: {WHY_NOT}")
@pytest.mark.parametrize(
    ("command", "more"),
    # a purification scans as well, and test_sandbox compares its bytes
    [("scan", ()), pytest.param("purify", PURIFY, marks=pytest.mark.slow)],
    ids=["scan", "purify"],
)
def test_without_a_network_everything_is_the_same(
    command: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    suspect = saved(tmp_path, classifier())
    clean = samples(tmp_path, 120)
    arguments = [command, str(suspect), "--clean", str(clean), *FAST, *more]
    model = ("-o", "model=here.pt") if more else ()
    here = CliRunner().invoke(app, [*arguments, "-o", "json=here.json", *model])
    model = ("-o", "model=there.pt") if more else ()
    there = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "auditor", *arguments, "-o", "json=there.json", *model],
        env={**os.environ, "HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert there.returncode == here.exit_code == 1, there.stdout + there.stderr
    if more:
        assert Path("here.pt").read_bytes() == Path("there.pt").read_bytes()
    else:
        assert sampled(Path("here.json")) == sampled(Path("there.json"))
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_keeps_no_telemetry(tmp_path: Path) -> None:
    """Its id is kept in ~/.cache/Microsoft/DeveloperTools, by whoever imports it as it comes."""
    put(tmp_path / "m.onnx", benign("onnx"))
    (tmp_path / "home").mkdir()
    code = (
        "import sys; from auditor.api import load_model; import torch; "
        "print(load_model(sys.argv[1]).call(torch.zeros(2, 3, 32, 32)).shape)"
    )
    environment = {
        name: value for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        env={**environment, "HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Size([2, 8])" in done.stdout, done.stderr
    assert not (tmp_path / "home" / ".cache" / "Microsoft").exists()
