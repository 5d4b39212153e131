"""What can happen to a lease: pure functions from lease to lease.

Each returns the lease unchanged when it no longer applies (the lease has ended, the runner is
another attempt's), so that late news is harmless and the first outcome wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from mayfly.model import Attempt, Desired, Lease, Observed, Operation, Outcome, Runner, Size, Usage

QUEUED, CREATING, READY = "queued", "creating", "ready"
DESTROYING, ENDED, LOST = "destroying", "ended", "lost"
KEPT = "kept"

LOOKED_INTO = frozenset({Outcome.FAILED, Outcome.OOM, Outcome.DISK_FULL, Outcome.NOT_PUBLISHED})
"""The outcomes after which a runner is worth a look: it is alive and has what went wrong."""


def word(lease: Lease) -> str:
    """The lease's state in one word, for people; decisions never read it."""
    if is_closed(lease):
        return ENDED
    if lease.desired is Desired.ENDED:
        return KEPT if is_kept(lease) else DESTROYING
    if lease.observed is Observed.LOST:
        return LOST
    if lease.observed is Observed.READY:
        return READY
    return CREATING if lease.operation is Operation.CREATING else QUEUED


def is_running(lease: Lease) -> bool:
    """Whether the build has no outcome yet."""
    return lease.desired is Desired.RUNNING


def is_ready(lease: Lease) -> bool:
    """Whether the lease's holder may use its runner."""
    return is_running(lease) and lease.observed is Observed.READY


def is_kept(lease: Lease) -> bool:
    """Whether the build has ended and its runner stays for a while, for people to look into it."""
    there = (lease.observed, lease.operation) == (Observed.READY, Operation.NONE)
    return lease.desired is Desired.ENDED and there and lease.kept_until is not None


def was_kept(lease: Lease) -> bool:
    """Whether the runner may have been looked into, so that what it uses is not the build's."""
    return lease.request.keep_min > 0 and lease.outcome in LOOKED_INTO


def is_queued(lease: Lease) -> bool:
    """Whether the lease waits for room in the pool."""
    return is_running(lease) and not holds_room(lease)


def is_closed(lease: Lease) -> bool:
    """Whether the lease has an outcome and nothing of its runner is left."""
    return lease.desired is Desired.ENDED and not holds_room(lease)


def holds_room(lease: Lease) -> bool:
    """Whether the lease's size counts against the pool: there is, or may be, a runner."""
    return lease.observed is not Observed.ABSENT or lease.operation is not Operation.NONE


def admitted(lease: Lease, now: datetime) -> Lease:
    """The pool has room: the runner is about to be made."""
    if not is_queued(lease):
        return lease
    waited = (now - lease.began_at).total_seconds()
    return replace(
        lease, operation=Operation.CREATING, timings_s={**lease.timings_s, "queue": waited}
    )


def ready(lease: Lease, runner: Runner, ready_at: datetime, now: datetime) -> Lease:
    """The runner answers and, `now`, the edge knows it.

    The time budget counts from `ready_at` of the first attempt, when the runner itself was ready:
    its provider counts from there too, so that neither ends it before the other.
    """
    if not is_running(lease) or lease.runner != runner.name or lease.ready_at is not None:
        return lease
    asked = (now - lease.began_at).total_seconds()
    took = asked - lease.timings_s.get("queue", 0.0)
    return replace(
        lease,
        observed=Observed.READY,
        operation=Operation.NONE,
        ready_at=ready_at,
        deadline=lease.deadline or ready_at + timedelta(seconds=lease.budget_s),
        ssh_host_key=runner.ssh_host_key,
        timings_s={**runner.timings_s, **lease.timings_s, "ready": took},
    )


def lost(lease: Lease) -> Lease:
    """The provider no longer has the runner."""
    return replace(lease, observed=Observed.LOST) if is_ready(lease) else lease


def alive(lease: Lease, now: datetime, grace_s: float) -> Lease:
    """The client's heartbeat: it counts as lost `grace_s` from now."""
    if not is_running(lease):
        return lease
    return replace(lease, expires_at=now + timedelta(seconds=grace_s))


def ended(lease: Lease, outcome: Outcome, reason: str, now: datetime) -> Lease:
    """The build's outcome is known; the runner is to go. The first outcome wins."""
    if not is_running(lease):
        return lease
    return replace(lease, desired=Desired.ENDED, outcome=outcome, reason=reason, ended_at=now)


def kept(lease: Lease, longest_s: float) -> Lease:
    """The lease whose build has just ended, its runner to stay for as long as its client asked, at
    most `longest_s` and until its deadline. Nothing changes where nobody asked, where there is
    nothing to see, and for what is not trusted: that is not to hold room of others'.
    """
    there = (lease.observed, lease.operation) == (Observed.READY, Operation.NONE)
    seconds = min(lease.request.keep_min * 60, longest_s)
    if not (there and lease.trusted and lease.outcome in LOOKED_INTO and seconds > 0):
        return lease
    if lease.ended_at is None or lease.deadline is None or lease.kept_until is not None:
        return lease
    until = min(lease.ended_at + timedelta(seconds=seconds), lease.deadline)
    return replace(lease, kept_until=until) if until > lease.ended_at else lease


def let_go(lease: Lease) -> Lease:
    """A kept runner is kept no longer."""
    return replace(lease, kept_until=None) if is_kept(lease) else lease


def reported(
    lease: Lease,
    outcome: Outcome,
    now: datetime,
    *,
    reason: str = "",
    digest: str = "",
    timings_s: Mapping[str, float] | None = None,
    images: Sequence[str] = (),
) -> Lease:
    """The client's report; nothing of it is taken once the lease has ended."""
    if not is_running(lease):
        return lease
    told = replace(timed(lease, timings_s or {}), digest=digest, images=tuple(images))
    return ended(told, outcome, reason, now)


def timed(lease: Lease, timings_s: Mapping[str, float]) -> Lease:
    """The lease with what its client measured, where nobody else did."""
    return replace(lease, timings_s={**timings_s, **lease.timings_s})


def retried(lease: Lease, outcome: Outcome, reason: str, size: Size, now: datetime) -> Lease:
    """The attempt's outcome is not the build's: another one is to follow, in `size`.

    Its runner takes over from the present one, which is there until then.
    """
    if not is_running(lease):
        return lease
    attempt = Attempt(
        size=lease.size,
        outcome=outcome,
        reason=reason,
        ended_at=now,
        grown_bytes=lease.grown_bytes,
        usage=lease.usage,
        timings_s=lease.timings_s,
    )
    return replace(
        lease,
        attempt=lease.attempt + 1,
        earlier=(*lease.earlier, attempt),
        size=size,
        observed=Observed.ABSENT,
        operation=Operation.NONE,
        ready_at=None,
        ssh_host_key="",
        timings_s={},
        grown_bytes=0,
        usage=None,
    )


def growing(lease: Lease, more_bytes: int) -> Lease:
    """The pool has room: the runner is about to be given more memory."""
    if not is_ready(lease):
        return lease
    return replace(lease, grown_bytes=lease.grown_bytes + more_bytes)


def not_grown(lease: Lease, runner: str, more_bytes: int) -> Lease:
    """The provider could not give it."""
    if lease.runner != runner:
        return lease
    return replace(lease, grown_bytes=max(0, lease.grown_bytes - more_bytes))


def measured(lease: Lease, runner: str, usage: Usage) -> Lease:
    """What the runner has used, as its provider tells; also of one that is about to go."""
    return replace(lease, usage=usage) if lease.runner == runner else lease


def destroying(lease: Lease) -> Lease:
    """The runner is about to be unmade."""
    if is_running(lease) or is_closed(lease):
        return lease
    return replace(lease, operation=Operation.DESTROYING)


def closed(lease: Lease) -> Lease:
    """The provider has nothing of the runner any more."""
    if is_running(lease):
        return lease
    return replace(lease, observed=Observed.ABSENT, operation=Operation.NONE)
