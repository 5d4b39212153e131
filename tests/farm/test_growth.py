"""What a build may have too little of: memory (grown in time, or refused), disk, time.

A farm of its own: a rung that has more than twice the memory of the one below, and a pool that two
runners fill.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly import stack
from mayfly.host.deadline import boottime
from mayfly.host.record import read_record
from mayfly.model import GIB
from tests.farm.conftest import Farm, cached, interrupt, running_farm

pytestmark = [pytest.mark.vm, pytest.mark.services, pytest.mark.long]

SETTINGS = {
    "MAYFLY_LADDER__T2": "{cpu = 2, memory_gb = 3, disk_gb = 8}",
    "MAYFLY_POOL__MEMORY_GB": "4",
}


@pytest.fixture(scope="module")
def own() -> Iterator[Farm]:
    with running_farm(SETTINGS) as farm:
        yield farm


@pytest.fixture
def make(
    own: Farm, context: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Path]]:
    """Makes a context of its own whose Dockerfile runs the steps; nothing of its builds is left."""

    def made(*steps: str) -> Path:
        folder = tmp_path_factory.mktemp("context")
        return shutil.copytree(context("\nRUN ".join(steps)), folder, dirs_exist_ok=True)

    yield made
    own.clear()


def build(
    farm: Farm, name: str, folder: Path, *more: str, size: str = "t1"
) -> tuple[int, dict[str, Any], str]:
    """A build: exit status, its entry in the status, stderr."""
    words = ("--mayfly-repo", f"team/{name}", "--mayfly-size", size, "--progress", "plain", *more)
    done = farm.mayfly("build", *words, folder, check=False)
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def told(farm: Farm) -> str:
    """What the orchestrator has told those who follow its builds."""
    return (farm.config.state / "log/orchestrator.log").read_text()


def rises(mib: int) -> str:
    """A step that writes so much into a file system in memory, as fast as it goes, and tells the
    seconds of the machine's life before and after."""
    write = (
        f"for i in $(seq {mib // 32}); do dd if=/dev/zero of=/t/$i bs=32M count=1 || exit 1; done"
    )
    clock = "cut -d' ' -f1 /proc/uptime"
    return (
        f"--mount=type=tmpfs,target=/t,size=8g {clock}; ({write}) 2>/dev/null && {clock} && sleep 2"
    )


def speed(said: str, mib: int) -> float:
    """The speed at which a step rose, in MiB/s."""
    began, ended = map(float, re.findall(r"^#\d+ [\d.]+ (\d+\.\d+)$", said, re.MULTILINE))
    return mib / (ended - began)


def test_a_step_that_rises_to_twice_its_size_ends_well_at_the_first_attempt(
    own: Farm, make: Callable[[str], Path]
) -> None:
    status, row, said = build(own, "twice", make(rises(2048)))
    assert (status, row["outcome"]) == (0, "succeeded"), said
    (attempt,) = row["attempts"]
    assert (attempt["size"], attempt["oom_kills"]) == ("t1", 0)
    assert 2 * GIB < attempt["granted_memory_bytes"] <= 3 * GIB
    assert attempt["peak_memory_bytes"] >= 2 * GIB
    print(f"rose to 2048 MiB at {speed(said, 2048):.0f} MiB/s")


def test_in_a_full_pool_it_is_refused_killed_and_goes_on_when_there_is_room(
    own: Farm, make: Callable[..., Path]
) -> None:
    other = own.start(*own.build("team/other", "--progress", "plain", make("sleep 500")))
    own.until(lambda: [lease["size"]["name"] for lease in own.leases()] == ["t2"])
    (others,) = own.leases()
    step = f"{rises(640)} && dd if=/dev/zero of=/dev/null bs=900M count=1"
    folder = make("echo first > /first", step)
    words = ("--mayfly-repo", "team/full", "--mayfly-size", "t1", "--progress", "plain", folder)
    mine = own.start("build", *words)
    own.until(lambda: own.json("status")["builds"][0]["attempts"][0]["outcome"] == "oom", 120)
    assert other.poll() is None, f"the pool was not full: {other.communicate()[1]}"
    interrupt(other)
    other.communicate(timeout=60)
    said = mine.communicate(timeout=200)[1]
    row = next(row for row in own.json("status")["builds"] if row["id"] != others["id"])
    assert (mine.returncode, row["outcome"]) == (0, "succeeded"), said
    first, second = row["attempts"]
    assert (first["size"], first["outcome"]) == ("t1", "oom") and first["oom_kills"] >= 1
    assert first["granted_memory_bytes"] == GIB
    assert "short of memory: the pool has no memory left" in told(own)
    assert (second["size"], second["outcome"], second["oom_kills"]) == ("t2", "succeeded", 0)
    assert "finished steps are kept" in said
    assert len(cached(said.partition("finished steps are kept")[2])) == 2, said


def test_a_filled_disk_is_said_with_what_to_write(own: Farm, make: Callable[[str], Path]) -> None:
    status, row, said = build(own, "fills", make("dd if=/dev/zero of=/big bs=1M"))
    assert (status, row["outcome"]) == (6, "disk_full"), said
    assert "write disk_gb = 8 or more into .build-spec.ncl" in said.splitlines()[-1]
    assert "the disk is almost full" in told(own)


def test_a_build_over_its_specs_budget_ends_in_time_though_nobody_is_there_to_end_it(
    own: Farm, make: Callable[[str], Path]
) -> None:
    """Orchestrator and host are killed, and nothing starts them again until the VM has gone."""
    folder = make("echo before; sleep 600")
    (folder / ".build-spec.ncl").write_text("{ time_budget_min = 1 }")
    client = own.start(*own.build("team/budget", "--progress", "plain", folder))
    own.until(own.leases)
    (place,) = (own.config.state / "vms").iterdir()
    record = read_record(place)
    assert record is not None and record.process is not None
    process, deadline_s = record.process, record.ready_at_s + 60
    status = stack.running(own.config)
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    try:
        for program in ("orchestrator", "host"):
            os.kill(own.pid(program), signal.SIGKILL)
        own.until(lambda: not process.alive(), 90)
        late_s = boottime() - deadline_s
    finally:
        os.kill(status.pid, signal.SIGCONT)
    print(f"ended {late_s:.1f} s after its deadline")
    assert 0 <= late_s <= 5
    said = client.communicate(timeout=120)[1]
    row = own.json("status")["builds"][0]
    assert (client.returncode, row["outcome"]) == (7, "budget_exceeded"), said
    assert "the time budget of 1 min is used up" in said
    assert "before" in own.mayfly("logs", row["id"]).stdout
