"""From a lease to its record, to the next lease's size: with the real store, embedded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import InfrastructureError, NotFound, TooBig, Unreachable
from mayfly.model import (
    GIB,
    MIB,
    Attempt,
    BuildSpec,
    History,
    Lease,
    LeaseRequest,
    Outcome,
    Usage,
)
from mayfly.orchestrator import reconcile, states
from mayfly.orchestrator.forms import TokenForm
from mayfly.orchestrator.sizing import records as recording
from mayfly.orchestrator.sizing.records import Prices
from mayfly.store.metrics import MetricsStore
from tests.orchestrator.leases import ADMIN, KEY, T1, T2, Farm, configuration, farm

ROOT = {"Authorization": f"Bearer {ADMIN}"}
REQUEST = LeaseRequest("team/app", KEY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    monkeypatch.setattr(recording, "TICK_S", 0.05)


@pytest.fixture
async def f(tmp_path: Path) -> AsyncIterator[Farm]:
    async with farm(configuration(tmp_path)) as running:
        yield running


def used(memory: int, cpu: float = 0.5, **more: int) -> Usage:
    usage = Usage(memory, 2 * memory, cpu, GIB, oom_kills=0, samples=9)
    return replace(usage, **more)


async def build(
    f: Farm, usage: Usage | None, request: LeaseRequest = REQUEST, **more: Any
) -> Lease:
    """One build of which the runner saw `usage`, its record in the store."""
    lease_id = (await f.api.ask(request, ""))["id"]
    lease = await f.until(lease_id, "ready")
    f.clock.forward(20)
    if usage:
        f.records.finished(lease, usage, **more)
    await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
    lease = await f.until(lease_id, "ended")
    await f.settled(lambda: f.records._spool.count() == 0)
    return lease


async def test_the_second_build_after_a_kill_has_the_right_size_at_once(f: Farm) -> None:
    first = await build(f, used(900 * MIB, oom_kills=1))
    assert first.size == T1
    second = await build(f, used(1200 * MIB))
    assert second.size == T2
    why = await f.api.why(second.id)
    assert why["sizing"] and why["sizing"]["tier"] == "history"
    assert "more than the 1 GiB with which one was killed" in "\n".join(why["sizing"]["lines"])


@pytest.mark.parametrize("first", ["t1", "t2"])
async def test_twenty_builds_that_fill_their_vcpus_stay_on_one_rung(f: Farm, first: str) -> None:
    """t1, since no rung has more vCPUs than t2: what does not count as it is climbs from there."""
    sizes = set()
    for number in range(20):
        asked = replace(REQUEST, size=first) if number == 0 else REQUEST
        lease = await build(f, used(100 * MIB, cpu=0), asked)
        filled = used(100 * MIB, cpu=lease.size.cpus * (0.96 + number % 5 / 100))
        f.records.finished(lease, filled)
        await f.settled(lambda: f.records._spool.count() == 0)
        sizes.add(lease.size.name)
    assert sizes == {first}


async def test_what_grew_counts_by_what_it_needed_and_a_kill_by_all_it_had(f: Farm) -> None:
    await build(f, used(1500 * MIB), grown_bytes=GIB)
    assert (await f.records.decide(REQUEST)).size == T2
    lease = await build(f, used(1800 * MIB, oom_kills=1), grown_bytes=GIB)
    (record,) = await f.records._store.attempts(lease.id)
    assert record["memory_limit_bytes"] == lease.size.memory_bytes + GIB
    assert (await f.records.decide(REQUEST)).size.name == "t3"


async def test_what_counts_in_a_history(f: Farm) -> None:
    await build(f, None)
    await build(f, used(1500 * MIB), replace(REQUEST, event="pull_request"))
    await build(f, used(1500 * MIB, samples=0))
    assert (await f.records.decide(REQUEST)).history is None
    await build(f, used(1500 * MIB))
    assert (await f.records.decide(REQUEST)).history == History(1, 1500 * MIB, 0.5, 0, 0, "")


async def test_what_is_not_trusted_reads_the_history_and_makes_none(f: Farm) -> None:
    async def by(name: str, *, trusted: bool) -> Lease:
        form = TokenForm(name=name, repos=(REQUEST.repo,), trusted=trusted)
        holder = f.api.holding(f.service.give_token(form)["token"])
        return await build(replace(f, api=holder), used(1500 * MIB))

    apart = await by("apart", trusted=False)
    (record,) = await f.records._store.attempts(apart.id)
    assert (record["trusted"], record["counts"]) == (False, False)
    assert (await f.records.decide(REQUEST)).history is None
    assert (await by("proven", trusted=True)).size == T1
    assert (await by("other", trusted=False)).size == T2, "it goes by what trusted builds took"


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.INTERNAL, None])
async def test_whatever_a_client_says_or_not_the_next_size_is_the_same(
    f: Farm, outcome: Outcome | None
) -> None:
    """Nor does it change anything of what is written down but the outcome itself."""
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    lease = await f.until(lease_id, "ready")
    seen = used(1500 * MIB)
    f.clock.forward(20)
    f.records.finished(lease, seen)
    if outcome:
        lies = {"memory_bytes": 1, "cpu": 99, "vm_s": 0, "oom_kills": 5}
        await f.api.report(lease_id, outcome=outcome, timings_s=lies)
    else:
        f.clock.forward(11)
    await f.until(lease_id, "ended")
    await f.settled(lambda: f.records._spool.count() == 0)
    assert (await f.records.decide(REQUEST)).size == T2
    (record,) = await f.records._store.attempts(lease_id)
    assert record["usage"] == asdict(seen)
    told = (record["given"]["name"], record["grown_bytes"], record["vm_s"], record["counts"])
    assert told == ("t1", 0, 20, True)
    metrics = (await f.http.get("/metrics", headers=ROOT)).text
    assert 'mayfly_vm_seconds_total{size="t1"} 20.0' in metrics
    assert "oom_killed_total{" not in metrics


async def test_a_changed_spec_counts_at_once_and_a_branch_not_at_all(f: Farm) -> None:
    await build(f, used(1500 * MIB), replace(REQUEST, ref="main"))
    decide = f.records.decide
    assert (await decide(replace(REQUEST, ref="other"))).size == T2
    assert (await decide(replace(REQUEST, spec=BuildSpec(memory_gb=3)))).size.name == "t3"
    assert (await decide(replace(REQUEST, spec=BuildSpec(memory_gb=1)))).size == T2
    with pytest.raises(TooBig):
        await decide(replace(REQUEST, spec=BuildSpec(memory_gb=5)))


async def test_a_record_has_what_became_of_the_attempt(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    prices = config.metrics.model_copy(update={"price_cpu_hour": 3.6, "price_gib_hour": 7.2})
    async with farm(config.model_copy(update={"metrics": prices})) as f:
        request = replace(REQUEST, ref="main", target="release", event="push", size="t2")
        steps = [{"name": "RUN make", "memory_bytes": 5}]
        lease = await build(f, used(300 * MIB, cpu=1.5), request, steps=steps)
        (record,) = await f.records._store.attempts(lease.id)
    named = ("build", "attempt", "repo", "ref", "target", "event", "asked", "outcome", "trusted")
    assert {name: record[name] for name in named} == {
        "build": lease.id, "attempt": 1, "repo": "team/app", "ref": "main", "target": "release",
        "event": "push", "asked": "t2", "outcome": "succeeded", "trusted": True,
    }  # fmt: skip
    assert record["given"]["name"] == "t2"
    assert record["usage"]["cpu"] == 1.5
    assert record["steps"] == steps
    assert record["sizing"]["tier"] == "asked"
    assert record["ended_at"] == lease.ended_at
    assert record["vm_s"] == 20
    assert record["cost"] == pytest.approx((2 * 3.6 + 2 * 7.2) * 20 / 3600)


async def test_each_attempt_has_a_record_and_costs_once(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path), reconciling=False) as f:
        lease_id = (await f.api.ask(REQUEST, ""))["id"]
        f.ledger.change(lease_id, lambda row: states.admitted(row, f.clock.now))
        f.clock.forward(10)
        killed = Attempt(
            T1, Outcome.OOM, "killed", f.clock.now, usage=used(900 * MIB, oom_kills=1),
            timings_s={"queue": 0.0},
        )  # fmt: skip
        needed = used(1200 * MIB)
        f.ledger.change(
            lease_id, lambda row: replace(row, attempt=2, size=T2, earlier=(killed,), usage=needed)
        )
        f.clock.forward(7)
        await f.api.report(lease_id, outcome=Outcome.FAILED, attempt=2)
        f.ledger.change(lease_id, states.closed)
        await f.settled(lambda: f.records._spool.count() == 0)
        told = (await f.api.why(lease_id))["attempts"]
        assert [(one["size"], one["vm_s"], one["outcome"]) for one in told] == [
            ("t1", 10, "oom"),
            ("t2", 7, "failed"),
        ]
        history = (await f.records.decide(REQUEST)).history
        assert history is not None and (history.builds, history.killed_bytes) == (2, GIB)
        text = (await f.http.get("/metrics", headers=ROOT)).text
        assert 'mayfly_vm_seconds_total{size="t1"} 10.0' in text
        assert 'mayfly_vm_seconds_total{size="t2"} 7.0' in text
        assert f.records._finished == set()


def test_without_prices_nothing_costs() -> None:
    assert Prices().cost(T1, GIB, 3600) is None
    assert Prices(cpu_hour=2).cost(T2, GIB, 1800) == 2


async def test_a_build_that_never_had_a_vm_has_a_record_without_cost(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path), reconciling=False) as f:
        lease_id = (await f.api.ask(REQUEST, ""))["id"]
        f.clock.forward(50)
        await f.api.end(lease_id)
        await f.settled(lambda: f.records._spool.count() == 0)
        (record,) = await f.records._store.attempts(lease_id)
        assert (record["outcome"], record["vm_s"]) == ("cancelled", 0)


# The store is away.


class Away(MetricsStore):
    """A store that can be taken away, hung, or broken."""

    how = "away"

    async def open(self) -> None:
        if self.how == "away":
            self._db = None
            raise Unreachable("the database is away")
        await super().open()

    async def history(self, *args: Any) -> History | None:
        if self.how == "hung":
            await asyncio.sleep(60)
        if self.how == "broken":
            raise InfrastructureError("a record cannot be read")
        return await super().history(*args)


async def test_builds_go_on_without_the_store_and_their_records_come_later(tmp_path: Path) -> None:
    store = Away("mem://")
    async with farm(configuration(tmp_path), past=store) as f:
        lease_id = (await f.api.ask(REQUEST, ""))["id"]
        lease = await f.until(lease_id, "ready")
        assert lease.size == T1
        (line,) = [one for one in f.ledger.hub.lines(lease_id) if "size" in one]
        assert "the metrics store is away, so past builds do not count" in line
        f.records.finished(lease, used(1500 * MIB))
        await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
        await f.until(lease_id, "ended")
        assert f.records._spool.count() == 1
        why = await f.api.why(lease_id)
        assert why["attempts"][0]["memory_bytes"] == 1500 * MIB
        assert why["sizing"] and why["sizing"]["trouble"]
        assert why["trouble"]
        declared = replace(REQUEST, spec=BuildSpec(memory_gb=2))
        assert (await f.records.decide(declared)).size == T2
        metrics = (await f.http.get("/metrics", headers=ROOT)).text
        assert "mayfly_metrics_store_up 0.0" in metrics
        store.how = "there"
        await f.settled(lambda: f.records._spool.count() == 0)
        assert (await f.records.decide(REQUEST)).size == T2
        assert (await f.api.why(lease_id))["trouble"] == ""


class Picky(MetricsStore):
    """A store that never takes one build's records."""

    refused = ""

    async def put(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        given = list(records)
        if self.refused and any(runner.startswith(self.refused) for runner, _ in given):
            raise InfrastructureError("it is no record")
        await super().put(given)


async def test_a_record_that_is_refused_keeps_no_other_from_the_store(tmp_path: Path) -> None:
    store = Picky("mem://")
    async with farm(configuration(tmp_path), past=store) as f:
        builds = [(await f.api.ask(REQUEST, ""))["id"] for _ in range(2)]
        store.refused = builds[0]
        for build in builds:
            lease = await f.until(build, "ready")
            f.records.finished(lease, used(1500 * MIB))
        await f.settled(lambda: f.records._spool.count() == 0)
        assert [len(await store.attempts(build)) for build in builds] == [0, 1]


async def test_what_ran_beside_buildkit_is_no_history(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        for counts in (False, True):
            asked = replace(REQUEST, counts=counts)
            lease = await f.until((await f.api.ask(asked, ""))["id"], "ready")
            f.records.finished(lease, used(40 * MIB))
            await f.settled(lambda: f.records._spool.count() == 0)
            history = (await f.records.decide(REQUEST)).history
            assert (history is not None) is counts


@pytest.mark.parametrize(("how", "said"), [("hung", "is busy"), ("broken", "has a fault")])
async def test_a_store_that_hangs_or_breaks_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setattr(recording, "PATIENCE_S", 0.05)
    store = Away("mem://")
    store.how = how
    async with farm(configuration(tmp_path), past=store) as f:
        async with asyncio.timeout(30):
            decision = await f.records.decide(REQUEST)
        assert (decision.size, decision.history) == (T1, None)
        assert said in decision.trouble


async def test_records_that_waited_are_written_by_the_next_orchestrator(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path), past=Away("mem://")) as f:
        lease_id = (await f.api.ask(REQUEST, ""))["id"]
        f.records.finished(await f.until(lease_id, "ready"), used(1500 * MIB))
        await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
        await f.until(lease_id, "ended")
    async with farm(configuration(tmp_path)) as f:
        await f.settled(lambda: f.records._spool.count() == 0)
        (record,) = await f.records._store.attempts(lease_id)
        assert (record["outcome"], record["sizing"]["tier"]) == ("succeeded", "smallest")


async def test_a_spool_that_cannot_be_written_ends_no_build(
    f: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise InfrastructureError("the disk is full")

    monkeypatch.setattr(f.records._spool, "put", full)
    monkeypatch.setattr(f.records._spool, "decide", full)
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
    await f.until(lease_id, "ended")


async def test_old_records_are_pruned(f: Farm) -> None:
    lease = await build(f, used(GIB))
    f.clock.forward(timedelta(days=181).total_seconds())
    await f.settled(lambda: f.records._pruned_at == f.clock.now)
    assert await f.records._store.attempts(lease.id) == []


# The routes.


async def test_the_size_of_the_next_build_is_told_without_a_lease(f: Farm) -> None:
    told = await f.api.size(replace(REQUEST, languages=("Cargo.toml",)))
    assert (told["size"]["name"], told["tier"]) == ("t3", "default")
    assert "memory" in told["short"]
    assert f.ledger.open() == ()
    asked = await f.api.size(replace(REQUEST, size="t2"))
    assert (asked["size"]["name"], asked["tier"], asked["computed"]) == ("t2", "asked", "t1")


async def test_why_is_told_while_a_build_runs_and_to_who_may_read_it(f: Farm) -> None:
    asked = await f.api.ask(REQUEST, "")
    await f.until(asked["id"], "ready")
    why = await f.api.holding(asked["token"]).why(asked["id"])
    assert why["sizing"] and why["sizing"]["size"]["name"] == "t1"
    assert (why["repo"], why["attempts"]) == ("team/app", [])
    with pytest.raises(NotFound):
        await f.api.why("nope")


@pytest.mark.parametrize(
    ("asked", "size", "tier", "says"),
    [
        (
            {"spec": BuildSpec(memory_gb=3), "languages": ("go.mod",)},
            "t3",
            "declared",
            ["memory 3 GiB, declared in .build-spec.ncl", "declared: memory 3 GiB", "t2"],
        ),
        (
            {"spec": BuildSpec(memory_gb=1)},
            "t2",
            "history",
            ["what past builds of this repo took", "memory 1.2 x p95 1.46 GiB", "declared: memory"],
        ),
        (
            {"repo": "team/new", "languages": ("go.mod",)},
            "t3",
            "default",
            ["what is usual for the language", "history: no builds that count yet"],
        ),
        (
            {"repo": "team/new", "languages": ("go.mod", "pom.xml")},
            "t3",
            "default",
            ["default: java 4 vCPU and 8 GiB, go 2 vCPU and 4 GiB", "less than wanted: memory 4"],
        ),
    ],
    ids=["declared wins", "history wins", "default wins", "several languages"],
)
async def test_why_says_what_won_and_what_else_there_was(
    f: Farm, asked: dict[str, Any], size: str, tier: str, says: list[str]
) -> None:
    await build(f, used(1500 * MIB))
    lease = await build(f, used(100 * MIB), replace(REQUEST, **asked))
    why = await f.api.why(lease.id)
    assert why["sizing"] and (why["sizing"]["size"]["name"], why["sizing"]["tier"]) == (size, tier)
    text = "\n".join(why["sizing"]["lines"])
    for part in says:
        assert part in text
    assert [one["size"] for one in why["attempts"]] == [size]


async def test_where_no_rung_fits_the_refusal_is_the_reason(f: Farm) -> None:
    request = replace(REQUEST, spec=BuildSpec(memory_gb=5))
    for ask in (f.api.size(request), f.api.ask(request, "")):
        with pytest.raises(TooBig, match=r"declares \(memory 5 GiB\).*largest .* is t3"):
            await ask
    assert f.ledger.open() == (), "there is no build that one could ask about"


async def test_the_metrics_count_what_was_decided_and_used(f: Farm) -> None:
    await build(f, used(GIB, cpu=1, oom_kills=1))
    text = (await f.http.get("/metrics", headers=ROOT)).text
    for line in (
        'mayfly_sizes_decided_total{size="t1",tier="smallest"} 1.0',
        'mayfly_attempts_oom_killed_total{size="t1"} 1.0',
        'mayfly_vm_seconds_total{size="t1"} 20.0',
        "mayfly_attempt_memory_bytes_count 1.0",
        "mayfly_decide_seconds_count 1.0",
        "mayfly_metrics_store_up 1.0",
        "mayfly_records_waiting 0.0",
    ):
        assert line in text
