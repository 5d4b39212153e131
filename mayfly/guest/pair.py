"""A runner's two BuildKits: its own, and one on standby for a disk that was another runner's.

A Go program as large as buildkitd takes seconds under emulation before it does anything. The one on
standby has that behind it when the machine is frozen: its configuration is a pipe
(tmpfiles.d/mayfly.conf), and buildkitd reads that before it opens anything (its
cmd/buildkitd/main.go). Which of them is of use no more is told by a file that systemd looks for
before it starts one again.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

OWN = "buildkitd@own.service"
STANDBY = "buildkitd@standby.service"
GROUPS = "sys/fs/cgroup/system.slice"
CONFIG = "etc/buildkit/buildkitd.toml"
PIPE = "run/mayfly/buildkit/standby.toml"
RETIRED = "run/mayfly/buildkit/{}.retired"
PROGRAM = "buildkitd\n"
OPENING = {"wait_for_partner", "fifo_open"}
"""Where the kernel has a thread that opens a pipe which nobody writes to (fs/pipe.c)."""

POLL_S = 0.02


def current(root: Path) -> str:
    """The unit whose BuildKit builds here."""
    return STANDBY if _retired(OWN, root).exists() else OWN


def group(unit: str, root: Path) -> Path:
    """The control group of a unit, with all that its BuildKit runs."""
    return root / GROUPS / unit


def retire(unit: str, root: Path) -> None:
    """Kill all of a unit for good; nothing where it has ended. Raises OSError."""
    _retired(unit, root).touch()
    with contextlib.suppress(FileNotFoundError):
        (group(unit, root) / "cgroup.kill").write_text("1")


def leave_one(root: Path) -> None:
    """Kill the BuildKit on standby where it was not needed. Raises OSError."""
    if current(root) == OWN:
        retire(STANDBY, root)


def gone(unit: str, until: float, root: Path) -> None:
    """Return when nothing of a unit runs. Raises OSError at the monotonic time `until`."""
    processes = group(unit, root) / "cgroup.procs"
    while True:
        try:
            left = processes.read_text()
        except OSError:  # ENODEV, ENOENT: systemd has removed the group
            return
        if not left:
            return
        if time.monotonic() > until:
            raise OSError(f"{unit} does not end")
        time.sleep(POLL_S)


def waiting(until: float, root: Path) -> None:
    """Return when the BuildKit on standby has come to where it waits. Raises OSError when it has
    not at the monotonic time `until`.
    """
    while not _waits(root):
        if time.monotonic() > until:
            raise OSError(f"{STANDBY} does not come to its configuration")
        time.sleep(10 * POLL_S)


def _waits(root: Path) -> bool:
    with contextlib.suppress(OSError):
        for pid in (group(STANDBY, root) / "cgroup.procs").read_text().split():
            process = root / "proc" / pid
            if (process / "comm").read_text() == PROGRAM:
                return any(file.read_text() in OPENING for file in process.glob("task/*/wchan"))
    return False


def wake(until: float, root: Path) -> None:
    """Tell the BuildKit on standby its configuration; should systemd start it again, it reads the
    same there. Raises OSError when it reads nothing until the monotonic time `until`.
    """
    pipe, config = root / PIPE, root / CONFIG
    while True:
        try:
            fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:  # ENXIO: nobody reads
            if time.monotonic() > until:
                raise OSError("there is no BuildKit on standby") from None
            time.sleep(POLL_S)
    with os.fdopen(fd, "wb") as told:
        told.write(config.read_bytes())
    link = pipe.with_suffix(".new")
    link.symlink_to(config)
    link.rename(pipe)


def _retired(unit: str, root: Path) -> Path:
    return root / RETIRED.format(unit.partition("@")[2].removesuffix(".service"))
