"""A runner's scratch disk: put down cleanly, and taken up by another runner.

BuildKit's whole state is on it, and its worker's id as well, so that BuildKit on another machine
goes on where this one was stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mayfly.guest import pair
from mayfly.guest.clock import Took, pause
from mayfly.guest.kernel import Kernel

MOUNT = "/scratch"
RESET = "/scratch/buildkit"
"""Where BuildKit puts a database aside that it cannot read, to begin an empty one (its
util/db/boltutil/safe_open.go)."""

EMULATORS = "proc/sys/fs/binfmt_misc/status"
"""Whether the kernel runs programs of other architectures (its Documentation/admin-guide,
binfmt-misc): 0 lets all of them rest, 1 brings them back."""

SERIAL = "scratch2"
"""What the host calls a disk that was another runner's (virtio: 20 characters at most)."""


def put_down(kernel: Kernel, timeout_s: float, root: Path) -> None:
    """Stop BuildKit and unmount the disk, within so many seconds. Raises OSError."""
    pair.stop(pair.current(root), kernel.terminate, time.monotonic() + timeout_s, root)
    os.sync()
    kernel.unmount(MOUNT)


def take_up(
    kernel: Kernel, serves: Callable[[], bool], timeout_s: float, root: Path
) -> dict[str, float]:
    """Have the BuildKit on standby run on the other disk; returns when it serves, with what took
    how many seconds. Raises OSError, also when BuildKit has begun its records of finished steps
    anew: nothing there is of use then.

    The disk is mounted over this machine's own, for which nobody has any use. Its BuildKit is left
    frozen until the first login, and ends then (identity.py).
    """
    until, took = time.monotonic() + timeout_s, Took()
    device = find(until, root)
    took("disk")
    kernel.mount(device, MOUNT)
    took("mount")
    with emulators_off(root):
        pair.swap(until, root)
        took("wake")
        while not serves():
            pause(until, "BuildKit does not come up on it")
        took("serve")
    if any((root / RESET.lstrip("/")).glob("cache.db.*.bak")):
        raise OSError("BuildKit could not read what it had there")
    return took.seconds


@contextmanager
def emulators_off(root: Path) -> Iterator[None]:
    """Without programs of other architectures while BuildKit starts: it runs one of each twice
    (its util/archutil), which takes a second or two, and its configuration says what there is.

    Nothing where the kernel runs none.
    """
    switch = root / EMULATORS
    if not switch.exists():
        yield
        return
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text("1")


def find(until: float, root: Path) -> str:
    """The device that is the other disk, once the kernel has it; udev need not have seen it.

    Raises OSError when it is not there at the monotonic time `until`.
    """
    while True:
        for serial in (root / "sys/block").glob("vd*/serial"):
            if serial.read_text().strip() == SERIAL:
                return f"/dev/{serial.parent.name}"
        pause(until, "the disk does not come")
