"""A repo's history out of its attempts, in a real SurrealDB: embedded, and a server if any."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import quality
from mayfly.errors import InfrastructureError, Unreachable
from mayfly.model import GIB, MARGIN, History
from mayfly.store.metrics import AGES, NEWEST, MetricsStore

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def record(
    number: int,
    memory: Any = GIB,
    *,
    cpu: Any = 1.0,
    cpus: int = 2,
    had: int = 4 * GIB,
    oom_kills: int = 0,
    days_ago: float = 0,
    **more: Any,
) -> tuple[str, dict[str, Any]]:
    ended_at = NOW - timedelta(days=days_ago, hours=1) + timedelta(seconds=number)
    fields = {
        "build": f"b{number}",
        "attempt": 1,
        "repo": "team/app",
        "target": "",
        "counts": True,
        "outcome": "succeeded",
        "ended_at": ended_at.isoformat(),
        "given": {"name": "s", "cpus": cpus},
        "memory_limit_bytes": had,
        "usage": {"memory_bytes": memory, "cpu": cpu, "oom_kills": oom_kills},
    }
    return f"b{number}-1", {**fields, **more}


@pytest.fixture
async def store() -> AsyncIterator[MetricsStore]:
    store = MetricsStore("mem://")
    await store.open()
    yield store
    await store.close()


async def past(store: MetricsStore, target: str = "", repo: str = "team/app") -> History | None:
    return await store.history(repo, target, NOW)


async def test_no_attempt_is_no_history(store: MetricsStore) -> None:
    assert await past(store) is None
    await store.put([record(1, counts=False), record(2, repo="team/other")])
    bare = record(3)[1]
    del bare["usage"], bare["counts"]
    await store.put([("b3-1", bare)])
    assert await past(store) is None


async def test_percentiles_of_the_newest(store: MetricsStore) -> None:
    await store.put(record(n, n * GIB) for n in range(1, 21))
    assert await past(store) == History(20, 19.05 * GIB, 1.0, 0, 0, "")
    await store.put(record(n, GIB) for n in range(100, 100 + NEWEST))
    assert await past(store) == History(NEWEST, GIB, 1.0, 0, 0, "")


async def test_one_far_off_is_left_out_of_many_and_not_of_few(store: MetricsStore) -> None:
    await store.put([*(record(n) for n in range(1, 5)), record(5, 8 * GIB)])
    found = await past(store)
    assert found and found.memory_bytes > 6 * GIB
    await store.put(record(n) for n in range(6, NEWEST))
    found = await past(store)
    assert found and found.memory_bytes == GIB


async def test_what_was_killed_counts_as_all_it_had_however_many_were_not(
    store: MetricsStore,
) -> None:
    await store.put(record(n) for n in range(1, NEWEST))
    await store.put([record(NEWEST, 3 * GIB, oom_kills=2, had=6 * GIB)])
    found = await past(store)
    assert found and found.killed_bytes == 6 * GIB
    await store.put(
        [record(99, had=7 * GIB, outcome="oom")]
    )  # thrashing: the kernel killed nothing
    found = await past(store)
    assert found and found.killed_bytes == 7 * GIB
    await store.put(record(n) for n in range(100, 100 + NEWEST))
    found = await past(store)
    assert found and found.killed_bytes == 0


@pytest.mark.parametrize(
    ("cpu", "counts"), [(1.89, 1.89), (1.9, 2 / MARGIN), (2.0, 2 / MARGIN), (2.05, 2 / MARGIN)]
)
async def test_filled_vcpus_count_as_so_many_once_the_margin_is_on(
    store: MetricsStore, cpu: float, counts: float
) -> None:
    await store.put([record(1, cpu=cpu, cpus=2)])
    found = await past(store)
    assert found and found.cpu == pytest.approx(counts)
    assert found.saturated == (cpu >= 1.9)


async def test_a_target_has_its_own_history_and_until_then_that_of_all(
    store: MetricsStore,
) -> None:
    await store.put([record(1, GIB, target="test"), record(2, 3 * GIB, target="release")])
    found = await past(store, "test")
    assert found and (found.builds, found.memory_bytes, found.target) == (1, GIB, "test")
    found = await past(store, "docs")
    assert found and (found.builds, found.target) == (2, None)


async def test_old_attempts_do_not_count(store: MetricsStore) -> None:
    ages = [0, 3, 20, 80]
    assert all(any(age < limit.days for limit in AGES) for age in ages)
    await store.put(record(n, days_ago=age) for n, age in enumerate(ages))
    await store.put([record(9, days_ago=91)])
    found = await past(store)
    assert found and found.builds == 4


async def test_broken_and_old_records_are_left_out(store: MetricsStore) -> None:
    await store.put(
        [
            record(1, "much"),
            record(2, cpu=None),
            record(3, given="small"),
            record(4, memory_limit_bytes=None),
            record(5, usage=7),
            (
                "old-1",
                {"repo": "team/app", "target": "", "counts": True, "ended_at": NOW.isoformat()},
            ),
        ]
    )
    assert await past(store) is None
    await store.put([record(6)])
    found = await past(store)
    assert found and found.builds == 1


async def test_a_record_is_added_to(store: MetricsStore) -> None:
    await store.put([("b1-1", {"build": "b1", "attempt": 1, "usage": {"cpu": 1}})])
    await store.put([("b1-1", {"build": "b1", "attempt": 1, "outcome": "failed"})])
    await store.put([("b1-2", {"build": "b1", "attempt": 2})])
    first, second = await store.attempts("b1")
    assert (first["usage"], first["outcome"], second["attempt"]) == ({"cpu": 1}, "failed", 2)
    assert await store.attempts("b2") == []


async def test_a_name_is_never_a_part_of_a_statement(store: MetricsStore) -> None:
    await store.put([record(1)])
    for name in ("team/app' OR true --", "$since", "a\nb"):
        assert await past(store, repo=name) is None
        await store.attempts(name)


async def test_what_a_client_calls_its_times_is_no_point_in_time(store: MetricsStore) -> None:
    """The keys of `timings_s` are the client's: one of them closed the store for everybody."""
    await store.put([record(1, timings_s={"x_at": 1.0, "y_at": None})])
    (kept,) = await store.attempts("b1")
    assert kept["timings_s"] == {"x_at": 1.0, "y_at": None}
    assert kept["ended_at"] == datetime.fromisoformat(record(1)[1]["ended_at"])


async def test_a_call_that_took_too_long_does_not_lock_the_store_for_ever(tmp_path: Path) -> None:
    store = MetricsStore(f"surrealkv://{tmp_path}/metrics")
    await store.open()
    await store.put([record(1)])
    with pytest.raises(Unreachable):
        async with store._faults(0.3):
            await store._query("SLEEP 1s")
    assert not store.is_open
    await store.open()
    assert (await past(store)) is not None
    await store.close()


async def test_what_is_too_old_is_pruned(store: MetricsStore) -> None:
    await store.put([record(1, days_ago=200), record(2)])
    await store.prune(NOW - timedelta(days=180))
    assert await store.attempts("b1") == []
    assert len(await store.attempts("b2")) == 1


@settings(max_examples=30)
@given(st.lists(st.integers(1, 64 * GIB), min_size=1, max_size=NEWEST))
def test_the_bench_summarises_as_the_query_does(peaks: list[int]) -> None:
    async def asked() -> History | None:
        store = MetricsStore("mem://")
        await store.open()
        try:
            await store.put(record(n, peak) for n, peak in enumerate(peaks))
            return await past(store)
        finally:
            await store.close()

    found, own = asyncio.run(asked()), quality.past([quality.Seen(peak, 0) for peak in peaks])
    assert found and own
    assert found.memory_bytes == pytest.approx(own.memory_bytes)
    assert found.builds == own.builds


async def test_histories_are_read_by_an_index_backwards(store: MetricsStore) -> None:
    where = "repo = 'a' AND {} counts = true AND ended_at > $since ORDER BY ended_at DESC LIMIT 30"
    for target, index in (("target = 't' AND", "attempt_target"), ("", "attempt_repo")):
        (plan,) = await store._query(
            f"SELECT ended_at FROM attempt WHERE {where.format(target)} EXPLAIN FULL",  # noqa: S608
            since=NOW,
        )
        assert f"'index': '{index}'" in str(plan)
        assert "'direction': 'Backward'" in str(plan)


# What is not there.


async def test_a_server_that_is_away_is_one_line_and_comes_back(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        store = MetricsStore(f"ws://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unreachable, match="metrics store ws://127"):
            await store.open()
    assert not store.is_open
    with pytest.raises(Unreachable, match="not open"):
        await past(store)
    await store.close()


async def test_a_fault_of_a_statement_leaves_the_store_open(store: MetricsStore) -> None:
    with pytest.raises(InfrastructureError, match=r"(?i)parse error"):
        async with store._faults(5):
            await store._query("SELECT FROM")
    assert store.is_open


HOLD = """
import asyncio, sys
from mayfly.store.metrics import MetricsStore
async def main():
    store = MetricsStore(sys.argv[1])
    await store.open()
    await store.put([("b1-1", {"build": "b1", "attempt": 1})])
    print("there", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_one_process_has_it_and_its_death_lets_go(tmp_path: Path) -> None:
    url = f"surrealkv://{tmp_path / 'metrics'}"
    words = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:  # noqa: ASYNC220
        assert other.stdout and other.stdout.readline() == "there\n"
        store = MetricsStore(url)
        with pytest.raises(Unreachable, match="locked"):
            await store.open()
        other.send_signal(signal.SIGKILL)
    await store.open()
    assert len(await store.attempts("b1")) == 1
    await store.close()


# A server.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("surreal")
    if program is None:
        pytest.skip("no `surreal` on PATH: a SurrealDB server is untested here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start", "--bind", f"127.0.0.1:{port}", "--user", "root", "--pass", "root", "memory"]
    with subprocess.Popen([program, *words], cwd=tmp_path) as process:
        try:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_a_server_does_the_same(server: str, scheme: str) -> None:
    store = MetricsStore(f"{scheme}://{server}", username="root", password="root")
    await store.open()
    await store.put(record(n, n * GIB) for n in range(1, 21))
    assert await past(store) == History(20, 19.05 * GIB, 1.0, 0, 0, "")
    await store.prune(NOW)
    assert await past(store) is None
    await store.close()
