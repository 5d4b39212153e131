"""When a VM's time is over, by a clock that nobody sets, and the watchdog that keeps it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mayfly.host import watchdog
from mayfly.pid import ProcessId

LATE_S = 2.0
"""The watchdog ends a VM this long after its deadline: the orchestrator, which has better words
for it, is to be first while it lives."""

LOCK = "watchdog"
"""The file in a VM's directory that its watchdog holds locked for as long as it lives."""


def boottime() -> float:
    """Seconds since this machine started, those asleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def only_child(process: ProcessId) -> int | None:
    """A descriptor of the one child of a process; None when it has not got one (any more).

    The descriptor is taken before the parentage is looked at a second time, so a number that is
    used again meanwhile cannot be mistaken for the child.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        before = children.read_text().split()
        if len(before) != 1:
            return None
        descriptor = os.pidfd_open(int(before[0]))
        if children.read_text().split() == before and process.alive():
            return descriptor
        os.close(descriptor)
    except OSError:
        return None
    return None


def guard(process: ProcessId, ends_at: float, directory: Path, groups: Sequence[Path]) -> bool:
    """See that a watchdog ends the VM at `ends_at` (`boottime`). Whether one was started now.

    `process` is QEMU's parent (`argv.confined`) and `directory` the VM's, which root alone
    writes. A watchdog that is there already stays the only one: it holds a lock, which this
    process takes and bequeaths. Raises `OSError` when none can be started.
    """
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        child = only_child(process)
        if child is None:
            return False
        try:
            subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", watchdog.__file__),
                    *(f"{ends_at:.3f}", str(child), *map(str, groups)),
                ],
                pass_fds=(child, lock),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(child)
    finally:
        os.close(lock)
    return True
