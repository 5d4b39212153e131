"""What of this machine is plugged in and used, and where its kernel keeps its boot id."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from mayfly.guest.kernel import write_file
from mayfly.guest.message import Message, Refused

MEMORY = "sys/devices/system/memory"
CPUS = "sys/devices/system/cpu"


def set_cpus(online: int, directory: Path) -> None:
    """Bring CPUs 1..online-1 up and the others down. CPU 0 and absent ones are left alone."""
    for cpu in sorted(directory.glob("cpu[0-9]*"), key=lambda path: int(path.name[3:])):
        switch = cpu / "online"
        wanted = "1" if int(cpu.name[3:]) < online else "0"
        if switch.exists() and switch.read_text().strip() != wanted:
            switch.write_text(wanted)


def hold_memory(root: Path) -> None:
    """Let memory that is plugged in from now on wait: to take it in means to write its map."""
    write_file(root / MEMORY / "auto_online_blocks", "offline")


def take_memory(root: Path) -> None:
    """Take in what waits, and from now on what is plugged in at once. Blocks that do not come
    are left out (no room for their map).

    Raises OSError where the kernel has no memory hot-plug.
    """
    write_file(root / MEMORY / "auto_online_blocks", "online")
    for block in sorted((root / MEMORY).glob("memory[0-9]*"), key=lambda path: int(path.name[6:])):
        with contextlib.suppress(OSError):
            if (block / "state").read_text() == "offline\n":
                write_file(block / "state", "online")


def boot_id(root: Path) -> Message:
    """The kernel's boot id, and the physical address of the 16 bytes that it keeps it in.

    The kernel makes it up when it is first read (random.c, proc_do_uuid), so whoever puts zeros
    there while the machine stands still gives it another one. Raises `Refused` where the kernel
    does not tell (CONFIG_KALLSYMS_ALL).
    """
    symbols = dict.fromkeys(("__bss_start", "sysctl_bootid"), 0)
    with (root / "proc/kallsyms").open() as lines:
        for line in lines:
            at, _, name = line.split()[:3]
            if name in symbols:
                symbols[name] = int(at, 16)
    bss = re.search(r"([0-9a-f]+)-[0-9a-f]+ : Kernel bss", (root / "proc/iomem").read_text())
    if bss is None or not all(symbols.values()):
        raise Refused("freeze: the kernel does not tell where its boot id is")
    address = int(bss[1], 16) + symbols["sysctl_bootid"] - symbols["__bss_start"]
    value = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    return {"address": address, "value": value}
