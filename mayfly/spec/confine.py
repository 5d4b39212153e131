"""The program that evaluates one build spec, and nothing else: `evaluator.py` starts it.

    python -I -S confine.py < question > answer

A build spec is hostile input, so before Nickel sees a byte of it this process gives up whatever
it does not need, for good and as any user: time, memory and file sizes (rlimits), every file that
is not below the work tree's root (Landlock), and every system call but a few that compute, read
files and end the process (seccomp). It has no environment and no descriptor but the two above.
This file stands alone: it imports the standard library only, to start quickly.

The question is JSON: `nickel` (folder that Nickel's module is in), `spec` and `contract` (text),
`root` and `folder` (absolute; of the work tree, and of the spec, where imports start). The answer
is JSON: `reads` (whether files could be read) and, for the spec by itself (`alone`) and under its
contract (`held`), either `value` (JSON text) or `fault` (Nickel's report); or else `unfit`: why
nothing was evaluated.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

CPU_S = 1.6
KILLED_CPU_S = 2
WALL_S = 6.0
"""Computing counts, not waiting for a busy machine's turn: a right spec is right there as well."""

MEMORY_BYTES = 512 * 1024**2
ANSWER_BYTES = 1024**2

PREFIX, BETWEEN, SUFFIX = "(\n", "\n) | (\n", "\n)"
"""Around spec and contract: whole lines, so that a line of the spec is one line further down."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _PATH_BENEATH, _READ_FILE = 1, 1, 1 << 2
_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP, _SCOPES = 0b11, 0b11

# What Python and Nickel need once they are loaded, and `openat`: by machine, the kernel's name for
# its table (AUDIT_ARCH) and numbers out of it.
_CALLS = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10,
            "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
            "sched_yield": 24, "mremap": 25, "madvise": 28, "getpid": 39, "exit": 60, "getcwd": 79,
            "readlink": 89, "sigaltstack": 131, "gettid": 186, "futex": 202, "clock_gettime": 228,
            "exit_group": 231, "newfstatat": 262, "getrandom": 318, "statx": 332,
        },
        257,
    ),
    "aarch64": (
        0xC00000B7,
        {
            "getcwd": 17, "close": 57, "lseek": 62, "read": 63, "write": 64, "readlinkat": 78,
            "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98,
            "clock_gettime": 113, "sched_yield": 124, "sigaltstack": 132, "rt_sigaction": 134,
            "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpid": 172, "gettid": 178, "brk": 214,
            "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233,
            "getrandom": 278, "statx": 291,
        },
        56,
    ),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def confine(root: str) -> bool:
    """Give up all that evaluation does not need; whether files below `root` can be read still.

    Where the kernel has no Landlock (before 5.13, or switched off) no file can be opened at all.
    Raises `OSError` where it has no seccomp, or this is a machine whose calls are not known here:
    nothing is evaluated there.
    """
    for limit, value in (
        (resource.RLIMIT_CPU, KILLED_CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, ANSWER_BYTES),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    reads = _landlock(root)
    _seccomp(opens=reads)
    return reads


def _landlock(root: str) -> bool:
    """Leave nothing but reading of files below `root`; False where there is no Landlock.

    Symbolic links count by where they lead.
    """
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    if abi < 1:
        return False
    files = _FILES_BY_ABI[max(known for known in _FILES_BY_ABI if known <= abi)]
    rules = struct.pack("QQQ", files, _TCP, _SCOPES)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _checked(_libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0))
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    beneath = struct.pack("=Qi", _READ_FILE, folder)
    _checked(_libc.syscall(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, beneath, 0))
    _checked(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    os.close(folder)
    os.close(ruleset)
    return True


def _seccomp(*, opens: bool) -> None:
    """Leave the calls of `_CALLS` and, if `opens`, opening of files to read; others fail by EPERM.

    A call by another machine's numbers (32 bits) ends the process.
    """
    machine = os.uname().machine
    if machine not in _CALLS:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    architecture, calls, openat = _CALLS[machine]
    load, equal, any_of, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
    number, table, flags = 0, 4, 32  # offsets in what the kernel shows of a call
    program = [
        (load, 0, 0, table),
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, number),
    ]
    if opens:
        program += [
            (equal, 0, 4, openat),
            (load, 0, 0, flags),
            (any_of, 0, 1, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC),
            (answer, 0, 0, refuse),
            (answer, 0, 0, allow),
        ]
    program += [(equal, len(calls) - n, 0, call) for n, call in enumerate(calls.values())]
    program += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filters = struct.pack("HP", len(program), ctypes.addressof(steps))
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0))


def _checked(result: int) -> int:
    """The result of a call of the C library's. Raises `OSError` when it is an error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _evaluated(nickel: Any, text: str, imports: list[str]) -> dict[str, str]:
    try:
        return {"value": nickel.run(text, imports)}
    except BaseException as error:  # a panic of Rust's is no Exception
        return {"fault": str(error)}


def main() -> None:
    """Answer the question on standard input."""
    question = json.load(sys.stdin)
    # A pipe can be opened again by its number, whatever Landlock says.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.path.append(question["nickel"])
    import nickel

    spec, imports = question["spec"], [question["folder"]]
    held = f"{PREFIX}{spec}{BETWEEN}{question['contract']}{SUFFIX}"
    try:
        reads = confine(question["root"])
    except OSError as error:
        answer: dict[str, Any] = {"unfit": error.strerror}
    else:
        answer = {
            "reads": reads,
            "held": _evaluated(nickel, held, imports),
            "alone": _evaluated(nickel, spec, imports),
        }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
