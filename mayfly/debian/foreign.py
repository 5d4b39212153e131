"""Programs of another architecture, run on this machine by QEMU's user-mode emulators.

Linux starts an emulator for a foreign program where binfmt_misc names one (kernel documentation,
admin-guide/binfmt-misc). Debian's `qemu-user-static` brings the emulators and what to register;
where the machine has registered them nothing is needed here. Elsewhere (containers, machines
without systemd) `python -m mayfly.debian.foreign LINE COMMAND…` runs a command in a user namespace
with a binfmt_misc of its own (Linux 6.7 and newer), so that the machine itself is left unchanged.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mayfly.errors import MachineUnfit

# Debian's names of architectures, and QEMU's.
EMULATORS: Mapping[str, str] = {
    "arm64": "aarch64",
    "armhf": "arm",
    "ppc64el": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
FOLDERS = (Path("/etc/binfmt.d"), Path("/usr/lib/binfmt.d"))
BINFMT = Path("/proc/sys/fs/binfmt_misc")

# sched.h
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
# sys/prctl.h
_PR_SET_PDEATHSIG = 1


def emulation(architecture: str, folders: Sequence[Path] = FOLDERS) -> list[str]:
    """What to put in front of a command so that it, and what it starts, may be of `architecture`.

    `architecture` is Debian's name for it. Nothing where this machine runs such programs anyway;
    else the command gets namespaces of its own (users, mounts, processes), in which root is root of
    all files. Raises `MachineUnfit` where it cannot be.
    """
    if _runs([], architecture):
        return []
    line = registration(architecture, folders)
    if not line:
        raise MachineUnfit(
            f"this machine cannot run programs of {architecture}",
            hint="apt-get install qemu-user-static",
        )
    prefix = [sys.executable, "-m", "mayfly.debian.foreign", line]
    if not _runs(prefix, architecture):
        raise MachineUnfit(
            f"this machine cannot run programs of {architecture}: its kernel knows no emulator "
            "for them and lets no namespace have one",
            hint="register it (systemctl restart systemd-binfmt), or use Linux 6.7 or newer",
        )
    return prefix


def registration(architecture: str, folders: Sequence[Path] = FOLDERS) -> str:
    """The line (binfmt.d(5)) that registers a static emulator; empty where none is installed.

    It must open the emulator when it is registered (`F`), since a root of a foreign architecture
    has none of its own.
    """
    name = f"qemu-{EMULATORS.get(architecture, '')}.conf"
    for folder in folders:
        try:
            text = (folder / name).read_text()
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split(":")
            if len(words) == 8 and "F" in words[7] and Path(words[6]).exists():
                return line
    return ""


def _runs(prefix: Sequence[str], architecture: str) -> bool:
    try:
        done = subprocess.run(
            [*prefix, "arch-test", architecture], capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError:
        raise MachineUnfit("arch-test is not installed", hint="`make setup` installs it") from None
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _main(line: str, *command: str) -> int:
    """Run `command` in namespaces of its own where `line` is registered; its exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    _unshare(libc)
    # Who ends this ends the command: that one is asked by the same signal, and is waited for.
    asked = [signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)]
    child = os.fork()
    if child == 0:
        _become(libc, line, command, asked)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(libc: ctypes.CDLL, line: str, command: Sequence[str], asked: Sequence[Any]) -> NoReturn:
    signal.signal(signal.SIGINT, asked[0])
    signal.signal(signal.SIGTERM, asked[1])
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.mount(b"none", str(BINFMT).encode(), b"binfmt_misc", 0, None) != 0:
        _die("mounting binfmt_misc")
    (BINFMT / "register").write_text(line)
    os.execvp(command[0], list(command))  # noqa: S606


def _unshare(libc: ctypes.CDLL) -> None:
    """New namespaces, with every user and group of the old one mapped to itself.

    Only a process outside may write such a map, hence the child (user_namespaces(7)).
    """
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready[1])
        if os.read(ready[0], 1):
            for kind in ("uid", "gid"):
                Path(f"/proc/{os.getppid()}/{kind}_map").write_text("0 0 4294967295\n")
            os.write(done[1], b".")
        os._exit(0)
    os.close(done[1])
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID) != 0:
        _die("making namespaces")
    os.write(ready[1], b".")
    mapped = os.read(done[0], 1)
    os.waitpid(child, 0)
    if not mapped:
        _die("mapping users")


def _die(what: str) -> NoReturn:
    print(f"{what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
