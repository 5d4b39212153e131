"""The acts that need a real machine, in one place, so that tests can put their own in."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.guest import buildkit, pair
from mayfly.guest.message import Refused

BUILD_HOME = "/home/build"
SSHD = ("/usr/lib/mayfly/sshd", "0.0.0.0:22")
SSHD_ENVIRONMENT = {
    "BUILDKIT_HOST": f"unix://{buildkit.SOCKET}",
    "HOME": BUILD_HOME,
    "LOGNAME": "build",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "SHELL": "/bin/bash",
    "USER": "build",
}
# They would answer a clone's new clock, memory and vmgenid, or what their timers missed, just when
# it should answer its host.
RESTING = ("systemd-udevd.service", "systemd-journald.service", pair.OWN, pair.STANDBY)

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
EXT4_IOC_RESIZE_FS = 0x40086610
MS_NOATIME = 1024
MS_BIND = 4096
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
RB_POWER_OFF = 0x4321FEDC


class Sshd(NamedTuple):
    """A server that waits: descriptors to tell it its keys, and to hear from it."""

    tell: int
    hear: int


class Kernel(NamedTuple):
    """The acts that need a real machine. Tests put their own in."""

    add_entropy: Callable[[bytes], None]
    set_clock_ns: Callable[[int], None]
    set_hostname: Callable[[str], None]
    stay_in_memory: Callable[[], None]
    bind_mount: Callable[[Path, Path], None]
    mount: Callable[[str, str], None]
    unmount: Callable[[str], None]
    terminate: Callable[[int], None]
    rest: Callable[[bool], None]
    start_sshd: Callable[[], Sshd]
    resize_filesystem: Callable[[str, int], None]
    run: Callable[[Sequence[str], float], None]
    power_off: Callable[[], None]


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write in place, so that who has the file open or bind-mounted sees the new content."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def says(fd: int, word: bytes, timeout_s: float | None = None) -> bool:
    """Whether `word` is the next line from `fd`, within so many seconds where that is limited."""
    line, end = b"", time.monotonic() + (timeout_s or 0)
    while not line.endswith(b"\n"):
        left = None if timeout_s is None else max(0.0, end - time.monotonic())
        if not select.select([fd], [], [], left)[0]:
            return False
        byte = os.read(fd, 1)
        if not byte:
            return False
        line += byte
    return line.strip() == word


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


def real_kernel() -> Kernel:
    """The acts themselves. Each raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def add_entropy(data: bytes) -> None:
        fd = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
            fcntl.ioctl(fd, RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def set_clock_ns(unix_time_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)

    def bind_mount(source: Path, target: Path) -> None:
        checked(libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None))

    def mount(device: str, target: str) -> None:
        names = [os.fsencode(name) for name in (device, target, "ext4")]
        checked(libc.mount(*names, MS_NOATIME, None))

    def unmount(target: str) -> None:
        checked(libc.umount2(os.fsencode(target), 0))

    def stay_in_memory() -> None:
        """What runs once is not given up again: a guest that thrashes is to be looked at."""
        checked(libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))

    def resize_filesystem(mount: str, size_bytes: int) -> None:
        fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            now = os.fstatvfs(fd)
            if size_bytes > now.f_blocks * now.f_frsize:
                fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("Q", size_bytes // now.f_bsize))
        finally:
            os.close(fd)

    def power_off() -> None:
        flush = threading.Thread(target=os.sync, daemon=True)
        flush.start()
        flush.join(3)
        libc.reboot(RB_POWER_OFF)

    def rest(yes: bool) -> None:
        for unit in RESTING:
            try:
                write_file(pair.group(unit, Path("/")) / "cgroup.freeze", "1" if yes else "0")
            except OSError as fault:
                if yes or fault.errno not in (errno.ENOENT, errno.ENODEV):  # else it has ended
                    raise

    def start_sshd() -> Sshd:
        """Returns when it has rehearsed and waits."""
        tell, hear = os.pipe(), os.pipe()
        subprocess.Popen(
            SSHD,
            user=buildkit.UID,
            group=buildkit.UID,
            extra_groups=[],
            cwd=BUILD_HOME,
            env=SSHD_ENVIRONMENT,
            stdin=tell[0],
            stdout=hear[1],
        )
        os.close(tell[0])
        os.close(hear[1])
        if not says(hear[0], b"waiting", 60):
            raise Refused("sshd did not start")
        return Sshd(tell[1], hear[0])

    return Kernel(
        add_entropy=add_entropy,
        set_clock_ns=set_clock_ns,
        set_hostname=socket.sethostname,
        stay_in_memory=stay_in_memory,
        bind_mount=bind_mount,
        mount=mount,
        unmount=unmount,
        terminate=lambda pid: os.kill(pid, signal.SIGTERM),
        rest=rest,
        resize_filesystem=resize_filesystem,
        run=run,
        power_off=power_off,
        start_sshd=start_sshd,
    )
