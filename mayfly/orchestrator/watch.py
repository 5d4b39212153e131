"""What to do about a runner that runs short: pure functions of what its host sees of it.

A client's word on why its build failed is never asked for here: kills and pressure are counted in
the guest's kernel, for buildkitd's control group, and come by the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mayfly.model import GIB, MIB, Lease, Load, Outcome, Size, Usage

LOW_SHARE = 1 / 8
"""Of a guest's memory: what is to be available before a build is given more."""

LOW_LIMIT_BYTES = GIB
"""…and no more than that, however large the guest is."""

AHEAD_S = 4.0
"""Memory that does not last for so long at its present speed is low as well. From a sample to new
memory being used takes at most a second for the host's list, half a second for the DIMM."""

STEP_BYTES = 128 * MIB
"""Memory comes in pieces of that size: Linux takes in whole blocks (memory_block_size_bytes)."""

LEAST_STEP_BYTES = 2 * STEP_BYTES

RUSH_S = 10.0
"""A step that would not last for so long is not worth its while: all that may be given is."""

THRASH_S = 20.0
"""After so many seconds without progress for want of memory, a build is as good as killed."""

ARRIVED_SHARE = 0.8
"""A guest whose memory is less than that of what it has been given is still taking it in."""

OLD_S = 10.0
"""A load that was seen before that is no ground for anything."""

DISK_LOW_SHARE = 0.05
DISK_LOW_LIMIT_BYTES = 512 * MIB
DISK_FULL_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Pool:
    """What growth goes by beside the lease: `free_bytes` of memory that is nobody's, whether a
    lease is `waiting` for room, the ladder, and whether growth is on at all.
    """

    free_bytes: int
    waiting: bool
    sizes: Sequence[Size]
    grow: bool = True


@dataclass(frozen=True, slots=True)
class Grow:
    """Give the runner so much more."""

    more_bytes: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The build is short of memory and gets none; a person reads why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Thrash:
    """The build stands still for want of memory: end it as out of memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class DiskLow:
    """The scratch disk is almost full; a person reads it."""

    reason: str


Decision = Grow | Refuse | Thrash | DiskLow


def decide(load: Load, lease: Lease, pool: Pool, now: datetime) -> Decision | None:
    """What to do about a runner whose load this is; None for nothing."""
    if lease.ready_at is None or _is_old(load, lease.ready_at, now):
        return None
    granted = lease.size.memory_bytes + lease.grown_bytes
    arriving = load.total_bytes < ARRIVED_SHARE * granted
    if is_low(load) and not arriving:
        decision = _more(load, lease, pool)
        if isinstance(decision, Refuse) and load.stalled_s >= THRASH_S:
            return Thrash(
                f"it made no progress for {load.stalled_s:.0f} s for want of memory "
                f"({decision.reason})"
            )
        return decision
    if load.disk_total_bytes and load.disk_free_bytes < min(
        DISK_LOW_LIMIT_BYTES, DISK_LOW_SHARE * load.disk_total_bytes
    ):
        left, whole = load.disk_free_bytes / MIB, load.disk_total_bytes / GIB
        return DiskLow(f"the disk is almost full: {left:.0f} MiB of {whole:.1f} GiB are left")
    return None


def is_low(load: Load) -> bool:
    """Whether a build needs more memory than it has, or soon will."""
    low = min(LOW_LIMIT_BYTES, LOW_SHARE * load.total_bytes)
    return load.available_bytes < low or load.stalled_s > 0 or not load.memory_lasts(AHEAD_S)


def ceiling_bytes(size: Size, sizes: Sequence[Size]) -> int:
    """The memory that a runner of this size may come to have: that of the next rung."""
    larger = [rung.memory_bytes for rung in sizes if rung.memory_bytes > size.memory_bytes]
    return min(larger, default=size.memory_bytes)


def _more(load: Load, lease: Lease, pool: Pool) -> Grow | Refuse:
    if not (pool.grow and lease.request.grow):
        return Refuse("growth is turned off")
    left = ceiling_bytes(lease.size, pool.sizes) - lease.size.memory_bytes - lease.grown_bytes
    if left < STEP_BYTES:
        return Refuse("it has all the memory that one rung more has")
    if not lease.trusted and pool.waiting:
        return Refuse("others wait for room, and what is not trusted grows only in an idle pool")
    step = _whole(max(left // 2, LEAST_STEP_BYTES))
    if load.stalled_s or step < load.falling_bytes_s * RUSH_S:
        step = left
    step = _whole(min(step, left, pool.free_bytes))
    if step < min(LEAST_STEP_BYTES, _whole(left)):
        return Refuse("the pool has no memory left")
    return Grow(step)


def _whole(size_bytes: float) -> int:
    return int(size_bytes // STEP_BYTES * STEP_BYTES)


def _is_old(load: Load, ready_at: datetime, now: datetime) -> bool:
    return now - (ready_at + timedelta(seconds=load.at_s)) > timedelta(seconds=OLD_S)


def verdict(
    claimed: Outcome, reason: str, usage: Usage | None, lease: Lease
) -> tuple[Outcome, str]:
    """How a build ended whose client reports `claimed`, and why.

    A build that failed on a runner where the kernel killed for want of memory ended by that,
    whatever its exit code; one whose scratch disk was full, by that. One that succeeded succeeded:
    its image is what the Dockerfile asked for, which went on after the kill; the reason says so,
    and sizing counts it as out of memory. Without evidence, what is claimed counts.
    """
    if usage is None:
        return claimed, reason
    if usage.oom_kills:
        if claimed in (Outcome.FAILED, Outcome.INFRASTRUCTURE):
            return Outcome.OOM, _killed(usage, lease)
        if claimed is Outcome.SUCCEEDED:
            return claimed, f"it succeeded, but {_killed(usage, lease)}"
    full = usage.disk_free_bytes is not None and usage.disk_free_bytes < DISK_FULL_BYTES
    if full and claimed is Outcome.FAILED:
        have = lease.size.disk_bytes / GIB
        return Outcome.DISK_FULL, (
            f"the disk of {have:g} GiB was full; write disk_gb = {2 * have:g} or more "
            "into .build-spec.ncl"
        )
    return claimed, reason


def _killed(usage: Usage, lease: Lease) -> str:
    times = "once" if usage.oom_kills == 1 else f"{usage.oom_kills} times"
    have = (lease.size.memory_bytes + lease.grown_bytes) / GIB
    return (
        f"the kernel killed {times} for want of memory: {usage.memory_bytes / GIB:.1f} GiB were in "
        f"use of {have:g} GiB"
    )
