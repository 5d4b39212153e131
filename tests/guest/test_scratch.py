"""A scratch disk that changes hands: what is done in a guest, in which order, and what stops it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mayfly.guest import buildkit, machine, scratch
from mayfly.guest.agent import Agent
from mayfly.guest.identity import IDENTIFIED
from tests.guest.test_agent import Acts


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
    (tmp_path / "sys/fs/cgroup/system.slice/buildkitd.service").mkdir(parents=True)
    for name, serial in (("vda", "root"), ("vdb", "scratch"), ("vdc", "scratch2")):
        (tmp_path / f"sys/block/{name}").mkdir(parents=True)
        (tmp_path / f"sys/block/{name}/serial").write_text(serial)
    return tmp_path


def test_buildkit_stops_before_its_disk_is_unmounted() -> None:
    system = System()
    scratch.put_down(system.run, 5)
    assert system.ran == ["systemctl stop buildkitd.service", "umount /scratch"]


@pytest.mark.parametrize("fails", ["systemctl", "umount"])
def test_a_disk_that_was_not_put_down_is_said_to_be_none(fails: str) -> None:
    with pytest.raises(OSError, match=fails):
        scratch.put_down(System(fails).run, 5)


def test_what_is_on_its_own_disk_is_given_up(root: Path) -> None:
    system = System()
    took = scratch.make_way(system.run, system.thaw, 5, root)
    assert system.ran == ["thaw", "systemctl stop buildkitd.service", "umount /scratch"]
    kill = root / "sys/fs/cgroup/system.slice/buildkitd.service/cgroup.kill"
    assert kill.read_text() == "1"
    assert took.keys() == {"stop", "unmount"}


@pytest.mark.parametrize("fails", ["systemctl stop", "umount"])
def test_way_that_is_not_made_is_an_error(root: Path, fails: str) -> None:
    system = System(fails)
    with pytest.raises(OSError, match=fails):
        scratch.make_way(system.run, system.thaw, 5, root)


def test_buildkit_starts_on_the_other_disk(root: Path) -> None:
    system = System()
    took = scratch.take_up(system.run, lambda: True, 5, root)
    assert system.ran == [
        "mount -t ext4 -o noatime /dev/vdc /scratch",
        "systemctl start buildkitd.service",
    ]
    assert took.keys() == {"disk", "mount", "start", "serve"}


@pytest.mark.parametrize("fails", ["mount -t", "systemctl start"])
def test_what_does_not_come_up_is_an_error(root: Path, fails: str) -> None:
    system = System(fails)
    with pytest.raises(OSError, match=fails):
        scratch.take_up(system.run, lambda: True, 5, root)


def test_a_buildkit_that_does_not_serve_has_an_end(root: Path) -> None:
    system = System()
    with pytest.raises(OSError, match="does not come up"):
        scratch.take_up(system.run, lambda: False, 0.1, root)


@pytest.mark.parametrize("comes_up", [True, False])
def test_emulators_rest_only_while_buildkit_starts(root: Path, comes_up: bool) -> None:
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


def test_a_buildkit_that_has_put_its_records_aside_is_of_no_use(root: Path) -> None:
    place = root / scratch.RESET.lstrip("/")
    place.mkdir(parents=True)
    (place / "history.db.x1.bak").touch()
    system = System()
    scratch.take_up(system.run, lambda: True, 5, root)
    (place / "cache.db.x2.bak").touch()
    with pytest.raises(OSError, match="could not read"):
        scratch.take_up(system.run, lambda: True, 5, root)


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
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildkit, "serves", lambda: True)
    acts, asked = Acts(), {"id": 1, "op": "make_way", "timeout_s": 5, "cpus": 1}
    nobody = Agent(acts.kernel(), root).handle(json.dumps(asked).encode())
    assert nobody and not nobody["ok"] and acts.done == []
    (root / IDENTIFIED).parent.mkdir(parents=True)
    (root / IDENTIFIED).touch()
    (root / machine.CPUS / "cpu1").mkdir(parents=True)
    (root / machine.CPUS / "cpu1/online").write_text("1")
    agent = Agent(acts.kernel(), root)
    way = agent.handle(json.dumps(asked).encode())
    assert way and way["ok"] and way["timings_s"].keys() == {"stop", "unmount"}
    assert (root / machine.CPUS / "cpu1/online").read_text() == "0"
    assert acts.names() == ["rest", "run", "run"]
    answer = agent.handle(b'{"id": 2, "op": "take_scratch", "timeout_s": 5}')
    assert answer and answer["ok"] and answer["taken"] is True
    assert acts.names()[3:] == ["run", "run"]


def test_the_agent_says_what_it_put_down(root: Path) -> None:
    acts = Acts()
    answer = Agent(acts.kernel(), root).handle(b'{"id": 1, "op": "quiesce", "timeout_s": 5}')
    assert answer and answer["ok"] and answer["quiesced"] is True
    assert acts.names() == ["run", "run"]
