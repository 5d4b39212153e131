"""A process is found again only when it is the same one, and is always ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mayfly.pid import ProcessId
from mayfly.stack.process import Process

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(60)"
)


def start(tmp_path: Path, *argv: str) -> Process:
    with (tmp_path / "log").open("ab") as log:
        return Process.start(argv, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path, log=log)


async def stubborn(tmp_path: Path) -> Process:
    """A process that ignores SIGTERM, and does so already."""
    process = start(tmp_path, sys.executable, "-c", STUBBORN)
    while "ready" not in (tmp_path / "log").read_text():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.02)
    return process


def test_this_process_is_itself_and_no_other_is() -> None:
    me = ProcessId.of(os.getpid())
    assert me.alive()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(2**22)
    assert Process.find(replace(me, start_time=me.start_time + 1)) is None
    assert Process.find(ProcessId(2**22, 1)) is None


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    child = subprocess.Popen(["/bin/true"])
    deadline = time.monotonic() + 10
    identity = ProcessId.of(child.pid)
    while identity.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not identity.alive()
    assert ProcessId.of(child.pid) == identity, "its number is not free yet"
    child.wait()


async def test_how_it_ended_is_told(tmp_path: Path) -> None:
    assert await start(tmp_path, "/bin/sh", "-c", "exit 3").wait() == "exit 3"
    assert await start(tmp_path, "/bin/sleep", "60").stop(10) == "signal 15"


async def test_what_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    process = await stubborn(tmp_path)
    began = time.monotonic()
    assert await process.stop(0.3) == "signal 9"
    assert 0.3 <= time.monotonic() - began < 5


async def test_it_is_killed_also_by_a_task_that_is_being_cancelled(tmp_path: Path) -> None:
    process = await stubborn(tmp_path)

    async def stop_at_the_end() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await process.stop(0.2)

    task = asyncio.create_task(stop_at_the_end())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert not process.identity.alive()


async def test_a_process_of_somebody_else_can_be_watched_and_ended(tmp_path: Path) -> None:
    script = "sleep 60 >/dev/null & echo $!"
    pid = int(subprocess.check_output(["/bin/sh", "-c", script]))  # noqa: ASYNC221 - at once
    identity = ProcessId.of(pid)
    process = Process.find(identity)
    assert process is not None
    assert await process.stop(10) == "ended"
    assert not identity.alive()
    assert await process.wait() == "ended"
    assert Process.find(identity) is None
