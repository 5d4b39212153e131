"""A runner's scratch disk: put down cleanly, and taken up by another runner.

BuildKit's whole state is on it, and its worker's id as well, so that BuildKit on another machine
goes on where this one was stopped.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

UNIT = "buildkitd.service"
MOUNT = "/scratch"
RESET = "/scratch/buildkit"
"""Where BuildKit puts a database aside that it cannot read, to begin an empty one (its
util/db/boltutil/safe_open.go)."""

SERIAL = "scratch2"
"""What the host calls a disk that was another runner's (virtio: 20 characters at most)."""

Run = Callable[[Sequence[str], float], None]
"""Runs a program to its end, within so many seconds; raises OSError when it fails."""


def put_down(run: Run, timeout_s: float) -> None:
    """Stop BuildKit and unmount the disk, within so many seconds. Raises OSError."""
    until = time.monotonic() + timeout_s
    run(("systemctl", "stop", UNIT), timeout_s)
    os.sync()
    run(("umount", MOUNT), max(1.0, until - time.monotonic()))


def take_up(
    run: Run,
    thaw: Callable[[], None],
    listens: Callable[[], bool],
    timeout_s: float,
    root: Path,
) -> dict[str, float]:
    """Have BuildKit, which may be frozen, run on the other disk; returns when it listens, with what
    took how many seconds.

    What it has on its own disk is given up, and so nothing waits for it to stop. Raises OSError,
    also when BuildKit has begun its records of finished steps anew: nothing there is of use then.
    """
    began = last = time.monotonic()
    until, timings = began + timeout_s, dict[str, float]()

    def took(step: str) -> None:
        nonlocal last
        now = time.monotonic()
        timings[step], last = round(now - last, 4), now

    (root / "sys/fs/cgroup/system.slice" / UNIT / "cgroup.kill").write_text("1")
    thaw()
    run(("systemctl", "stop", UNIT), timeout_s)
    took("stop")
    run(("umount", MOUNT), timeout_s)
    took("unmount")
    device = find(until, root)
    took("disk")
    run(("mount", "-t", "ext4", "-o", "noatime", device, MOUNT), timeout_s)
    took("mount")
    run(("systemctl", "start", UNIT), timeout_s)
    took("start")
    while not listens():
        if time.monotonic() > until:
            raise OSError("BuildKit does not come up on it")
        time.sleep(0.05)
    took("listen")
    if any((root / RESET.lstrip("/")).glob("cache.db.*.bak")):
        raise OSError("BuildKit could not read what it had there")
    return timings


def find(until: float, root: Path) -> str:
    """The device that is the other disk, once the kernel has it; udev need not have seen it.

    Raises OSError when it is not there at the monotonic time `until`.
    """
    while True:
        for serial in (root / "sys/block").glob("vd*/serial"):
            if serial.read_text().strip() == SERIAL:
                return f"/dev/{serial.parent.name}"
        if time.monotonic() > until:
            raise OSError("the disk does not come")
        time.sleep(0.02)


def run(argv: Sequence[str], timeout_s: float) -> None:
    """Run a program of the system as root. Raises OSError with its last words when it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{argv[0]} was not done within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        words = done.stdout.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise OSError(f"{' '.join(argv)} failed: {words[0]}")
