"""Order, restarts, adoption and errors, with small programs in place of the real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import Conflict, InfrastructureError, MachineUnfit
from mayfly.pid import ProcessId
from mayfly.stack import probe, record, supervise
from mayfly.stack.process import Process
from mayfly.stack.services import Probe, Service
from mayfly.stack.supervise import LOG_BYTES, Supervisor, backoff, listen
from tests.stack_fixture import free_port

NOW = datetime(2026, 11, 24, tzinfo=UTC)

SERVER = """
import os, signal, socket, sys, time
def note(what): open("story", "a").write(f"{what} {sys.argv[1]}\\n")
def end(*_): note("end"); sys.exit()
signal.signal(signal.SIGTERM, end)
time.sleep(0.1)
note("start")
server = socket.socket(socket.AF_UNIX)
try: os.unlink(sys.argv[1])
except OSError: pass
server.bind(sys.argv[1]); server.listen()
while True: server.accept()
"""


class Here:
    """A folder with a supervisor's things in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.supervisors: list[Supervisor] = []

    def service(self, name: str, script: str = SERVER) -> Service:
        return Service(
            name=name,
            argv=(sys.executable, "-c", script, name),
            uid=0,
            cwd=self.folder,
            ready=Probe(self.folder / name),
            stop_s=5,
        )

    def supervisor(self, *services: Service) -> Supervisor:
        made = Supervisor(services, self.folder, self.folder, self.lines.append, NOW)
        self.supervisors.append(made)
        return made

    def story(self) -> list[str]:
        return (self.folder / "story").read_text().splitlines()

    def process(self, name: str) -> ProcessId:
        found = record.load(self.folder)
        assert found is not None
        return found.services[name].process

    def pid(self, name: str) -> int:
        return self.process(name).pid

    def forget(self) -> None:
        """The last supervisor is as if killed: the record is all that is left of it."""
        forgotten = self.supervisors.pop()
        for watcher in forgotten._watchers:
            watcher.cancel()
        forgotten._watchers.clear()

    async def until(self, line: str) -> None:
        async with asyncio.timeout(60):
            while not any(line in said for said in self.lines):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    here = Here(tmp_path)
    yield here
    for supervisor in here.supervisors:
        await supervisor.stop()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervise, "READY_S", 60)
    yield


async def test_one_after_the_other_and_back(here: Here) -> None:
    supervisor = here.supervisor(*(here.service(name) for name in "abc"))
    await supervisor.start()
    await supervisor.stop()
    assert here.story() == ["start a", "start b", "start c", "end c", "end b", "end a"]
    assert record.load(here.folder) is None


async def test_what_dies_is_started_again_and_that_is_said(here: Here) -> None:
    await here.supervisor(here.service("a"), here.service("b")).start()
    first = here.pid("a")
    os.kill(first, signal.SIGKILL)
    await here.until("a: serves again")
    assert here.pid("a") != first
    assert "a: died (signal 9); starting it again in 0.2 s" in here.lines
    found = record.load(here.folder)
    assert found is not None
    assert (found.services["a"].restarts, found.services["b"].restarts) == (1, 0)


TALKER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
try: os.unlink(sys.argv[1])
except OSError: pass
server.bind(sys.argv[1]); server.listen()
while True:
    connection, _ = server.accept()
    try: connection.sendall(connection.recv(100))
    except OSError: pass
    connection.close()
"""


async def test_what_hangs_is_killed_and_started_again_and_what_is_only_busy_is_not(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.1)
    monkeypatch.setattr(supervise, "HUNG_S", 5)
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.5)
    talker = replace(here.service("a", TALKER), ready=Probe(here.folder / "a", line="hello"))
    await here.supervisor(talker).start()
    first = here.process("a")
    os.kill(first.pid, signal.SIGSTOP)
    await asyncio.sleep(1)
    os.kill(first.pid, signal.SIGCONT)
    await asyncio.sleep(1.5)
    assert first.alive(), "it was busy for a second"
    os.kill(first.pid, signal.SIGSTOP)
    await here.until("a: serves again")
    assert not first.alive()
    assert here.lines[-3:-1] == [
        "a: runs and has not served for 5 s",
        "a: died (signal 9); starting it again in 0.2 s",
    ]


async def test_a_program_that_was_taken_over_is_watched_too(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.1)
    talker = replace(here.service("a", TALKER), ready=Probe(here.folder / "a", line="hello"))
    await here.supervisor(talker).start()
    here.forget()
    await here.supervisor(talker).start()
    assert here.lines[-1] == "a: still running, kept"
    monkeypatch.setattr(supervise, "HUNG_S", 0.5)
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.2)
    os.kill(here.pid("a"), signal.SIGSTOP)
    await here.until("a: serves again")


async def test_what_keeps_dying_is_started_ever_more_slowly(here: Here) -> None:
    await here.supervisor(here.service("a")).start()
    for delay in ("0.2", "0.4", "0.8"):
        began = asyncio.get_running_loop().time()
        os.kill(here.pid("a"), signal.SIGKILL)
        await here.until(f"in {delay} s")
        here.lines.clear()
        await here.until("serves again")
        assert asyncio.get_running_loop().time() - began >= float(delay)


@given(st.integers(0, 10_000))
def test_the_pause_grows_and_is_bounded(faults: int) -> None:
    assert 0 <= backoff(faults) <= backoff(faults + 1) <= 30
    assert backoff(0) == 0


async def test_a_killed_supervisors_programs_are_kept(here: Here) -> None:
    services = [here.service(name) for name in "ab"]
    await here.supervisor(*services).start()
    pids = [here.pid(name) for name in "ab"]
    here.forget()
    second = here.supervisor(*services)
    await second.start()
    assert [here.pid(name) for name in "ab"] == pids
    assert here.lines[-2:] == ["a: still running, kept", "b: still running, kept"]
    os.kill(pids[0], signal.SIGKILL)
    await here.until("a: serves again")
    kept = here.process("b")
    await second.stop()
    assert not kept.alive()


async def test_what_was_left_and_not_yet_taken_over_is_stopped_too(here: Here) -> None:
    services = [here.service(name) for name in "ab"]
    await here.supervisor(*services).start()
    left = [here.process(name) for name in "ab"]
    here.forget()
    failing = replace(here.service("x", "raise SystemExit('no luck')"), once=True, ready=None)
    second = here.supervisor(failing, *services)
    with pytest.raises(InfrastructureError, match="no luck"):
        await second.start()
    await second.stop()
    assert [process.alive() for process in left] == [False, False]
    assert record.load(here.folder) is None


async def test_a_supervisor_that_never_started_forgets_nothing(here: Here) -> None:
    await here.supervisor(here.service("a")).start()
    left = here.process("a")
    here.forget()
    await here.supervisor(here.service("a")).stop()
    assert not left.alive()


async def test_a_program_of_another_table_is_ended(here: Here) -> None:
    await here.supervisor(here.service("a"), here.service("b")).start()
    earlier = [here.process(name) for name in "ab"]
    here.forget()
    changed = replace(here.service("a"), version="2")
    await here.supervisor(changed).start()
    assert [process.alive() for process in earlier] == [False, False]
    assert here.process("a") not in earlier
    assert "a: ending what an earlier start left running" in here.lines


async def test_a_program_that_hangs_is_not_kept(here: Here) -> None:
    service = here.service("a")
    await here.supervisor(service).start()
    first = here.process("a")
    here.forget()
    (here.folder / "a").unlink()
    await here.supervisor(service).start()
    assert here.process("a") != first
    assert not first.alive()


@pytest.mark.parametrize(
    ("script", "ready_s", "error", "says"),
    [
        ("import sys; sys.exit('no luck')", 60, InfrastructureError, "start .*: no luck"),
        ("import sys; print('mayfly-a: no KVM'); sys.exit(21)", 60, MachineUnfit, "^no KVM$"),
        ("import time; time.sleep(60)", 1, InfrastructureError, "does not serve after 1 s"),
    ],
)
async def test_what_does_not_come_up_says_why(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    ready_s: float,
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.setattr(supervise, "READY_S", ready_s)
    supervisor = here.supervisor(here.service("a", script), here.service("b"))
    with pytest.raises(error, match=says) as caught:
        await supervisor.start()
    assert "\n" not in str(caught.value)
    failed = here.process("a")
    await supervisor.stop()
    assert not failed.alive()
    assert not (here.folder / "story").exists(), "b was started"


async def test_what_runs_once_must_end_well_before_the_next(here: Here) -> None:
    once = replace(here.service("a", "open('story', 'a').write('once\\n')"), once=True, ready=None)
    await here.supervisor(once, here.service("b")).start()
    assert here.story() == ["once", "start b"]
    bad = replace(here.service("c", "raise SystemExit('bad')"), once=True, ready=None)
    with pytest.raises(InfrastructureError, match="bad"):
        await here.supervisor(bad).start()


async def test_a_socket_stays_open_while_its_program_restarts(here: Here) -> None:
    script = """
import os, socket
server = socket.socket(fileno=int(os.environ["MAYFLY_EDGE_FD"]))
while True:
    connection, _ = server.accept()
    connection.sendall(str(os.getpid()).encode()); connection.close()
"""
    address = f"127.0.0.1:{free_port()}"
    service = replace(here.service("a", script), listen=address, ready=Probe(address))
    await here.supervisor(service).start()
    host, _, port = address.partition(":")
    os.kill(here.pid("a"), signal.SIGKILL)
    await here.until("a: died")
    reader, writer = await asyncio.open_connection(host, int(port))  # not refused
    assert int(await reader.read()) == here.pid("a")
    writer.close()


async def test_a_large_log_is_put_aside(here: Here) -> None:
    (here.folder / "a.log").write_bytes(bytes(LOG_BYTES + 1))
    await here.supervisor(here.service("a")).start()
    assert (here.folder / "a.log").stat().st_size < LOG_BYTES
    assert (here.folder / "a.log.1").stat().st_size == LOG_BYTES + 1


def test_a_second_supervisor_is_refused_and_the_lock_does_not_outlive_its_holder(
    tmp_path: Path,
) -> None:
    again = record.lock(tmp_path)
    with record.lock(tmp_path), pytest.raises(Conflict, match="already running"), again:
        pass
    with record.lock(tmp_path):
        pass


async def test_children_do_not_inherit_the_lock(here: Here) -> None:
    with record.lock(here.folder):
        await here.supervisor(here.service("a")).start()
    with record.lock(here.folder):
        pass


def test_a_port_in_use_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with listen(address), pytest.raises(MachineUnfit, match=f"{address}: Address already in use"):
        listen(address)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"supervisor": 1}', "null"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    record.path(tmp_path).write_text(text)
    assert record.load(tmp_path) is None


async def test_ending_what_is_recorded_spares_a_process_with_a_reused_number(here: Here) -> None:
    with (here.folder / "log").open("wb") as log:
        other = Process.start(["/bin/sleep", "60"], env={}, cwd=here.folder, log=log)
    earlier = replace(other.identity, start_time=other.identity.start_time - 1)
    assert await supervise.end_all({"a": record.Kept(earlier, "")}) == ()
    assert other.identity.alive()
    await other.stop(5)
