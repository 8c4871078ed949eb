"""seccomp: which system calls the process may still make, all its threads included.

Landlock guards files. This guards the rest: no other program or process, no socket, no signal to
others, none of the kernel's less travelled ways, and no change of the owner, mode, times or
attributes of a file, which Landlock lets pass.

It is a list of what is refused, since torch, onnxruntime and the drivers of a GPU use much that no
list of ours would foresee. But it is closed above: calls that are newer than the list do not exist.
libseccomp would assemble the same program; its bindings need the C library, which wheels do not
bring (`pyseccomp`) or do not exist as wheels at all (`seccomp`).

    https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
REFUSE: Final = _ERRNO | errno.EPERM
ABSENT: Final = _ERRNO | errno.ENOSYS
"""As if the kernel were older; libraries then take another way."""
PRETEND: Final = _ERRNO
"""Report success and do nothing."""
NO_DEVICE: Final = _ERRNO | errno.ENOTTY

NEWEST: Final = 462
"""The newest call that the list below considers (mseal, Linux 6.10), on every machine. The x32 calls
of x86-64 lie above it, too."""

# name -> number on x86-64 and on aarch64; None where a machine does not have it. From 424 on they
# are the same everywhere.
_REFUSED: Final = {
    # other programs and processes (threads: see `_clone`)
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41),
    "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # sockets, of any kind, and memory or queues that other processes can see
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269), "recvmsg": (47, 212), "recvmmsg": (299, 243),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # files: by handle instead of by path, and what Landlock does not look at
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "truncate": (76, 45),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # ways into the kernel that no computation needs
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "personality": (135, 92), "modify_ldt": (154, None), "uselib": (134, None),
    "memfd_secret": (447, 447), "lsm_set_self_attr": (460, 460),
    # of the whole machine
    "iopl": (172, None), "ioperm": (173, None), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "_sysctl": (156, None),
}  # fmt: skip
_FOR_GPUS: Final = ("socket", "bind", "listen", "accept", "accept4", "recvmsg")
"""CUDA waits at a local socket, where copies of its process would ask for its memory. Waiting is all
that these allow: to connect or send stays refused, and so do sockets that are not local."""
_ABSENT: Final = {
    "clone3": (435, 435),  # its flags lie in memory, where no filter can read them
    "openat2": (437, 437),  # likewise
}
_PRETENDED: Final = {
    # Whoever writes a file likes to set its mode; who starts a thread, where it runs. Both go on
    # when that seems to succeed, and neither matters here.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "sched_setaffinity": (203, 122),
}  # fmt: skip
_LOOKED_AT: Final = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "prctl": (157, 167), "fcntl": (72, 25), "ioctl": (16, 29), "open": (2, None),
    "openat": (257, 56),
}  # fmt: skip

AF_UNIX = 1
CLONE_THREAD = 0x00010000
CLONE_NAMESPACES = 0x7E020000
O_TRUNC, O_ACCMODE = 0x200, 0x3
PRCTL_REFUSED = (
    1,  # PR_SET_PDEATHSIG: the worker does not outlive who started it
    4,  # PR_SET_DUMPABLE
    35,  # PR_SET_MM
    0x59616D61,  # PR_SET_PTRACER
)
FCNTL_REFUSED = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal to any process when a file has news."""
IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Is it a terminal, its size, bytes to read, do not block, (do not) close on exec."""
IOCTL_REFUSED = (
    *(0x5412, 0x541C, 0x5423),  # TIOCSTI, TIOCLINUX, TIOCSETD: type into the user's terminal
    *(0x8901, 0x8902),  # FIOSETOWN, SIOCSPGRP: as F_SETOWN
    *(0x40086602, 0x401C5820, 0x40806685, 0x800C6613),  # attributes, verity, encryption of files
)

_LD, _JEQ, _JGT, _JSET, _AND, _RET = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_NUMBER, _ARCH = 0, 4
_SET_MODE_FILTER, _GET_ACTION_AVAILABLE = 1, 2
_TSYNC, _SPEC_ALLOW = 1, 4
"""All threads; and no slowing down of the processor against Spectre 4, which before Linux 5.16 comes
with every filter: it guards secrets within one process, and this one has none."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Machine:
    """What differs between processors."""

    audit: int
    """Its number in `seccomp_data.arch`."""
    seccomp: int
    column: int
    """Of the tables above."""


MACHINES = {
    "x86_64": Machine(audit=0xC000003E, seccomp=317, column=0),
    "aarch64": Machine(audit=0xC00000B7, seccomp=277, column=1),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def machine() -> Machine | None:
    """This processor, if its system calls are known; a 32-bit Python on it makes others."""
    return MACHINES.get(platform.machine()) if sys.maxsize > 2**32 else None


def supported(this: Machine) -> bool:
    """True where this kernel has filters. Asking changes nothing."""
    action = ctypes.c_uint32(KILL_PROCESS)
    return int(_libc.syscall(this.seccomp, _GET_ACTION_AVAILABLE, 0, ctypes.byref(action))) == 0


def install(this: Machine, *, gpu: bool) -> None:
    """Refuse what the tables name, in every thread of the process, for ever.

    `prctl(PR_SET_NO_NEW_PRIVS)` must come first.

    Raises:
        OSError: The kernel refuses.
    """
    code = b"".join(
        struct.pack("=HBBI", *line) for line in program(this, process=os.getpid(), gpu=gpu)
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    packed = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    flags = _TSYNC | _SPEC_ALLOW
    if _libc.syscall(this.seccomp, _SET_MODE_FILTER, flags, ctypes.byref(packed)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")


Line = tuple[int, int, int, int]
"""Operation, how many lines to skip if true and if false, operand."""


def program(this: Machine, *, process: int, gpu: bool) -> list[Line]:
    """The filter: classic BPF over the call's number and arguments.

    Args:
        this: The processor.
        process: Id of the process that it is for, which may send signals to itself only.
        gpu: A GPU's driver may be talked to.
    """
    lines = [
        _load(_ARCH),
        *_unless_equal(this.audit, KILL_PROCESS),
        _load(_NUMBER),
        (_JGT, 0, 1, NEWEST),
        _return(ABSENT),
    ]
    for table, action in ((_REFUSED, REFUSE), (_ABSENT, ABSENT), (_PRETENDED, PRETEND)):
        for name, numbers in table.items():
            if not (gpu and name in _FOR_GPUS):
                lines += _if_equal(numbers[this.column], action)
    own = [_load(_argument(0)), *_unless_equal(process, REFUSE), _return(ALLOW)]
    looks: dict[str, list[Line]] = {
        "clone": _clone(),
        "kill": own,
        "tgkill": own,
        "prlimit64": [_load(_argument(0)), *_if_equal(0, ALLOW), *own[1:]],
        "prctl": [_load(_argument(0)), *_none_of(PRCTL_REFUSED)],
        "fcntl": [_load(_argument(1)), *_none_of(FCNTL_REFUSED)],
        "ioctl": _ioctl(gpu=gpu),
        "open": _open(1),
        "openat": _open(2),
        # only reached where there is a GPU
        "socket": [_load(_argument(0)), *_unless_equal(AF_UNIX, REFUSE), _return(ALLOW)],
    }
    numbers_of = {**_LOOKED_AT, "socket": _REFUSED["socket"]}
    for name, look in looks.items():
        if (value := numbers_of[name][this.column]) is not None:
            lines += [(_JEQ, 0, len(look), value), *look]
    return [*lines, _return(ALLOW)]


def _clone() -> list[Line]:
    """A new thread in the same namespaces: yes; a new process: no."""
    return [
        _load(_argument(0)),
        (_JSET, 0, 2, CLONE_THREAD),
        (_JSET, 1, 0, CLONE_NAMESPACES),
        _return(ALLOW),
        _return(REFUSE),
    ]


def _open(flags: int) -> list[Line]:
    """Before Landlock's ABI 3, opening for reading could empty a file."""
    return [
        _load(_argument(flags)),
        (_JSET, 0, 3, O_TRUNC),
        (_AND, 0, 0, O_ACCMODE),
        *_if_equal(0, REFUSE),
        _return(ALLOW),
    ]


def _ioctl(*, gpu: bool) -> list[Line]:
    """What files and pipes need; drivers of a GPU have hundreds of calls, so all but the bad ones."""
    if gpu:
        return [_load(_argument(1)), *_none_of(IOCTL_REFUSED)]
    allowed = [line for value in IOCTL_ALLOWED for line in _if_equal(value, ALLOW)]
    return [_load(_argument(1)), *allowed, _return(NO_DEVICE)]


def _none_of(values: Sequence[int]) -> list[Line]:
    return [line for value in values for line in _if_equal(value, REFUSE)] + [_return(ALLOW)]


def _if_equal(value: int | None, action: int) -> list[Line]:
    return [] if value is None else [(_JEQ, 0, 1, value), _return(action)]


def _unless_equal(value: int, action: int) -> list[Line]:
    return [(_JEQ, 1, 0, value), _return(action)]


def _argument(place: int) -> int:
    """Where the lower half of an argument lies (both machines are little-endian).

    The upper half need not be looked at: the kernel takes all of these as 32-bit numbers.
    """
    return 16 + 8 * place


def _load(place: int) -> Line:
    return (_LD, 0, 0, place)


def _return(action: int) -> Line:
    return (_RET, 0, 0, action)
