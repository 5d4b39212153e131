"""QEMU's command line and the rules behind a VM's shape. Pure; the addresses here are the ABI
between a template and its clones: both sides are made by the same function.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mayfly.host.cgroup import CODE_CACHE_BYTES
from mayfly.model import MIB

DIMM_SLOTS = 16
"""Slots for memory that is plugged in, before a clone runs and while it grows (QEMU: 256)."""

BLOCK_BYTES = 128 * MIB
"""Linux takes plugged memory in by whole blocks, of that size on x86-64 (memory-hotplug.rst)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What template and clone must have in common, to the letter.

    A clone refuses to restore when any of it differs, so it is part of the template's key.
    """

    qemu_version: str
    machine: str
    accelerator: str
    cpu_model: str
    cpus: int
    boot_memory_bytes: int
    max_memory_bytes: int
    host_cpu: str = ""


@dataclass(frozen=True, slots=True)
class Disks:
    """The two disks of a VM, as `-blockdev` formats them."""

    root: Path
    root_format: str
    scratch: Path
    scratch_format: str


def template(
    qemu: str, hardware: Hardware, *, ram: Path, disks: Disks, boot: Boot, directory: Path
) -> list[str]:
    """The VM that is booted, frozen and never run again. It has no way to any network."""
    return [
        *_common(qemu, hardware, "template", disks, boot, directory),
        "-object",
        f"memory-backend-file,id=ram,size={hardware.boot_memory_bytes},mem-path={ram},share=on",
        "-netdev",
        "user,id=net,ipv6=off,restrict=on",
        "-serial",
        f"file:{directory / 'serial.log'}",
    ]


def clone(
    qemu: str,
    hardware: Hardware,
    name: str,
    *,
    ram: Path,
    disks: Disks,
    boot: Boot,
    directory: Path,
    ssh_port: int,
) -> list[str]:
    """A VM that wakes where the template was frozen: RAM mapped privately, state to be loaded.

    The console goes to a ring in QEMU's memory, so that a guest cannot fill a disk with it.
    """
    return [
        *_common(qemu, hardware, name, disks, boot, directory),
        "-object",
        f"memory-backend-file,id=ram,size={hardware.boot_memory_bytes},mem-path={ram},"
        "share=off,readonly=on,rom=off",
        "-netdev",
        user_network(ssh_port),
        "-chardev",
        "ringbuf,id=console,size=65536",
        "-serial",
        "chardev:console",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-S",
        "-incoming",
        "defer",
    ]


def user_network(ssh_port: int) -> str:
    """A clone's way out: QEMU's own connections. IPv6 is off, SSH comes in from loopback only."""
    return f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"


@dataclass(frozen=True, slots=True)
class Boot:
    """What the golden image boots with."""

    kernel: Path
    initrd: Path
    cmdline: str


def _common(
    qemu: str, hardware: Hardware, name: str, disks: Disks, boot: Boot, directory: Path
) -> list[str]:
    code_cache = f"tb-size={CODE_CACHE_BYTES // MIB}"
    accel = f"tcg,thread=multi,{code_cache}" if hardware.accelerator == "tcg" else "kvm"
    return [
        qemu,
        "-name",
        f"mayfly/{name}",
        "-machine",
        f"{hardware.machine},memory-backend=ram",
        "-accel",
        accel,
        "-cpu",
        hardware.cpu_model,
        "-smp",
        str(hardware.cpus),
        "-m",
        f"{hardware.boot_memory_bytes // MIB}M,slots={DIMM_SLOTS},"
        f"maxmem={hardware.max_memory_bytes // MIB}M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-kernel",
        str(boot.kernel),
        "-initrd",
        str(boot.initrd),
        "-append",
        boot.cmdline,
        "-blockdev",
        _blockdev("root", disks.root, disks.root_format),
        "-device",
        "virtio-blk-pci,drive=root,serial=root,addr=0x3",
        "-blockdev",
        _blockdev("scratch", disks.scratch, disks.scratch_format),
        "-device",
        "virtio-blk-pci,drive=scratch,serial=scratch,addr=0x4,write-cache=on",
        "-device",
        "pcie-root-port,id=spare,chassis=1,slot=1,addr=0x5",
        "-device",
        "virtio-net-pci,netdev=net,addr=0x6",
        "-device",
        "virtio-rng-pci,addr=0x7",
        "-device",
        "vmgenid,guid=auto",
        "-device",
        "virtio-serial-pci,id=serial,addr=0x8",
        "-chardev",
        f"socket,id=agent,path={directory / 'agent.sock'},server=on,wait=off",
        "-device",
        "virtserialport,bus=serial.0,chardev=agent,name=mayfly.agent",
        "-qmp",
        f"unix:{directory / 'qmp.sock'},server=on,wait=off",
    ]


def _blockdev(node: str, path: Path, format_: str) -> str:
    """A disk whose flushes stay in the page cache: it is worth nothing once its VM has ended."""
    return json.dumps(
        {
            "node-name": node,
            "driver": format_,
            "discard": "unmap",
            "cache": {"no-flush": True},
            "file": {"driver": "file", "filename": str(path), "cache": {"no-flush": True}},
        }
    )


LAUNCH = """\
set -e
trap '' XFSZ
ulimit -c 0
ulimit -f "$1"
echo "$2" >/proc/self/oom_score_adj
shift 2
while [ "$1" != -- ]; do
    echo 0 >"$1"
    shift
done
shift
read -r go
exec "$@" </dev/null
"""
"""sh(1) enters its control groups, which takes the kernel some 15 ms, and waits for a line that
says it may begin; it ends when there comes none. A file that grows too large is then a failed write
and no signal."""

SHELL_BLOCK = 512
"""Bytes in a block of `ulimit -f` (POSIX)."""

OOM_SCORE = 500
"""When the machine's own memory runs out a runner goes before what runs beside it (proc(5))."""

NICE = ("nice", "-n", "10", "ionice", "-c", "2", "-n", "7")
"""The weaker fence, where there are no control groups to give a weight."""


def confined(
    argv: Sequence[str],
    *,
    namespace: Path,
    uid: int,
    groups: Sequence[int],
    lifetime_s: float,
    file_bytes: int,
    cgroups: Sequence[Path],
    nice: bool,
) -> list[str]:
    """The same command behind its fences; it begins when a line comes on standard input.

    In its control groups (`cgroups`: the files to enter by), or nicer than others where there are
    none for CPU; inside a network namespace, under a uid of its own, no file of it larger than
    `file_bytes`, for a bounded time. The watchdog (timeout(1)) is root's, so that QEMU cannot end
    it; nobody needs to be alive for it to work. All but it replace themselves by what they start.
    """
    supplementary = ["--groups", ",".join(str(g) for g in groups)] if groups else ["--clear-groups"]
    return [
        *("sh", "-c", LAUNCH, "mayfly"),
        *(str(file_bytes // SHELL_BLOCK), str(OOM_SCORE)),
        *(*map(str, cgroups), "--"),
        *(NICE if nice else ()),
        "nsenter",
        f"--net={namespace}",
        "timeout",
        "--foreground",
        "--signal=KILL",
        f"{lifetime_s:.1f}s",
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        *supplementary,
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        *argv,
    ]
