"""A scratch disk that changes hands: what is done in a guest, in which order, and what stops it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from mayfly.guest import buildkit, machine, pair, scratch
from mayfly.guest.agent import Agent
from mayfly.guest.identity import IDENTIFIED
from tests.guest.test_agent import Acts, on_standby


class System:
    """Programs that are only noted; the one whose name is `fails` fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.ran: list[str] = []

    def run(self, argv: Sequence[str], timeout_s: float) -> None:
        self.ran.append(" ".join(argv))
        if self.fails and self.fails in self.ran[-1]:
            raise OSError(f"{self.fails} failed")

    def thaw(self) -> None:
        self.ran.append("thaw")


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


def test_buildkit_stops_before_its_disk_is_unmounted(root: Path) -> None:
    system = System()
    scratch.put_down(system.run, 5, root)
    assert system.ran == ["systemctl stop buildkitd@own.service", "umount /scratch"]


def test_the_buildkit_that_took_a_disk_up_is_the_one_that_puts_it_down(root: Path) -> None:
    system = System()
    scratch.make_way(system.run, system.thaw, 5, root)
    scratch.put_down(system.run, 5, root)
    assert system.ran[2:] == ["systemctl stop buildkitd@standby.service", "umount /scratch"]


@pytest.mark.parametrize("fails", ["systemctl", "umount"])
def test_a_disk_that_was_not_put_down_is_said_to_be_none(root: Path, fails: str) -> None:
    with pytest.raises(OSError, match=fails):
        scratch.put_down(System(fails).run, 5, root)


def test_what_is_on_its_own_disk_is_given_up(root: Path) -> None:
    system = System()
    took = scratch.make_way(system.run, system.thaw, 5, root)
    assert system.ran == ["thaw", "umount /scratch"]
    assert (pair.group(pair.OWN, root) / "cgroup.kill").read_text() == "1"
    assert not (pair.group(pair.STANDBY, root) / "cgroup.kill").exists()
    assert took.keys() == {"stop", "unmount"}


def test_way_that_is_not_made_is_an_error(root: Path) -> None:
    system = System("umount")
    with pytest.raises(OSError, match="umount"):
        scratch.make_way(system.run, system.thaw, 5, root)


def test_a_disk_is_not_given_up_before_all_that_runs_there_has_ended(root: Path) -> None:
    system, processes = System(), pair.group(pair.OWN, root) / "cgroup.procs"
    processes.write_text("7\n")
    with pytest.raises(OSError, match="does not end"):
        scratch.make_way(system.run, system.thaw, 0.1, root)
    assert system.ran == ["thaw"]
    processes.unlink()  # with its group
    scratch.make_way(system.run, system.thaw, 0.1, root)


def test_the_buildkit_on_standby_goes_on_with_the_other_disk(
    root: Path, standby: list[bytes]
) -> None:
    system = System()
    took = scratch.take_up(system.run, lambda: True, 5, root)
    assert system.ran == ["mount -t ext4 -o noatime /dev/vdc /scratch"]
    assert took.keys() == {"disk", "mount", "wake", "serve"}
    assert (root / pair.PIPE).read_bytes() == (root / pair.CONFIG).read_bytes()  # started again


def test_the_buildkit_on_standby_is_told_the_configuration(
    root: Path, standby: list[bytes]
) -> None:
    pair.wake(time.monotonic() + 5, root)
    while not standby:
        time.sleep(0.01)
    assert standby == [(root / pair.CONFIG).read_bytes()]


def test_a_disk_that_is_not_mounted_wakes_nobody(root: Path) -> None:
    system = System("mount -t")
    with pytest.raises(OSError, match="mount -t"):
        scratch.take_up(system.run, lambda: True, 5, root)


def test_without_a_buildkit_on_standby_the_disk_is_of_no_use(root: Path) -> None:
    system = System()
    with pytest.raises(OSError, match="no BuildKit on standby"):
        scratch.take_up(system.run, lambda: True, 0.1, root)


def test_a_buildkit_that_does_not_serve_has_an_end(root: Path, standby: list[bytes]) -> None:
    system = System()
    with pytest.raises(OSError, match="does not come up"):
        scratch.take_up(system.run, lambda: False, 0.1, root)


@pytest.mark.parametrize("comes_up", [True, False])
def test_emulators_rest_only_while_buildkit_starts(
    root: Path, standby: list[bytes], comes_up: bool
) -> None:
    switch = root / scratch.EMULATORS
    switch.parent.mkdir(parents=True)
    switch.write_text("1")
    system, seen = System(), list[str]()

    def serves() -> bool:
        seen.append(switch.read_text())
        return comes_up

    try:
        scratch.take_up(system.run, serves, 0.1, root)
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
    with of_no_use if file.startswith("cache") else nullcontext():
        scratch.take_up(System().run, lambda: True, 5, root)


def test_it_waits_when_its_thread_opens_a_pipe_that_nobody_writes(root: Path) -> None:
    on_standby(root)
    (root / "proc/8/task/8/wchan").write_text("futex_wait_queue")
    with pytest.raises(OSError, match="does not come to its configuration"):
        pair.waiting(time.monotonic() + 0.1, root)
    (root / "proc/8/task/8/wchan").write_text("wait_for_partner")
    pair.waiting(time.monotonic() + 0.1, root)


def test_the_one_of_both_that_is_not_needed_ends(root: Path) -> None:
    kills = [pair.group(unit, root) / "cgroup.kill" for unit in (pair.OWN, pair.STANDBY)]
    pair.leave_one(root)
    assert [kill.exists() for kill in kills] == [False, True]
    kills[1].unlink()
    pair.retire(pair.OWN, root)
    pair.leave_one(root)
    assert [kill.exists() for kill in kills] == [True, False]


def test_a_disk_that_does_not_come_has_an_end(root: Path) -> None:
    (root / "sys/block/vdc/serial").write_text("another")
    with pytest.raises(OSError, match="does not come"):
        scratch.find(time.monotonic() + 0.1, root)


def test_a_program_that_fails_is_quoted_and_one_that_hangs_ended() -> None:
    with pytest.raises(OSError, match="no such thing"):
        scratch.run(("sh", "-c", "echo no such thing; exit 3"), 5)
    with pytest.raises(OSError, match="was not done within"):
        scratch.run(("sleep", "9"), 0.1)


def test_the_agent_makes_way_with_its_vcpus_and_takes_the_disk_up(
    root: Path, standby: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildkit, "serves", lambda: True)
    acts, asked = Acts(), {"id": 1, "op": "make_way", "timeout_s": 5, "cpus": 1}
    nobody = Agent(acts.kernel(), root).handle(json.dumps(asked).encode())
    assert nobody and not nobody["ok"] and acts.done == []
    (root / IDENTIFIED).touch()
    (root / machine.CPUS / "cpu1").mkdir(parents=True)
    (root / machine.CPUS / "cpu1/online").write_text("1")
    agent = Agent(acts.kernel(), root)
    way = agent.handle(json.dumps(asked).encode())
    assert way and way["ok"] and way["timings_s"].keys() == {"stop", "unmount"}
    assert (root / machine.CPUS / "cpu1/online").read_text() == "0"
    assert acts.names() == ["rest", "run"]
    answer = agent.handle(b'{"id": 2, "op": "take_scratch", "timeout_s": 5}')
    assert answer and answer["ok"] and answer["taken"] is True
    assert acts.names()[2:] == ["run"]


def test_the_agent_says_what_it_put_down(root: Path) -> None:
    acts = Acts()
    answer = Agent(acts.kernel(), root).handle(b'{"id": 1, "op": "quiesce", "timeout_s": 5}')
    assert answer and answer["ok"] and answer["quiesced"] is True
    assert acts.names() == ["run", "run"]
