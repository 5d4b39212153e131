"""A process is its pid and its start time."""

from __future__ import annotations

import os
import subprocess

import pytest

from mayfly.pid import ProcessId


def test_a_reused_pid_is_not_the_process() -> None:
    me = ProcessId.of(os.getpid())
    assert me.alive()
    assert not ProcessId(me.pid, me.start_time - 1).alive()


def test_a_zombie_is_known_but_not_alive() -> None:
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    process = ProcessId.of(child.pid)
    assert not process.alive()
    child.wait()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(child.pid)
