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
from collections.abc import Callable
from pathlib import Path

from mayfly.guest.clock import pause

OWN = "buildkitd@own.service"
STANDBY = "buildkitd@standby.service"
GROUPS = "sys/fs/cgroup/system.slice"
CONFIG = "etc/buildkit/buildkitd.toml"
PIPE = "run/mayfly/buildkit/standby.toml"
RETIRED = "run/mayfly/buildkit/{}.retired"
PROGRAM = "buildkitd\n"
OPENING = {"wait_for_partner", "fifo_open"}
"""Where the kernel has a thread that opens a pipe which nobody writes to (fs/pipe.c)."""


def current(root: Path) -> str:
    """The unit whose BuildKit builds here."""
    return STANDBY if _retired(OWN, root).exists() else OWN


def group(unit: str, root: Path) -> Path:
    """The control group of a unit, with all that its BuildKit runs."""
    return root / GROUPS / unit


def stop(unit: str, terminate: Callable[[int], None], until: float, root: Path) -> None:
    """Have a unit's BuildKit put down what it has on its disk, and end all else of that unit.

    `terminate` asks a process to end. Raises OSError when there is no BuildKit, which may have left
    anything there, and when it has not ended at the monotonic time `until`.
    """
    servers = _servers(unit, root)
    if not servers:
        raise OSError(f"{unit} does not run")
    _retired(unit, root).touch()
    for pid in servers:
        terminate(pid)
    while any((root / "proc" / str(pid)).exists() for pid in servers):
        pause(until, f"{unit} does not stop")
    kill(unit, root)
    while _processes(unit, root):
        pause(until, f"{unit} does not end")


def kill(unit: str, root: Path) -> None:
    """Kill all of a unit for good; nothing where it has ended. Raises OSError."""
    _retired(unit, root).touch()
    with contextlib.suppress(FileNotFoundError):
        (group(unit, root) / "cgroup.kill").write_text("1")


def leave_one(root: Path) -> None:
    """Kill the BuildKit that does not build here. Raises OSError."""
    kill(STANDBY if current(root) == OWN else OWN, root)


def waiting(until: float, root: Path) -> None:
    """Return when the BuildKit on standby has come to where it waits. Raises OSError when it has
    not at the monotonic time `until`.
    """
    while not _waits(root):
        pause(until, f"{STANDBY} does not come to its configuration")


def _waits(root: Path) -> bool:
    with contextlib.suppress(OSError):
        for pid in _servers(STANDBY, root):
            threads = (root / "proc" / str(pid)).glob("task/*/wchan")
            return any(thread.read_text() in OPENING for thread in threads)
    return False


def swap(until: float, root: Path) -> None:
    """Have the BuildKit on standby be the one that builds: tell it its configuration. Should
    systemd start it again, it reads the same there. Raises OSError when it reads nothing until the
    monotonic time `until`.
    """
    _retired(OWN, root).touch()
    (group(STANDBY, root) / "cgroup.freeze").write_text("0")
    pipe, config = root / PIPE, root / CONFIG
    while True:
        try:
            fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:  # ENXIO: nobody reads
            pause(until, "there is no BuildKit on standby")
    with os.fdopen(fd, "wb") as told:
        told.write(config.read_bytes())
    link = pipe.with_suffix(".new")
    link.symlink_to(config)
    link.rename(pipe)


def _retired(unit: str, root: Path) -> Path:
    return root / RETIRED.format(unit.partition("@")[2].removesuffix(".service"))


def _processes(unit: str, root: Path) -> list[int]:
    """What runs in a unit; nothing where systemd has removed its group (ENOENT, ENODEV)."""
    try:
        return [int(pid) for pid in (group(unit, root) / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _servers(unit: str, root: Path) -> list[int]:
    """The processes of a unit that are buildkitd; the others started it, or a build's steps."""
    found = []
    for pid in _processes(unit, root):
        with contextlib.suppress(OSError):
            if (root / "proc" / str(pid) / "comm").read_text() == PROGRAM:
                found.append(pid)
    return found
