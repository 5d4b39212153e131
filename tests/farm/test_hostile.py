"""A guest that was broken out of, and means harm: what it brings about is its own end.

Its own farm: whoever logs in to a runner of it can become root (`rooted.py`).
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from mayfly import golden, stack
from mayfly.build import ssh
from mayfly.host import network
from mayfly.host.cgroup import Groups, ceiling
from mayfly.host.clone import DISK_SLACK_BYTES
from mayfly.host.deadline import boottime
from mayfly.host.record import Record, read_record
from mayfly.model import GIB, MIB, RunnerSpec
from mayfly.pid import ProcessId
from mayfly.vm.client import ControlClient
from mayfly.wire import LeaseJson
from tests.farm.conftest import Farm, running_farm
from tests.farm.rooted import as_root, root_the_newest
from tests.farm.test_runner import with_runner

pytestmark = [pytest.mark.vm, pytest.mark.services]

DISK_BYTES = 2 * GIB
SETTINGS = {
    "MAYFLY_LADDER__T1": "{cpu = 1, memory_gb = 1, disk_gb = 2}",
    "MAYFLY_LEASE__GRACE_S": "900",
}


@pytest.fixture(scope="module")
def rooted() -> Iterator[Farm]:
    """A farm in whose runners anybody is root who wants to be."""
    with running_farm(SETTINGS, golden_image=root_the_newest) as farm:
        yield farm


class Guest:
    """A runner with root in it."""

    def __init__(self, farm: Farm, runner: str, key: asyncssh.SSHKey, host_key: str) -> None:
        self._farm, self.runner, self._key, self._host_key = farm, runner, key, host_key

    def root(self, command: str) -> str:
        """What `command` prints, as root."""
        return self._farm.inside(self.runner, self._key, self._host_key, as_root(command))

    def begin(self, script: str) -> None:
        """Let `script` run on by itself, as root."""
        detached = f"setsid sh -c {shlex.quote(script)} </dev/null >/dev/null 2>&1 & echo begun"
        assert self.root(detached).strip() == "begun"

    @property
    def folder(self) -> Path:
        return self._farm.config.state / "vms" / self.runner

    @property
    def scratch(self) -> os.stat_result:
        """What root's own disk file for the guest's scratch is like."""
        return (self.folder / "qemu/scratch.qcow2").stat()

    @property
    def record(self) -> Record:
        record = read_record(self.folder)
        assert record is not None
        return record

    def group(self, controller: str) -> Path | None:
        """The VM's control group; None where the machine has none of that kind."""
        tag = network.tag(self._farm.config)
        place = Groups.there(tag).tree.controllers.get(controller)
        return place.root / f"mayfly-{tag}" / self.runner if place else None


def in_guest(farm: Farm, use: Callable[[Guest], None], size: str = "t1") -> None:
    """Run `use` on a leased runner in which there is a root."""

    def guest(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        use(Guest(farm, f"{view['id']}-1", key, relay.host_key))

    with_runner(farm, guest, size)


NO_AGENT = """\
systemctl mask --runtime mayfly-agent 2>/dev/null
systemctl kill --kill-whom=main -s KILL mayfly-agent
systemctl stop mayfly-agent
rm -f /usr/sbin/poweroff /usr/sbin/halt /usr/sbin/reboot /usr/lib/systemd/systemd-shutdown
"""

FLOOD = f"""\
cd /
{NO_AGENT}
(yes '[[[[[[[[[[[[[[[[' | tr -d '\\n' >/dev/virtio-ports/mayfly.agent) &
(yes console >/dev/ttyS0) &
(yes console >/dev/kmsg) &
(while :; do :; done) &
exec 9<>/dev/disk/by-id/virtio-scratch
dd if=/dev/zero bs=1M count=3000 oflag=direct >&9 2>/run/dd
python3 -c 'x = []
while True: x.append(b"x" * (1 << 24))' &
(b() {{ b | b & }}; b) &
"""
"""What root in a guest can fill: the agent's channel, the console, CPUs, its disk beyond the rung,
memory and processes, in this order, since it does not get far after the last."""


def test_a_guest_that_floods_hurts_neither_host_nor_neighbour(
    rooted: Farm, context: Callable[..., Path]
) -> None:
    def flooding(guest: Guest) -> None:
        programs = {name: rooted.pid(name) for name in ("host", "edge", "orchestrator")}
        assert guest.root("id -u").strip() == "0"
        guest.begin(FLOOD)
        rooted.until(lambda: guest.scratch.st_blocks * 512 > 64 * MIB, 120)

        rooted.mayfly(*rooted.build("team/neighbour", context("echo well >/out")))
        assert [lease["id"] for lease in rooted.json("status")["leases"]]

        def at_its_end() -> bool:
            """The guest's dd has been told that there is no more."""
            return guest.scratch.st_size >= DISK_BYTES

        rooted.until(at_its_end, 300)
        time.sleep(20)
        assert guest.scratch.st_size <= DISK_BYTES + DISK_SLACK_BYTES
        everything = sum(p.lstat().st_blocks for p in guest.folder.rglob("*")) * 512
        assert everything <= DISK_BYTES + DISK_SLACK_BYTES + GIB
        assert {name: rooted.pid(name) for name in programs} == programs
        for pid in programs.values():
            assert resident_bytes(pid) < 300 * MIB
        if group := guest.group("memory"):
            limit = ceiling(1, GIB).memory_bytes
            held = [f for f in group.iterdir() if f.name in ("memory.limit_in_bytes", "memory.max")]
            assert [int(file.read_text()) for file in held] == [limit]
            for peak in group.glob("memory.max_usage_in_bytes"):
                print(f"its group's peak: {int(peak.read_text()) // MIB} of {limit // MIB} MiB")
        if group := guest.group("cpu"):
            quota = [f for f in group.iterdir() if f.name in ("cpu.cfs_quota_us", "cpu.max")]
            assert quota[0].read_text().split()[0] == "100000"

    in_guest(rooted, flooding)
    rooted.clear()
    for root in Groups.there(network.tag(rooted.config)).tree.roots:
        left = [p.name for p in (root / f"mayfly-{network.tag(rooted.config)}").iterdir()]
        assert [name for name in left if "-" in name] == []


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_full_disk_ends_who_filled_it_and_nobody_else(rooted: Farm) -> None:
    vms = rooted.config.state / "vms"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", vms], check=True)
    try:

        def neighbour(other: Guest) -> None:
            def filling(guest: Guest) -> None:
                guest.begin("dd if=/dev/urandom of=/scratch/big bs=1M count=400 conv=fsync")
                lease = guest.runner.partition("-")[0]
                rooted.until(lambda: rooted.json("lease", "show", lease)["outcome"], 240)
                shown = rooted.json("lease", "show", lease)
                assert shown["outcome"] == "disk_full", shown
                assert "disk of the machine" in shown["reason"]

            in_guest(rooted, filling)
            other.root("dd if=/dev/urandom of=/scratch/small bs=1M count=20 conv=fsync")

        in_guest(rooted, neighbour)
        rooted.clear()
    finally:
        rooted.until(lambda: subprocess.run(["umount", vms], check=False).returncode == 0)


def test_a_vm_ends_in_time_though_nobody_is_left_to_end_it(rooted: Farm) -> None:
    """Nothing can be asked of this farm afterwards but to go: it is the last test here."""
    status = stack.running(rooted.config)
    assert status is not None
    programs = {service.name: service.pid for service in status.services}
    for pid in (status.pid, programs["orchestrator"]):
        os.kill(pid, signal.SIGKILL)
    key, budget_s = ssh.new_key(), 60.0
    spec = RunnerSpec("lonely-1", rooted.config.sizes[0], ssh.public_line(key), budget_s)
    made = asyncio.run(ControlClient(rooted.config.run / "host.sock").create(spec))
    guest = Guest(rooted, spec.runner, key, made.ssh_host_key)
    record, process = guest.record, guest.record.process
    assert process is not None
    agent, user = guest.root(f"{NO_AGENT} systemctl is-active mayfly-agent; id -u").split()[-2:]
    assert agent in ("inactive", "failed")
    assert user == "0"
    for pid in {programs["host"], programs["edge"]}:
        gone = ProcessId.of(pid)
        os.kill(pid, signal.SIGKILL)
        rooted.until(lambda gone=gone: not gone.alive())  # type: ignore[misc]
    assert process.alive()
    rooted.until(lambda: not process.alive(), 120)
    late_s = boottime() - (record.ready_at_s + budget_s)
    print(f"ended {late_s:.1f} s after its deadline")
    assert 0 <= late_s < 30, "its own watchdog, and not what comes a minute later"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.long
def test_spoiled_files_are_found_before_a_clone_uses_them() -> None:
    """The twin is a copy of its own, so the golden images of this machine stay as they are."""
    with running_farm(SETTINGS, golden_image=root_the_newest) as farm:

        def works(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
            assert farm.inside(f"{view['id']}-1", key, relay.host_key, "id -un").strip() == "build"

        log = farm.config.state / "log/host.log"
        (template,) = (farm.config.state / "templates").iterdir()
        before = template.stat().st_ino
        flip(template / "ram")
        with_runner(farm, works, "t1")
        assert template.stat().st_ino != before
        assert f"template {template.name} is spoiled" in log.read_text()

        twin = golden.newest(farm.config.state)
        assert twin is not None
        flip(twin.disk)
        with_runner(farm, works, "t1")
        assert not twin.path.exists()
        assert f"golden image {twin.path.name} is spoiled" in log.read_text()
        whole = golden.newest(farm.config.state)
        assert whole is not None
        golden.verify(whole)
        farm.clear()
