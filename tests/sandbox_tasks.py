"""What `test_sandbox` has a worker do: all that a suspect would like to, if it could."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from auditor.errors import ProbeError
from auditor.safety.orders import Site
from auditor.safety.supervisor import Notify


def _escapes(told: dict[str, Any], place: Path) -> dict[str, Callable[[], object]]:
    libc = ctypes.CDLL(None, use_errno=True)
    secret, outside = Path(told["secret"]), Path(told["outside"])

    def system(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def call(number: int, *arguments: Any) -> None:
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), str(number))

    def emptied() -> None:
        os.open(secret, os.O_RDONLY | os.O_TRUNC)

    def mode_changed() -> None:
        before = Path(told["model"]).stat().st_mode
        Path(told["model"]).chmod(0o600)
        if Path(told["model"]).stat().st_mode == before:
            raise PermissionError("pretended")

    def signalled_by_file() -> None:
        import fcntl

        reader, _ = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, os.getppid())

    def connected(kind: int) -> None:
        socket.socket(kind, socket.SOCK_STREAM)

    return {
        "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "spawn": lambda: subprocess.run(["/bin/true"], check=True),
        "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "fork": os.fork,
        "write outside": lambda: outside.write_text("marker"),
        "write the model": lambda: Path(told["model"]).write_bytes(b"changed"),
        "remove the model": lambda: Path(told["model"]).unlink(),
        "empty by reading": emptied,
        "truncate": lambda: os.truncate(told["model"], 0),
        "change a mode": mode_changed,
        "change an owner": lambda: os.chown(told["model"], 1, 1),
        "set an attribute": lambda: os.setxattr(told["model"], "user.x", b"1"),
        "link out": lambda: (place / "link").symlink_to(secret),
        "link in": lambda: os.link(secret, place / "hard"),
        "fifo": lambda: os.mkfifo(place / "fifo"),
        "read a secret": secret.read_bytes,
        "read users": Path("/etc/passwd").read_bytes,
        "read home": lambda: list(Path(told["home"]).iterdir()),
        "list the root": lambda: list(Path("/").iterdir()),
        "list temporary files": lambda: list(Path("/tmp").iterdir()),  # noqa: S108
        "environment of the parent": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "memory of the parent": lambda: Path(f"/proc/{os.getppid()}/mem").open("rb"),
        "trace the parent": lambda: system("ptrace", 16, os.getppid(), 0, 0),
        "kill the parent": lambda: os.kill(os.getppid(), 0),
        "kill all": lambda: os.kill(-1, 0),
        "signal by a file": signalled_by_file,
        "handle of the parent": lambda: os.pidfd_open(os.getppid()),
        "limits of the parent": lambda: __import__("resource").prlimit(os.getppid(), 7),
        "connect": lambda: socket.create_connection(("127.0.0.1", told["port"]), 1),
        "unix socket": lambda: connected(socket.AF_UNIX),
        "netlink": lambda: connected(16),
        "socket pair": socket.socketpair,
        "user namespace": lambda: system("unshare", 0x10000000),
        "mount": lambda: system("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "chroot": lambda: os.chroot(place),
        "outlive the parent": lambda: system("prctl", 1, 0, 0, 0, 0),
        "io_uring": lambda: call(425, 1, None),
        "bpf": lambda: call(321 if os.uname().machine == "x86_64" else 280, 0, None, 0),
        "key": lambda: call(250 if os.uname().machine == "x86_64" else 219, 0, -1, 0),
        "newer than the list": lambda: call(467, 0, None, 0, None, 0),
        "shared memory": lambda: system("shmget", 0, 4096, 0o1600),
        "memory": lambda: bytearray(told["memory"] + (1 << 28)),
        "memory of numpy": lambda: __import__("numpy").ones(told["memory"] // 8 + (1 << 25)),
        "large file": lambda: _large_file(place / "large", told["file_bytes"]),
        "secret in the environment": lambda: os.environ["AUDITOR_TEST_SECRET"],
    }  # fmt: skip


def _large_file(path: Path, limit: int) -> None:
    with path.open("wb") as file:
        file.seek(limit)
        file.write(b"x")
        file.flush()


def escape(told: dict[str, Any], site: Site, notify: Notify) -> str:
    """Try everything; say what came of it."""
    outcomes = {}
    for name, attempt in _escapes(told, site.place).items():
        try:
            attempt()
        except (Exception, SystemExit) as error:
            outcomes[name] = type(error).__name__
        else:
            outcomes[name] = "worked"
    return json.dumps(outcomes)


def work(told: dict[str, Any], site: Site, notify: Notify) -> str:
    """What must still work."""
    import torch

    notify("working", 1, 2)
    (site.place / "new").mkdir()
    path = site.place / "new" / "weights.pt"
    torch.save(torch.ones(2), path)
    path.chmod(0o644)
    path.replace(site.place / "weights.pt")
    total = sum(thread_results())
    return json.dumps(
        {
            "sum": float(torch.load(site.place / "weights.pt").sum()),
            "threads": total,
            "data": Path(told["data"]).read_text(),
            "home": str(Path.home()),
        }
    )


def thread_results() -> list[int]:
    results: list[int] = []
    threads = [threading.Thread(target=results.append, args=(1,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def load_script(told: dict[str, Any], site: Site, notify: Notify) -> str:
    """Open a TorchScript file without looking at it first, as no code of ours does."""
    import torch

    torch.jit.load(told["model"])
    return json.dumps("loaded")


def fail(told: dict[str, Any], site: Site, notify: Notify) -> str:
    """End badly, in one way or another."""
    channel = int(told.get("channel", 3))
    match told["how"]:
        case "segfault":
            ctypes.string_at(8)
        case "abort":
            print("free(): \x1b[31minvalid pointer", file=sys.stderr, flush=True)
            os.abort()
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "known error":
            raise ProbeError("a probe\x1b[31m is wrong")
        case "file error":
            raise OSError(28, "No space left on device")
        case "bug":
            raise ZeroDivisionError("a bug of ours")
        case "memory":
            raise MemoryError
        case "garbage":
            os.write(channel, b"\x00\x00\x00\x10 is not any JSON")
        case "oversized":
            os.write(channel, b"\xff\xff\xff\xff" + b"{}")
        case "unfinished":
            os.write(channel, b"\x00\x00\x01\x00{")
            os._exit(0)
        case "unknown":
            text = b'{"type":"pickle","data":"gASVIQAAAA=="}'
            os.write(channel, len(text).to_bytes(4, "big") + text)
        case "deep":
            text = b"[" * 100_000
            os.write(channel, len(text).to_bytes(4, "big") + text)
        case "numbers":
            notify("\x1b[31mred", 1 << 70, 1)
        case "flood":
            while True:
                os.write(2, b"x" * 65536)
                os.write(
                    channel,
                    b"\x00\x00\x00\x31" + b'{"type":"progress","what":"w","done":1,"total":2}',
                )
        case "hang":
            notify("hanging", 0, 1)
            while True:
                time.sleep(60)
    time.sleep(60)
    return "{}"


TASKS = {"escape": escape, "work": work, "load_script": load_script, "fail": fail}
