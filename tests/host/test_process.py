"""Processes are known by pid and start time, and end with their whole group."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError
from mayfly.host.process import end, exited, run, spawn
from mayfly.pid import ProcessId


def sleeper() -> tuple[subprocess.Popen[bytes], ProcessId]:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    return child, ProcessId.of(child.pid)


async def test_end_ends_the_whole_group() -> None:
    child, process = sleeper()
    await asyncio.sleep(0.1)
    listing = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    grandchild = ProcessId.of(int(listing[0]))
    await end(process)
    assert not process.alive()
    await asyncio.wait_for(exited(grandchild), 5)
    assert not grandchild.alive()


async def test_end_of_what_is_gone_is_silent() -> None:
    _, process = sleeper()
    await end(process)
    await end(process)


async def test_a_program_that_ends_before_it_answers_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no such machine"):
        await spawn(
            ["sh", "-c", "echo no such machine >&2; exit 1"],
            errors=tmp_path / "log",
            answers=tmp_path / "sock",
        )


async def test_run_reports_the_last_line() -> None:
    assert await run("cat", stdin="hello") == "hello"
    with pytest.raises(InfrastructureError, match="second"):
        await run("sh", "-c", "echo first >&2; echo second >&2; exit 3")
