"""One builder is one runner while anything is connected, whatever becomes of either."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from mayfly.builders import service
from mayfly.builders.session import Session
from mayfly.errors import Cancelled, Terminated, Unreachable
from mayfly.model import Desired, Outcome
from mayfly.orchestrator import reconcile
from mayfly.wire import BuildersJson
from tests.builders.relayed import Relayed, builder, docker, relayed
from tests.orchestrator.leases import Farm, configuration, farm


@pytest.fixture
async def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    async with farm(configuration(tmp_path)) as running:
        yield running


@pytest.fixture
async def api(f: Farm, tmp_path: Path) -> AsyncIterator[Relayed]:
    async with relayed(f, tmp_path) as there:
        yield there


async def session(f: Farm, api: Relayed, name: str = "one", **more: float | str) -> Session:
    made = Session(await builder(f, name, **more), api, heartbeat_s=0.05)
    api.sessions.append(made)
    return made


async def test_a_runner_comes_with_the_first_word_and_goes_after_the_linger(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    one = await session(f, api)
    async with docker(one, tmp_path) as client:
        assert await client.say(b"PRI * HTTP/2.0") == b"PRI * HTTP/2.0"
        (lease,) = f.ledger.open()
        assert (lease.request.repo, lease.size.name, lease.trusted) == ("team/one", "t1", True)
        assert (lease.request.event, lease.request.builder) == ("builder", "one")
        assert await client.say(b"x" * 300_000)
        assert one.connections == 1
    ended = await f.until(lease.id, "ended")
    assert (ended.outcome, one.connections) == (Outcome.SUCCEEDED, 0)


async def test_who_says_nothing_gets_no_runner(f: Farm, api: Relayed, tmp_path: Path) -> None:
    one = await session(f, api)
    async with docker(one, tmp_path) as client:
        await client.close()
    assert f.ledger.recent(1) == ()


async def test_the_next_connection_within_the_linger_finds_the_same_runner(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    one = await session(f, api, linger_s=5)
    for _ in range(3):
        async with docker(one, tmp_path) as first, docker(one, tmp_path) as second:
            assert [await first.say(b"a"), await second.say(b"b")] == [b"a", b"b"]
            await first.close()
            assert await second.say(b"c") == b"c"
    assert len(f.ledger.recent(9)) == 1
    await one.close(Terminated("the end"))
    (lease,) = f.ledger.recent(1)
    assert (lease.outcome, lease.reason) == (Outcome.TERMINATED, f"ended by lease:{lease.id}")


async def test_after_the_linger_comes_another_runner(f: Farm, api: Relayed, tmp_path: Path) -> None:
    one = await session(f, api, linger_s=0)
    for _ in range(2):
        async with docker(one, tmp_path) as client:
            assert await client.say(b"a") == b"a"
        await f.settled(lambda: not f.ledger.open())
    assert [lease.outcome for lease in f.ledger.recent(9)] == [Outcome.SUCCEEDED] * 2


async def test_two_builders_are_two_runners(f: Farm, api: Relayed, tmp_path: Path) -> None:
    one, two = await session(f, api, "one"), await session(f, api, "two")
    async with docker(one, tmp_path) as first, docker(two, tmp_path) as second:
        assert [await first.say(b"a"), await second.say(b"b")] == [b"a", b"b"]
        assert {row.request.repo for row in f.ledger.open()} == {"team/one", "team/two"}
        listed = (await f.api.builders())["builders"]
        assert [(b["name"], b["state"]) for b in listed] == [("one", "ready"), ("two", "ready")]
        assert len({b["lease"] for b in listed}) == 2
    await f.settled(lambda: not f.ledger.open())


async def test_what_is_connected_is_cut_when_its_builder_is_removed(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    one = await session(f, api, linger_s=60)
    async with docker(one, tmp_path) as client:
        await client.say(b"a")
        await f.api.remove_builder("one")
        await one.close(Cancelled("builder one was removed"))
        await client.closed()
    async with docker(one, tmp_path) as late:
        assert await late.say(b"a") == b""
    (lease,) = f.ledger.recent(9)
    assert (lease.outcome, lease.reason) == (
        Outcome.CANCELLED,
        "builder one was removed by admin",
    )


async def test_it_waits_for_room_and_is_given_up_when_nobody_waits(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    """The pool has 4 GiB: t3 fills it."""
    one, two = await session(f, api, "one", size="t3"), await session(f, api, "two")
    async with docker(one, tmp_path) as first:
        await first.say(b"a")
        async with docker(two, tmp_path) as second:
            second.writer.write(b"b")
            await f.settled(lambda: len(f.ledger.open()) == 2)
        await f.settled(lambda: len(f.ledger.open()) == 1)
        (lost,) = (lease for lease in f.ledger.recent(9) if lease.request.repo == "team/two")
        assert (lost.outcome, lost.ready_at) == (Outcome.CANCELLED, None)
        async with docker(two, tmp_path) as second:
            second.writer.write(b"b")
            await f.settled(lambda: len(f.ledger.open()) == 2)
            await first.close()
            assert await second.say(b"c") == b"bc"


async def test_a_lost_runner_closes_and_the_next_connection_gets_another(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    one = await session(f, api, linger_s=60)
    async with docker(one, tmp_path) as client:
        await client.say(b"a")
        (lease,) = f.ledger.open()
        f.provider.lose(lease.runner)
        await api.runners[lease.id].cut()
        await client.closed()
    async with docker(one, tmp_path) as client:
        assert await client.say(b"b") == b"b"
    assert f.ledger.get(lease.id).outcome is Outcome.RUNNER_LOST
    assert len(f.ledger.recent(9)) == 2


async def test_a_broken_way_finds_the_same_runner_again(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    one = await session(f, api, linger_s=60)
    async with docker(one, tmp_path) as client:
        await client.say(b"a")
        (lease,) = f.ledger.open()
        await api.runners[lease.id].cut()
        await client.closed()
    async with docker(one, tmp_path) as client:
        assert await client.say(b"b") == b"b"
    assert [row.id for row in f.ledger.recent(9)] == [lease.id]


async def test_when_the_time_budget_is_used_up_connections_are_closed(
    f: Farm, api: Relayed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = await session(f, api, linger_s=60)
    async with docker(one, tmp_path) as client:
        await client.say(b"a")
        (lease,) = f.ledger.open()
        f.clock.forward(lease.budget_s)
        assert (await f.api.heartbeat(lease.id))["state"]
        f.clock.forward(1)
        await client.closed()
    assert f.ledger.get(lease.id).outcome is Outcome.BUDGET_EXCEEDED
    said = ""

    def told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return f"build {lease.id} ended as budget_exceeded" in said

    await f.settled(told)
    f.clock.forward(timedelta(hours=1).total_seconds())
    async with docker(one, tmp_path) as client:
        assert await client.say(b"b") == b"b"


async def test_without_the_orchestrator_a_connection_is_closed_and_the_reason_logged(
    f: Farm, api: Relayed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = await session(f, api)
    api.refuse.append(Unreachable("nobody answers"))
    async with docker(one, tmp_path) as client:
        assert await client.say(b"a") == b""
    assert "nobody answers" in capsys.readouterr().out
    async with docker(one, tmp_path) as client:
        assert await client.say(b"b") == b"b"


async def test_an_orchestrator_that_stays_away_is_not_asked(
    f: Farm, api: Relayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away when the list of builders cannot be had, and back when it can."""

    class Away:
        asked = 0

        async def builders(self, *, wait_s: float, since: str) -> BuildersJson:
            self.asked += 1
            if self.asked == 1:
                raise Unreachable("nobody answers")
            await back.wait()
            return await f.api.builders(since=since, wait_s=wait_s)

    back = asyncio.Event()
    monkeypatch.setattr(service, "AWAY_S", 0)
    monkeypatch.setattr(service, "PAUSE_S", 0)
    builders = service.Builders(f.config, api)
    one = Session(await builder(f, "one"), api, 0.05, builders.away)
    api.sessions.append(one)
    following = asyncio.create_task(builders.run(Away()))  # type: ignore[arg-type]
    await f.settled(lambda: builders.away() is not None)
    async with docker(one, tmp_path) as client:
        assert await client.say(b"a") == b""
    assert f.ledger.recent(1) == ()
    back.set()
    await f.settled(lambda: builders.away() is None)
    async with docker(one, tmp_path) as client:
        assert await client.say(b"a") == b"a"
    following.cancel()
    await builders.close(Terminated("the test is over"))


async def test_a_program_that_was_killed_leaves_a_runner_until_the_next_connection(
    f: Farm, api: Relayed, tmp_path: Path
) -> None:
    made = await builder(f, "one", linger_s=60)
    killed, again = Session(made, api, 60), Session(made, api, 0.05)
    api.sessions += [killed, again]
    async with docker(killed, tmp_path) as client:
        await client.say(b"a")
        (left,) = f.ledger.open()
        async with docker(again, tmp_path) as other:
            assert await other.say(b"b") == b"b"
        row = f.ledger.get(left.id)
        assert row.outcome is Outcome.TERMINATED
        assert row.reason == "builder one asked for another runner"


async def test_many_at_once_share_one_runner(f: Farm, api: Relayed, tmp_path: Path) -> None:
    one = await session(f, api)

    async def use(text: bytes) -> bytes:
        async with docker(one, tmp_path) as client:
            return await client.say(text)

    async with docker(one, tmp_path) as first:
        await first.say(b"a")
        said = [b"%d" % number for number in range(20)]
        assert await asyncio.gather(*map(use, said)) == said
    await f.settled(lambda: not f.ledger.open())
    assert len(f.ledger.recent(9)) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_comes_and_goes_it_is_never_two_runners(
    f: Farm, api: Relayed, tmp_path: Path, seed: int
) -> None:
    """Clients come, talk and go in any order, ways break, runners die; in the end none is left."""
    chance = random.Random(seed)  # noqa: S311 - a seed, not a secret
    one = await session(f, api, linger_s=0.02)

    async def client() -> None:
        async with docker(one, tmp_path) as mine:
            for _ in range(chance.randrange(4)):
                if not await mine.say(b"x"):
                    return
                await asyncio.sleep(chance.random() / 50)

    async def trouble() -> None:
        for lease in f.ledger.open():
            if lease.id in api.runners and lease.ready_at:
                if chance.random() < 0.5:
                    f.provider.lose(lease.runner)
                await api.runners[lease.id].cut()

    working: set[asyncio.Task[None]] = set()
    for _ in range(40):
        work = trouble() if chance.random() < 0.1 else client()
        working.add(asyncio.create_task(work))
        await asyncio.sleep(chance.random() / 40)
        running = [row for row in f.ledger.open() if row.desired is Desired.RUNNING]
        assert len(running) <= 1, running
    await asyncio.gather(*working)
    await f.settled(lambda: not f.ledger.open())
    ended = {row.outcome for row in f.ledger.recent(99)}
    assert ended <= {Outcome.SUCCEEDED, Outcome.RUNNER_LOST, Outcome.CANCELLED, Outcome.TERMINATED}
    async with docker(one, tmp_path) as last:
        assert await last.say(b"x") == b"x"
