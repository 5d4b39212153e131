"""Whether a build that ran out of memory gets another attempt, one size up. Pure.

The next runner goes on with the scratch disk of the one before, so that finished steps stay done;
when it does not get it, the build begins anew there.
"""

from __future__ import annotations

from datetime import datetime

from mayfly.model import GIB, Lease, Outcome, Size
from mayfly.orchestrator import states
from mayfly.orchestrator.limits import Limits

LEAST_S = 15.0
"""With less of the time budget left than another runner takes to come and a step to run, there is
no use in one."""

PATIENCE_S = 120.0
"""Seconds for which an attempt after the first waits for room, while its earlier runner keeps its
own and the scratch disk."""


def next_size(lease: Lease, limits: Limits) -> Size | None:
    """The smallest rung that this machine holds, with more memory than the runner was granted and
    no less of anything else; None when there is none."""
    had, granted = lease.size, lease.size.memory_bytes + lease.grown_bytes
    larger = (
        size
        for size in limits.fitting
        if size.memory_bytes > granted
        and size.cpus >= had.cpus
        and size.disk_bytes >= had.disk_bytes
    )
    return min(larger, key=lambda size: size.memory_bytes, default=None)


def refusal(lease: Lease, limits: Limits, now: datetime) -> str:
    """Why a build whose runner ran out of memory gets no other; empty when it does."""
    spec = lease.request.spec
    if spec is not None and not spec.oom_retry:
        return "oom_retry is false"
    if len(lease.earlier) >= limits.max_oom_retries:
        return f"it has had {lease.attempt} attempt{'s' if lease.attempt > 1 else ''}"
    if next_size(lease, limits) is None:
        return "this machine holds no larger size"
    if lease.deadline is None or (lease.deadline - now).total_seconds() < LEAST_S:
        return "its time budget is used up"
    return ""


def out_of_memory(lease: Lease, reason: str, limits: Limits, now: datetime) -> Lease:
    """The lease whose runner ran out of memory, with another attempt to come or ended as `oom`.

    `reason` says what was seen. Nothing changes where the runner is no more the lease's.
    """
    if not states.is_ready(lease):
        return lease
    size, why = next_size(lease, limits), refusal(lease, limits, now)
    if size is None or why:
        return states.ended(lease, Outcome.OOM, f"{reason}; {why}: {advice(size)}", now)
    return states.retried(lease, Outcome.OOM, reason, size, now)


def advice(size: Size | None) -> str:
    """What the repo can declare so that its next build has the memory of `size`, if there is one
    that would do."""
    if size is None:
        return "build it on a larger machine, or make it need less"
    return f"write memory_gb = {size.memory_bytes / GIB:g} into .build-spec.ncl"
