"""What the probes make of a machine."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mayfly.config import Config, Pool, Vm
from mayfly.errors import MachineUnfit
from mayfly.host import machine
from mayfly.model import GIB, MIB


def a_machine(memory_gib: int = 24, cores: int = 2) -> machine.Machine:
    return machine.Machine((10, 0, 2), "tcg", "test", cores, memory_gib * GIB, "a cpu", 500 * GIB)


def test_a_missing_qemu_is_said_with_what_to_install(tmp_path: Path) -> None:
    import asyncio

    with pytest.raises(MachineUnfit, match="not installed - install qemu-system-x86"):
        asyncio.run(machine.qemu_version(str(tmp_path / "qemu")))


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2)", (10, 0, 2)),
        ("QEMU emulator version 8.2.0", (8, 2, 0)),
    ],
)
def test_versions_that_will_do(output: str, wanted: tuple[int, int, int]) -> None:
    assert machine.parse_version(output, "qemu", "") == wanted


@pytest.mark.parametrize("output", ["QEMU emulator version 7.2.17 (Debian)", "hello", ""])
def test_versions_that_will_not(output: str) -> None:
    with pytest.raises(MachineUnfit, match="qemu"):
        machine.parse_version(output, "qemu", "install another")


async def test_kvm_counts_only_when_a_guest_has_run(tmp_path: Path) -> None:
    """A program that ends with any other status than the guest's own word is no KVM."""
    for status, runs in ((0, False), (1, False), (33, True)):
        fake = tmp_path / f"qemu{status}"
        fake.write_text(f"#!/bin/sh\necho 'failed to initialize kvm' >&2\nexit {status}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        assert (await machine.probe_kvm(str(fake), tmp_path))[0] is runs
    assert not list(tmp_path.glob("*.img"))


async def test_a_guest_that_hangs_is_no_kvm(tmp_path: Path) -> None:
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    runs, reason = await machine.probe_kvm(str(fake), tmp_path, timeout_s=0.2)
    assert not runs
    assert "did not run" in reason


def names(config: Config, found: machine.Machine) -> list[str]:
    return [size.name for size in machine.room(config, found).fitting]


def test_rungs_that_the_machine_cannot_hold_do_not_fit() -> None:
    config = Config(pool=Pool(reserve_gb=2, cpu_overcommit=2))
    assert names(config, a_machine(24, 2)) == ["small", "medium"]
    assert names(config, a_machine(24, 8)) == ["small", "medium", "large"]
    assert names(config, a_machine(4, 8)) == []


def test_one_hardware_serves_every_size_that_fits() -> None:
    hardware = machine.hardware(Config(vm=Vm(boot_memory_mb=1024)), a_machine(24, 2))
    assert hardware.machine == "pc-q35-10.0"
    assert hardware.cpus == 4
    assert hardware.boot_memory_bytes == 1024 * MIB
    assert hardware.max_memory_bytes >= 8 * GIB


def test_a_machine_that_holds_no_size_is_unfit() -> None:
    with pytest.raises(MachineUnfit, match="the smallest is small"):
        machine.hardware(Config(), a_machine(2, 1))
