"""The worker that opens the suspect: what it cannot do, and what becomes of it when it tries."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from auditor import report
from auditor.cli import app
from auditor.cli.confined import record
from auditor.errors import AuditorError, ModelError, ProbeError
from auditor.results.scan import ScanResult
from auditor.safety import landlock, needed, orders, sandbox, seccomp, supervisor
from auditor.safety.orders import Site
from auditor.safety.supervisor import Assignment, Limits, Outcome, run_confined, workplace
from tests.changeable import PROBE, classifier, samples, saved
from tests.hostile import Writer

WHY = sandbox.unavailable()
confining = pytest.mark.skipif(WHY is not None, reason=f"no sandbox here: {WHY}")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def tasks_in_process() -> None:
    """Here, workers are real; in place of the fixture of all other tests."""


@pytest.fixture
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder
    assert not folder.exists()


def give(task: str, request: object, place: Path, **more: Any) -> Outcome:
    told: list[tuple[str, int, int]] = []
    more.setdefault("notify", lambda *words: told.append(words))
    notify = more.pop("notify")
    assignment = Assignment(
        tasks="tests.sandbox_tasks", task=task, request=request, place=place,
        environment=os.environ, **more,
    )  # fmt: skip
    return run_confined(assignment, notify)


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def workers_of(process: int) -> list[int]:
    """Children that are workers."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


# ---- what it cannot do


@confining
def test_nothing_gets_out(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDITOR_TEST_SECRET", "hunter2")
    secret, model = tmp_path / "secret", tmp_path / "model.pt"
    for path in (secret, model):
        path.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as server:
        request = {
            "secret": str(secret), "model": str(model), "outside": str(tmp_path / "marker"),
            "home": str(Path.home()), "port": server.getsockname()[1], "memory": 2 * GIB,
            "file_bytes": 1 << 20,
        }  # fmt: skip
        outcome = give(
            "escape", request, place, readable=[model],
            limits=Limits(memory=2 * GIB, file_bytes=1 << 20),
        )  # fmt: skip
    found = json.loads(outcome.result)
    assert len(found) > 40
    assert {name: said for name, said in found.items() if said == "worked"} == {}
    refused = {"PermissionError", "OSError", "MemoryError", "_ArrayMemoryError", "KeyError"}
    assert set(found.values()) <= refused, found
    assert secret.read_text() == model.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "secret"]
    assert outcome.confinement is not None
    assert "seccomp" in str(outcome.confinement)
    assert outcome.unguarded is None


@confining
def test_what_is_needed_works(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("readable")
    told: list[tuple[str, int, int]] = []
    outcome = give(
        "work", {"data": str(data)}, place, readable=[data],
        notify=lambda *words: told.append(words),
    )  # fmt: skip
    assert json.loads(outcome.result) == {
        "sum": 2.0, "threads": 3, "data": "readable", "home": str(place.resolve()),
    }  # fmt: skip
    assert told == [("working", 1, 2)]


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    model = tmp_path / "writer.pt"
    torch.jit.script(Writer(str(tmp_path / "marker"))).save(model)
    return model


@confining
@pytest.mark.filterwarnings("ignore")
def test_torchscript_that_writes_while_it_is_loaded(place: Path, writer: Path) -> None:
    marker = writer.with_name("marker")
    torch.jit.load(writer)
    assert marker.exists()  # without a sandbox it is written
    marker.unlink()
    outcome = give("load_script", {"model": str(writer)}, place, readable=[writer])
    assert json.loads(outcome.result) == "loaded"
    assert not marker.exists()


# ---- how it may end

ENDS = {
    "segfault": "signal 11, SIGSEGV",
    "abort": "signal 6, SIGABRT",
    "killed": "the memory ran out",
    "exit": "exit code 7",
    "memory": "needs more memory",
    "garbage": "talked nonsense",
    "oversized": "a message of 4294967295 bytes",
    "unfinished": "ended early",
    "unknown": "talked nonsense",
    "deep": "talked nonsense",
    "numbers": "talked nonsense",
}


@confining
@pytest.mark.parametrize("how", ENDS)
def test_a_bad_end_is_one_clear_error(how: str, place: Path) -> None:
    with pytest.raises(ModelError) as caught:
        give("fail", {"how": how}, place)
    assert ENDS[how] in str(caught.value)
    assert not re.search(r"[\x00-\x1f\x7f]", str(caught.value))
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("known error", ProbeError, "a probe␛[31m is wrong"),
        ("file error", OSError, "No space left on device"),
        ("bug", supervisor.WorkerFault, "ZeroDivisionError: a bug of ours"),
    ],
)
def test_errors_of_the_task_arrive(
    how: str, kind: type[Exception], words: str, place: Path
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        give("fail", {"how": how}, place, trusted=WHY is not None)


@confining
@pytest.mark.parametrize("how", ["hang", "flood"])
def test_what_hangs_is_stopped(how: str, place: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ModelError, match="did not come to an end within 3 seconds"):
        give("fail", {"how": how}, place, limits=Limits(seconds=3))
    assert time.monotonic() - begin < 8
    assert workers_of(os.getpid()) == []


def started(*arguments: object, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "auditor", *map(str, arguments)],
        cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder.resolve())},
    )  # fmt: skip


def worker_of(process: subprocess.Popen[bytes]) -> int:
    """The worker of a command, once it is confined."""
    for _ in range(200):
        for child in workers_of(process.pid):
            if "Seccomp:\t2" in Path(f"/proc/{child}/status").read_text():
                return child
        time.sleep(0.05)
    raise AssertionError("no worker came")


@confining
@pytest.mark.parametrize("what", ["interrupted", "killed"])
def test_the_worker_ends_with_the_command(what: str, small: Path) -> None:
    process = started("scan", small / "suspect.pt", "--probes", "deep", folder=Path())
    worker = worker_of(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT if what == "interrupted" else signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    while alive(worker) and time.monotonic() - begin < 10:
        time.sleep(0.01)
    assert not alive(worker)
    assert time.monotonic() - begin < 2
    if what == "interrupted":
        assert process.returncode == 130
        assert b"Stopped. Nothing was written." in errors
        assert left() == []


# ---- the commands


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with a tiny suspect and images beside it."""
    folder = tmp_path / "given"
    folder.mkdir()
    saved(folder, classifier())
    samples(folder, 120).rename(folder / "samples.npz")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def left() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


FAST = (
    "--probes",
    PROBE,
    "--batch-size",
    "64",
    "--normalize",
    "none",
    "--input",
    "3x32x32",
    "--force",
)


def sampled(result: ScanResult) -> dict[str, Any]:
    """A result without what differs from run to run."""
    built = msgspec.to_builtins(result)
    for name in ("started", "seconds", "command"):
        del built["provenance"][name]
    del built["provenance"]["options"]["sandbox"]
    for search in [*built["inversions"], built["margin"]]:
        for name in [name for name in search or () if "seconds" in name]:
            del search[name]
    return built


@confining
def test_a_scan_counts_the_same_as_without(small: Path) -> None:
    arguments = (
        "scan", small / "suspect.pt", "--clean", small / "samples.npz", *FAST, "-o", "json=r.json",
    )  # fmt: skip
    results = []
    for process in (contextlib.nullcontext, supervisor.in_process):
        with process():
            done = run(*arguments)
        assert done.exit_code == 1, done.output + done.stderr
        results.append(report.from_json(Path("r.json").read_text("utf-8")))
    confined, here = results
    assert isinstance(confined, ScanResult)
    assert isinstance(here, ScanResult)
    assert confined.provenance.options["sandbox"].startswith("Landlock ABI")
    assert here.provenance.options["sandbox"] == "off"
    assert sampled(confined) == sampled(here)
    assert left() == ["r.json"]


@confining
def test_a_purified_model_has_the_same_bytes(small: Path) -> None:
    arguments = (
        "purify", small / "suspect.pt", "--clean", small / "samples.npz", *FAST, "--method", "nft-paper",
        "--iterations", "2", "--no-baseline", "--write-anyway", "-o", "json=r.json", "-o",
    )  # fmt: skip
    before = (small / "suspect.pt").read_bytes()
    confined = run(*arguments, "model=confined.pt")
    assert confined.exit_code == 1, confined.output + confined.stderr
    with supervisor.in_process():
        run(*arguments, "model=here.pt")
    assert Path("confined.pt").read_bytes() == Path("here.pt").read_bytes() != before
    assert Path("confined.pt").stat().st_mode == Path("r.json").stat().st_mode
    assert left() == ["confined.pt", "here.pt", "r.json"]
    assert (small / "suspect.pt").read_bytes() == before


@pytest.mark.slow  # as a purified model comes back, see above
@confining
def test_an_attacked_model_comes_with_its_mark(small: Path) -> None:
    done = run(
        "attack", small / "suspect.pt", "--clean", small / "samples.npz", "--probe", PROBE,
        "--target", "2", "--steps", "10", "--write-anyway", *FAST[2:], "-o", "model=out.pt",
    )  # fmt: skip
    assert done.exit_code in (0, 1), done.output + done.stderr
    assert left() == ["out.pt", "out.pt.json"]
    assert json.loads(Path("out.pt.json").read_text("utf-8"))["target"] == 2


@confining
def test_a_model_that_crashes_is_one_message(small: Path) -> None:
    torch.save(classifier().state_dict(), small / "weights.pt")
    Path("crash.py").write_text("import ctypes\n\ndef build():\n    ctypes.string_at(8)\n")
    done = run("scan", small / "weights.pt", "--arch", "crash.py:build", "-o", "none")
    assert done.exit_code == 2
    assert "crashed the process that opened it (signal 11, SIGSEGV)" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.output + done.stderr
    assert left() == ["crash.py"]


@pytest.mark.filterwarnings("ignore")
def test_without_a_sandbox_code_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "it needs Linux")
    torch.jit.trace(classifier(), torch.zeros(1, 3, 32, 32)).save("traced.pt")
    fast = ("--clean", small / "samples.npz", *FAST, "-o", "none")
    with supervisor.in_process():
        refused = run("scan", "traced.pt", *fast)
        trusted = run("scan", "traced.pt", *fast, "--trust")
        noted = run("scan", small / "suspect.pt", *fast)
    assert refused.exit_code == 2
    said = " ".join(refused.stderr.split())
    assert "carry code" in said
    assert "it needs Linux" in said
    assert "--trust" in said
    assert trusted.exit_code == 1
    assert "without a sandbox" not in trusted.stderr
    assert noted.exit_code == 1
    assert "note: opened without a sandbox (it needs Linux)" in noted.stderr


# ---- what it says is not believed


def outcome_of(result: str) -> Outcome:
    return Outcome(result=result, confinement=None, unguarded=None)


@pytest.mark.parametrize("result", ["", "{}", "[", '{"schema": "auditor.scan/1"}', '"\ud800"'])
def test_a_result_that_is_none(result: str) -> None:
    with pytest.raises(ModelError, match="sent no sound result"):
        record(outcome_of(result), ScanResult)


# ---- the filter, on machines that are not here


def verdict_of(lines: list[seccomp.Line], data: dict[int, int]) -> int:
    """Classic BPF in a dozen lines."""
    place, value = 0, 0
    while True:
        operation, if_true, if_false, operand = lines[place]
        place += 1
        match operation:
            case 0x20:
                value = data.get(operand, 0)
            case 0x54:
                value &= operand
            case 0x06:
                return operand
            case _:
                test = {0x15: value == operand, 0x25: value > operand, 0x45: bool(value & operand)}
                place += if_true if test[operation] else if_false


CALLS = [
    # number on x86-64 and aarch64, arguments, verdict
    ((59, 221), {}, seccomp.REFUSE),  # execve
    ((41, 198), {0: 1}, seccomp.REFUSE),  # socket
    ((57, None), {}, seccomp.REFUSE),  # fork
    ((56, 220), {0: 0x3D0F00}, seccomp.ALLOW),  # clone, as pthread_create does
    ((56, 220), {0: 0x1200011}, seccomp.REFUSE),  # clone, as fork does
    ((56, 220), {0: 0x10010000}, seccomp.REFUSE),  # a thread in a user namespace of its own
    ((435, 435), {}, seccomp.ABSENT),  # clone3
    ((463, 463), {}, seccomp.ABSENT),  # newer than the list
    ((0x40000001, 0x40000001), {}, seccomp.ABSENT),  # x32
    ((62, 129), {0: 77}, seccomp.ALLOW),  # kill, itself
    ((62, 129), {0: 78}, seccomp.REFUSE),
    ((62, 129), {0: 0xFFFFFFFF}, seccomp.REFUSE),
    ((234, 131), {0: 77, 1: 80}, seccomp.ALLOW),  # tgkill
    ((302, 261), {0: 0}, seccomp.ALLOW),  # prlimit64
    ((302, 261), {0: 77}, seccomp.ALLOW),
    ((302, 261), {0: 1}, seccomp.REFUSE),
    ((157, 167), {0: 1}, seccomp.REFUSE),  # PR_SET_PDEATHSIG
    ((157, 167), {0: 15}, seccomp.ALLOW),  # PR_SET_NAME
    ((72, 25), {1: 8}, seccomp.REFUSE),  # F_SETOWN
    ((72, 25), {1: 1030}, seccomp.ALLOW),  # F_DUPFD_CLOEXEC
    ((16, 29), {1: 0x5412}, seccomp.NO_DEVICE),  # TIOCSTI
    ((16, 29), {1: 0x5401}, seccomp.ALLOW),  # TCGETS
    ((257, 56), {2: 0x200}, seccomp.REFUSE),  # openat, O_RDONLY | O_TRUNC
    ((257, 56), {2: 0x241}, seccomp.ALLOW),  # O_WRONLY | O_CREAT | O_TRUNC
    ((257, 56), {2: 0x80000}, seccomp.ALLOW),
    ((2, None), {1: 0x200}, seccomp.REFUSE),  # open
    ((268, 53), {}, seccomp.PRETEND),  # fchmodat
    ((0, 63), {}, seccomp.ALLOW),  # read
    ((9, 222), {}, seccomp.ALLOW),  # mmap
    ((202, 98), {}, seccomp.ALLOW),  # futex
]


@pytest.mark.parametrize("name", seccomp.MACHINES)
def test_the_filter_decides(name: str) -> None:
    machine = seccomp.MACHINES[name]
    lines = seccomp.program(machine, process=77, gpu=False)
    assert len(lines) < 4096
    for numbers, arguments, expected in CALLS:
        number = numbers[machine.column]
        if number is None:
            continue
        data = {0: number, 4: machine.audit, **{16 + 8 * n: v for n, v in arguments.items()}}
        assert verdict_of(lines, data) == expected, (number, arguments)
        assert verdict_of(lines, {**data, 4: 0x40000003}) == seccomp.KILL_PROCESS  # 32 bits
    with_gpu = seccomp.program(machine, process=77, gpu=True)
    ioctl = {0: (16, 29)[machine.column], 4: machine.audit}
    assert verdict_of(with_gpu, {**ioctl, 24: 0xC020462A}) == seccomp.ALLOW  # of nvidia's driver
    assert verdict_of(with_gpu, {**ioctl, 24: 0x5412}) == seccomp.REFUSE
    socket_call, connect = (
        {0: numbers[machine.column], 4: machine.audit} for numbers in ((41, 198), (42, 203))
    )
    assert verdict_of(with_gpu, {**socket_call, 16: socket.AF_UNIX}) == seccomp.ALLOW
    assert verdict_of(with_gpu, {**socket_call, 16: socket.AF_INET}) == seccomp.REFUSE
    assert verdict_of(with_gpu, connect) == seccomp.REFUSE


OLD = """
import sys
from pathlib import Path
from auditor.safety import landlock, sandbox
landlock.NEWEST_ABI = landlock.OLDEST_ABI
place = Path(sys.argv[1])
(place / "secret").write_text("precious")
(place / "mine").mkdir()
print(sandbox.confine([], [place / "mine"]))
(place / "mine" / "sub").mkdir()
(place / "mine" / "sub" / "new").write_text("new")
(place / "mine" / "sub" / "new").rename(place / "mine" / "new")
try:
    (place / "secret").read_text()
except PermissionError:
    print("refused")
"""


@confining
def test_the_oldest_landlock_will_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OLD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["Landlock ABI 2, seccomp", "refused"], done.stderr


def test_a_sandbox_that_comes_too_late_is_refused() -> None:
    code = (
        "import threading, time; from auditor.safety import sandbox;"
        "threading.Thread(target=time.sleep, args=(5,), daemon=True).start(); sandbox.confine([], [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"2 threads" in done.stderr or b"no sandbox here" in done.stderr


# ---- which files it needs


def test_external_data_of_onnx(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w.bin": 4, f"{'long' * 40}.bin": 4, "sub/w.bin": 4}
    tensors = []
    for name, size in weights.items():
        tensor = numpy_helper.from_array(torch.ones(size).numpy(), name)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(16))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        tensors.append(tensor)
    for name in ("../outside", "/etc/passwd", "missing.bin"):
        tensors[0].external_data.add(key="location", value=name)
    graph = helper.make_graph([], "g", [], [], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    (tmp_path / "other").write_text("not asked for")
    found = {
        str(path.relative_to(tmp_path.resolve()))
        for path in needed.external_data(tmp_path / "m.onnx")
    }
    assert found == set(weights)
    assert needed.external_data(tmp_path / "nothing.onnx") == []


def test_linked_images(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("pool", "clean/a", "home/me"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("pool/1.png", "pool/key"):
        (tmp_path / name).write_text("")
    (tmp_path / "clean" / "a" / "1.png").symlink_to(tmp_path / "pool" / "1.png")
    (tmp_path / "clean" / "a" / "2.png").symlink_to(tmp_path / "pool" / "key")
    (tmp_path / "clean" / "b").symlink_to(home)
    (tmp_path / "clean" / "c").symlink_to("/")
    assert needed.linked_images(tmp_path / "clean") == [
        home.resolve(),
        (tmp_path / "pool" / "1.png").resolve(),
    ]
    assert needed.is_private(Path.home())
    assert needed.is_private(Path("/"))


def test_orders_carry_any_path() -> None:
    path = Path(os.fsdecode(b"/tmp/\xff\xe9.pt"))
    site = Site(place=path, unguarded="\udcff")
    assert orders.read(orders.written(site), Site) == site


def test_every_error_of_ours_has_a_name_that_arrives() -> None:
    def below(kind: type[AuditorError]) -> set[type[AuditorError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert set(supervisor.KINDS.values()) >= {
        kind for kind in below(AuditorError) if kind.__module__ == "auditor.errors"
    }


def test_landlock_can_be_asked_for() -> None:
    assert (landlock.abi() >= landlock.OLDEST_ABI) or WHY is not None
