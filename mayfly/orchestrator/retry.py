"""Whether a build that ran out of memory gets another attempt, one size up. Pure.

The next runner goes on with the scratch disk of the one before, so that finished steps stay done;
when it does not get it, the build begins anew there. When the disk turns out to be damaged while
the build goes on, it begins anew once more, without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from mayfly.ladder import up_to
from mayfly.model import GIB, Lease, Outcome, Size
from mayfly.orchestrator import states
from mayfly.orchestrator.limits import Limits

LEAST_S = 15.0
"""With less of the time budget left than another runner takes to come and a step to run, there is
no use in one."""

PATIENCE_S = 120.0
"""Seconds for which an attempt after the first waits for room, while its earlier runner keeps its
own and the scratch disk."""

DAMAGE = re.compile(
    r"snapshot( \S{1,100})? does not exist: not found$"  # containerd: core/metadata/snapshot.go
    r"|structure needs cleaning$|bad message$|input/output error$"  # ext4: EUCLEAN, EBADMSG; EIO
)
"""How the errors of steps end that met a damaged disk. What a step's own program printed is never
in them, and `process "…" did not complete successfully: exit code: 1` ends otherwise."""

FAULTS = frozenset({Outcome.FAILED, Outcome.INFRASTRUCTURE, Outcome.NOT_PUBLISHED})
"""What a client can report whose build met one."""


def next_size(lease: Lease, limits: Limits) -> Size | None:
    """The smallest rung that this machine holds, with more memory than the runner was granted and
    no less of anything else, as far as its terms go; None when there is none."""
    had, granted = lease.size, lease.size.memory_bytes + lease.grown_bytes
    larger = (
        size
        for size in up_to(limits.fitting, lease.terms.largest)
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
    kills = sum(attempt.outcome is Outcome.OOM for attempt in lease.earlier)
    if kills >= limits.max_oom_retries:
        return f"it has had {lease.attempt} attempt{'s' if lease.attempt > 1 else ''}"
    if next_size(lease, limits) is None:
        if lease.terms.largest:
            return f"builds that are not trusted get {lease.terms.largest} at most"
        return "this machine holds no larger size"
    return "" if _has_time(lease, now) else "its time budget is used up"


def _has_time(lease: Lease, now: datetime) -> bool:
    return lease.deadline is not None and (lease.deadline - now).total_seconds() >= LEAST_S


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


def goes_on(lease: Lease) -> bool:
    """Whether the present attempt was to go on with the scratch disk of the one before."""
    return bool(lease.earlier) and lease.earlier[-1].outcome is Outcome.OOM


def spoiled(lease: Lease) -> str:
    """Why the present attempt is not to have the scratch disk of the one before; empty when it is,
    or is the first."""
    return "" if goes_on(lease) or not lease.earlier else lease.earlier[-1].reason


def damage(errors: Iterable[str]) -> str:
    """The sign of a damaged disk in how steps failed, as the runner's BuildKit tells; or empty.

    Whoever breaks out of a build can make one up, and gets that build begun anew, once.
    """
    return next((found[0] for error in errors if (found := DAMAGE.search(error))), "")


def damaged(lease: Lease, sign: str, now: datetime) -> Lease:
    """The lease whose kept scratch disk has shown `sign`, with an attempt from nothing to come, in
    the same size; unchanged where it has none, or has no time left."""
    if not (states.is_ready(lease) and goes_on(lease) and _has_time(lease, now)):
        return lease
    reason = f"the scratch disk that it went on with is damaged: {sign}"
    return states.retried(lease, Outcome.INFRASTRUCTURE, reason, lease.size, now)
