"""What to do next: a table, and pure functions of (leases, facts, limits).

`plan` is called again whenever anything has changed, so an action needs to be right only now:
what cannot be done yet is simply not in the answer, and comes with a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from mayfly.ladder import Share, share, up_to
from mayfly.model import GIB, Desired, Lease, Load, Observed, Operation, Outcome, Runner
from mayfly.orchestrator import retry, states, watch
from mayfly.orchestrator.limits import Limits

WATCHDOG_SLACK_S = 5.0
"""A runner that goes this many seconds before its deadline was ended by its own watchdog."""


class Rule(Enum):
    """What a (desired, observed, operation) triple asks for."""

    QUEUE = auto()
    """Make a runner once the pool has room, oldest lease first; one that holds room already, for
    its earlier attempt's runner, before those that hold none."""
    CREATE = auto()
    """See that the runner is being made; after a restart, begin again (same name)."""
    WATCH = auto()
    """Nothing, while the runner is there."""
    LOST = auto()
    """The runner died by itself: end the build."""
    BROKEN = auto()
    """No path leads here: end the build as a fault of ours."""
    DESTROY = auto()
    """Unmake the runner until the provider no longer lists it."""
    REST = auto()
    """Nothing, ever."""


_RUN, _END = Desired.RUNNING, Desired.ENDED
_ABSENT, _READY, _LOST = Observed.ABSENT, Observed.READY, Observed.LOST
_NONE, _CREATING, _DESTROYING = Operation.NONE, Operation.CREATING, Operation.DESTROYING

TABLE: Mapping[tuple[Desired, Observed, Operation], Rule] = {
    (_RUN, _ABSENT, _NONE): Rule.QUEUE,
    (_RUN, _ABSENT, _CREATING): Rule.CREATE,
    (_RUN, _ABSENT, _DESTROYING): Rule.BROKEN,
    (_RUN, _READY, _NONE): Rule.WATCH,
    (_RUN, _READY, _CREATING): Rule.BROKEN,
    (_RUN, _READY, _DESTROYING): Rule.BROKEN,
    (_RUN, _LOST, _NONE): Rule.LOST,
    (_RUN, _LOST, _CREATING): Rule.BROKEN,
    (_RUN, _LOST, _DESTROYING): Rule.BROKEN,
    (_END, _ABSENT, _NONE): Rule.REST,
    (_END, _ABSENT, _CREATING): Rule.DESTROY,
    (_END, _ABSENT, _DESTROYING): Rule.DESTROY,
    (_END, _READY, _NONE): Rule.DESTROY,
    (_END, _READY, _CREATING): Rule.DESTROY,
    (_END, _READY, _DESTROYING): Rule.DESTROY,
    (_END, _LOST, _NONE): Rule.DESTROY,
    (_END, _LOST, _CREATING): Rule.DESTROY,
    (_END, _LOST, _DESTROYING): Rule.DESTROY,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known beside the rows.

    Since `heard_since` clients' heartbeats have been able to reach us: our own start, the return of
    the edge they come through, or our going on after we stood still; `now` while the edge is away.

    `seen` is the provider's latest list, by name; None while it has not answered. It says
    nothing about the runners in `stale`: a create or destroy of theirs is under way, or returned
    after that list was asked for. `creating` and `destroying` have such a call under way;
    `destroyed` had a destroy that returned without an error, in this process; `growing` are being
    given memory, or could not be given any. `disk_free_bytes` is what can still be written where
    runners' disks are; None where that does not limit them.
    """

    now: datetime
    heard_since: datetime
    seen: Mapping[str, Runner] | None = None
    stale: frozenset[str] = frozenset()
    creating: frozenset[str] = frozenset()
    destroying: frozenset[str] = frozenset()
    destroyed: frozenset[str] = frozenset()
    growing: frozenset[str] = frozenset()
    disk_free_bytes: int | None = None

    def has(self, runner: str) -> bool | None:
        """Whether the provider has the runner; None when that is not known."""
        if self.seen is None or runner in self.stale:
            return None
        return runner in self.seen

    def ended(self, runner: str) -> Outcome | None:
        """The outcome that the provider gave the runner when it ended it, if it did."""
        return self.seen[runner].ended if self.seen and self.has(runner) else None

    def load(self, runner: str) -> Load | None:
        """How the runner is, when that is known and nothing is being done about it."""
        if self.seen is None or runner in self.growing or not self.has(runner):
            return None
        return self.seen[runner].load


@dataclass(frozen=True, slots=True)
class Admit:
    """Write that the runner is being made, then make it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Create:
    """Make the runner of a lease that was admitted before."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Lose:
    """Write that the runner is gone."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class End:
    """Write the build's outcome."""

    lease: Lease
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Write that the attempt ended for want of memory; another follows, or the build's end."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Write that the runner is being unmade (when it has a lease), then unmake it."""

    runner: str
    reason: str
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Write that nothing of the runner is left."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Grow:
    """Write that the runner gets more memory, then give it."""

    lease: Lease
    more_bytes: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell those who wait for the build."""

    lease: Lease
    line: str


Action = Admit | Create | Lose | End | OutOfMemory | Destroy | Close | Grow | Tell


def plan(leases: Sequence[Lease], facts: Facts, limits: Limits) -> tuple[Action, ...]:
    """What to do now. `leases` are those not closed, oldest first.

    A lease that waits for room holds back all younger ones, so a large build is never overtaken
    for ever by small ones. One that waits for its turn (`Terms.alone`) holds back nobody.
    """
    actions: list[Action] = []
    alone: set[tuple[str, str]] = set()
    taken, there = used(leases, facts, limits), available(facts, limits)
    waiting = False
    for lease in leases:
        ending = _ending(lease, facts, limits)
        if ending is not None:
            actions.append(ending)
            continue
        rule = rule_of(lease)
        place = lease.request.repo, lease.terms.slot
        in_turn = not lease.terms.alone or place not in alone
        if states.is_running(lease):
            alone.add(place)
        if rule is Rule.QUEUE and not in_turn:
            continue
        if rule is Rule.QUEUE:
            more = share(lease.size) - _held(lease)
            if (lease.earlier or not waiting) and (taken + more).within(there):
                taken += more
                actions.append(Admit(lease))
            elif not waiting and taken == Share() and _disk_is_gone(lease, there, facts):
                actions.append(_never(lease, there))
            else:
                waiting = True
        elif rule is Rule.CREATE and lease.runner not in facts.creating:
            actions.append(Create(lease))
        elif rule is Rule.WATCH and facts.has(lease.runner) is False:
            actions.append(Lose(lease))
        elif rule is Rule.WATCH and (load := facts.load(lease.runner)):
            free = there.memory_bytes - taken.memory_bytes
            action = _relief(load, lease, free, _waiting(leases), facts, limits)
            if isinstance(action, Grow):
                taken += Share(memory_bytes=action.more_bytes)
            actions += [action] if action else []
        elif rule is Rule.DESTROY and not _stays(lease, facts):
            actions.extend(_unmake(lease, facts))
    actions.extend(
        Destroy(name, "no open lease explains this runner")
        for name in strangers(leases, facts)
        if facts.has(name)
    )
    return tuple(actions)


def _relief(
    load: Load, lease: Lease, free_bytes: int, waiting: bool, facts: Facts, limits: Limits
) -> Grow | Tell | OutOfMemory | None:
    """What is done about a runner that runs short, if it does.

    It grows no further than a rung of this machine: its next build is to find one that holds it.
    """
    allowed = up_to(limits.sizes, lease.terms.largest)
    sizes = tuple(size for size in allowed if limits.fits(size))
    pool = watch.Pool(max(0, free_bytes), waiting, sizes, limits.grow)
    match watch.decide(load, lease, pool, facts.now):
        case watch.Grow(more_bytes):
            return Grow(lease, more_bytes)
        case watch.Refuse(reason):
            return Tell(lease, f"the build is short of memory: {reason}")
        case watch.DiskLow(reason):
            return Tell(lease, reason)
        case watch.Thrash(reason):
            return OutOfMemory(lease, reason)
        case None:
            return None


def _waiting(leases: Iterable[Lease]) -> bool:
    return any(states.is_queued(lease) for lease in leases)


def rule_of(lease: Lease) -> Rule:
    """The table's word on a lease."""
    return TABLE[lease.desired, lease.observed, lease.operation]


def available(facts: Facts, limits: Limits) -> Share:
    """What all runners together may use now.

    The disk that they have is what is free, but for the reserve, and what they have written.
    """
    if facts.disk_free_bytes is None:
        return limits.share
    written = sum(runner.disk_used_bytes for runner in (facts.seen or {}).values())
    disk = facts.disk_free_bytes + written - limits.disk_reserve_bytes
    return replace(limits.share, disk_bytes=max(0, min(limits.disk_bytes, disk)))


def _disk_is_gone(lease: Lease, there: Share, facts: Facts) -> bool:
    """Whether an empty pool has too little disk for a lease: nobody will go who gives some back."""
    return facts.seen is not None and share(lease.size).disk_bytes > there.disk_bytes


def _never(lease: Lease, there: Share) -> End:
    """The end of a lease that an empty pool has no room for."""
    needs, has = (n / GIB for n in (share(lease.size).disk_bytes, there.disk_bytes))
    reason = (
        f"size {lease.size.name} needs {needs:.1f} GiB of disk and this machine has {has:.1f} GiB "
        "left for runners; make room, or see pool.disk_gb"
    )
    return End(lease, Outcome.MACHINE_UNFIT, reason)


def used(leases: Iterable[Lease], facts: Facts, limits: Limits) -> Share:
    """What runners may come to use: those of leases, and strangers until they have gone."""
    leases = tuple(leases)
    ladder = {size.name: size for size in limits.sizes}
    sizes = [lease.size for lease in leases if states.holds_room(lease)]
    for name in strangers(leases, facts):
        size = ladder.get(facts.seen[name].size) if facts.seen else None
        sizes += [size] if size else []
    grown = sum(lease.grown_bytes for lease in leases if states.holds_room(lease))
    kept = (_held(lease) for lease in leases if states.is_queued(lease))
    return sum((*map(share, sizes), *kept), Share(memory_bytes=grown))


def _held(lease: Lease) -> Share:
    """What the runner of the attempt before has, whose room the next one is to take over."""
    if not lease.earlier:
        return Share()
    last = lease.earlier[-1]
    return share(last.size) + Share(memory_bytes=last.grown_bytes)


def queue(leases: Iterable[Lease]) -> dict[str, int]:
    """The place of each waiting lease, from 1; `leases` are oldest first."""
    waiting = (lease.id for lease in leases if states.is_queued(lease))
    return {lease_id: place for place, lease_id in enumerate(waiting, 1)}


def strangers(leases: Iterable[Lease], facts: Facts) -> tuple[str, ...]:
    """The runners that the provider has and no open lease explains, by name.

    An earlier attempt's is explained until the present one's is there.
    """
    explained: set[str] = set()
    for lease in leases:
        if not states.is_closed(lease):
            explained.add(lease.runner)
        if states.is_running(lease) and lease.observed is Observed.ABSENT:
            explained.add(lease.earlier_runner)
    return tuple(sorted(set(facts.seen or ()) - explained))


def superseded(leases: Iterable[Lease], by: Lease) -> tuple[Lease, ...]:
    """The running builds that the younger one `by` makes needless: of the same repo, ref, event,
    target and trust, of another pipeline (steps of one do not end each other), where it asks for
    that and its ref is known. Where pipelines have numbers the lower one is older, however late its
    step has come. A ref may be no more than claimed: what is not trusted ends only what has its own
    slot.
    """

    def kind(lease: Lease) -> tuple[object, ...]:
        asked = lease.request
        trust = (lease.trusted, lease.terms.slot)
        return (asked.repo, asked.ref, asked.event, asked.target, trust)

    wanted = by.request
    if not (wanted.supersede and wanted.ref):
        return ()
    return tuple(
        lease
        for lease in leases
        if states.is_running(lease)
        and lease.id != by.id
        and lease.created_at <= by.created_at
        and kind(lease) == kind(by)
        and _earlier(lease.request.pipeline, wanted.pipeline)
    )


def _earlier(pipeline: str, than: str) -> bool:
    if pipeline.isdecimal() and than.isdecimal():
        return int(pipeline) < int(than)
    return not than or pipeline != than


def edge_changes(
    leases: Iterable[Lease], attached: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The runners to attach at the edge and those to revoke, so that only leases' are served.

    A runner that is being made may be attached already: it is attached before it is ready.
    """
    leases, attached = tuple(leases), set(attached)
    ready = {lease.runner for lease in leases if states.is_ready(lease) or states.is_kept(lease)}
    making = ready | {lease.runner for lease in leases if states.is_running(lease)}
    return tuple(sorted(ready - attached)), tuple(sorted(attached - making))


def over_budget(lease: Lease, now: datetime, slack_s: float = 0) -> End | None:
    """The end of a lease whose deadline is at most `slack_s` seconds away, or past."""
    if lease.deadline is None or now < lease.deadline - timedelta(seconds=slack_s):
        return None
    return End(lease, Outcome.BUDGET_EXCEEDED, _used_up(lease))


def _used_up(lease: Lease) -> str:
    return f"the time budget of {_minutes(lease.budget_s)} is used up"


def _ended_by_provider(lease: Lease, outcome: Outcome) -> End:
    """The end of a lease whose runner the provider ended, in words."""
    reasons = {
        Outcome.BUDGET_EXCEEDED: _used_up(lease),
        Outcome.DISK_FULL: "the disk of the machine that runs the builds is full",
    }
    return End(lease, outcome, reasons.get(outcome, "the provider ended the runner"))


def _ending(lease: Lease, facts: Facts, limits: Limits) -> End | None:
    """How the build ends now, if it does; the strongest reason first."""
    if not states.is_running(lease):
        return None
    rule, now = rule_of(lease), facts.now
    if rule is Rule.BROKEN:
        state = f"{lease.observed}/{lease.operation}"
        return End(lease, Outcome.INTERNAL, f"the lease was found running in state {state}")
    if over := over_budget(lease, now, WATCHDOG_SLACK_S if rule is Rule.LOST else 0):
        return over
    if rule is Rule.WATCH and (ended := facts.ended(lease.runner)):
        return _ended_by_provider(lease, ended)
    if rule is Rule.LOST:
        return End(lease, Outcome.RUNNER_LOST, f"the runner {lease.runner} died")
    # Nobody was heard until then: the grace begins anew.
    silent_since = max(lease.expires_at, facts.heard_since + timedelta(seconds=limits.grace_s))
    if now >= silent_since:
        silence = f"no heartbeat from the client for {limits.grace_s:g} s"
        return End(lease, Outcome.CLIENT_LOST, silence)
    if lease.earlier and rule is Rule.QUEUE:
        return _no_room_soon(lease, limits, now)
    queue_end = lease.began_at + timedelta(seconds=limits.queue_timeout_s)
    if rule is Rule.QUEUE and now >= queue_end:
        full = f"no room in the pool for {_minutes(limits.queue_timeout_s)}"
        if lease.terms.alone:
            full += ", or builds of the same source that have to end first"
        return End(lease, Outcome.QUEUE_TIMEOUT, full)
    if rule is Rule.CREATE and now >= queue_end + timedelta(seconds=limits.create_timeout_s):
        slow = f"no runner was ready within {_minutes(limits.create_timeout_s)}"
        return End(lease, Outcome.INFRASTRUCTURE, slow)
    return None


def _no_room_soon(lease: Lease, limits: Limits, now: datetime) -> End | None:
    """The end of a lease that has waited too long for room for another attempt."""
    patience_s = min(retry.PATIENCE_S, limits.queue_timeout_s)
    if now < lease.began_at + timedelta(seconds=patience_s):
        return None
    last = lease.earlier[-1]
    advice = retry.advice(lease.size) if last.outcome is Outcome.OOM else "build it again"
    reason = (
        f"{last.reason}; no room in the pool for size {lease.size.name} for "
        f"{_minutes(patience_s)}: {advice}"
    )
    return End(lease, last.outcome, reason)


def _stays(lease: Lease, facts: Facts) -> bool:
    """Whether the runner of an ended lease is still to be looked into."""
    if not states.is_kept(lease) or lease.kept_until is None or facts.now >= lease.kept_until:
        return False
    return facts.has(lease.runner) is not False and not facts.ended(lease.runner)


def _unmake(lease: Lease, facts: Facts) -> Iterable[Action]:
    """The next step towards having nothing of an ended lease's runner."""
    name = lease.runner
    if name in facts.destroying:
        return
    present = facts.has(name)
    if name not in facts.destroyed or present:
        yield Destroy(name, f"its lease ended: {lease.outcome}", lease)
    elif present is False:
        yield Close(lease)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
