"""What a process that opens a suspect may still do: compute.

Read the files that it was told of, write into one folder, and nothing else: start no program and no
process, open no socket, see no other process, signal none, change no file's owner, mode or times.
Landlock guards files (`landlock`), seccomp the system calls (`seccomp`); resource limits stop bombs.
No root, no helper program, a millisecond.

What it does not do: names, sizes and times of files elsewhere can still be asked for, the processor
can be used without end, and a GPU's driver is as reachable as its owner leaves it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from auditor.errors import UsageError
from auditor.safety import landlock, seccomp

READABLE = (
    # what libraries are made of; programs among them cannot be started
    "/usr", "/lib", "/lib64", "/nix/store", "/gnu/store",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
    "/etc/localtime",
    # what they want to know of the machine
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems",
    "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/sys/devices/system/cpu",
    "/sys/devices/system/node", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage",
    "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip
USABLE = ("/dev/null",)
GPU_READABLE = (
    "/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/sys/module", "/sys/class/drm",
    "/sys/class/kfd", "/sys/devices", "/sys/bus/pci", "/sys/dev/char", "/opt/cuda", "/opt/rocm",
    "/run/opengl-driver", "/etc/OpenCL", "/etc/nvidia",
)  # fmt: skip
GPU_WRITABLE = "/proc/self/task"
"""CUDA gives its threads names by writing them there, and does not start where it cannot."""
GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg")

FILE_BYTES = 1 << 30
"""Of one file that the worker writes, where nothing else is said."""
LIBRARIES = 32 << 30
"""Addresses that libraries, stacks and arenas reserve and hardly touch."""
KEPT_CAPABILITY = 2
"""CAP_DAC_READ_SEARCH: root reads what modes forbid, as before; Landlock says which files."""

_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_FROM_BOUNDS, _SET_NO_NEW_PRIVILEGES = 1, 4, 24, 38
_CAPABILITY_VERSION = 0x20080522


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a confined process."""

    landlock: int
    """ABI: what the kernel's Landlock can do."""
    seccomp: bool
    memory: int | None
    """Bytes that it may allocate."""
    gpu: bool
    """Devices of a GPU can be used, and addresses are not limited."""

    def __str__(self) -> str:
        parts = [f"Landlock ABI {self.landlock}", "seccomp"]
        if self.memory is not None:
            parts.append(f"at most {self.memory / 2**30:.1f} GiB of memory")
        return ", ".join(parts + ["GPU allowed"] * self.gpu)


def unavailable() -> str | None:
    """Why there is no sandbox here, in half a sentence; None where there is. Changes nothing."""
    if sys.platform != "linux":
        return "it needs Linux"
    machine = seccomp.machine()
    if machine is None:
        return f"it knows {' and '.join(seccomp.MACHINES)} only"
    abi = landlock.abi()
    if abi == 0:
        return "this kernel has no Landlock, or it is switched off"
    if abi < landlock.OLDEST_ABI:
        return "this kernel's Landlock is too old; Linux 5.19 has what is needed"
    if not seccomp.supported(machine):
        return "this kernel has no seccomp filters"
    return None


def gpu_devices() -> list[Path]:
    """The device files of GPUs; none where there is no GPU."""
    return [path for name in GPU_DEVICES for path in sorted(Path("/dev").glob(name))]


def die_with_parent(parent: int) -> None:
    """End when the process ends that started this one, however it ends.

    Args:
        parent: Its id; if it is gone already, this process ends now.
    """
    if sys.platform == "linux":
        import signal

        _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def confine(
    readable: Sequence[Path],
    writable: Sequence[Path],
    *,
    memory: int | None = None,
    file_bytes: int = FILE_BYTES,
    gpu: bool = False,
) -> Confinement:
    """Confine this process, for ever.

    Call it first: Landlock holds for the calling thread and those that it starts later.

    Args:
        readable: Files, and folders with all that is in them, besides the system's libraries.
        writable: Folders.
        memory: Bytes that may be allocated; None for no limit.
        file_bytes: Of the largest file that may be written.
        gpu: Devices of a GPU may be used.

    Raises:
        UsageError: There is no sandbox here, the process has other threads already, or the kernel
            refuses. Some of it may hold then; end the process.
    """
    machine, why = seccomp.machine(), unavailable()
    if why is not None or machine is None:
        raise UsageError(f"There is no sandbox here: {why}.")
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - only the number
    if threads > 1:
        raise UsageError(f"The sandbox comes too late: {threads} threads are running.")
    version = landlock.abi()
    try:
        _limit(memory, file_bytes, gpu=gpu)
        # Never closed: without it the kernel may forget the folder, and the rule for it.
        os.open("/proc/self", os.O_PATH)
        if not gpu:  # `GPU_WRITABLE` would belong to root
            _prctl(_SET_DUMPABLE, 0)
        _drop_capabilities()
        _prctl(_SET_NO_NEW_PRIVILEGES, 1)
        rules = [(path, landlock.READ) for path in (*map(Path, READABLE), *readable)]
        rules += [(Path(path), landlock.USE) for path in USABLE]
        rules += [(path, landlock.WRITE) for path in writable]
        if gpu:
            rules += [(Path(path), landlock.READ) for path in GPU_READABLE]
            rules += [(path, landlock.USE | landlock.READ) for path in gpu_devices()]
            changed = landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE
            rules.append((Path(GPU_WRITABLE), changed))
        landlock.restrict(rules, version)
        seccomp.install(machine, gpu=gpu)
    except OSError as error:
        raise UsageError(
            f"The sandbox cannot be set up here ({error.strerror}). If you trust whoever made the file, "
            "add --trust to do without."
        ) from None
    return Confinement(landlock=version, seccomp=True, memory=memory, gpu=gpu)


def _limit(memory: int | None, file_bytes: int, *, gpu: bool) -> None:
    """Resource limits; and where memory runs out all the same, this process is the first to go."""
    import resource

    # A core limit of 1 also stops those that the kernel pipes to a program; 0 does not.
    limits = {resource.RLIMIT_CORE: 1, resource.RLIMIT_FSIZE: file_bytes}
    if memory is not None:
        limits[resource.RLIMIT_DATA] = memory
        if not gpu:  # whose drivers reserve addresses by the terabyte
            limits[resource.RLIMIT_AS] = memory + LIBRARIES
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def _drop_capabilities() -> None:
    """Of root, who has them all; nobody else has any."""
    words = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, words) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capabilities: {os.strerror(error)}")
    kept = words[1] & 1 << KEPT_CAPABILITY
    for capability in range(64):
        if capability != KEPT_CAPABILITY:
            # refused to those who have none to drop
            libc.prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0)
    words[:] = [kept, kept, 0, 0, 0, 0]
    if libc.capset(header, words) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capabilities: {os.strerror(error)}")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")
