"""Which sizes a machine holds, and which one a request gets. Pure but for `physical`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mayfly.config import Config
from mayfly.errors import MachineUnfit, TooBig, UsageError
from mayfly.model import GIB, Size


@dataclass(frozen=True, slots=True)
class Room:
    """What all runners of a machine may use together. `sizes` is the whole ladder."""

    memory_bytes: int
    cpus: int
    sizes: tuple[Size, ...]

    def fits(self, size: Size) -> bool:
        """Whether an empty pool holds a runner of this size."""
        return size.memory_bytes <= self.memory_bytes and size.cpus <= self.cpus

    @property
    def fitting(self) -> tuple[Size, ...]:
        """The rungs that this machine holds, smallest first."""
        return tuple(size for size in self.sizes if self.fits(size))


def room(config: Config, machine_memory_bytes: int, cores: int) -> Room:
    """The room on a machine with that memory and that many cores."""
    pool = config.pool
    memory = pool.memory_gb * GIB or max(0, machine_memory_bytes - pool.reserve_gb * GIB)
    return Room(memory, int(cores * pool.cpu_overcommit), config.sizes)


def physical() -> tuple[int, int]:
    """This machine's memory in bytes and the number of cores this process may use."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory, len(os.sched_getaffinity(0))


def choose(name: str, room: Room) -> Size:
    """The size that a request for `name` gets; an empty name asks for the smallest.

    Raises `UsageError` for a name that is not on the ladder, `TooBig` for a rung that this
    machine does not hold, `MachineUnfit` when it holds none.
    """
    ladder = {size.name: size for size in room.sizes}
    if name and name not in ladder:
        raise UsageError(f"unknown size {name!r}", hint=f"choose one of {', '.join(ladder)}")
    fitting = room.fitting
    if not fitting:
        raise MachineUnfit(
            f"no size fits this machine ({_words(room)} for runners)",
            hint="configure a smaller rung under [ladder], or raise pool.memory_gb",
        )
    if not name:
        return fitting[0]
    size = ladder[name]
    if not room.fits(size):
        raise TooBig(
            f"size {size} is more than this machine holds ({_words(room)} for runners)",
            hint=f"the largest that fits is {fitting[-1].name}",
        )
    return size


def _words(room: Room) -> str:
    return f"{room.memory_bytes / GIB:.1f} GiB memory and {room.cpus} vCPU"
