"""The table and the plan: every triple, every ending, and what must hold for any farm."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.ladder import share
from mayfly.model import GIB, Desired, Lease, Observed, Operation, Outcome, Runner, Terms
from mayfly.orchestrator import states
from mayfly.orchestrator.limits import Limits
from mayfly.orchestrator.plan import (
    TABLE,
    Admit,
    Close,
    Create,
    Destroy,
    End,
    Facts,
    Lose,
    edge_changes,
    over_budget,
    plan,
    used,
)
from tests.orchestrator.leases import NOW, T1, T2, T3, lease, seen

RUN, END = Desired
ABSENT, READY, LOST = Observed
NONE, CREATING, DESTROYING = Operation
LIMITS = Limits(4 * GIB, 8, 64 * GIB, (T1, T2, T3), queue_timeout_s=900, grace_s=30)
ALL = tuple(product(Desired, Observed, Operation))


def at(seconds: float = 0, **more: Any) -> Facts:
    """Facts at that many seconds after NOW; the orchestrator has run since long before."""
    fields = {"now": NOW + timedelta(seconds=seconds), "heard_since": NOW - timedelta(days=1)}
    return Facts(**{**fields, **more})


def ready(name: str = "aaaa", **more: Any) -> Lease:
    fields = {"ready_at": NOW, "deadline": NOW + timedelta(hours=1)}
    return lease(name, (RUN, READY, NONE), **{**fields, **more})


def ended(name: str = "aaaa", observed: Observed = READY, operation: Operation = NONE) -> Lease:
    return lease(name, (END, observed, operation), outcome=Outcome.CANCELLED, ended_at=NOW)


def test_the_table_has_every_triple() -> None:
    assert set(TABLE) == set(ALL)


EXPECTED = {
    (RUN, ABSENT, NONE): Admit,
    (RUN, ABSENT, CREATING): Create,
    (RUN, ABSENT, DESTROYING): Outcome.INTERNAL,
    (RUN, READY, NONE): Lose,
    (RUN, READY, CREATING): Outcome.INTERNAL,
    (RUN, READY, DESTROYING): Outcome.INTERNAL,
    (RUN, LOST, NONE): Outcome.RUNNER_LOST,
    (RUN, LOST, CREATING): Outcome.INTERNAL,
    (RUN, LOST, DESTROYING): Outcome.INTERNAL,
    (END, ABSENT, NONE): None,
    (END, ABSENT, CREATING): Destroy,
    (END, ABSENT, DESTROYING): Destroy,
    (END, READY, NONE): Destroy,
    (END, READY, CREATING): Destroy,
    (END, READY, DESTROYING): Destroy,
    (END, LOST, NONE): Destroy,
    (END, LOST, CREATING): Destroy,
    (END, LOST, DESTROYING): Destroy,
}


@pytest.mark.parametrize("triple", ALL, ids="-".join)
def test_what_each_triple_asks_for_when_the_provider_has_nothing(
    triple: tuple[Desired, Observed, Operation],
) -> None:
    row = lease(triple=triple, outcome=Outcome.FAILED if triple[0] is END else None)
    actions = plan([row], at(seen={}), LIMITS)
    expected = EXPECTED[triple]
    if expected is None:
        assert actions == ()
    elif isinstance(expected, Outcome):
        assert [a.outcome for a in actions if isinstance(a, End)] == [expected]
    else:
        assert [type(a) for a in actions] == [expected]


@pytest.mark.parametrize("triple", ALL, ids="-".join)
def test_what_each_triple_asks_for_when_the_runner_is_there(
    triple: tuple[Desired, Observed, Operation],
) -> None:
    row = lease(triple=triple, outcome=Outcome.FAILED if triple[0] is END else None)
    actions = plan([row], at(seen=seen(row.runner)), LIMITS)
    expected = {(RUN, READY, NONE): None, (END, ABSENT, NONE): Destroy}.get(
        triple, EXPECTED[triple]
    )
    if expected is None:
        assert actions == ()
    elif isinstance(expected, Outcome):
        assert [a.outcome for a in actions if isinstance(a, End)] == [expected]
    else:
        assert [type(a) for a in actions] == [expected]


@pytest.mark.parametrize("triple", ALL, ids="-".join)
def test_one_provider_call_of_a_kind_at_a_time(
    triple: tuple[Desired, Observed, Operation],
) -> None:
    row = lease(triple=triple, outcome=Outcome.FAILED if triple[0] is END else None)
    busy = frozenset({row.runner})
    facts = at(seen=seen(row.runner), creating=busy, destroying=busy, stale=busy)
    assert not [a for a in plan([row], facts, LIMITS) if isinstance(a, Create | Destroy | Close)]


# Endings of a running build.


def outcome(row: Lease, facts: Facts) -> Outcome | None:
    ends = [a.outcome for a in plan([row], facts, LIMITS) if isinstance(a, End)]
    return ends[0] if ends else None


def test_a_silent_client_is_lost_after_the_grace() -> None:
    facts = {"seen": seen("aaaa-1")}
    assert outcome(ready(), at(29.9, **facts)) is None
    assert outcome(ready(), at(30, **facts)) is Outcome.CLIENT_LOST
    assert outcome(lease(), at(30)) is Outcome.CLIENT_LOST
    assert outcome(lease(triple=(RUN, ABSENT, CREATING)), at(30)) is Outcome.CLIENT_LOST


def test_once_clients_can_be_heard_again_every_one_has_the_grace_anew() -> None:
    facts = {"heard_since": NOW + timedelta(hours=0.5), "seen": seen("aaaa-1")}
    assert outcome(ready(), at(1829.9, **facts)) is None
    assert outcome(ready(), at(1830, **facts)) is Outcome.CLIENT_LOST


def test_the_deadline_ends_a_build_that_lives() -> None:
    row = ready(expires_at=NOW + timedelta(days=1))
    assert outcome(row, at(3599.9, seen=seen("aaaa-1"))) is None
    assert outcome(row, at(3600, seen=seen("aaaa-1"))) is Outcome.BUDGET_EXCEEDED


def test_a_runner_that_its_watchdog_ended_is_over_budget_not_lost() -> None:
    row = replace(ready(expires_at=NOW + timedelta(days=1)), observed=LOST)
    assert outcome(row, at(3594)) is Outcome.RUNNER_LOST
    assert outcome(row, at(3596)) is Outcome.BUDGET_EXCEEDED


@pytest.mark.parametrize(("left_s", "slack_s", "over"), [(0, 0, True), (5, 5, True), (6, 5, False)])
def test_over_budget_counts_from_the_slack(left_s: float, slack_s: float, over: bool) -> None:
    end = over_budget(ready(), NOW + timedelta(seconds=3600 - left_s), slack_s)
    assert (end is not None) == over
    assert over_budget(lease(), NOW + timedelta(days=9)) is None, "nothing to be over yet"


def test_waiting_for_room_is_bounded() -> None:
    row = lease(expires_at=NOW + timedelta(days=1))
    assert outcome(row, at(899.9)) is None
    assert outcome(row, at(900)) is Outcome.QUEUE_TIMEOUT


def test_making_a_runner_is_bounded() -> None:
    row = lease(triple=(RUN, ABSENT, CREATING), expires_at=NOW + timedelta(days=1))
    assert outcome(row, at(2699.9)) is None
    assert outcome(row, at(2700)) is Outcome.INFRASTRUCTURE


def test_reasons_are_for_people() -> None:
    (end,) = plan([lease()], at(30), LIMITS)
    assert isinstance(end, End)
    assert end.reason == "no heartbeat from the client for 30 s"


# What the provider says, and when it says nothing.


def test_a_list_that_is_older_than_the_runner_does_not_lose_it() -> None:
    assert plan([ready()], at(seen={}, stale=frozenset({"aaaa-1"})), LIMITS) == ()
    assert plan([ready()], at(seen=None), LIMITS) == ()


def test_a_runner_is_closed_only_when_a_later_list_lacks_it() -> None:
    row, done = ended(operation=DESTROYING), frozenset({"aaaa-1"})
    assert plan([row], at(seen={}, destroyed=done), LIMITS) == (Close(row),)
    assert plan([row], at(seen={}, destroyed=done, stale=done), LIMITS) == ()
    assert plan([row], at(seen=None, destroyed=done), LIMITS) == ()
    again = plan([row], at(seen=seen("aaaa-1"), destroyed=done), LIMITS)
    assert [type(a) for a in again] == [Destroy]


def test_a_runner_that_no_lease_explains_is_destroyed_with_a_reason() -> None:
    (action,) = plan([ready()], at(seen=seen("aaaa-1", "zzzz-1")), LIMITS)
    assert action == Destroy("zzzz-1", "no open lease explains this runner")


def test_an_older_attempt_is_a_stranger() -> None:
    (action,) = plan([ready(attempt=2)], at(seen=seen("aaaa-1", "aaaa-2")), LIMITS)
    assert isinstance(action, Destroy)
    assert action.runner == "aaaa-1"


def test_a_stranger_being_destroyed_is_left_alone() -> None:
    busy = frozenset({"zzzz-1"})
    assert plan([], at(seen=seen("zzzz-1"), destroying=busy, stale=busy), LIMITS) == ()


def test_a_stranger_takes_room_until_it_is_gone() -> None:
    facts = at(seen=seen("zzzz-1", size="t3"))
    assert not [a for a in plan([lease()], facts, LIMITS) if isinstance(a, Admit)]
    assert used([], facts, LIMITS) == share(T3)


def test_the_edge_serves_ready_runners_and_those_about_to_be() -> None:
    making, over = lease("bbbb", (RUN, ABSENT, CREATING)), ended("cccc")
    leases = [ready(), making, over]
    assert edge_changes(leases, []) == (("aaaa-1",), ())
    assert edge_changes(leases, ["aaaa-1", "bbbb-1"]) == ((), ())
    assert edge_changes(leases, ["aaaa-1", "cccc-1", "dddd-1"]) == ((), ("cccc-1", "dddd-1"))


# The queue.


def admitted(leases: list[Lease], limits: Limits = LIMITS) -> list[str]:
    return [a.lease.id for a in plan(leases, at(), limits) if isinstance(a, Admit)]


def test_the_oldest_goes_first_and_is_not_overtaken() -> None:
    large, small = lease("old", size=T3), lease("new", size=T1)
    holder = lease("has", (RUN, READY, NONE), size=T1)
    assert admitted([holder, large, small]) == []
    assert admitted([large, small]) == ["old"]
    assert admitted([holder, small, large]) == ["new"]


def test_leases_of_one_source_take_turns_and_hold_back_nobody() -> None:
    def asked(name: str, slot: str, **more: Any) -> Lease:
        return lease(name, trusted=False, terms=Terms(slot=slot, alone=True), **more)

    ready = (Desired.RUNNING, Observed.READY, Operation.NONE)
    rows = [asked("a", "7"), asked("b", "7"), asked("c", "8"), lease("d"), lease("e")]
    assert plan(rows, at(seen={}), LIMITS) == tuple(Admit(rows[n]) for n in (0, 2, 3, 4))
    running = [asked("a", "7", triple=ready, ready_at=NOW), *rows[1:]]
    there = at(seen=seen("a-1"))
    assert plan(running, there, LIMITS) == tuple(Admit(rows[n]) for n in (2, 3, 4))
    over = (Desired.ENDED, Observed.READY, Operation.NONE)
    ended = [asked("a", "7", triple=over, outcome=Outcome.CANCELLED), *rows[1:]]
    assert Admit(rows[1]) in plan(ended, there, LIMITS)
    elsewhere = replace(rows[1], request=replace(rows[1].request, repo="team/other"))
    assert Admit(elsewhere) in plan([rows[0], elsewhere], at(seen={}), LIMITS)


def test_an_ended_lease_holds_its_room_until_closed() -> None:
    row = replace(ended(operation=DESTROYING), size=T3)
    assert admitted([row, lease("new")]) == []
    assert admitted([states.closed(row), lease("new")]) == ["new"]


def test_cpus_are_limited_too() -> None:
    narrow = replace(LIMITS, cpus=2)
    assert admitted([lease("a"), lease("b"), lease("c")], narrow) == ["a", "b"]


ROWS = st.lists(
    st.tuples(st.sampled_from(ALL), st.sampled_from([T1, T2, T3]), st.booleans()), max_size=12
)


def rows(drawn: list[tuple[Any, Any, bool]]) -> list[Lease]:
    return [
        lease(
            f"l{n}",
            triple,
            size=size,
            outcome=Outcome.FAILED if triple[0] is END else None,
            expires_at=NOW + timedelta(seconds=-1 if silent else 30),
        )
        for n, (triple, size, silent) in enumerate(drawn)
    ]


@given(ROWS, st.integers(0, 16), st.integers(0, 16), st.integers(0, 64))
def test_never_more_is_admitted_than_the_limits(
    drawn: list[Any], memory_gib: int, cpus: int, disk_gib: int
) -> None:
    limits = replace(LIMITS, memory_bytes=memory_gib * GIB, cpus=cpus, disk_bytes=disk_gib * GIB)
    leases = rows(drawn)
    before = used(leases, at(), limits)
    actions = plan(leases, at(), limits)
    new = [share(a.lease.size) for a in actions if isinstance(a, Admit)]
    if new:
        assert sum(new, before).within(limits.share)


@given(ROWS)
def test_the_queue_is_first_in_first_out(drawn: list[Any]) -> None:
    leases = rows(drawn)
    actions = plan(leases, at(), LIMITS)
    ending = {a.lease.id for a in actions if isinstance(a, End)}
    waiting = [row.id for row in leases if states.is_queued(row) and row.id not in ending]
    chosen = [a.lease.id for a in actions if isinstance(a, Admit)]
    assert chosen == waiting[: len(chosen)]


@given(ROWS)
def test_one_action_for_each_lease_at_most(drawn: list[Any]) -> None:
    leases = rows(drawn)
    facts = at(seen=seen(*(row.runner for row in leases[::2] if not states.is_closed(row))))
    actions = plan(leases, facts, LIMITS)
    named = [a.lease.id for a in actions if a.lease is not None]
    assert len(named) == len(actions) == len(set(named))


# The first outcome wins.

STEPS = st.lists(
    st.sampled_from(["end", "report", "alive", "lost", "admitted", "destroying", "closed"]),
    max_size=8,
)


@given(st.sampled_from([t for t in ALL if t[0] is RUN]), STEPS)
def test_the_first_outcome_wins_and_stays(triple: Any, steps: list[str]) -> None:
    row = lease(triple=triple)
    won: Outcome | None = None
    for number, step in enumerate(steps):
        now = NOW + timedelta(seconds=number)
        if step == "end":
            row = states.ended(row, Outcome.CANCELLED, "", now)
        elif step == "report":
            row = states.reported(row, Outcome.SUCCEEDED, now)
        elif step == "alive":
            row = states.alive(row, now, 30)
        elif step == "admitted":
            row = states.admitted(row, now)
        else:
            row = getattr(states, step)(row)
        if won is None:
            won = row.outcome
        assert row.outcome is won
        assert (row.outcome is None) == states.is_running(row)


@pytest.mark.parametrize("outcome", [Outcome.BUDGET_EXCEEDED, Outcome.DISK_FULL])
def test_a_runner_that_its_provider_ended_has_the_providers_outcome(outcome: Outcome) -> None:
    runners = {"aaaa-1": replace(seen("aaaa-1")["aaaa-1"], ready=False, ended=outcome)}
    (action,) = plan([ready()], at(seen=runners), LIMITS)
    assert isinstance(action, End)
    assert action.outcome is outcome
    assert action.reason
    over = replace(ready(), desired=END, outcome=outcome, ended_at=NOW)
    (destroy,) = plan([over], at(seen=runners), LIMITS)
    assert isinstance(destroy, Destroy)


def test_a_list_from_before_says_nothing_of_a_runners_end() -> None:
    runners = {"aaaa-1": replace(seen("aaaa-1")["aaaa-1"], ended=Outcome.DISK_FULL)}
    assert plan([ready()], at(seen=runners, stale=frozenset({"aaaa-1"})), LIMITS) == ()


def gib_free(gib: float, *runners: Runner, **more: Any) -> Facts:
    return at(disk_free_bytes=int(gib * GIB), seen={r.name: r for r in runners}, **more)


def test_a_build_is_let_in_when_its_whole_disk_is_free() -> None:
    assert plan([lease(size=T1)], gib_free(5), LIMITS) == (Admit(lease(size=T1)),)
    reserving = replace(LIMITS, disk_reserve_bytes=1)
    (end,) = plan([lease(size=T1)], gib_free(5), reserving)
    assert isinstance(end, End)
    assert end.outcome is Outcome.MACHINE_UNFIT
    assert "needs 5.0 GiB of disk" in end.reason


def test_what_runners_may_still_write_is_not_given_away() -> None:
    one = ready("aaaa", size=T1)
    runner = replace(seen("aaaa-1")["aaaa-1"], disk_used_bytes=3 * GIB)
    assert plan([one, lease("bbbb")], gib_free(6.9, runner), LIMITS) == ()
    assert plan([one, lease("bbbb")], gib_free(7, runner), LIMITS) == (Admit(lease("bbbb")),)


def test_a_build_waits_for_disk_that_others_will_give_back() -> None:
    assert plan([ready(), lease("bbbb")], gib_free(1, *seen("aaaa-1").values()), LIMITS) == ()
    assert plan([lease()], at(disk_free_bytes=0), LIMITS) == ()  # nobody knows yet what runs


def test_the_pools_disk_is_no_more_than_configured() -> None:
    small = replace(LIMITS, disk_bytes=9 * GIB)
    (admit,) = plan([lease("aaaa"), lease("bbbb")], gib_free(500), small)
    assert admit == Admit(lease("aaaa"))
