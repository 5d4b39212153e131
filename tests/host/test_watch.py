"""The sampler and whoever may be at the other end of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import InfrastructureError
from mayfly.guest.agent import Agent
from mayfly.guest.framing import serve as serve_agent
from mayfly.guest.sample import Sampler
from mayfly.host import watch as module
from mayfly.host.agent import Channel
from mayfly.host.watch import Watch, parse_errors, parse_sample, parse_steps
from mayfly.model import GIB, MIB
from tests.guest.test_agent import Acts
from tests.host.waiting import until

LIMIT = 4 * GIB
GOOD = dict.fromkeys(Sampler("/nowhere", "/nowhere", "/nowhere").read(), 0)

Answers = Callable[[dict[str, Any]], dict[str, Any]]


@asynccontextmanager
async def guest(path: Path, answers: Answers) -> AsyncIterator[list[int]]:
    """An agent that answers so, one connection at a time as QEMU does; yields what it was asked."""
    asked: list[int] = []
    one = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with one:
            with suppress(OSError, asyncio.CancelledError):
                while line := await reader.readline():
                    if line.strip():
                        message = json.loads(line)
                        asked.append(message["id"])
                        reply = {"id": message["id"], "ok": True, **answers(message)}
                        writer.write(json.dumps(reply).encode() + b"\n")
                        await writer.drain()
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield asked
    finally:
        server.close()


class Age:
    """For how long the runner has been ready: some time more each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def watcher(folder: Path, limit_bytes: int = LIMIT) -> Watch:
    return Watch(
        "a-1",
        Channel(folder / "s"),
        folder,
        cpus=2,
        memory_limit_bytes=limit_bytes,
        age_s=Age(),
    )


async def test_samples_become_evidence(tmp_path: Path) -> None:
    told = iter([{**GOOD, "memory_bytes": MIB}, {**GOOD, "memory_bytes": GIB, "oom_kill": 1}])
    async with guest(tmp_path / "s", lambda _: {"sample": next(told)}):
        watch = watcher(tmp_path)
        await watch.look()
        await watch.look()
        await watch.channel.close()
    usage = watch.evidence.usage
    assert (usage.memory_bytes, usage.oom_kills, usage.samples) == (GIB, 1, 2)
    assert watch.load is not None and watch.load.memory_bytes == GIB


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {**GOOD, "memory_bytes": -1},
        {**GOOD, "memory_bytes": LIMIT + 1},
        {**GOOD, "memory_bytes": 1.5},
        {**GOOD, "memory_bytes": True},
        {**GOOD, "memory_bytes": "1"},
        {**GOOD, "cpu_us": 2**61},
        {**GOOD, "oom_kill": 10**7},
        {**GOOD, "disk_free_bytes": 5, "disk_total_bytes": 4},
        {name: value for name, value in GOOD.items() if name != "oom_kill"},
    ],
)
async def test_what_no_guest_can_have_is_no_sample(tmp_path: Path, told: object) -> None:
    async with guest(tmp_path / "s", lambda _: {"sample": told}):
        watch = watcher(tmp_path)
        with pytest.raises(InfrastructureError):
            await watch.look()
        await watch.channel.close()
    assert watch.evidence.usage.samples == 0


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), values))
def test_any_sample_is_in_bounds_or_refused(changed: dict[str, Any]) -> None:
    with suppress(InfrastructureError):
        found = parse_sample({"sample": GOOD | changed}, 1.0, LIMIT)
        assert 0 <= found.memory_bytes <= LIMIT and 0 <= found.oom_kills <= 10**6
        assert 0 <= found.disk_free_bytes <= found.disk_total_bytes


@given(st.dictionaries(st.just("errors"), values | st.lists(values | st.text())))
def test_any_errors_are_few_short_and_plain(answer: dict[str, Any]) -> None:
    found = parse_errors(answer)
    assert len(found) <= 4 and all(len(line) <= 300 and line.isascii() for line in found)


steps = st.lists(
    values
    | st.dictionaries(st.sampled_from(["name", "start_s", "end_s", "cached", "failed"]), values),
    max_size=300,
)


@given(steps, values, st.floats(0, 1e6))
def test_any_steps_are_few_and_in_the_runners_life_or_refused(
    told: list[Any], clock: object, at_s: float
) -> None:
    with suppress(InfrastructureError):
        found = parse_steps({"steps": told, "unix_time_s": clock}, at_s)
        assert len(found) <= 100
        for step in found:
            assert 0 <= step.start_s <= at_s + 0.001
            assert step.end_s is None or 0 <= step.end_s <= at_s + 0.001
            assert len(step.name) <= 120 and step.name.isascii()


def test_steps_are_told_by_the_guests_clock_and_kept_by_ours() -> None:
    told = [{"name": "RUN make", "start_s": 1000.0, "end_s": 1010.0, "failed": True}]
    (step,) = parse_steps({"steps": told, "unix_time_s": 1012.0}, 30.0)
    assert (step.start_s, step.end_s, step.failed) == (18.0, 28.0, True)


async def test_the_agent_of_the_guest_and_the_sampler_understand_each_other(
    tmp_path: Path,
) -> None:
    """The real agent, which finds no buildkitd here: a sample of zeros, and no steps."""
    (tmp_path / "run/mayfly").mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()

    def serve() -> None:
        connection, _ = listening.accept()
        serve_agent(Agent(Acts().kernel(), tmp_path), connection.detach())

    threading.Thread(target=serve, daemon=True).start()
    watch = watcher(tmp_path, limit_bytes=2**50)
    await watch.look()
    await watch.finish()
    await watch.channel.close()
    listening.close()
    assert (watch.evidence.usage.samples, watch.evidence.steps) == (2, ())


async def test_two_who_ask_take_turns(tmp_path: Path) -> None:
    async with guest(tmp_path / "s", lambda m: {"op": m["op"]}) as asked:
        channel = Channel(tmp_path / "s")
        calls = (channel.call(op, timeout_s=5) for op in ("sample", "quiesce", "steps"))
        assert [a["op"] for a in await asyncio.gather(*calls)] == ["sample", "quiesce", "steps"]
        assert asked == [1, 2, 3], "one connection"
        await channel.close()


async def test_after_a_call_that_failed_there_is_another_connection(tmp_path: Path) -> None:
    channel = Channel(tmp_path / "s")
    with pytest.raises(InfrastructureError):
        await channel.call("sample", timeout_s=1)
    async with guest(tmp_path / "s", lambda _: {"sample": GOOD}):
        assert (await channel.call("sample", timeout_s=5))["ok"]
        await channel.close()


async def test_a_guest_that_does_not_answer_is_asked_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    running = asyncio.create_task(watcher(tmp_path).run())
    async with asyncio.timeout(5):
        while len(pauses) < 8:
            await real(0.01)
    running.cancel()
    assert pauses[1:7] == [1, 2, 4, 8, 15, 15]


async def test_what_is_running_out_is_looked_at_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_S", 0.01)
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(module, "HURRY_S", 0.0)
    free = iter([3 * GIB, 2 * GIB, *[GIB] * 1000])
    async with guest(
        tmp_path / "s", lambda _: {"sample": {**GOOD, "memory_available_bytes": next(free)}}
    ) as asked:
        watch = watcher(tmp_path)
        running = asyncio.create_task(watch.run())
        await until(lambda: len(asked) > 4)
        running.cancel()
        await watch.channel.close()
    assert watch.load is not None and watch.load.memory_lasts(module.SOON_S)


async def test_a_host_program_that_comes_back_goes_on_with_the_peaks(tmp_path: Path) -> None:
    peak = iter([2 * GIB, *[MIB] * 20])
    async with guest(tmp_path / "s", lambda _: {"sample": {**GOOD, "memory_bytes": next(peak)}}):
        watch = watcher(tmp_path)
        for _ in range(8):
            await watch.look()
        await watch.channel.close()
        again = watcher(tmp_path)
        assert again.evidence.usage.memory_bytes == 2 * GIB
        (tmp_path / module.FILE).write_text("[]")
        assert watcher(tmp_path).evidence.usage.samples == 0
