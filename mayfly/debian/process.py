"""Running the tools that make images: one group each, ended with its caller, faults as one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mayfly.errors import InfrastructureError, MachineUnfit

DISK_FULL = "No space left on device"


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    on_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """Run `argv` to its end and return what it printed (both streams), line by line.

    Each line goes to `on_line` as it comes. `env` is added to this process's environment. Whatever
    ends the caller (Ctrl-C too) ends the whole group first. Raises `InfrastructureError` with the
    tool's complaint when it fails, `MachineUnfit` when it is not installed.
    """
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as fault:
        raise MachineUnfit(
            f"{what}: {argv[0]} is not installed", hint="`make setup` installs it"
        ) from fault
    lines: list[str] = []
    try:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass
        for line in process.stdout:
            lines.append(line.rstrip())
            if on_line is not None:
                on_line(lines[-1])
        status = process.wait()
    except BaseException:
        end_group(process)
        raise
    if status != 0:
        raise failure(what, lines, status)
    return lines


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all it started: asked first, so that mmdebstrap cleans up, then killed."""
    for sign, patience_s in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        break


def failure(what: str, lines: Sequence[str], status: int) -> InfrastructureError:
    """The error that a tool's words make: a full disk says so whatever else was said."""
    if any(DISK_FULL in line for line in lines):
        return disk_full(what)
    said = [line for line in lines if line.startswith(("E:", "error", "ERROR", "npm error"))]
    # The first complaint is the cause; what follows says that something failed.
    cause = said[0] if said else next((line for line in reversed(lines) if line.strip()), "")
    return InfrastructureError(f"{what} failed ({status}): {cause[:300] or 'no message'}")


def disk_full(what: str) -> InfrastructureError:
    return InfrastructureError(f"{what}: the disk is full", hint="free some space and run it again")
