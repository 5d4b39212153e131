"""A real QEMU without a guest, behind every fence at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mayfly.host import argv
from mayfly.host.cgroup import Groups, ceiling
from mayfly.host.deadline import boottime, guard
from mayfly.host.monitor import monitor
from mayfly.host.process import Launch, close_folder, exited, folder_of
from mayfly.model import GIB
from mayfly.pid import ProcessId

UID = 61178


@dataclass
class Fenced:
    """The QEMU, the groups that it is in, and its own folder."""

    launch: Launch
    groups: Groups
    folder: Path

    @property
    def qemu(self) -> Path:
        """Its folder in /proc."""
        parent = self.launch.process.pid
        (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return Path("/proc") / child


@pytest.fixture
async def fenced() -> AsyncIterator[Fenced]:
    if os.geteuid() != 0:
        pytest.fail("fences need root")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.fail("QEMU is not installed")
    around = Path(tempfile.mkdtemp(dir="/var/tmp"))
    around.chmod(0o711)
    folder_of(UID, folder := around / "qemu")
    groups = Groups.open(f"test-{secrets.token_hex(4)}", 20)
    qmp = folder / "qmp.sock"
    launch = Launch(
        argv.confined(
            [
                *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"),
                *("-S", "-qmp", f"unix:{qmp},server=on,wait=off"),
            ],
            namespace=Path("/proc/self/ns/net"),
            uid=UID,
            groups=[],
            lifetime_s=60,
            file_bytes=GIB,
            cgroups=groups.make("x-1", ceiling(1, GIB)),
            nice="cpu" in groups.tree.missing,
        )
    )
    try:
        await launch.go(qmp)
        close_folder(folder, UID)
        yield Fenced(launch, groups, folder)
    finally:
        await groups.close()
        launch.close()
        shutil.rmtree(around)


async def test_qemu_is_what_its_fences_say(fenced: Fenced) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in (fenced.qemu / "status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Groups"].strip() == ""
    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert status["NoNewPrivs"] == "1"
    limits = (fenced.qemu / "limits").read_text()
    assert str(GIB) in next(line for line in limits.splitlines() if "file size" in line)
    assert (fenced.qemu / "oom_score_adj").read_text().strip() == str(argv.OOM_SCORE)
    memberships = (fenced.qemu / "cgroup").read_text()
    for name, place in fenced.groups.tree.controllers.items():
        kernel = {"io": "blkio"}.get(name, name) if place.version == 1 else ""
        (line,) = [m for m in memberships.splitlines() if kernel in m.split(":")[1].split(",")]
        assert line.endswith("/x-1"), line


async def test_qemu_answers_and_makes_no_more_files(fenced: Fenced) -> None:
    async with monitor(fenced.folder / "qmp.sock") as qemu:
        assert not await qemu.out_of_disk()
    probe = await asyncio.create_subprocess_exec(
        "touch", str(fenced.folder / "more"), user=UID, group=UID, stderr=asyncio.subprocess.DEVNULL
    )
    assert await probe.wait() != 0


def test_a_folder_is_closed_without_a_moment_in_which_its_files_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU opens its disks while the host closes the folder: it ended now and then."""
    folder = tmp_path / "qemu"
    folder_of(UID, folder)
    may_pass = []

    def seen(call: Callable[..., None]) -> Callable[..., None]:
        def watched(*words: Any, **named: Any) -> None:
            call(*words, **named)
            status = folder.stat()
            owner = status.st_uid == UID and status.st_mode & stat.S_IXUSR
            group = status.st_gid == UID and status.st_mode & stat.S_IXGRP
            may_pass.append(bool(owner or group))

        return watched

    for name in ("chown", "chmod"):
        monkeypatch.setattr(os, name, seen(getattr(os, name)))
    close_folder(folder, UID)
    assert may_pass
    assert all(may_pass)


async def test_its_watchdog_ends_it_and_its_groups_go(fenced: Fenced) -> None:
    fenced.groups.hold("x-1", ceiling(1, GIB))
    qemu = ProcessId.of(int(fenced.qemu.name))
    ends_at = boottime() + 0.5
    folder = Path(tempfile.mkdtemp())
    assert guard(fenced.launch.process, ends_at, folder, fenced.groups.watchdogs)
    await asyncio.wait_for(exited(fenced.launch.process), 20)
    assert not qemu.alive()
    assert boottime() >= ends_at
    await fenced.groups.remove("x-1")
    shutil.rmtree(folder)
