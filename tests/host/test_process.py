"""Processes are known by pid and start time, and end with their whole group."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import InfrastructureError
from mayfly.host import argv
from mayfly.host.process import Launch, end, exited, run, spawn
from mayfly.pid import ProcessId
from tests.host.waiting import until


def sleeper() -> tuple[subprocess.Popen[bytes], ProcessId]:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    return child, ProcessId.of(child.pid)


async def test_end_ends_the_whole_group() -> None:
    child, process = sleeper()
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    listing = await until(lambda: children.read_text().split())
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


def launch(script: str, **more: Any) -> Launch:
    fences: dict[str, Any] = {
        "namespace": Path("/proc/self/ns/net"),
        "uid": 61179,
        "groups": [],
        "lifetime_s": 30,
        "file_bytes": 1 << 20,
        "cgroups": [],
        "nice": False,
    }
    return Launch(argv.confined(["sh", "-c", script], **{**fences, **more}))


@pytest.fixture
def open_folder() -> Path:
    """Where any uid may write; the way to it is not everybody's."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o777)
    return folder


async def test_a_launched_program_waits_for_the_word_in_its_group(tmp_path: Path) -> None:
    group, done = tmp_path / "cgroup.procs", tmp_path / "done"
    waiting = launch("sleep 30", cgroups=[group])
    await until(lambda: group.exists() and group.read_text())
    assert not Path(f"/proc/{waiting.process.pid}/task/{waiting.process.pid}/children").read_text()
    done.touch()
    await waiting.go(done)
    await end(waiting.process)
    waiting.close()


async def test_a_program_that_is_never_told_to_begin_ends() -> None:
    waiting = launch("sleep 30")
    waiting.close()
    await asyncio.wait_for(exited(waiting.process), 10)


async def test_a_group_that_cannot_be_entered_is_the_end(tmp_path: Path) -> None:
    outside = launch("sleep 30", cgroups=[Path("/nowhere/cgroup.procs")])
    with pytest.raises(InfrastructureError, match="nowhere"):
        await outside.go(tmp_path / "never")
    outside.close()


async def test_a_file_has_its_largest_size_and_writing_on_is_an_error(open_folder: Path) -> None:
    script = f"cd {open_folder}; dd if=/dev/zero of=big bs=64k count=100 2>err; echo $? >done"
    writing = launch(script)
    await writing.go(open_folder / "done")
    await asyncio.wait_for(exited(writing.process), 10)
    assert (open_folder / "big").stat().st_size == 1 << 20
    assert "too large" in (open_folder / "err").read_text()
    assert (open_folder / "done").read_text() == "1\n"  # dd's own end, not a signal's
    writing.close()
    shutil.rmtree(open_folder)


async def test_complaints_without_end_stop_nobody(open_folder: Path) -> None:
    script = f"yes complaint | head -c 1000000 >&2; : >{open_folder}/done"
    loud = launch(script)
    await loud.go(open_folder / "done")
    await asyncio.wait_for(exited(loud.process), 10)
    assert 0 < len(loud.complaints()) <= 1 << 16
    loud.close()
    shutil.rmtree(open_folder)
