"""What a build used, and why it ended, as its VM saw it: never by its exit code."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from mayfly.model import GIB, MIB
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

Context = Callable[[str], Path]

THRASH = """\
import mmap, os, time

PAGE, FILE, STEP, APART = 4096, 48 << 20, 4 << 20, 17

def number(path, name):
    return int(open(path).read().rpartition(name)[2].split()[0])

def counters():
    again = number("/proc/vmstat", "workingset_refault_file ")
    return again, number("/proc/pressure/memory", "total=") / 1e6, time.monotonic()

with open("/file", "wb") as file:
    for _ in range(FILE >> 20):
        file.write(bytes(1 << 20))
    file.flush()
    os.fsync(file.fileno())
pages = mmap.mmap(os.open("/file", os.O_RDONLY), 0, prot=mmap.PROT_READ)
held = [b"\\1" * (number("/proc/meminfo", "MemAvailable:") * 1024 - FILE - (64 << 20))]
passes = 0
while True:
    before = counters()
    for first in range(APART):
        pages[first * PAGE :: APART * PAGE]
    again, stalled, took = (now - then for now, then in zip(counters(), before))
    mib = sum(map(len, held)) >> 20
    print(f"holds {mib} MiB; {again} read again, full {stalled:.1f} of {took:.1f} s", flush=True)
    if again < FILE // PAGE // 2:
        held.append(b"\\1" * STEP)
    elif (passes := passes + 1) == 3:
        print("it thrashes", flush=True)
"""
"""Holds so much memory that a mapped file, which it reads over and over, does not fit beside it:
each page of it is read from the disk again each time. (Without MADV_RANDOM: the kernel then takes
the pages for ones that nobody comes back to, vma_has_recency in its mm_inline.h, and counts no
waiting for them.)"""

EATER = "dd if=/dev/zero of=/dev/null bs=1500M count=1"
"""More than a t1 has, in one buffer."""


def build(farm: Farm, name: str, folder: Path) -> tuple[int, dict[str, Any], str]:
    """A build in size t1 that is given no more: exit status, entry in the status, stderr."""
    done = farm.mayfly(
        *("build", "--mayfly-repo", f"team/{name}", "--mayfly-size", "t1", "--mayfly-no-grow"),
        folder,
        check=False,
    )
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def test_137_by_hand_is_no_oom(farm: Farm, context: Context) -> None:
    status, row, _ = build(farm, "by-hand", context("exit 137"))
    assert (status, row["outcome"]) == (1, "failed")
    assert row["attempts"][0]["oom_kills"] == 0


@pytest.mark.parametrize("code", [0, 1, 101])
def test_a_child_that_was_killed_is_seen_whatever_the_step_says(
    farm: Farm, context: Context, code: int
) -> None:
    status, row, said = build(farm, f"killed-{code}", context(f"({EATER} & wait); exit {code}"))
    assert row["attempts"][0]["oom_kills"] >= 1, said
    if code:  # the next size has what it needs, and there it fails by itself
        assert [attempt["outcome"] for attempt in row["attempts"]] == ["oom", "failed"], said
        assert (status, row["outcome"]) == (1, "failed"), said
    else:
        assert (status, row["outcome"]) == (0, "succeeded"), said
        assert "want of memory" in row["reason"]
    assert row["attempts"][0]["peak_memory_bytes"] > 400 * MIB


def test_three_times_its_memory_in_files_is_no_need_of_memory(
    farm: Farm, context: Context, tmp_path: Path
) -> None:
    """Holes of a sparse file take page cache as well."""
    holes = "dd if=/dev/zero of=/big bs=1M seek=3072 count=0"
    folder = context(f"{holes} && cat /big >/dev/null; rm /big")
    status, row, said = build(farm, "reads", folder)
    assert (status, row["outcome"]) == (0, "succeeded"), said
    attempt = row["attempts"][0]
    assert attempt["oom_kills"] == 0
    assert attempt["peak_memory_bytes"] < 300 * MIB
    farm.until(lambda: farm.json("usage", row["id"])["steps"], 30)  # asked for after the end
    used = farm.json("usage", row["id"])
    assert used["memory_peak_bytes"] > 500 * MIB, "the page cache was there"
    assert used["samples"] >= len(used["points"]) > 2
    assert all(point["total_bytes"] <= GIB for point in used["points"])

    step = next(step for step in used["steps"] if "cat /big" in step["name"])
    assert 0 <= step["start_s"] < step["end_s"] and not step["failed"]
    assert step["cpu"] > 0.2 and step["cache_bytes"] > 300 * MIB

    drawn = farm.mayfly("usage", row["id"], "--svg", tmp_path / "usage.svg").stdout
    assert "RUN dd if=/dev/zero of=/big" in drawn and "█" in drawn
    assert (tmp_path / "usage.svg").read_text().count("<polygon") == 4


def test_a_build_that_outgrows_its_size_is_given_more(farm: Farm, context: Context) -> None:
    """100 MiB each half second, in a file system in memory, to more than a t1 has."""
    step = "dd if=/dev/zero of=/t/$i bs=100M count=1 && sleep 0.5"
    folder = context(
        "--mount=type=tmpfs,target=/t,size=3g "
        f"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do {step} || exit 1; done"
    )
    words = ("build", "--mayfly-repo", "team/grows", "--mayfly-size", "t1", folder)
    done = farm.mayfly(*words, check=False)
    row = farm.json("status")["builds"][0]
    assert (done.returncode, row["outcome"]) == (0, "succeeded"), done.stderr
    attempt = row["attempts"][0]
    assert (attempt["size"], attempt["oom_kills"]) == ("t1", 0)
    assert GIB < attempt["granted_memory_bytes"] <= 2 * GIB
    assert attempt["peak_memory_bytes"] > GIB


@pytest.mark.long
def test_a_build_that_only_waits_for_memory_is_out_of_memory(
    farm: Farm, python_base: str, tmp_path: Path
) -> None:
    """On a disk as slow as one that others use as well: what is read again is waited for."""
    (tmp_path / "thrash.py").write_text(THRASH)
    run = "timeout 500 python3 /thrash.py"
    (tmp_path / "Dockerfile").write_text(f"FROM {python_base}\nCOPY thrash.py /\nRUN {run}\n")
    (tmp_path / ".build-spec.ncl").write_text("{ oom_retry = false }")
    repo = ("--mayfly-repo", "team/thrash", "--mayfly-size", "t1", "--mayfly-no-grow")
    build = farm.start("build", *repo, "--progress=plain", tmp_path)
    (lease,) = farm.until(farm.leases)
    farm.until(lambda: "it thrashes" in farm.mayfly("logs", lease["id"]).stdout, 300)
    vm = farm.config.state / "vms" / f"{lease['id']}-1"
    with suppress(subprocess.TimeoutExpired):
        build.communicate(timeout=45)
    if build.poll() is None:
        print("slowing down")
        asyncio.run(slow_down(vm / "qemu/qmp.sock"))
    try:
        _, said = build.communicate(timeout=200)
    finally:
        print(farm.mayfly("logs", lease["id"]).stdout)
    row = farm.json("status")["builds"][0]
    assert (build.returncode, row["outcome"]) == (5, "oom"), said
    (attempt,) = row["attempts"]
    assert attempt["oom_kills"] == 0, said
    assert "made no progress for" in row["reason"] and "growth is turned off" in row["reason"]
    assert "memory_gb = 2" in said.splitlines()[-1]


async def slow_down(monitor: Path) -> None:
    """Let a VM's scratch disk read 100 times a second (QMP, `block_set_io_throttle`)."""
    client = QMPClient("test")
    await client.connect(str(monitor))
    anonymous = "/machine/peripheral-anon"
    devices: Any = await client.execute("qom-list", {"path": anonymous})
    for item in devices:
        path = f"{anonymous}/{item['name']}"
        if item["type"] == "child<virtio-blk-pci>":
            drive = await client.execute("qom-get", {"path": path, "property": "drive"})
            if drive == "scratch":
                none = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_wr"), 0)
                limits = {"id": f"{path}/virtio-backend", "iops_rd": 100, **none}
                await client.execute("block_set_io_throttle", limits)
    await client.disconnect()
