"""The sampler over a control group made of files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.guest import sample
from mayfly.guest.sample import Sampler

GROUP = {
    "memory.peak": "1697398784\n",
    "memory.stat": "anon 1000\nfile 7000\nkernel 5\nshmem 200\ninactive_anon 9\nactive_file 6800\n"
    "slab_reclaimable 70\nslab_unreclaimable 30\nslab 100\n",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 3\noom_kill 2\noom_group_kill 9\n",
    "memory.pressure": "some avg10=1.00 avg60=0.10 avg300=0.00 total=500\n"
    "full avg10=0.50 avg60=0.10 avg300=0.00 total=400\n",
    "cpu.stat": "usage_usec 77\nuser_usec 70\nsystem_usec 7\n",
    "io.stat": "254:16 rbytes=100 wbytes=20 rios=3 wios=1 dbytes=0 dios=0\n"
    "254:0 rbytes=5 wbytes=6 rios=1 wios=1 dbytes=0 dios=0\n",
}
MEMINFO = "MemTotal:       10 kB\nMemFree:         1 kB\nMemAvailable:    3 kB\n"


@pytest.fixture
def group(tmp_path: Path) -> Path:
    made = tmp_path / "group"
    made.mkdir()
    for name, text in GROUP.items():
        (made / name).write_text(text)
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 2\nswap_ra 0\n")
    return made


def sampler(group: Path) -> Sampler:
    return Sampler(str(group), str(group.parent), str(group))


def test_a_sample_has_the_need_apart_from_the_page_cache(group: Path) -> None:
    found = sampler(group).read()
    assert found["memory_bytes"] == 1000 + 200 + 30
    assert found["cache_bytes"] == 7000 - 200
    assert found["memory_peak_bytes"] == 1697398784
    assert (found["memory_total_bytes"], found["memory_available_bytes"]) == (10240, 3072)
    assert (found["memory_some_us"], found["memory_full_us"]) == (500, 400)
    assert (found["cpu_us"], found["user_us"]) == (77, 70)
    assert (found["read_bytes"], found["written_bytes"]) == (105, 26)
    assert found["oom_kill"] == 2
    disk = os.statvfs(group)
    assert found["disk_total_bytes"] == disk.f_blocks * disk.f_frsize
    assert all(type(value) is int for value in found.values())


def test_what_cannot_be_read_is_zero(tmp_path: Path) -> None:
    found = Sampler(*[str(tmp_path / "none")] * 3).read()
    assert set(found.values()) == {0}


def test_kills_count_from_the_base(group: Path) -> None:
    taken = sampler(group)
    taken.rebase()
    assert taken.read()["oom_kill"] == 0
    (group / "memory.events").write_text("oom 4\noom_kill 3\n")
    assert taken.read()["oom_kill"] == 1


def test_kills_of_a_group_that_is_gone_are_not_forgotten(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = sampler(group)
    taken.rebase()
    gone = taken._open[f"{group}/memory.events"]
    # buildkitd itself was killed: its group takes a kill with it that no sample has seen.
    shutil.copy(group / "memory.events", group / "new")
    (group / "new").write_text("oom 0\noom_kill 0\n")
    (group / "new").rename(group / "memory.events")
    (group.parent / "vmstat").write_text("oom_kill 3\n")
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if fd == gone and os.fstat(fd).st_nlink == 0:
            raise OSError(19, "ENODEV")
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    assert taken.read()["oom_kill"] == 1
    (group / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert taken.read()["oom_kill"] == 2


def test_another_group_is_followed_from_then_on(group: Path) -> None:
    taken = sampler(group)
    taken.rebase()
    other = group.with_name("other")
    shutil.copytree(group, other)
    (other / "memory.events").write_text("oom 0\noom_kill 0\n")
    (other / "cpu.stat").write_text("usage_usec 5\nuser_usec 4\nsystem_usec 1\n")
    taken.follow(str(other))
    taken.rebase()
    (other / "memory.events").write_text("oom 1\noom_kill 1\n")
    found = taken.read()
    assert (found["cpu_us"], found["oom_kill"]) == (5, 1)


def test_files_stay_open(group: Path) -> None:
    taken = sampler(group)
    taken.read()
    before = dict(taken._open)
    taken.read()
    assert taken._open == before


@given(st.binary(max_size=200))
def test_no_text_of_the_kernels_makes_it_fail(text: bytes) -> None:
    assert sample._after(text, b"oom_kill ") >= 0
    assert sample._waited(text, b"full ") >= 0
    assert min(sample._io(text)) >= 0
