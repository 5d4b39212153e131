"""Which sizes a machine holds, and which one a request gets.

Pure but for `physical` and `free_disk_bytes`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mayfly.config import Config
from mayfly.errors import MachineUnfit, TooBig, UsageError
from mayfly.model import GIB, Size

OVERLAY_BYTES = GIB
"""What a runner's root disk may grow to beside its scratch disk; the golden image has 0.7 GiB."""


@dataclass(frozen=True, slots=True)
class Share:
    """What runners use, or may use."""

    memory_bytes: int = 0
    cpus: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(
            self.memory_bytes + other.memory_bytes,
            self.cpus + other.cpus,
            self.disk_bytes + other.disk_bytes,
        )

    def __sub__(self, other: Share) -> Share:
        return Share(
            self.memory_bytes - other.memory_bytes,
            self.cpus - other.cpus,
            self.disk_bytes - other.disk_bytes,
        )

    def within(self, other: Share) -> bool:
        """Whether there is no more of anything than in `other`."""
        return (
            self.memory_bytes <= other.memory_bytes
            and self.cpus <= other.cpus
            and self.disk_bytes <= other.disk_bytes
        )


def share(size: Size) -> Share:
    """What a runner of this size may come to use."""
    return Share(size.memory_bytes, size.cpus, size.disk_bytes + OVERLAY_BYTES)


@dataclass(frozen=True, slots=True)
class Room:
    """What all runners of a machine may use together. `sizes` is the whole ladder."""

    memory_bytes: int
    cpus: int
    disk_bytes: int
    sizes: tuple[Size, ...]

    @property
    def share(self) -> Share:
        """All of it."""
        return Share(self.memory_bytes, self.cpus, self.disk_bytes)

    def fits(self, size: Size) -> bool:
        """Whether an empty pool holds a runner of this size."""
        return share(size).within(self.share)

    @property
    def fitting(self) -> tuple[Size, ...]:
        """The rungs that this machine holds, smallest first."""
        return tuple(size for size in self.sizes if self.fits(size))


def room(config: Config, machine_memory_bytes: int, cores: int, disk_bytes: int) -> Room:
    """The room on a machine with that memory, that many cores and a file system of that size.

    The file system's size is that of the one with the state, whatever is on it: which rungs a
    machine holds does not come and go with what is free.
    """
    pool = config.pool
    memory = pool.memory_gb * GIB or max(0, machine_memory_bytes - pool.reserve_gb * GIB)
    disk = pool.disk_gb * GIB or max(0, disk_bytes - pool.disk_reserve_gb * GIB)
    return Room(memory, int(cores * pool.cpu_overcommit), disk, config.sizes)


def physical(state: Path) -> tuple[int, int, int]:
    """This machine's memory in bytes, the cores this process may use, and the bytes of the file
    system that `state` is, or will be, on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory, len(os.sched_getaffinity(0)), shutil.disk_usage(_existing(state)).total


def free_disk_bytes(state: Path) -> int:
    """What programs without privileges can still write where `state` is, or will be."""
    return shutil.disk_usage(_existing(state)).free


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents, Path("/")) if p.exists())


def choose(name: str, room: Room) -> Size:
    """The size that a request for `name` gets; an empty name asks for the smallest.

    Raises `UsageError` for a name that is not on the ladder, `TooBig` for a rung that this
    machine does not hold, `MachineUnfit` when it holds none.
    """
    ladder = {size.name: size for size in room.sizes}
    if name and name not in ladder:
        raise UsageError(f"unknown size {name!r}", hint=f"choose one of {', '.join(ladder)}")
    fitting = rungs(room)
    if not name:
        return fitting[0]
    size = ladder[name]
    if not room.fits(size):
        raise TooBig(
            f"size {size} is more than this machine holds ({words(room)} for runners)",
            hint=f"the largest that fits is {fitting[-1].name}",
        )
    return size


def up_to(sizes: Sequence[Size], largest: str) -> tuple[Size, ...]:
    """Those of the sizes that have no more of anything than the one named `largest`.

    All of them where the name is empty, or no rung's any more.
    """
    named = {size.name: share(size) for size in sizes}
    most = named.get(largest)
    return tuple(size for size in sizes if most is None or share(size).within(most))


def rungs(room: Room) -> tuple[Size, ...]:
    """The rungs that this machine holds, smallest first. Raises `MachineUnfit` without any."""
    if not room.fitting:
        raise MachineUnfit(
            f"no size fits this machine ({words(room)} for runners)",
            hint="configure a smaller rung under [ladder], or raise pool.memory_gb or pool.disk_gb",
        )
    return room.fitting


def words(room: Room) -> str:
    """The room, for people."""
    memory, disk = room.memory_bytes / GIB, room.disk_bytes / GIB
    return f"{memory:.1f} GiB memory, {room.cpus} vCPU and {disk:.0f} GiB disk"
