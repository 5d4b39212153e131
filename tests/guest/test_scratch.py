"""A scratch disk that changes hands: what is done in a guest, in which order, and what stops it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.guest import buildkit, machine, pair, scratch
from mayfly.guest.agent import Agent
from mayfly.guest.identity import IDENTIFIED
from mayfly.guest.kernel import Kernel, run
from tests.guest.test_agent import Acts, buildkitd


class Machine:
    """A kernel whose acts are only noted; the one that is `fails` fails. A process that is asked to
    end does, and takes its group's other processes with it, unless it is `deaf`."""

    def __init__(self, root: Path, fails: str = "", deaf: bool = False) -> None:
        self.root, self.fails, self.deaf = root, fails, deaf
        self.ran: list[str] = []

    def note(self, *words: object) -> None:
        self.ran.append(" ".join(map(str, words)))
        if words[0] == self.fails:
            raise OSError(f"{self.fails} failed")

    def terminate(self, pid: int) -> None:
        self.note("terminate", pid)
        if not self.deaf:
            shutil.rmtree(self.root / "proc" / str(pid))
            for unit in (pair.OWN, pair.STANDBY):
                (pair.group(unit, self.root) / "cgroup.procs").write_text("")

    def kernel(self) -> Kernel:
        return (
            Acts()
            .kernel()
            ._replace(
                mount=lambda *words: self.note("mount", *words),
                unmount=lambda *words: self.note("unmount", *words),
                terminate=self.terminate,
            )
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for unit in (pair.OWN, pair.STANDBY):
        pair.group(unit, tmp_path).mkdir(parents=True)
        (pair.group(unit, tmp_path) / "cgroup.procs").touch()
    for file in (pair.PIPE, pair.CONFIG):
        (tmp_path / file).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / pair.PIPE)
    (tmp_path / pair.CONFIG).write_text("root = '/scratch/buildkit'\n")
    for name, serial in (("vda", "root"), ("vdb", "scratch"), ("vdc", "scratch2")):
        (tmp_path / f"sys/block/{name}").mkdir(parents=True)
        (tmp_path / f"sys/block/{name}/serial").write_text(serial)
    return tmp_path


@pytest.fixture
def standby(root: Path) -> Iterator[list[bytes]]:
    """Somebody who waits for the configuration; what was read stands in the list."""
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((root / pair.PIPE).read_bytes()))
    reader.daemon = True
    reader.start()
    yield read
    reader.join(5)


@pytest.mark.parametrize("unit", [pair.OWN, pair.STANDBY])
def test_the_buildkit_that_builds_ends_before_its_disk_is_unmounted(
    root: Path, standby: list[bytes], unit: str
) -> None:
    if unit == pair.STANDBY:
        pair.swap(time.monotonic() + 5, root)
    buildkitd(root, unit)
    machine = Machine(root)
    scratch.put_down(machine.kernel(), 5, root)
    assert machine.ran == ["terminate 8", "unmount /scratch"]
    assert (pair.group(unit, root) / "cgroup.kill").read_text() == "1"
    with contextlib.suppress(OSError):  # so that nobody waits when the test is over
        os.close(os.open(root / pair.PIPE, os.O_WRONLY | os.O_NONBLOCK))


def test_a_disk_that_was_not_unmounted_is_said_not_to_be(root: Path) -> None:
    buildkitd(root, pair.OWN)
    with pytest.raises(OSError, match="unmount failed"):
        scratch.put_down(Machine(root, "unmount").kernel(), 5, root)


def test_a_disk_whose_buildkit_does_not_end_is_left_alone(root: Path) -> None:
    buildkitd(root, pair.OWN)
    machine = Machine(root, deaf=True)
    with pytest.raises(OSError, match="does not stop"):
        scratch.put_down(machine.kernel(), 0.1, root)
    assert machine.ran == ["terminate 8"]


def test_a_disk_whose_buildkit_had_ended_may_be_damaged(root: Path) -> None:
    machine = Machine(root)
    with pytest.raises(OSError, match="does not run"):
        scratch.put_down(machine.kernel(), 5, root)
    assert machine.ran == []


def test_a_step_that_does_not_end_with_its_buildkit_holds_the_disk(root: Path) -> None:
    buildkitd(root, pair.OWN)
    machine = Machine(root)
    ends = machine.terminate

    def leave_one_step(pid: int) -> None:
        ends(pid)
        (pair.group(pair.OWN, root) / "cgroup.procs").write_text("9\n")

    with pytest.raises(OSError, match="does not end"):
        scratch.put_down(machine.kernel()._replace(terminate=leave_one_step), 0.1, root)


def test_the_buildkit_on_standby_goes_on_with_the_other_disk(
    root: Path, standby: list[bytes]
) -> None:
    machine = Machine(root)
    took = scratch.take_up(machine.kernel(), lambda: True, 5, root)
    assert machine.ran == ["mount /dev/vdc /scratch"]
    assert took.keys() == {"disk", "mount", "wake", "serve"}
    assert (pair.group(pair.STANDBY, root) / "cgroup.freeze").read_text() == "0"
    assert pair.current(root) == pair.STANDBY
    while not standby:
        time.sleep(0.01)
    assert standby == [(root / pair.CONFIG).read_bytes()]
    assert (root / pair.PIPE).resolve() == (root / pair.CONFIG).resolve(), "for another start"


def test_a_disk_that_is_not_mounted_wakes_nobody(root: Path) -> None:
    with pytest.raises(OSError, match="mount failed"):
        scratch.take_up(Machine(root, "mount").kernel(), lambda: True, 5, root)
    assert pair.current(root) == pair.OWN


def test_without_a_buildkit_on_standby_the_disk_is_of_no_use(root: Path) -> None:
    with pytest.raises(OSError, match="no BuildKit on standby"):
        scratch.take_up(Machine(root).kernel(), lambda: True, 0.1, root)


def test_a_buildkit_that_does_not_serve_has_an_end(root: Path, standby: list[bytes]) -> None:
    with pytest.raises(OSError, match="does not come up"):
        scratch.take_up(Machine(root).kernel(), lambda: False, 1, root)


@pytest.mark.parametrize("comes_up", [True, False])
def test_emulators_rest_only_while_buildkit_starts(
    root: Path, standby: list[bytes], comes_up: bool
) -> None:
    switch = root / scratch.EMULATORS
    switch.parent.mkdir(parents=True)
    switch.write_text("1")
    seen = list[str]()

    def serves() -> bool:
        seen.append(switch.read_text())
        return comes_up

    try:
        scratch.take_up(Machine(root).kernel(), serves, 30 if comes_up else 1, root)
    except OSError:
        assert not comes_up
    assert set(seen) == {"0"} and switch.read_text() == "1"


@pytest.mark.parametrize("file", ["history.db.x1.bak", "cache.db.x2.bak"])
def test_a_buildkit_that_has_put_its_records_aside_is_of_no_use(
    root: Path, standby: list[bytes], file: str
) -> None:
    place = root / scratch.RESET.lstrip("/")
    place.mkdir(parents=True)
    (place / file).touch()
    of_no_use = pytest.raises(OSError, match="could not read")
    with of_no_use if file.startswith("cache") else contextlib.nullcontext():
        scratch.take_up(Machine(root).kernel(), lambda: True, 5, root)


def test_it_waits_when_its_thread_opens_a_pipe_that_nobody_writes(root: Path) -> None:
    buildkitd(root, pair.STANDBY)
    (root / "proc/8/task/8/wchan").write_text("futex_wait_queue")
    with pytest.raises(OSError, match="does not come to its configuration"):
        pair.waiting(time.monotonic() + 0.1, root)
    (root / "proc/8/task/8/wchan").write_text("wait_for_partner")
    pair.waiting(time.monotonic() + 0.1, root)


def test_the_one_of_both_that_is_not_needed_ends(root: Path, standby: list[bytes]) -> None:
    kills = [pair.group(unit, root) / "cgroup.kill" for unit in (pair.OWN, pair.STANDBY)]
    pair.leave_one(root)
    assert [kill.exists() for kill in kills] == [False, True]
    kills[1].unlink()
    pair.swap(time.monotonic() + 5, root)
    pair.leave_one(root)
    assert [kill.exists() for kill in kills] == [True, False]


def test_a_disk_that_does_not_come_has_an_end(root: Path) -> None:
    (root / "sys/block/vdc/serial").write_text("another")
    with pytest.raises(OSError, match="does not come"):
        scratch.find(time.monotonic() + 0.1, root)


def test_a_program_that_fails_is_quoted_and_one_that_hangs_ended() -> None:
    with pytest.raises(OSError, match="no such thing"):
        run(("sh", "-c", "echo no such thing; exit 3"), 5)
    with pytest.raises(OSError, match="was not done within"):
        run(("sleep", "9"), 0.1)


def test_the_agent_takes_a_disk_up_with_all_its_vcpus(
    root: Path, standby: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildkit, "serves", lambda: True)
    acts, asked = Acts(), b'{"id": 1, "op": "take_scratch", "timeout_s": 5, "cpus": 1}'
    nobody = Agent(acts.kernel(), root).handle(asked)
    assert nobody and not nobody["ok"] and acts.done == []
    (root / IDENTIFIED).touch()
    (root / machine.CPUS / "cpu1").mkdir(parents=True)
    (root / machine.CPUS / "cpu1/online").write_text("1")
    answer = Agent(acts.kernel(), root).handle(asked)
    assert answer and answer["ok"] and answer["taken"] is True
    assert (root / machine.CPUS / "cpu1/online").read_text() == "0"
    assert acts.names() == ["mount"]


def test_the_agent_says_what_it_put_down(root: Path) -> None:
    buildkitd(root, pair.OWN)
    acts = Acts()
    kernel = acts.kernel()._replace(terminate=Machine(root).terminate)
    answer = Agent(kernel, root).handle(b'{"id": 1, "op": "quiesce", "timeout_s": 5}')
    assert answer and answer["ok"] and answer["quiesced"] is True
    assert acts.names() == ["unmount"]
