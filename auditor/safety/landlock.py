"""Landlock: what the calling thread, and whatever it starts, may still open (Linux 5.19 or later).

System calls by ctypes. The Python bindings of 2026 were looked at: `landlock` is a development
release, `py-landlock` and `landlockpy` are at 0.x with one maintainer each. These lines are fewer
than what would have to be read of them, and nothing else stands between the suspect and the files.

    https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on every machine."""
VERSION = 1
PATH_BENEATH = 1

OLDEST_ABI = 2
"""Before it (Linux 5.19) no file can be renamed into another folder, which writing a model does."""
NEWEST_ABI = 7
"""What newer kernels offer beyond it is not asked for."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = (1 << bit for bit in range(4, 9))
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(9, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))

READ = READ_FILE | READ_DIR
USE = READ_FILE | WRITE_FILE | IOCTL_DEV
"""Of a device."""
WRITE = READ | WRITE_FILE | TRUNCATE | MAKE_DIR | MAKE_REG | REMOVE_DIR | REMOVE_FILE | REFER
"""Ordinary files and folders only: no link, socket or device, which could lead somewhere else."""
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1, 2
ABSTRACT_SOCKETS, SIGNALS = 1, 2
"""Scopes: no abstract socket of a process outside, no signal to one."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Which Landlock this kernel has; 0 for none.

    Asking changes nothing.
    """
    version = int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))
    return max(0, min(version, NEWEST_ABI))


def restrict(rules: Iterable[tuple[Path, int]], version: int) -> None:
    """Allow what the rules name, and no other file, TCP port or signal, from now on.

    Nothing may be executed, wherever it is. `prctl(PR_SET_NO_NEW_PRIVS)` must come first.

    Args:
        rules: A path, with what is allowed there and below. What does not exist is left out.
        version: As `abi` says; a lower one is for tests.

    Raises:
        OSError: The kernel refuses.
    """
    known = (1 << {2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    asked = _Ruleset(
        files=known,
        network=BIND_TCP | CONNECT_TCP if version >= 4 else 0,
        scopes=ABSTRACT_SOCKETS | SIGNALS if version >= 6 else 0,
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(CREATE_RULESET, ctypes.byref(asked), ctypes.c_size_t(size), 0)
    try:
        for path, allowed in rules:
            _allow(ruleset, path, allowed & known)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            allowed &= OF_FILES
        rule = _PathBeneath(allowed=allowed, folder=place)
        _call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
