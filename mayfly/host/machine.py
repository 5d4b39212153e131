"""What this machine can do: QEMU's version, whether a guest really runs under KVM, memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mayfly import ladder
from mayfly.config import Config
from mayfly.errors import MachineUnfit
from mayfly.host.argv import BLOCK_BYTES, Hardware
from mayfly.ladder import Room
from mayfly.model import MIB

MINIMUM_QEMU = (8, 2)
"""The first QEMU whose `migrate` writes `file:` (its 8.2 changelog)."""

DEVICE = Path("/dev/kvm")

_PROBE_PASSED = 33
_PROBE_SECTOR = bytes.fromhex("baf400b010ee") + b"\xf4" * 504 + b"\x55\xaa"
"""A boot sector: `mov dx, 0xf4; mov al, 0x10; out dx, al; hlt`. QEMU's isa-debug-exit device ends
the process with (0x10 << 1) | 1 = 33 when, and only when, the guest has executed it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the probes found. `memory_bytes` is the physical memory, `disk_bytes` the size of the
    file system with the state."""

    qemu_version: tuple[int, int, int]
    accelerator: str
    reason: str
    cores: int
    memory_bytes: int
    cpu: str
    disk_bytes: int

    @property
    def qemu(self) -> str:
        return ".".join(str(n) for n in self.qemu_version)


async def inspect(config: Config) -> Machine:
    """Look at this machine; a minute-long look (starting a guest) is cached in the state.

    Raises `MachineUnfit` when QEMU is missing or too old, or KVM is asked for and does not run.
    """
    version = await qemu_version(config.vm.qemu)
    accelerator, reason = await _accelerator(config, version)
    memory, cores, disk = ladder.physical(config.state)
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return Machine(
        qemu_version=version,
        accelerator=accelerator,
        reason=reason,
        cores=cores,
        memory_bytes=memory,
        cpu=cpu[1] if cpu else "unknown",
        disk_bytes=disk,
    )


async def qemu_version(program: str) -> tuple[int, int, int]:
    """The version that `program --version` prints.

    Raises `MachineUnfit` when there is no such program or it is older than `MINIMUM_QEMU`.
    """
    hint = "install qemu-system-x86 8.2 or newer (Debian 12: from bookworm-backports)"
    if shutil.which(program) is None:
        raise MachineUnfit(f"{program} is not installed", hint=hint)
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    return parse_version(output.decode(errors="replace"), program, hint)


def parse_version(output: str, program: str, hint: str) -> tuple[int, int, int]:
    """The version in `--version`'s output; raises `MachineUnfit` as `qemu_version` does."""
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", output)
    if not match:
        raise MachineUnfit(f"{program} --version says {output[:80]!r}", hint=hint)
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version[:2] < MINIMUM_QEMU:
        raise MachineUnfit(f"{program} is version {match[1]}.{match[2]}.{match[3]}", hint=hint)
    return version


async def _accelerator(config: Config, version: tuple[int, int, int]) -> tuple[str, str]:
    if config.vm.accelerator == "tcg":
        return "tcg", "configured (vm.accelerator)"
    if not DEVICE.exists():
        result = (False, f"{DEVICE} does not exist")
    else:
        result = await _probe_cached(config, version)
    runs, reason = result
    if not runs and config.vm.accelerator == "kvm":
        raise MachineUnfit(
            f"KVM does not run a guest here: {reason}", hint='set vm.accelerator = "auto"'
        )
    return ("kvm" if runs else "tcg"), reason


async def _probe_cached(config: Config, version: tuple[int, int, int]) -> tuple[bool, str]:
    cache = config.state / "kvm-probe.json"
    key = [os.uname().release, list(version), Path("/proc/sys/kernel/random/boot_id").read_text()]
    try:
        cached = json.loads(cache.read_text())
        if cached["key"] == key:
            return bool(cached["runs"]), str(cached["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    runs, reason = await probe_kvm(config.vm.qemu, config.state)
    cache.write_text(json.dumps({"key": key, "runs": runs, "reason": reason}))
    return runs, reason


async def probe_kvm(program: str, directory: Path, timeout_s: float = 10) -> tuple[bool, str]:
    """Whether a guest really executes under KVM, and one line that says how that was found.

    `/dev/kvm` existing proves nothing, so a guest of one sector is started.
    """
    sector = directory / "kvm-probe.img"
    sector.write_bytes(_PROBE_SECTOR)
    process = await asyncio.create_subprocess_exec(
        *(program, "-accel", "kvm", "-cpu", "host", "-machine", "pc", "-m", "16", "-nodefaults"),
        *("-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        *("-drive", f"file={sector},format=raw,if=ide,readonly=on", "-no-reboot"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        return False, f"a guest did not run within {timeout_s:.0f} s under KVM"
    finally:
        sector.unlink(missing_ok=True)
    if process.returncode == _PROBE_PASSED:
        return True, "a guest ran under KVM"
    lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
    return False, f"QEMU with KVM ended with {process.returncode}: {lines[-1]}"


def room(config: Config, machine: Machine) -> Room:
    """What runners may use together here, and the sizes that fit."""
    return ladder.room(config, machine.memory_bytes, machine.cores, machine.disk_bytes)


def hardware(config: Config, machine: Machine) -> Hardware:
    """The one shape of VM that serves every size of this machine.

    Raises `MachineUnfit` when not even the smallest rung fits.
    """
    there = room(config, machine)
    fit = there.fitting
    if not fit:
        smallest = config.sizes[0]
        raise MachineUnfit(
            f"this machine holds no size of the ladder; the smallest is {smallest}",
            hint="configure a smaller rung under [ladder]",
        )
    major, minor, _ = machine.qemu_version
    kvm = machine.accelerator == "kvm"
    boot = min(config.vm.boot_memory_mb * MIB, fit[0].memory_bytes)
    return Hardware(
        qemu_version=machine.qemu,
        machine=f"pc-q35-{major}.{minor}",
        accelerator=machine.accelerator,
        cpu_model="host,migratable=on" if kvm else "max",
        cpus=max(s.cpus for s in fit),
        boot_memory_bytes=boot,
        max_memory_bytes=boot + there.memory_bytes // BLOCK_BYTES * BLOCK_BYTES,
        host_cpu=machine.cpu if kvm else "",
    )
