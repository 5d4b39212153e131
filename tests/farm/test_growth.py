"""Memory that a build outgrows: grown in time, refused, thrashed for; and a disk that is filled.

A farm of its own: a rung that has more than twice the memory of the one below, and a pool that two
runners fill.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import eat
from mayfly.model import GIB
from tests.farm.conftest import Farm, interrupt, running_farm

pytestmark = [pytest.mark.vm, pytest.mark.services, pytest.mark.long]

SETTINGS = {
    "MAYFLY_LADDER__T2": "{cpu = 2, memory_gb = 3, disk_gb = 8}",
    "MAYFLY_POOL__MEMORY_GB": "4",
}

THRASH = """\
import mmap, os, random

PAGE, FILE = 4096, 320 << 20
left = int(open("/proc/meminfo").read().split("MemAvailable:")[1].split()[0]) * 1024
with open("/big", "wb") as file:
    for _ in range(FILE >> 20):
        file.write(bytes(1 << 20))
    file.flush()
    os.fsync(file.fileno())
held = b"\\1" * (left - (240 << 20))
print("held", len(held) >> 20, flush=True)
with open("/big", "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    pages.madvise(mmap.MADV_RANDOM)
    while True:
        pages[random.randrange(FILE // PAGE) * PAGE]
"""
"""Holds nearly all memory and reads, over and over, more than fits into the rest."""


@pytest.fixture(scope="module")
def own() -> Iterator[Farm]:
    with running_farm(SETTINGS) as farm:
        yield farm


@pytest.fixture(scope="module")
def base(own: Farm) -> str:
    own.mayfly("base", "push", "python")
    return f"{own.config.registry_host}/images/base/python"


@pytest.fixture
def make(base: str, own: Farm, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a context with the programs in it; nothing of its builds is left."""

    def make(*steps: str) -> Path:
        shutil.copy(eat.__file__, tmp_path / "eat.py")
        (tmp_path / "thrash.py").write_text(THRASH)
        runs = "".join(f"RUN {step}\n" for step in steps)
        (tmp_path / "Dockerfile").write_text(f"FROM {base}\nCOPY *.py /\n{runs}")
        return tmp_path

    yield make
    own.clear()


def build(
    farm: Farm, name: str, folder: Path, *more: str, size: str = "t1"
) -> tuple[int, dict[str, Any], str]:
    """A build: exit status, its entry in the status, stderr."""
    words = ("--mayfly-repo", f"team/{name}", "--mayfly-size", size, "--progress", "plain", *more)
    done = farm.mayfly("build", *words, folder, check=False)
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def speed(said: str) -> int:
    """The speed that the step reached, in MiB/s."""
    found = re.search(r"ate \d+ MiB at (\d+) MiB/s", said)
    assert found, said
    return int(found[1])


def test_a_step_that_rises_to_twice_its_size_ends_well_at_the_first_attempt(
    own: Farm, make: Callable[[str], Path]
) -> None:
    status, row, said = build(own, "twice", make("python3 /eat.py 2048 200"))
    assert (status, row["outcome"]) == (0, "succeeded"), said
    (attempt,) = row["attempts"]
    assert (attempt["size"], attempt["oom_kills"]) == ("t1", 0)
    assert 2 * GIB < attempt["granted_memory_bytes"] <= 3 * GIB
    assert attempt["peak_memory_bytes"] >= 2 * GIB
    assert "the runner has" in said
    print(f"rose to 2048 MiB at {speed(said)} MiB/s; granted {attempt['granted_memory_bytes']}")


def test_in_a_full_pool_it_is_refused_killed_and_goes_on_when_there_is_room(
    own: Farm, make: Callable[..., Path]
) -> None:
    other = own.start(*own.build("team/other", "--progress", "plain", make("sleep 500")))
    own.until(lambda: [lease["size"]["name"] for lease in own.leases()] == ["t2"])
    (others,) = own.leases()
    folder = make("echo first > /first", "python3 /eat.py 1400 100")
    words = ("--mayfly-repo", "team/full", "--mayfly-size", "t1", "--progress", "plain", folder)
    mine = own.start("build", *words)
    own.until(lambda: own.json("status")["builds"][0]["attempts"][0]["outcome"] == "oom", 120)
    interrupt(other)
    other.communicate(timeout=60)
    said = mine.communicate(timeout=200)[1]
    row = next(row for row in own.json("status")["builds"] if row["id"] != others["id"])
    assert (mine.returncode, row["outcome"]) == (0, "succeeded"), said
    first, second = row["attempts"]
    assert (first["size"], first["outcome"]) == ("t1", "oom") and first["oom_kills"] >= 1
    assert first["granted_memory_bytes"] == GIB
    assert "the build is short of memory: the pool has no memory left" in said
    assert (second["size"], second["outcome"], second["oom_kills"]) == ("t2", "succeeded", 0)
    assert "finished steps are kept" in said
    assert said.partition("finished steps are kept")[2].count("CACHED") >= 2, said


def test_a_build_that_only_waits_for_memory_is_out_of_memory(
    own: Farm, make: Callable[[str], Path]
) -> None:
    (spec := make("timeout 300 python3 /thrash.py") / ".build-spec.ncl").write_text(
        "{ oom_retry = false }"
    )
    status, row, said = build(own, "thrash", spec.parent, "--mayfly-no-grow")
    print(said)
    assert (status, row["outcome"]) == (5, "oom"), said
    (attempt,) = row["attempts"]
    assert attempt["oom_kills"] == 0, said
    assert "made no progress for" in row["reason"] and "growth is turned off" in row["reason"]
    assert "memory_gb = 3" in said.splitlines()[-1]


def test_a_filled_disk_is_said_with_what_to_write(own: Farm, make: Callable[[str], Path]) -> None:
    status, row, said = build(own, "fills", make("dd if=/dev/zero of=/big bs=1M"))
    assert (status, row["outcome"]) == (6, "disk_full"), said
    assert "write disk_gb = 8 or more into .build-spec.ncl" in said.splitlines()[-1]
    assert "the disk is almost full" in said
