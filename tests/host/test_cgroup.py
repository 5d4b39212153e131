"""Control groups: what is found where, what is written, and what the kernel makes of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError
from mayfly.host import cgroup
from mayfly.host.cgroup import Ceiling, Groups, Place, Tree, ceiling, find, settings, weights
from mayfly.model import GIB, MIB
from tests.host.waiting import until

V1 = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/blkio cgroup rw,blkio 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"
FS = Path("/sys/fs/cgroup")
ALL = frozenset(cgroup.CONTROLLERS)


def test_v1_controllers_are_each_in_their_own_hierarchy() -> None:
    tree = find(V1, lambda _: frozenset({"hugetlb"}))
    assert tree.controllers == {
        "cpu": Place(FS / "cpu,cpuacct", 1),
        "memory": Place(FS / "memory", 1),
        "io": Place(FS / "blkio", 1),
        "pids": Place(FS / "pids", 1),
    }
    assert set(tree.others) == {FS / "systemd", FS / "unified"}
    assert tree.missing == ()
    assert len(tree.roots) == 6


def test_a_chroots_view_of_the_hierarchies_does_not_count() -> None:
    again = V1.replace(str(FS), f"/srv/root{FS}")
    assert find(V1 + again, lambda _: ALL) == find(V1, lambda _: ALL)
    assert find(V2 + V2.replace(str(FS), f"/srv{FS}"), lambda _: ALL) == find(V2, lambda _: ALL)


def test_v2_has_all_in_one_and_a_mixture_takes_each_from_where_it_is() -> None:
    assert find(V2, lambda _: ALL) == Tree({name: Place(FS, 2) for name in cgroup.CONTROLLERS})
    mixed = find(
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n" + V2, lambda _: ALL - {"pids"}
    )
    assert mixed.controllers["memory"].version == 1
    assert mixed.controllers["cpu"].version == 2
    assert mixed.missing == ("pids",)


def test_a_machine_without_control_groups_is_told_of() -> None:
    assert find("proc /proc proc rw 0 0\n\n", lambda _: ALL) == Tree({})
    assert "only nicer" in cgroup.words(Tree({}))
    assert "nicer" not in cgroup.words(find(V1, lambda _: ALL))


def test_a_survey_makes_nothing_and_sees_this_machine(tmp_path: Path) -> None:
    root = tmp_path / "cg"
    root.mkdir()
    before = cgroup.survey(v2_tree(root))
    assert before.missing == ()
    assert sorted(path.name for path in root.iterdir()) == [
        "cgroup.controllers",
        "cgroup.subtree_control",
    ]
    (tmp_path / "mounts").write_text("cgroup2 /nowhere cgroup2 ro 0 0\n")
    assert cgroup.survey(tmp_path / "mounts").missing == cgroup.CONTROLLERS


LIMIT = Ceiling(2, 3 * GIB, 258)


@pytest.mark.parametrize("version", [1, 2])
def test_a_ceiling_is_written_for_every_controller_but_io(version: int) -> None:
    written = {c: dict(settings(c, version, LIMIT)) for c in cgroup.CONTROLLERS}
    assert written["pids"] == {"pids.max": "258"}
    assert written["io"] == {}
    if version == 1:
        assert written["cpu"]["cpu.cfs_quota_us"] == "200000"
        assert written["memory"]["memory.memsw.limit_in_bytes"] == str(3 * GIB)
    else:
        assert written["cpu"] == {"cpu.max": "200000 100000"}
        assert written["memory"] == {"memory.max": str(3 * GIB), "memory.swap.max": "0"}


def test_a_weight_is_of_the_default_hundred() -> None:
    assert dict(weights("cpu", 1, 10)) == {"cpu.shares": "102"}
    assert dict(weights("cpu", 2, 10)) == {"cpu.weight": "10"}
    assert dict(weights("io", 2, 10))["io.weight"] == "default 10"


def test_a_vm_has_its_guests_memory_and_some_of_its_own() -> None:
    limit = ceiling(4, 8 * GIB)
    assert limit.cpus == 4
    assert 8 * GIB + 512 * MIB <= limit.memory_bytes <= 9 * GIB
    assert limit.processes > 64 + 4


def v2_tree(folder: Path) -> Path:
    """Files where a v2 hierarchy would have them; returns the text of its mounts."""
    (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (folder / "cgroup.subtree_control").write_text("")
    mounts = folder.parent / "mounts"
    mounts.write_text(f"cgroup2 {folder} cgroup2 rw 0 0\n")
    return mounts


async def test_v2_groups_are_made_held_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "cg"
    root.mkdir()
    groups = Groups.open("ab12", 10, v2_tree(root))
    top = root / "mayfly-ab12"
    assert (top / "cpu.weight").read_text() == "10"
    assert groups.tree.missing == ()
    assert groups.make("x-1", LIMIT) == (top / "x-1/cgroup.procs",)
    assert not (top / "x-1/cpu.max").exists()
    assert (top / "x-1/memory.max").read_text() == str(3 * GIB)
    groups.hold("x-1", LIMIT)
    assert (top / "x-1/cpu.max").read_text() == "200000 100000"
    with pytest.raises(InfrastructureError, match="y-1"):
        groups.hold("y-1", LIMIT)


@pytest.fixture
async def real() -> AsyncIterator[Groups]:
    """Groups of this machine's kernel; all gone afterwards."""
    if os.geteuid() != 0:
        pytest.fail("control groups need root")
    groups = Groups.open(f"test-{secrets.token_hex(4)}", 10)
    if groups.tree.missing:
        pytest.skip(cgroup.words(groups.tree))
    yield groups
    await groups.close()
    assert not any((root / groups._name).exists() for root in groups.tree.roots)


def enter(groups: tuple[Path, ...], script: str) -> subprocess.Popen[bytes]:
    joins = "".join(f"echo 0 >{path};" for path in groups)
    return subprocess.Popen(["sh", "-c", joins + script], start_new_session=True)


async def test_the_kernel_holds_a_process_to_its_memory(real: Groups) -> None:
    procs = real.make("mem-1", Ceiling(1, 64 * MIB, 16))
    hog = enter(procs, "exec python3 -c 'x = b\"a\" * (512 << 20)'")
    assert await asyncio.to_thread(hog.wait, 60) == -signal.SIGKILL
    await real.remove("mem-1")


async def test_the_kernel_holds_a_process_to_its_number_of_processes(real: Groups) -> None:
    procs = real.make("pids-1", Ceiling(1, 64 * MIB, 4))
    bomb = enter(procs, "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done 2>/dev/null; wait")
    await until(lambda: len(procs[0].read_text().split()) == 4 or bomb.poll() is not None)
    assert len(procs[0].read_text().split()) <= 4
    await real.remove("pids-1")
    assert await asyncio.to_thread(bomb.wait, 10) != 0


async def test_removing_a_group_ends_what_is_in_it_and_again_is_silent(real: Groups) -> None:
    procs = real.make("x-1", LIMIT)
    real.hold("x-1", LIMIT)
    sleeper = enter(procs, "sleep 60 & wait")
    await until(lambda: len(procs[0].read_text().split()) == 2)
    await real.remove("x-1")
    await real.remove("x-1")
    assert await asyncio.to_thread(sleeper.wait, 10) == -signal.SIGKILL
    assert not procs[0].parent.exists()


async def test_what_others_have_in_the_machine_is_left_alone(real: Groups) -> None:
    other = Groups.open(f"{real._name.removeprefix('mayfly-')}x", 10)
    try:
        await real.close()
        assert all((root / other._name).is_dir() for root in other.tree.roots)
    finally:
        await other.close()
