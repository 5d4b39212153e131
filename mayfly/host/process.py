"""Processes: the ones that outlive whoever started them, and the ones that are waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mayfly.errors import InfrastructureError
from mayfly.pid import ProcessId

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Where programs are looked for: su(1) leaves root without the last two."""


async def exited(process: ProcessId) -> None:
    """Wait until the process has ended; returns at once when it already has."""
    if not process.alive():
        return
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        await readable(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended, so this does not wait


async def readable(fd: int) -> None:
    """Wait until there is something to read; of a process' descriptor, until it has ended."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await done
    finally:
        loop.remove_reader(fd)


async def end(process: ProcessId, *, timeout_s: float = 10) -> None:
    """Kill the process and its group (it leads one) and wait until it is gone.

    Returns silently when it already is. Raises `InfrastructureError` when it does not go.
    """
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(timeout_s):
            await exited(process)
    except TimeoutError:
        raise InfrastructureError(f"process {process.pid} does not end") from None


async def spawn(argv: Sequence[str], *, errors: Path, answers: Path) -> ProcessId:
    """Start a program that may outlive this one, and wait until the file `answers` exists.

    It leads a session and process group of its own and writes its complaints to `errors`. Raises
    `InfrastructureError` with the last of them when it ends before it answers.
    """
    with errors.open("wb") as output:
        # Not asyncio's: its transport kills the child when this program ends.
        child = subprocess.Popen(  # noqa: ASYNC220
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    process = ProcessId.of(child.pid)
    await _answers(process, answers, lambda: errors.read_text(errors="replace"))
    return process


async def _answers(process: ProcessId, path: Path, words: Callable[[], str]) -> None:
    while not path.exists():
        if not process.alive():
            lines = words().strip().splitlines() or ["no message"]
            raise InfrastructureError(f"QEMU did not start: {lines[-1][:300]}")
        await asyncio.sleep(0.002)


class Launch:
    """A program that may outlive this one and begins when it is told to (`argv.confined`).

    It leads a session and process group of its own. Its complaints go into a pipe that takes what
    the pipe holds (64 KiB) and no more: a guest that can make QEMU complain fills no disk, and
    stops neither QEMU nor this program.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises `OSError` when it cannot be started."""
        self._complaints, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Not asyncio's: its transport kills the child when this program ends.
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, start_new_session=True
            )
        except OSError:
            os.close(self._complaints)
            raise
        finally:
            os.close(theirs)
        self._stdin = child.stdin
        self.process = ProcessId.of(child.pid)

    async def go(self, answers: Path) -> None:
        """Let it begin, and wait until the file `answers` exists.

        Raises `InfrastructureError` with its last complaint when it ends before that.
        """
        with contextlib.suppress(OSError):
            if self._stdin is not None:
                self._stdin.write(b"go\n")
                self._stdin.close()
        await _answers(self.process, answers, self.complaints)

    def complaints(self) -> str:
        """What it has said since the last time; at most what the pipe holds."""
        try:
            return os.read(self._complaints, 1 << 16).decode(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Stop listening. A program that was never told to begin ends."""
        with contextlib.suppress(OSError):
            if self._stdin is not None:
                self._stdin.close()
        with contextlib.suppress(OSError):
            os.close(self._complaints)
            self._complaints = -1


def folder_of(uid: int, path: Path) -> None:
    """Make a folder in which `uid` (with the group of that number) may make files."""
    path.mkdir()
    path.chmod(0o710)
    os.chown(path, uid, uid)


def close_folder(path: Path, uid: int) -> None:
    """Let `uid` make no more files in its folder; it opens those that are there, at any moment."""
    os.chown(path, 0, uid)


async def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end and return its standard output.

    Raises `InfrastructureError` with the program's last line of complaint when it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, "PATH": PATH},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(stdin.encode())
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise InfrastructureError(f"`{' '.join(argv)}` failed: {lines[-1]}")
    return output.decode()


async def end_named(name: str, directory: Path) -> None:
    """End every QEMU with `-name NAME` that works in `directory`, whoever started it.

    For what a crash left without a record. The whole session goes, its watchdog too.
    """
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            here = any(os.fsencode(directory) in argument for argument in arguments)
            if here and name.encode() in arguments:
                await end(ProcessId.of(os.getsid(int(path.parent.name))))
