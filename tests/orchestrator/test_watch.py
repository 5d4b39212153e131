"""What is done about a runner that runs short: the rules, then the loop that carries them out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import InfrastructureError, Unreachable
from mayfly.ladder import share
from mayfly.model import (
    GIB,
    MIB,
    Desired,
    Lease,
    LeaseRequest,
    Load,
    Observed,
    Operation,
    Outcome,
    Usage,
)
from mayfly.orchestrator import plan, reconcile, watch
from mayfly.orchestrator.watch import DiskLow, Grow, Pool, Refuse, Thrash, decide, verdict
from mayfly.usage import Evidence, Point, Step
from mayfly.vm.fake import Fake
from tests.orchestrator.leases import KEY, NOW, T1, T2, T3, Farm, configuration, farm
from tests.orchestrator.leases import lease as any_lease

SIZES = (T1, T2, T3)
READY = (Desired.RUNNING, Observed.READY, Operation.NONE)
ROOM = Pool(64 * GIB, waiting=False, sizes=SIZES)


def lease(**more: Any) -> Lease:
    return any_lease(triple=READY, **{"size": T2, "ready_at": NOW, **more})


def load(**more: Any) -> Load:
    fields: dict[str, Any] = {
        "at_s": 60.0,
        "memory_bytes": GIB,
        "total_bytes": 2 * GIB,
        "available_bytes": GIB,
        "falling_bytes_s": 0,
        "stalled_s": 0.0,
        "disk_total_bytes": 8 * GIB,
        "disk_free_bytes": 4 * GIB,
        "filling_bytes_s": 0,
        "oom_kills": 0,
    }
    return Load(**{**fields, **more})


SHORT = load(available_bytes=100 * MIB)
AT = NOW + timedelta(seconds=61)

loads = st.builds(
    load,
    at_s=st.floats(0, 100),
    total_bytes=st.integers(GIB, 4 * GIB),
    available_bytes=st.integers(0, 2 * GIB),
    falling_bytes_s=st.integers(0, 2 * GIB),
    stalled_s=st.floats(0, 60),
    disk_free_bytes=st.integers(0, 8 * GIB),
)
leases = st.builds(
    lease,
    size=st.sampled_from(SIZES),
    grown_bytes=st.integers(0, 16).map(lambda n: n * 128 * MIB),
    trusted=st.booleans(),
    request=st.builds(LeaseRequest, st.just("o/r"), st.just(KEY), grow=st.booleans()),
)
pools = st.builds(Pool, st.integers(0, 8 * GIB), st.booleans(), st.just(SIZES), grow=st.booleans())


@given(loads, leases, pools)
def test_growth_is_never_more_than_a_rung_nor_than_the_pool_has(
    seen: Load, row: Lease, pool: Pool
) -> None:
    decision = decide(seen, row, pool, AT)
    if isinstance(decision, Grow):
        assert pool.grow and row.request.grow
        assert row.trusted or not pool.waiting
        assert 0 < decision.more_bytes <= pool.free_bytes
        assert decision.more_bytes % (128 * MIB) == 0
        whole = row.size.memory_bytes + row.grown_bytes + decision.more_bytes
        assert whole <= watch.ceiling_bytes(row.size, SIZES)
        assert watch.is_low(seen)


@given(loads, leases, pools, st.integers(0, 2 * GIB))
def test_who_has_more_memory_left_is_never_given_more(
    seen: Load, row: Lease, pool: Pool, more: int
) -> None:
    def given_bytes(it: Load) -> int:
        decision = decide(it, row, pool, AT)
        return decision.more_bytes if isinstance(decision, Grow) else 0

    better = replace(seen, available_bytes=seen.available_bytes + more)
    assert given_bytes(better) <= given_bytes(seen)


@given(loads, leases, pools)
def test_a_build_is_ended_only_after_long_standing_still_without_help(
    seen: Load, row: Lease, pool: Pool
) -> None:
    if isinstance(decide(seen, row, pool, AT), Thrash):
        assert seen.stalled_s >= watch.THRASH_S
        assert isinstance(decide(replace(seen, stalled_s=1.0), row, pool, AT), Refuse)


@given(leases, pools)
def test_high_memory_alone_ends_nothing(row: Lease, pool: Pool) -> None:
    full = load(available_bytes=0, memory_bytes=2 * GIB)
    assert not isinstance(decide(full, row, pool, AT), Thrash)


@pytest.mark.parametrize(
    ("seen", "row", "pool", "decision"),
    [
        (load(), lease(), ROOM, None),
        (SHORT, lease(), ROOM, Grow(GIB)),  # half of the way to t3
        (SHORT, lease(grown_bytes=GIB), ROOM, None),  # 2 of 3 GiB: it is on its way
        (replace(SHORT, total_bytes=3 * GIB), lease(grown_bytes=GIB), ROOM, Grow(512 * MIB)),
        (
            replace(SHORT, total_bytes=4 * GIB),
            lease(grown_bytes=2 * GIB),
            ROOM,
            Refuse("it has all the memory that one rung more has"),
        ),
        # 200 MB/s: what a step of 1 GiB adds is gone in 5 s, so all of it at once.
        (load(available_bytes=600 * MIB, falling_bytes_s=200 * MIB), lease(), ROOM, Grow(2 * GIB)),
        (load(available_bytes=900 * MIB, falling_bytes_s=200 * MIB), lease(), ROOM, None),
        (load(stalled_s=5.0), lease(), ROOM, Grow(2 * GIB)),
        (SHORT, lease(), replace(ROOM, free_bytes=700 * MIB), Grow(640 * MIB)),
        (
            SHORT,
            lease(),
            replace(ROOM, free_bytes=200 * MIB),
            Refuse("the pool has no memory left"),
        ),
        (SHORT, lease(), replace(ROOM, grow=False), Refuse("growth is turned off")),
        (SHORT, lease(), replace(ROOM, waiting=True), Grow(GIB)),
        (
            SHORT,
            lease(trusted=False),
            replace(ROOM, waiting=True),
            Refuse("others wait for room, and what is not trusted grows only in an idle pool"),
        ),
        (SHORT, lease(trusted=False), ROOM, Grow(GIB)),
        (replace(SHORT, at_s=1.0), lease(), ROOM, None),  # seen a minute ago
        (load(stalled_s=25.0), lease(), ROOM, Grow(2 * GIB)),
        (
            load(stalled_s=25.0),
            lease(),
            replace(ROOM, grow=False),
            Thrash("it made no progress for 25 s for want of memory (growth is turned off)"),
        ),
        (
            load(disk_free_bytes=100 * MIB),
            lease(),
            ROOM,
            DiskLow("the disk is almost full: 100 MiB of 8.0 GiB are left"),
        ),
    ],
)
def test_what_is_decided(seen: Load, row: Lease, pool: Pool, decision: object) -> None:
    assert decide(seen, row, pool, AT) == decision


# --- the outcome -----------------------------------------------------------------------------


def used(**more: Any) -> Usage:
    fields: dict[str, Any] = {
        "memory_bytes": 2 * GIB,
        "memory_peak_bytes": 2 * GIB,
        "cpu": 1.0,
        "disk_bytes": GIB,
        "oom_kills": 0,
        "samples": 10,
        "disk_free_bytes": GIB,
    }
    return Usage(**{**fields, **more})


@pytest.mark.parametrize(
    ("claimed", "usage", "outcome"),
    [
        (Outcome.FAILED, used(oom_kills=1), Outcome.OOM),
        (Outcome.INFRASTRUCTURE, used(oom_kills=1), Outcome.OOM),  # buildkitd itself was killed
        (Outcome.SUCCEEDED, used(oom_kills=1), Outcome.SUCCEEDED),
        (Outcome.CANCELLED, used(oom_kills=1), Outcome.CANCELLED),
        (Outcome.FAILED, used(), Outcome.FAILED),  # by its own fault, with high memory
        (Outcome.FAILED, None, Outcome.FAILED),
        (Outcome.FAILED, used(disk_free_bytes=MIB), Outcome.DISK_FULL),
        (Outcome.SUCCEEDED, used(disk_free_bytes=MIB), Outcome.SUCCEEDED),
        (Outcome.FAILED, used(disk_free_bytes=None), Outcome.FAILED),
    ],
)
def test_the_runners_side_goes_before_the_clients_word(
    claimed: Outcome, usage: Usage | None, outcome: Outcome
) -> None:
    assert verdict(claimed, "mine", usage, lease())[0] is outcome


def test_a_build_that_succeeded_although_something_was_killed_says_so() -> None:
    _, reason = verdict(Outcome.SUCCEEDED, "", used(oom_kills=2), lease())
    assert "it succeeded, but the kernel killed 2 times for want of memory" in reason


# --- the loop --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    monkeypatch.setattr(reconcile, "EDGE_TICK_S", 0.05)
    monkeypatch.setattr(reconcile, "BACKOFF_S", (0.02,))


async def ready(f: Farm, size: str = "t2", *, grow: bool = True) -> Lease:
    request = LeaseRequest(repo="team/app", ssh_public_key=KEY, size=size, grow=grow)
    return await f.until((await f.api.ask(request, ""))["id"], "ready")


async def test_memory_is_written_down_before_it_is_given(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=4)) as f:
        row = await ready(f)
        release = f.provider.hold("grow")
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: ("grow", row.runner) in f.provider.calls)
        assert f.ledger.get(row.id).grown_bytes == GIB
        assert plan.used(f.ledger.open(), f.reconciler.facts(), f.reconciler._limits) == replace(
            share(T2), memory_bytes=3 * GIB
        )
        f.provider.show(row.runner, load(at_s=0.0, total_bytes=3 * GIB))
        release()
        await f.settled(lambda: f.provider.memory_bytes.get(row.runner) == 3 * GIB)
        build = await f.api.build(row.id)
        assert build["attempts"][0]["granted_memory_bytes"] == 3 * GIB


async def test_memory_that_could_not_be_given_is_the_pools_again_and_not_asked_for_twice(
    tmp_path: Path,
) -> None:
    async with farm(configuration(tmp_path, memory_gb=4)) as f:
        row = await ready(f)
        f.provider.fail("grow", InfrastructureError("no slot"), times=9)
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: ("grow", row.runner) in f.provider.calls)
        await f.settled(lambda: f.ledger.get(row.id).grown_bytes == 0)
        listed = f.provider.calls.count(("list", ""))
        await f.settled(lambda: f.provider.calls.count(("list", "")) > listed + 3)
        assert f.provider.calls.count(("grow", row.runner)) == 1


async def test_what_a_full_pool_refuses_is_told_once(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=4)) as f:
        row, _ = await ready(f), await ready(f)
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: any("no memory left" in x for x in f.ledger.hub.lines(row.id)))
        listed = f.provider.calls.count(("list", ""))
        await f.settled(lambda: f.provider.calls.count(("list", "")) > listed + 3)
        assert sum("no memory" in line for line in f.ledger.hub.lines(row.id)) == 1
        assert ("grow", row.runner) not in f.provider.calls


async def test_nothing_grows_beyond_what_the_next_build_could_be_given(tmp_path: Path) -> None:
    """The rung above is larger than this machine: a build that used it would be refused then."""
    async with farm(configuration(tmp_path, memory_gb=3)) as f:
        row = await ready(f)
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: any("all the memory" in x for x in f.ledger.hub.lines(row.id)))
        assert ("grow", row.runner) not in f.provider.calls


async def test_memory_that_may_have_been_given_is_kept_for_it(tmp_path: Path) -> None:
    """The host was restarted, or took too long: whether the guest has it nobody knows."""
    async with farm(configuration(tmp_path, memory_gb=4)) as f:
        row = await ready(f)
        f.provider.fail("grow", Unreachable("the host program does not answer"))
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: ("grow", row.runner) in f.provider.calls)
        await asyncio.sleep(0.1)
        assert f.ledger.get(row.id).grown_bytes > 0


async def test_what_thrashed_has_left_a_sample(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=2)) as f:
        row = await ready(f)
        point = Point(1.0, GIB, 0, GIB, 0, 0.5, 0, 0, 1)
        usage = Usage(GIB, GIB, 1.0, GIB, oom_kills=0, samples=1)
        f.provider.show(row.runner, load(at_s=0.0, stalled_s=30.0), Evidence(usage, (point,), ()))
        row = await f.until(row.id, "ended")
        assert (row.outcome, row.usage) == (Outcome.OOM, usage)


@pytest.mark.parametrize("where", ["pool", "request"])
async def test_growth_can_be_turned_off(tmp_path: Path, where: str) -> None:
    async with farm(configuration(tmp_path, memory_gb=4, grow=where != "pool")) as f:
        row = await ready(f, grow=where != "request")
        f.provider.show(row.runner, replace(SHORT, at_s=0.0))
        await f.settled(lambda: any("turned off" in x for x in f.ledger.hub.lines(row.id)))
        assert ("grow", row.runner) not in f.provider.calls


async def test_a_build_that_thrashes_is_out_of_memory(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=2)) as f:
        row = await ready(f)
        f.provider.show(row.runner, load(at_s=0.0, stalled_s=30.0))
        row = await f.until(row.id, "ended")
        assert row.outcome is Outcome.OOM
        assert "no progress for 30 s" in row.reason


async def test_a_client_is_overruled_by_what_the_kernel_counted(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await ready(f, "t3")
        point = Point(1.0, GIB, 0, GIB, 0, 0.5, 0, 0, 1)
        evidence = Evidence(used(oom_kills=1), (point,), (Step("RUN x", 0.5, 0.9),))
        f.provider.show(row.runner, evidence=evidence)
        verdict = await f.api.report(row.id, outcome=Outcome.FAILED)
        assert verdict["outcome"] == "oom"
        row = await f.until(row.id, "ended")
        assert row.usage == evidence.usage
        shown = await f.api.usage(row.id)
        assert shown["oom_kills"] == 1 and shown["points"][0]["memory_bytes"] == GIB
        assert shown["steps"][0]["name"] == "RUN x"
        (attempt,) = (await f.api.build(row.id))["attempts"]
        assert (attempt["outcome"], attempt["oom_kills"]) == ("oom", 1)


@pytest.mark.parametrize("ends", ["report", "delete"])
async def test_the_last_look_comes_before_the_runner_goes(tmp_path: Path, ends: str) -> None:
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        row = await ready(f, "t1")
        provider.show(row.runner, evidence=Evidence(used()))
        if ends == "report":
            await f.api.report(row.id, outcome=Outcome.SUCCEEDED)
        else:
            await f.api.end(row.id)
        await f.until(row.id, "ended")
        calls = [operation for operation, runner in provider.calls if runner == row.runner]
        assert calls.index("destroy") == len(calls) - 1 and calls[-2] == "usage"
        assert f.ledger.get(row.id).usage == used()


async def test_a_provider_that_does_not_tell_changes_no_outcome(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await ready(f, "t1")
        f.provider.fail("usage", InfrastructureError("it thrashes"), times=5)
        assert (await f.api.report(row.id, outcome=Outcome.FAILED))["outcome"] == "failed"
        row = await f.until(row.id, "ended")
        assert row.usage is None
        assert (await f.api.usage(row.id))["memory_bytes"] is None
