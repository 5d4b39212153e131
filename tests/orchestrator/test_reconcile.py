"""The loop over the fake provider: what ends where, restarts in the middle of each step."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.errors import InfrastructureError, MachineUnfit, Unreachable
from mayfly.model import GIB, LeaseRequest, Observed, Operation, Outcome, Runner, RunnerSpec
from mayfly.orchestrator import reconcile, states
from mayfly.orchestrator.reconcile import CREATE_ATTEMPTS
from mayfly.vm.fake import Fake
from tests.orchestrator.leases import KEY, Clock, FakeEdge, Farm, configuration, farm


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    monkeypatch.setattr(reconcile, "EDGE_TICK_S", 0.05)
    monkeypatch.setattr(reconcile, "BACKOFF_S", (0.02,))
    monkeypatch.setattr(reconcile, "CANCEL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(reconcile, "_uptime_s", lambda: 0.0)  # it never stands still


async def ask(f: Farm, key: str = "", size: str = "t1") -> str:
    request = LeaseRequest(repo="team/app", ssh_public_key=KEY, size=size)
    return (await f.api.ask(request, key))["id"]


def closed(f: Farm, lease_id: str) -> bool:
    return states.is_closed(f.ledger.get(lease_id))


async def test_a_lease_from_asked_to_gone(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        lease_id = await ask(f)
        row = await f.until(lease_id, "ready")
        assert row.ready_at == f.clock.now
        assert row.deadline and (row.deadline - f.clock.now).total_seconds() == row.budget_s
        assert {"queue", "ready", "clone"} <= set(row.timings_s)
        assert f.edge.serves == {row.runner}
        await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
        row = await f.until(lease_id, "ended")
        assert (row.outcome, row.operation) == (Outcome.SUCCEEDED, Operation.NONE)
        assert await f.provider.list() == ()
        assert f.edge.calls == [("attach", row.runner), ("revoke", row.runner)]


async def test_the_row_is_on_disk_before_the_provider_is_called(tmp_path: Path) -> None:
    from mayfly.store.leases import LeaseStore

    provider = Fake()
    release = provider.hold("create")
    async with farm(configuration(tmp_path), provider) as f:
        lease_id = await ask(f)
        await f.settled(lambda: ("create", f"{lease_id}-1") in provider.calls)
        other = LeaseStore(tmp_path / "orchestrator" / "db")
        assert other.get(lease_id).operation is Operation.CREATING
        other.close()
        release()
        await f.until(lease_id, "ready")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InfrastructureError("no template"), Outcome.INFRASTRUCTURE),
        (MachineUnfit("no QEMU", hint="install it"), Outcome.MACHINE_UNFIT),
        (RuntimeError("a bug"), Outcome.INTERNAL),
    ],
)
@pytest.mark.parametrize("step", ["prepare", "create"])
async def test_a_provider_that_fails_ends_the_lease_with_its_message(
    tmp_path: Path, error: Exception, outcome: Outcome, step: str
) -> None:
    provider = Fake()
    provider.fail(step, error, times=CREATE_ATTEMPTS)
    async with farm(configuration(tmp_path), provider) as f:
        row = await f.until(lease_id := await ask(f), "ended")
        assert row.outcome is outcome
        assert str(error) in row.reason
        assert ("destroy", f"{lease_id}-1") in provider.calls


async def test_a_runner_that_dies_while_it_is_made_is_begun_anew(tmp_path: Path) -> None:
    provider = Fake()
    provider.fail("create", InfrastructureError("QEMU ended"), times=CREATE_ATTEMPTS - 1)
    async with farm(configuration(tmp_path), provider) as f:
        await f.until(lease_id := await ask(f), "ready")
        told = ("QEMU ended; beginning anew",) * (CREATE_ATTEMPTS - 1)
        assert f.ledger.hub.lines(lease_id) == told
        assert provider.calls.count(("create", f"{lease_id}-1")) == CREATE_ATTEMPTS


@pytest.mark.parametrize("step", ["prepare", "create"])
async def test_a_host_that_restarts_delays_readiness_and_is_told_once(
    tmp_path: Path, step: str
) -> None:
    provider = Fake()
    provider.fail(step, Unreachable("the host restarts"), times=3)
    async with farm(configuration(tmp_path), provider) as f:
        await f.until(lease_id := await ask(f), "ready")
        assert f.ledger.hub.lines(lease_id) == ("waiting for the host",)
        assert [call for call in provider.calls if call[0] == "destroy"] == []


async def test_a_host_that_stays_away_ends_the_lease_after_the_time_for_making(
    tmp_path: Path,
) -> None:
    provider = Fake()
    provider.fail("create", Unreachable("the host is away"), times=10_000)
    async with farm(configuration(tmp_path), provider) as f:
        f.reconciler._limits = replace(f.reconciler._limits, create_timeout_s=20)
        lease_id = await ask(f)
        await f.settled(lambda: provider.calls.count(("create", f"{lease_id}-1")) > 2)
        assert states.word(f.ledger.get(lease_id)) == "creating"
        f.clock.forward(20)
        row = await f.until(lease_id, "ended")
        assert (row.outcome, row.reason) == (Outcome.INFRASTRUCTURE, "the host is away")


async def test_a_full_disk_keeps_no_runner_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(configuration(tmp_path)) as f:
        rows = [await f.until(await ask(f), "ready") for _ in range(2)]
        change, full = f.ledger._store.change, False

        def write(lease_id: str, transition: Any) -> Any:
            if full:
                raise InfrastructureError("database or disk is full")
            return change(lease_id, transition)

        monkeypatch.setattr(f.ledger._store, "change", write)
        for row in rows:
            f.service.end(row.id, Outcome.CANCELLED, "")
        full = True  # nothing that comes of these two ends can be written
        await f.settled(lambda: not f.provider._runners)
        await asyncio.sleep(0.2)
        assert not any(closed(f, row.id) for row in rows)
        full = False
        await f.settled(lambda: all(closed(f, row.id) for row in rows))


async def test_an_end_that_cannot_be_written_is_tried_at_every_tick_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Fake()
    provider.fail("create", MachineUnfit("no QEMU"), times=10_000)
    async with farm(configuration(tmp_path), provider, reconciling=False) as f:
        f.ledger.change(lease_id := await ask(f), lambda row: states.admitted(row, f.clock.now))

        def full(*_: Any) -> Any:
            raise InfrastructureError("database or disk is full")

        monkeypatch.setattr(f.ledger._store, "change", full)
        running = asyncio.create_task(f.reconciler.run())
        tried = ("create", f"{lease_id}-1")
        await f.settled(lambda: provider.calls.count(tried) >= 2)
        before = provider.calls.count(tried)
        await asyncio.sleep(0.5)
        assert provider.calls.count(tried) <= before + 25
        monkeypatch.undo()
        assert (await f.until(lease_id, "ended")).outcome is Outcome.MACHINE_UNFIT
        running.cancel()
        await asyncio.wait({running})


async def test_destroy_is_tried_until_the_provider_no_longer_lists_the_runner(
    tmp_path: Path,
) -> None:
    class Liar(Fake):
        """Says that it destroyed, and did not, the first two times."""

        lies = 2

        def lose(self, runner: str) -> None:
            self.lies -= 1
            if self.lies < 0:
                super().lose(runner)

    provider = Liar()
    provider.fail("destroy", InfrastructureError("busy"), times=2)
    async with farm(configuration(tmp_path), provider) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        await f.api.end(lease_id)
        await f.until(lease_id, "ended")
        assert await provider.list() == ()
        assert [c for c in provider.calls if c[0] == "destroy"] == [
            ("destroy", f"{lease_id}-1")
        ] * 5


async def test_ending_while_creating_cancels_the_creation(tmp_path: Path) -> None:
    provider = Fake()
    provider.hold("create")
    async with farm(configuration(tmp_path), provider) as f:
        lease_id = await ask(f)
        await f.settled(lambda: ("create", f"{lease_id}-1") in provider.calls)
        await f.api.end(lease_id, Outcome.TERMINATED)
        row = await f.until(lease_id, "ended")
        assert (row.outcome, row.ready_at) == (Outcome.TERMINATED, None)


async def test_a_creation_that_ends_late_leaves_nothing(tmp_path: Path) -> None:
    """The provider ignores the cancellation and has a runner when its lease is closed."""
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        await f.api.end(lease_id)
        await f.until(lease_id, "ended")
        provider.put(f"{lease_id}-1")
        await f.settled(lambda: provider.calls.count(("destroy", f"{lease_id}-1")) == 2)
        assert await provider.list() == ()


async def test_a_runner_that_dies_ends_its_build(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        lease_id = await ask(f)
        row = await f.until(lease_id, "ready")
        f.provider.lose(row.runner)
        row = await f.until(lease_id, "ended")
        assert (row.outcome, row.observed) == (Outcome.RUNNER_LOST, Observed.ABSENT)


async def test_heartbeats_keep_a_lease_and_their_absence_ends_it(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        for _ in range(3):
            f.clock.forward(20)
            assert (await f.api.heartbeat(lease_id))["state"] == "ready"
            await asyncio.sleep(0.1)
        f.clock.forward(31)
        row = await f.until(lease_id, "ended")
        assert row.outcome is Outcome.CLIENT_LOST


async def test_the_budget_ends_a_build_whatever_its_client_says(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        f.clock.forward(3600)
        await f.api.heartbeat(lease_id)
        row = await f.until(lease_id, "ended")
        assert row.outcome is Outcome.BUDGET_EXCEEDED
        assert (await f.api.report(lease_id, outcome=Outcome.SUCCEEDED))["outcome"] == (
            "budget_exceeded"
        )


async def test_an_edge_that_is_away_delays_readiness_and_ends_no_build(tmp_path: Path) -> None:
    edge = FakeEdge(down=True)
    async with farm(configuration(tmp_path), edge=edge) as f:
        lease_id = await ask(f)
        await f.settled(lambda: "waiting for the edge" in f.ledger.hub.lines(lease_id))
        assert states.word(f.ledger.get(lease_id)) == "creating"
        edge.down = False
        row = await f.until(lease_id, "ready")
        edge.serves.clear()  # an edge that began again and knows nothing
        await f.settled(lambda: edge.serves == {row.runner})
        edge.serves.add("zzzz-1")  # and one that serves what no lease explains
        await f.settled(lambda: edge.serves == {row.runner})
        edge.down = True
        await asyncio.sleep(0.15)
        assert states.word(f.ledger.get(lease_id)) == "ready"
        await f.api.end(lease_id)
        await f.until(lease_id, "ended")


async def test_while_the_edge_is_away_no_client_is_taken_for_lost(tmp_path: Path) -> None:
    clock, edge = Clock(), FakeEdge()
    async with farm(configuration(tmp_path), edge=edge, clock=clock) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        edge.down = True
        await f.settled(lambda: f.reconciler._heard_since is None)
        for _ in range(5):
            clock.forward(29)
            await asyncio.sleep(0.1)
        assert states.word(f.ledger.get(lease_id)) == "ready"
        edge.down = False
        back = clock.now
        await f.settled(lambda: f.reconciler._heard_since == back)
        clock.forward(29)
        assert f.reconciler.facts().heard_since == back
        await asyncio.sleep(0.1)
        assert states.word(f.ledger.get(lease_id)) == "ready"
        clock.forward(1)
        await f.until(lease_id, "ended")
        assert f.ledger.get(lease_id).outcome is Outcome.CLIENT_LOST


async def test_after_the_machine_stood_still_no_client_is_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, slept_s = Clock(), 0.0
    monkeypatch.setattr(reconcile, "_uptime_s", lambda: slept_s)
    async with farm(configuration(tmp_path), clock=clock) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        slept_s = 300.0
        clock.forward(300)
        await f.settled(lambda: f.reconciler.facts().heard_since == clock.now)
        clock.forward(29)
        await asyncio.sleep(0.1)
        assert states.word(f.ledger.get(lease_id)) == "ready"
        clock.forward(1)
        await f.until(lease_id, "ended")
        assert f.ledger.get(lease_id).outcome is Outcome.CLIENT_LOST


@pytest.mark.parametrize("error", [InfrastructureError("no image"), OSError("disk")])
async def test_a_preparation_that_fails_at_the_start_stops_nothing(
    tmp_path: Path, error: Exception
) -> None:
    provider = Fake()
    provider.fail("prepare", error)
    async with farm(configuration(tmp_path), provider) as f:
        await f.reconciler.warm()
        await f.until(await ask(f), "ready")


async def test_progress_reaches_everyone_who_waits(tmp_path: Path) -> None:
    provider = Fake(lines=("making the template: 1 of 2", "making the template: 2 of 2"))
    release = provider.hold("prepare")
    async with farm(configuration(tmp_path), provider) as f:
        one, two = await ask(f), await ask(f)
        await f.settled(lambda: states.word(f.ledger.get(two)) == "creating")

        release()
        for lease_id in (one, two):
            await f.until(lease_id, "ready")
            assert set(provider._lines) <= set(f.ledger.hub.lines(lease_id))
        assert provider.calls.count(("prepare", "")) <= 2


async def test_those_who_wait_for_room_are_told_their_place(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        first = await ask(f, size="t3")
        await f.until(first, "ready")
        second, third = await ask(f), await ask(f)
        await f.settled(lambda: bool(f.ledger.hub.lines(third)))
        assert f.ledger.hub.lines(second) == ("waiting for room in the pool, place 1",)
        assert (await f.api.lease(third))["queue_position"] == 2
        await f.api.end(first)
        await f.until(second, "ready")
        await f.until(third, "ready")


async def test_a_provider_that_does_not_answer_its_list_loses_nothing(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        f.provider.fail("list", Unreachable("the host is away"), times=3)
        await f.settled(lambda: not f.provider._faults)
        assert states.word(f.ledger.get(lease_id)) == "ready"


# A restart in the middle of each step: the same database, the same provider.

REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)


async def test_restart_while_queued(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    async with farm(config, reconciling=False) as f:
        lease_id = await ask(f)
    async with farm(config) as f:
        await f.until(lease_id, "ready")


@pytest.mark.parametrize("made", [False, True], ids=["before", "after"])
async def test_restart_while_creating(tmp_path: Path, made: bool) -> None:
    config, provider = configuration(tmp_path), Fake()
    provider.hold("create")
    async with farm(config, provider) as f:
        lease_id = await ask(f)
        await f.settled(lambda: ("create", f"{lease_id}-1") in provider.calls)
    provider._held.clear()
    if made:
        provider.put(f"{lease_id}-1")
    async with farm(config, provider) as f:
        await f.until(lease_id, "ready")
        assert [r.name for r in await provider.list()] == [f"{lease_id}-1"]
        assert provider.calls.count(("destroy", f"{lease_id}-1")) == 0


async def test_restart_while_attaching(tmp_path: Path) -> None:
    config, provider = configuration(tmp_path), Fake()
    async with farm(config, provider, FakeEdge(down=True)) as f:
        lease_id = await ask(f)
        await f.settled(lambda: "waiting for the edge" in f.ledger.hub.lines(lease_id))
    async with farm(config, provider) as f:
        row = await f.until(lease_id, "ready")
        assert f.edge.serves == {row.runner}


async def test_restart_while_ready_touches_nothing(tmp_path: Path) -> None:
    config, provider, edge = configuration(tmp_path), Fake(), FakeEdge()
    async with farm(config, provider, edge) as f:
        lease_id = await ask(f)
        before = await f.until(lease_id, "ready")
    clock = Clock()
    clock.forward(600)  # nobody could send a heartbeat for ten minutes
    async with farm(config, provider, edge, clock) as f:
        looked = provider.calls.count(("list", ""))
        await f.settled(lambda: provider.calls.count(("list", "")) > looked + 2)
        assert f.ledger.get(lease_id) == before
        assert ("destroy", before.runner) not in provider.calls
        await f.api.heartbeat(lease_id)
        await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
        assert (await f.until(lease_id, "ended")).outcome is Outcome.SUCCEEDED


async def test_restart_after_the_runner_died_meanwhile(tmp_path: Path) -> None:
    config, provider = configuration(tmp_path), Fake()
    async with farm(config, provider) as f:
        lease_id = await ask(f)
        row = await f.until(lease_id, "ready")
    provider.lose(row.runner)
    async with farm(config, provider) as f:
        assert (await f.until(lease_id, "ended")).outcome is Outcome.RUNNER_LOST


@pytest.mark.parametrize("gone", [False, True], ids=["before", "after"])
async def test_restart_while_destroying(tmp_path: Path, gone: bool) -> None:
    config, provider = configuration(tmp_path), Fake()
    async with farm(config, provider) as f:
        lease_id = await ask(f)
        await f.until(lease_id, "ready")
        provider.hold("destroy")
        await f.api.end(lease_id)
        await f.settled(lambda: ("destroy", f"{lease_id}-1") in provider.calls)
        assert states.word(f.ledger.get(lease_id)) == "destroying"
    provider._held.clear()
    if gone:
        provider.lose(f"{lease_id}-1")
    async with farm(config, provider) as f:
        await f.until(lease_id, "ended")
        assert await provider.list() == ()


# Scale and chance.

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from(["report", "cancel", "lose", "fail", "busy"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MOVES)
def test_every_lease_ends_and_leaves_no_runner(moves: list[tuple[str, str]]) -> None:
    asyncio.run(_play(moves))


class Watched(Fake):
    """Knows the most memory its runners ever had together."""

    most = 0

    async def create(self, spec: Any) -> Any:
        runner = await super().create(spec)
        names = {r.name for r in await self.list()}
        sizes = [s.size.memory_bytes for n, s in self.specs.items() if n in names]
        self.most = max(self.most, sum(sizes))
        return runner


async def _play(moves: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        provider = Watched(create_s=0.001, destroy_s=0.001)
        async with farm(configuration(Path(folder)), provider) as f:
            await asyncio.gather(*(_one(f, size, move) for size, move in moves))
            await f.settled(lambda: not f.ledger.open())
            assert await provider.list() == ()
            assert f.edge.serves == set()
            assert all(row.outcome for row in f.ledger.recent(100))
        assert provider.most <= 4 * GIB


async def _one(f: Farm, size: str, move: str) -> None:
    lease_id = await ask(f, size=size)
    runner = f"{lease_id}-1"
    if move == "fail":
        f.provider.fail("create", InfrastructureError("no"), runner=runner, times=CREATE_ATTEMPTS)
    if move == "busy":
        f.provider.fail("destroy", InfrastructureError("busy"), runner=runner)
    while states.word(f.ledger.get(lease_id)) in ("queued", "creating"):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    if move == "lose":
        f.provider.lose(runner)
    elif move == "report":
        await f.api.report(lease_id, outcome=Outcome.FAILED)
    else:
        await f.api.end(lease_id)


async def test_a_budget_counts_from_when_the_runner_itself_was_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, edge, clock = Fake(), FakeEdge(), Clock()
    create, attach = provider.create, edge.attach

    async def earlier(spec: RunnerSpec) -> Runner:
        """It was made before, by a call whose answer nobody has heard."""
        return replace(await create(spec), age_s=40.0)

    async def slowly(runner: str) -> None:
        clock.forward(7)
        await attach(runner)

    monkeypatch.setattr(provider, "create", earlier)
    monkeypatch.setattr(edge, "attach", slowly)
    async with farm(configuration(tmp_path), provider, edge, clock) as f:
        asked = await f.api.ask(LeaseRequest(repo="team/app", ssh_public_key=KEY, size="t1"), "")
        row = await f.until(asked["id"], "ready")
        assert row.ready_at is not None and row.deadline is not None
        assert (clock.now - row.ready_at).total_seconds() == 47
        assert (row.deadline - row.ready_at).total_seconds() == row.budget_s
