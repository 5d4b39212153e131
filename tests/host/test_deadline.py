"""The watchdog: ends its process in time, only that one, once, and with nobody's help."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.host import deadline, watchdog
from mayfly.host.deadline import boottime, guard, only_child
from mayfly.host.process import exited
from mayfly.pid import ProcessId
from tests.host.waiting import until


@pytest.fixture
def vm() -> Iterator[ProcessId]:
    """Stands for what `argv.confined` starts: a parent with one child."""
    parent = subprocess.Popen(["timeout", "--foreground", "60", "sleep", "60"])
    process = ProcessId.of(parent.pid)
    while not children(process):
        assert process.alive()
    yield process
    parent.terminate()
    parent.wait()


def children(process: ProcessId) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def watchdogs(ends_at: float) -> list[int]:
    """The watchdogs that end at that time."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if watchdog.__file__.encode() in words and f"{ends_at:.3f}".encode() in words:
            found.append(int(path.parent.name))
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def test_it_ends_its_vm_at_the_time_and_then_itself(vm: ProcessId, tmp_path: Path) -> None:
    ends_at = boottime() + 0.7
    assert guard(vm, ends_at, tmp_path, [])
    await asyncio.wait_for(exited(vm), 10)
    assert boottime() >= ends_at
    await until(lambda: not watchdogs(ends_at))


async def test_a_time_that_is_past_is_now(vm: ProcessId, tmp_path: Path) -> None:
    assert guard(vm, boottime() - 1000, tmp_path, [])
    await asyncio.wait_for(exited(vm), 10)


async def test_it_ends_when_its_vm_does(vm: ProcessId, tmp_path: Path) -> None:
    ends_at = boottime() + 3600
    guard(vm, ends_at, tmp_path, [])
    await until(lambda: watchdogs(ends_at))
    kill(*map(int, children(vm)))
    await until(lambda: not watchdogs(ends_at))


async def test_there_is_one_watchdog_and_it_is_replaced_when_it_died(
    vm: ProcessId, tmp_path: Path
) -> None:
    ends_at = boottime() + 3600
    assert guard(vm, ends_at, tmp_path, [])
    assert not guard(vm, ends_at, tmp_path, [])
    first = await until(lambda: watchdogs(ends_at))
    assert len(first) == 1
    kill(*first)
    await until(lambda: guard(vm, ends_at, tmp_path, []))
    second = await until(lambda: watchdogs(ends_at))
    assert second != first
    kill(*second)


async def test_it_goes_where_it_is_told_and_needs_none_of_it(vm: ProcessId, tmp_path: Path) -> None:
    group = tmp_path / "cgroup.procs"
    assert guard(vm, boottime() + 0.7, tmp_path, [group, Path("/nowhere/cgroup.procs")])
    await asyncio.wait_for(exited(vm), 10)
    assert group.read_text() == "0"


def test_what_is_no_vm_has_no_watchdog(tmp_path: Path) -> None:
    childless = subprocess.Popen(["sleep", "60"])
    process = ProcessId.of(childless.pid)
    assert only_child(process) is None
    assert not guard(process, boottime(), tmp_path, [])
    childless.kill()
    childless.wait()
    assert not guard(process, boottime(), tmp_path, [])


def test_the_lock_is_no_link_to_somewhere_else(vm: ProcessId, tmp_path: Path) -> None:
    (tmp_path / deadline.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        guard(vm, boottime() + 60, tmp_path, [])
