"""Row `decide`: a size, the question to the store of metrics included, with many records in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from bench import stats
from bench.farm import Bench
from bench.page import Found, Line
from bench.quality import ROOM
from mayfly.model import GIB, History
from mayfly.orchestrator import sizing
from mayfly.store.metrics import MetricsStore

RECORDS = 100_000
BATCH = 500
NOW = datetime(2026, 11, 24, tzinfo=UTC)
AT_MOST_S = 0.020

SHAPES = {"20 repos": 20, "2,000 repos": 2000, "one repo": 1}
"""How the records are spread: as many each, over the last 60 days."""


async def decide(bench: Bench) -> Found:
    """p95 of `decide` for repos with a history, each shape in a store of its own."""
    lines, notes = [], []
    for name, repos in SHAPES.items():
        store = MetricsStore(f"surrealkv://{bench.scratch / f'metrics-{repos}'}")
        try:
            await filled(store, bench.times(RECORDS), repos)
            await store.close()
            started_at = time.perf_counter()
            await store.open()
            opening_s = time.perf_counter() - started_at
            taken = [await one(store, n % repos) for n in range(bench.times(200))]
        finally:
            await store.close()
        lines.append(
            Line(
                f"decide() with {RECORDS:,} records of {name}",
                f"<= {stats.duration(AT_MOST_S)} p95",
                stats.of(taken),
                stats.percentile(taken, 0.95) <= AT_MOST_S,
            )
        )
        notes.append(f"{name}: opening the store again took {stats.duration(opening_s)}")
    return Found(tuple(lines), tuple(notes))


async def one(store: MetricsStore, repo: int) -> float:
    """Seconds that one decision takes."""
    started_at = time.perf_counter()
    history = await store.history(f"team/app{repo}", "", NOW)
    sizing.decide(None, history, ("rust",), "", ROOM)
    took = time.perf_counter() - started_at
    assert isinstance(history, History)
    return took


async def filled(store: MetricsStore, count: int, repos: int) -> None:
    """Write `count` records, of `repos` in turn."""
    await store.open()
    rows = list(records(count, repos))
    for at in range(0, count, BATCH):
        await store.put(rows[at : at + BATCH])


def records(count: int, repos: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Attempts as they come to pass, evenly over 60 days."""
    for n in range(count):
        ended_at = NOW - timedelta(days=60) * (1 - n / count)
        yield (
            f"b{n}-1",
            {
                "build": f"b{n}",
                "attempt": 1,
                "repo": f"team/app{n % repos}",
                "target": "",
                "counts": True,
                "outcome": "succeeded",
                "ended_at": ended_at.isoformat(),
                "given": {"name": "medium", "cpus": 4, "memory_bytes": 8 * GIB},
                "memory_limit_bytes": 8 * GIB,
                "usage": {"memory_bytes": (2 + n % 7) * GIB, "cpu": 1 + n % 3, "oom_kills": 0},
                "timings_s": {"queue": 0.1, "ready": 0.7, "build": 60.0},
                "steps": [{"name": f"RUN step {step}", "memory_bytes": GIB} for step in range(8)],
            },
        )
