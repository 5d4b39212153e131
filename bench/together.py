"""Eight leases asked at once, against one."""

from __future__ import annotations

import asyncio

from bench.farm import AT_ONCE, Bench
from bench.page import Found, Line
from bench.runners import leased, none_left
from bench.stats import duration, median, of, ratio
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.model import Size

ROUNDS = 6
MOST = 4.0


async def together(bench: Bench) -> Found:
    """One lease, then eight at once, in turn; of the smallest size, so that eight fit."""
    size = bench.smallest
    await ready_s(bench.config, size, 1)
    alone, last, first = [], [], []
    rounds = bench.times(ROUNDS)
    show(f"{rounds} rounds of one lease, then {AT_ONCE} at once")
    for _ in range(rounds):
        alone += await ready_s(bench.config, size, 1)
        eight = await ready_s(bench.config, size, AT_ONCE)
        first.append(min(eight))
        last.append(max(eight))
    times = ratio(last, alone)
    return Found(
        (
            Line(
                f"{AT_ONCE} leases asked at once, last one ready, against one; {size}",
                f"<= {MOST:.0f}x on 2 cores",
                f"{times:.1f}x; last {of(last)}, first {duration(median(first))}, one {of(alone)}",
                times <= MOST,
            ),
        )
    )


async def ready_s(config: Config, size: Size, count: int) -> list[float]:
    """Seconds from asking to ready of `count` leases asked at once; all are gone afterwards."""
    all_ready = asyncio.Barrier(count)

    async def take() -> float:
        async with leased(config, size) as lease:
            await all_ready.wait()  # none makes room or silence for another before all are there
            return lease.ready_s

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(take()) for _ in range(count)]
    await none_left(config)
    return [task.result() for task in tasks]
