"""What policy goes by: the pool's room, and times."""

from __future__ import annotations

from dataclasses import dataclass

from mayfly.config import Config
from mayfly.ladder import Room, room
from mayfly.model import GIB

CREATE_TIMEOUT_S = 1800.0
"""Seconds a runner may take to be made; the first one waits for the template."""


@dataclass(frozen=True, slots=True)
class Limits(Room):
    """The pool's room, and the times policy goes by."""

    queue_timeout_s: float
    grace_s: float
    create_timeout_s: float = CREATE_TIMEOUT_S
    disk_reserve_bytes: int = 0
    grow: bool = True
    max_oom_retries: int = 1
    max_keep_s: float = 1800.0


def limits(config: Config, machine_memory_bytes: int, cores: int, disk_bytes: int) -> Limits:
    """The limits of a machine with that memory, that many cores and that size of file system."""
    there = room(config, machine_memory_bytes, cores, disk_bytes)
    return Limits(
        memory_bytes=there.memory_bytes,
        cpus=there.cpus,
        disk_bytes=there.disk_bytes,
        sizes=there.sizes,
        queue_timeout_s=config.pool.queue_timeout_s,
        grace_s=config.lease.grace_s,
        disk_reserve_bytes=config.pool.disk_reserve_gb * GIB,
        grow=config.pool.grow,
        max_oom_retries=config.lease.max_oom_retries,
        max_keep_s=config.lease.max_keep_min * 60,
    )
