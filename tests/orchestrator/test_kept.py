"""Runners of failed builds that are kept, and further keys for runners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build import ssh
from mayfly.client import Client
from mayfly.errors import Conflict, Denied, InfrastructureError, NotFound
from mayfly.model import Desired, Lease, LeaseRequest, Observed, Operation, Outcome
from mayfly.orchestrator import plan, states
from mayfly.orchestrator.limits import Limits
from mayfly.registry import tokens
from tests.orchestrator.leases import (
    KEY,
    NOW,
    SIGNING,
    T1,
    T2,
    Farm,
    configuration,
    farm,
    lease,
    seen,
)

LIMITS = Limits(
    memory_bytes=T1.memory_bytes,
    cpus=4,
    disk_bytes=1 << 40,
    sizes=(T1, T2),
    queue_timeout_s=900,
    grace_s=30,
)
READY = (Desired.RUNNING, Observed.READY, Operation.NONE)
OTHER = ssh.public_line(ssh.new_key())


def running(keep_min: float = 30, **more: Any) -> Lease:
    request = LeaseRequest("team/app", KEY, keep_min=keep_min)
    times = {"ready_at": NOW, "deadline": NOW + timedelta(hours=1)}
    return lease("aaaa", READY, request=request, **{**times, **more})


def failed(row: Lease, outcome: Outcome = Outcome.FAILED, longest_s: float = 1800) -> Lease:
    return states.kept(states.ended(row, outcome, "", NOW), longest_s)


def facts(**more: Any) -> plan.Facts:
    return plan.Facts(**{"now": NOW, "heard_since": NOW, "seen": seen("aaaa-1"), **more})


@given(
    asked_min=st.floats(0, 10_000),
    longest_s=st.floats(0, 7200),
    left_s=st.floats(1, 7200),
    outcome=st.sampled_from(Outcome),
    trusted=st.booleans(),
    triple=st.sampled_from(sorted(plan.TABLE)),
)
def test_a_runner_is_kept_no_longer_than_asked_allowed_and_its_deadline(
    asked_min: float,
    longest_s: float,
    left_s: float,
    outcome: Outcome,
    trusted: bool,
    triple: tuple[Desired, Observed, Operation],
) -> None:
    deadline = NOW + timedelta(seconds=left_s)
    row = running(asked_min, deadline=deadline, trusted=trusted)
    row = replace(row, desired=triple[0], observed=triple[1], operation=triple[2])
    after = failed(row, outcome, longest_s)
    if after.kept_until is None:
        return
    assert trusted and outcome in states.LOOKED_INTO and triple == READY
    seconds = (after.kept_until - NOW).total_seconds()
    assert 0 < seconds <= min(asked_min * 60, longest_s, left_s) + 0.001
    assert states.is_kept(after) and states.holds_room(after) and not states.is_running(after)
    assert states.word(after) == "kept"


def test_what_is_kept_stays_until_its_time_and_takes_room_so_long() -> None:
    row = failed(running())
    assert row.kept_until == NOW + timedelta(minutes=30)
    waits = lease("bbbb")
    assert plan.plan([row, waits], facts(), LIMITS) == ()
    assert plan.used([row], facts(), LIMITS).memory_bytes == T1.memory_bytes
    assert plan.edge_changes([row], ["aaaa-1"]) == ((), ())
    assert plan.edge_changes([row], []) == (("aaaa-1",), ())
    later = facts(now=row.kept_until)
    assert isinstance(plan.plan([row], later, LIMITS)[0], plan.Destroy)


@pytest.mark.parametrize("how", ["gone", "ended by its watchdog", "given up"])
def test_what_is_kept_goes_early(how: str) -> None:
    row, now = failed(running()), facts()
    match how:
        case "gone":
            now = facts(seen={})
        case "ended by its watchdog":
            ended = replace(seen("aaaa-1")["aaaa-1"], ended=Outcome.BUDGET_EXCEEDED)
            now = facts(seen={"aaaa-1": ended})
        case _:
            row = states.let_go(row)
    assert isinstance(plan.plan([row], now, LIMITS)[0], plan.Destroy)
    assert row.outcome is Outcome.FAILED


@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_is_worth_a_look_is_kept_and_nothing_untrusted(outcome: Outcome) -> None:
    assert states.is_kept(failed(running(), outcome)) is (outcome in states.LOOKED_INTO)
    assert not states.is_kept(failed(running(trusted=False), outcome))
    assert not states.is_kept(failed(running(keep_min=0), outcome))
    assert not states.is_kept(failed(running(), outcome, longest_s=0))


def test_letting_go_changes_nothing_else() -> None:
    for row in (running(), failed(running(0)), lease()):
        assert states.let_go(row) == row


@pytest.fixture
async def f(tmp_path: Path) -> AsyncIterator[Farm]:
    async with farm(configuration(tmp_path)) as f:
        yield f


async def asked(f: Farm, keep_min: float = 30) -> tuple[str, Client]:
    """A lease whose runner is ready, and the API as its holder sees it."""
    told = await f.api.ask(LeaseRequest("team/app", KEY, "t1", keep_min=keep_min), "")
    await f.until(told["id"], "ready")
    return told["id"], f.api.holding(told["token"])


async def report(api: Client, build: str, outcome: Outcome = Outcome.FAILED) -> Any:
    return await api.report(build, outcome=outcome)


async def test_a_failed_build_is_kept_and_its_client_told_so(f: Farm) -> None:
    build, holder = await asked(f)
    verdict = await report(holder, build)
    assert (verdict["verdict"], verdict["outcome"]) == ("done", "failed")
    assert verdict["kept_until"] == "2026-11-24T12:30:00.000Z"
    (shown,) = (await f.api.status())["leases"]
    assert (shown["state"], shown["kept_until"]) == ("kept", verdict["kept_until"])
    assert shown["exit_code"] == 1 and shown["runner"] is None
    pool = (await f.api.status())["pool"]
    assert pool["memory_used_bytes"] == T1.memory_bytes
    f.clock.forward(30 * 60)
    await f.until(build, "ended")
    assert await f.provider.list() == ()


async def test_the_farm_allows_less_than_the_client_asks_for(tmp_path: Path) -> None:
    config = configuration(tmp_path).model_copy(
        update={"lease": configuration(tmp_path).lease.model_copy(update={"max_keep_min": 2})}
    )
    async with farm(config) as f:
        build, holder = await asked(f)
        assert (await report(holder, build))["kept_until"] == "2026-11-24T12:02:00.000Z"


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.INFRASTRUCTURE])
async def test_nothing_else_is_kept(f: Farm, outcome: Outcome) -> None:
    build, holder = await asked(f)
    assert (await report(holder, build, outcome))["kept_until"] is None
    await f.until(build, "ended")


async def test_lease_rm_ends_the_keeping_and_leaves_the_outcome(f: Farm) -> None:
    build, holder = await asked(f)
    await report(holder, build)
    await f.api.end(build)
    row = await f.until(build, "ended")
    assert (row.outcome, row.kept_until) == (Outcome.FAILED, None)
    assert await f.provider.list() == ()


async def test_a_kept_runner_outlives_its_orchestrator(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    async with farm(config) as f:
        build, holder = await asked(f)
        await report(holder, build)
    async with farm(config, f.provider, f.edge, f.clock) as g:
        await g.settled(lambda: ("list", "") in g.provider.calls[-3:])
        assert states.word(g.ledger.get(build)) == "kept"
        g.clock.forward(31 * 60)
        await g.until(build, "ended")


async def test_what_people_use_of_a_kept_runner_is_not_the_builds(f: Farm) -> None:
    build, holder = await asked(f)
    await report(holder, build)
    f.provider.calls.clear()
    await f.api.end(build)
    await f.until(build, "ended")
    assert ("usage", f"{build}-1") not in f.provider.calls


@pytest.mark.parametrize("state", ["ready", "kept"])
async def test_one_more_key_is_let_in_with_a_token_for_the_way_and_nothing_else(
    f: Farm, state: str
) -> None:
    build, holder = await asked(f)
    if state == "kept":
        await report(holder, build)
    view = await holder.authorize(build, f"{OTHER} a comment")
    assert f.provider.keys == {f"{build}-1": [" ".join(OTHER.split()[:2])]}
    runner = view["runner"]
    assert runner and runner["ssh_host_key"].startswith("ssh-ed25519 ")
    claims = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE).verify(runner["token"], NOW)
    assert (claims.lease, claims.attempt, claims.access) == (build, 1, ())
    until = 60 if state == "ready" else 30
    assert (claims.expires_at - NOW).total_seconds() == pytest.approx(until * 60, abs=61)
    assert f"lease:{build} has opened a way into the runner" in f.ledger.hub.lines(build)


async def test_only_the_holder_and_the_farm_let_a_key_in(f: Farm) -> None:
    build, _ = await asked(f)
    _, other = await asked(f)
    with pytest.raises(Denied):
        await other.authorize(build, OTHER)
    await f.api.authorize(build, OTHER)
    assert len(f.provider.keys) == 1


async def test_a_build_without_a_runner_lets_nobody_in(f: Farm) -> None:
    build, holder = await asked(f, keep_min=0)
    await report(holder, build)
    await f.until(build, "ended")
    with pytest.raises(Conflict, match="has no runner now: it is ended - a failed build's is kept"):
        await holder.authorize(build, OTHER)
    with pytest.raises(NotFound):
        await f.api.authorize("nothing", OTHER)
    assert f.provider.keys == {}


async def test_a_guest_that_takes_no_key_is_said(f: Farm) -> None:
    build, holder = await asked(f)
    f.provider.fail("authorize", InfrastructureError("the guest's agent refused `authorize`: x"))
    with pytest.raises(InfrastructureError, match="refused `authorize`"):
        await holder.authorize(build, OTHER)
