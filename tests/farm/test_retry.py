"""A build that runs out of memory: another VM, one size up, with the scratch disk of the first."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.runners import qemu_pid
from mayfly.host.handover import EARLIER
from mayfly.model import GIB
from tests.farm.conftest import Farm, cached

pytestmark = [pytest.mark.vm, pytest.mark.services]

DOCKERFILE = """\
FROM scratch
COPY sh /bin/sh
RUN dd if=/dev/urandom of=/one bs=64k count=64
RUN --mount=type=cache,target=/kept cp /one /kept/one
RUN --mount=type=cache,target=/kept cmp /one /kept/one && \\
    dd if=/dev/zero of=/dev/null bs={}M count=1
"""


@pytest.fixture
def folder(busybox: Path, tmp_path: Path) -> Path:
    shutil.copy(busybox, tmp_path / "sh")
    return tmp_path


def words(name: str, folder: Path, needs_mb: int) -> tuple[str | Path, ...]:
    """The command of a build in size t1, not grown, whose last step needs so much."""
    (folder / "Dockerfile").write_text(DOCKERFILE.format(needs_mb))
    own = ("--mayfly-repo", f"team/{name}", "--mayfly-size", "t1", "--mayfly-no-grow")
    tag = ("-t", f"images/team/{name}:1", "--push", "--progress", "plain")
    return ("build", *own, *tag, folder)


def build(farm: Farm, name: str, folder: Path, needs_mb: int) -> tuple[int, dict[str, Any], str]:
    """That build: exit status, its entry in the status, stderr."""
    done = farm.mayfly(*words(name, folder, needs_mb), check=False)
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def test_it_goes_on_one_size_up_with_finished_steps_done(farm: Farm, folder: Path) -> None:
    status, row, said = build(farm, "retry", folder, 1400)
    print(said)
    assert (status, row["outcome"]) == (0, "succeeded"), said
    before, found, after = said.partition("ran out of memory in t1; going on in t2")
    assert found and "finished steps are kept" in after, said
    assert "finished steps are lost" not in said
    assert (len(cached(before)), len(cached(after))) == (0, 3), said
    first, second = row["attempts"]
    assert (first["size"], first["outcome"]) == ("t1", "oom") and first["oom_kills"] >= 1
    assert (second["size"], second["outcome"]) == ("t2", "succeeded")
    assert second["oom_kills"] == 0 and second["peak_memory_bytes"] > GIB
    assert row["digest"] and row["images"]
    print(row["timings_s"])
    farm.until(lambda: not farm.vms())


def test_more_than_the_next_size_has_is_the_end_after_two(farm: Farm, folder: Path) -> None:
    status, row, said = build(farm, "retry-twice", folder, 3000)
    assert (status, row["outcome"]) == (5, "oom"), said
    assert [(a["size"], a["outcome"]) for a in row["attempts"]] == [("t1", "oom"), ("t2", "oom")]
    assert "going on in t2" in said and "finished steps are lost" not in said
    last = said.splitlines()[-1]
    for words in ("want of memory", "dd if=/dev/zero", "2 attempts", "memory_gb = 4"):
        assert words in row["reason"] and words in last, said


@pytest.mark.long
def test_oom_retry_false_is_one_attempt(farm: Farm, folder: Path) -> None:
    (folder / ".build-spec.ncl").write_text("{ oom_retry = false }")
    status, row, said = build(farm, "retry-off", folder, 1400)
    assert (status, row["outcome"]) == (5, "oom"), said
    (attempt,) = row["attempts"]
    assert (attempt["size"], attempt["outcome"]) == ("t1", "oom")
    last = said.splitlines()[-1]
    assert "oom_retry is false" in last and "memory_gb = 2" in last and "dd if=/dev/zero" in last


@pytest.mark.long
def test_the_second_runner_knows_other_architectures_as_the_first_did(
    farm: Farm, folder: Path
) -> None:
    """Their emulators rested while its BuildKit started."""
    command = words("retry-archs", folder, 1400)
    with (folder / "Dockerfile").open("a") as dockerfile:
        dockerfile.write("RUN exit 1\n")
    done = farm.mayfly(*command[:-1], "--mayfly-keep-on-failure", folder, check=False)
    row = farm.json("status")["builds"][0]
    assert [a["outcome"] for a in row["attempts"]] == ["oom", "failed"], done.stderr
    look = "cat /proc/sys/fs/binfmt_misc/status; buildctl debug workers"
    seen = farm.mayfly("shell", row["id"], "--", "sh", "-c", look).stdout
    assert seen.startswith("enabled\n")
    assert "linux/amd64" in seen and "linux/arm64" in seen and "linux/s390x" in seen


@pytest.mark.long
@pytest.mark.parametrize("damage", ["its VM dies", "its disk is overwritten"])
def test_a_disk_that_may_be_damaged_leaves_a_cold_retry_that_says_so(
    farm: Farm, folder: Path, damage: str
) -> None:
    client = farm.start(*words(damage.replace(" ", "-"), folder, 1400))
    said = [*up_to(client.stderr, "ran out of memory in t1; going on in t2")]
    vms = farm.config.state / "vms"
    if damage == "its VM dies":
        (first,) = vms.glob("*-1")
        os.kill(qemu_pid(first.name), signal.SIGKILL)
    else:
        overwrite(vms, f"*-2/qemu/{EARLIER}")
    said += client.communicate(timeout=300)[1].splitlines(keepends=True)
    text = "".join(said)
    row = farm.json("status")["builds"][0]
    assert (client.returncode, row["outcome"]) == (0, "succeeded"), text
    assert "finished steps are lost: " in text and "finished steps are kept" not in text
    assert not cached(text)
    assert [(a["size"], a["outcome"]) for a in row["attempts"]] == [
        ("t1", "oom"),
        ("t2", "succeeded"),
    ]
    print(next(line for line in said if "finished steps are lost" in line))


def overwrite(vms: Path, name: str) -> None:
    """Fill a file with noise as soon as it is there, before much of it can be read."""
    until = time.monotonic() + 60
    while not (found := [*vms.glob(name)]):
        assert time.monotonic() < until, f"there never was a {name}"
        time.sleep(0.001)
    with found[0].open("r+b") as file:
        noise = os.urandom(1 << 20)
        for _ in range(0, found[0].stat().st_size, len(noise)):
            file.write(noise)


def up_to(lines: Any, words: str) -> Iterator[str]:
    """The lines up to the one that has the words. Fails when there is none."""
    for line in lines:
        yield line
        if words in line:
            return
    pytest.fail(f"nobody said {words!r}")
