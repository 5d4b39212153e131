"""What this machine holds, and which size a request gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from mayfly.config import Config
from mayfly.errors import MachineUnfit, TooBig, UsageError
from mayfly.model import GIB, Size

CREATE_TIMEOUT_S = 1800.0
"""Seconds a runner may take to be made; the first one waits for the template."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The pool's room and the times policy goes by. `sizes` is the whole ladder."""

    memory_bytes: int
    cpus: int
    sizes: tuple[Size, ...]
    queue_timeout_s: float
    grace_s: float
    create_timeout_s: float = CREATE_TIMEOUT_S

    def fits(self, size: Size) -> bool:
        """Whether an empty pool holds a runner of this size."""
        return size.memory_bytes <= self.memory_bytes and size.cpus <= self.cpus

    @property
    def fitting(self) -> tuple[Size, ...]:
        """The rungs that this machine holds, smallest first."""
        return tuple(size for size in self.sizes if self.fits(size))


def limits(config: Config, machine_memory_bytes: int, cores: int) -> Limits:
    """The limits of a machine with that memory and that many cores."""
    pool = config.pool
    memory = pool.memory_gb * GIB or max(0, machine_memory_bytes - pool.reserve_gb * GIB)
    return Limits(
        memory_bytes=memory,
        cpus=int(cores * pool.cpu_overcommit),
        sizes=config.sizes,
        queue_timeout_s=pool.queue_timeout_s,
        grace_s=config.lease.grace_s,
    )


def machine(
    sysconf: Callable[[str], int] = os.sysconf,
    affinity: Callable[[int], set[int]] = os.sched_getaffinity,
) -> tuple[int, int]:
    """This machine's memory in bytes and the number of cores this process may use."""
    return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE"), len(affinity(0))


def choose(name: str, limits: Limits) -> Size:
    """The size that a request for `name` gets; an empty name asks for the smallest.

    Raises `UsageError` for a name that is not on the ladder, `TooBig` for a rung that this
    machine does not hold, `MachineUnfit` when it holds none.
    """
    ladder = {size.name: size for size in limits.sizes}
    if name and name not in ladder:
        raise UsageError(f"unknown size {name!r}", hint=f"choose one of {', '.join(ladder)}")
    fitting = limits.fitting
    if not fitting:
        raise MachineUnfit(
            f"no size fits this machine ({_room(limits)} for runners)",
            hint="configure a smaller rung under [ladder], or raise pool.memory_gb",
        )
    if not name:
        return fitting[0]
    size = ladder[name]
    if not limits.fits(size):
        raise TooBig(
            f"size {size} is more than this machine holds ({_room(limits)} for runners)",
            hint=f"the largest that fits is {fitting[-1].name}",
        )
    return size


def _room(limits: Limits) -> str:
    return f"{limits.memory_bytes / GIB:.1f} GiB memory and {limits.cpus} vCPU"
