"""Builds that outgrow their size: what growing costs, and how fast memory may be taken."""

from __future__ import annotations

import re

from bench.farm import Bench
from bench.page import Found, Line
from bench.stats import of, ratio
from bench.told import Told, context_of, told
from mayfly.cli.output import show
from mayfly.errors import InfrastructureError
from mayfly.model import MIB, Size

PAIRS = 2
FACTOR = 1.1
MIB_S = 200
RISE = 1.25
"""Of the size's memory: what the build comes to need."""

BURSTS = (100, 200, 400, 800, 0)
"""MiB/s; 0 is as fast as it goes."""


def next_up(bench: Bench, size: Size) -> Size:
    """The rung above. Raises `InfrastructureError` when this machine holds none."""
    for rung in bench.config.sizes:
        if rung.memory_bytes > size.memory_bytes:
            return rung
    raise InfrastructureError(f"this machine holds no size above {size.name}")


async def grown(bench: Bench) -> Found:
    """The same build in a size that it outgrows, and in the next one, in turn."""
    size, right = bench.default, next_up(bench, bench.default)
    mib = int(RISE * size.memory_bytes / MIB)
    context = context_of(bench, "grown", f"python3 /eat.py {mib} {MIB_S}")
    pairs = bench.times(PAIRS)
    show(f"{pairs} pairs: a build that outgrows {size.name}, and the same in {right.name}")
    grew, fitted = [], []
    speeds: list[int] = []
    for _ in range(pairs):
        outgrown, fits = (
            await told(bench, context, size.name),
            await told(bench, context, right.name),
        )
        if not in_place(outgrown, size):
            raise InfrastructureError(f"the build did not grow in place: {outgrown.attempts}")
        grew.append(outgrown.seconds)
        fitted.append(fits.seconds)
        speeds.append(speed(outgrown))
    times = ratio(grew, fitted)
    return Found(
        lines=(
            Line(
                f"a build that outgrows its size ({size}), grown in place, against the right size "
                f"from the start ({right}); the whole `mayfly build`",
                f"<= {FACTOR}x",
                f"{times:.2f}x; grown {of(grew)}, right size {of(fitted)}",
                times <= FACTOR,
            ),
        ),
        notes=(
            f"its step takes {mib} MiB at {min(speeds)} to {max(speeds)} MiB/s "
            f"({MIB_S} MiB/s asked for); no attempt but the first, `oom_kill` 0 in each.",
        ),
    )


async def burst(bench: Bench) -> Found:
    """Steps that take twice the memory of the smallest size, faster each time."""
    size = bench.smallest
    mib = 2 * size.memory_bytes // MIB
    show(f"bursts to {mib} MiB in {size.name}, up to {next_up(bench, size).name}")
    survived, killed = [0], list[int]()
    said = []
    for asked in BURSTS:
        name = f"burst-{asked}"
        build = await told(
            bench, context_of(bench, name, f"python3 /eat.py {mib} {asked}"), size.name, fails=True
        )
        alive = in_place(build, size)
        (survived if alive else killed).append(speed(build) if alive else asked)
        word = f"{speed(build)} MiB/s" if alive else f"killed when asked for {asked or 'all'} MiB/s"
        said.append(word)
    return Found(
        lines=(
            Line(
                f"the fastest burst from nothing to {mib} MiB in {size} that growth survives",
                "print",
                f"{max(survived)} MiB/s",
                None,
            ),
        ),
        notes=(
            f"in this order: {', '.join(said)}. One that is killed goes on in the next size, by "
            "the warm retry.",
        ),
    )


def in_place(build: Told, size: Size) -> bool:
    """Whether the build had one attempt, in that size, with more memory and without a kill."""
    if len(build.row["attempts"]) != 1 or build.row["outcome"] != "succeeded":
        return False
    (attempt,) = build.row["attempts"]
    more = attempt["granted_memory_bytes"] > size.memory_bytes
    return attempt["size"] == size.name and attempt["oom_kills"] == 0 and more


def speed(build: Told) -> int:
    """The last speed that the step said it reached, in MiB/s; 0 where it said none."""
    found = [m for _, line in build.lines if (m := re.search(r"ate \d+ MiB at (\d+) MiB/s", line))]
    return int(found[-1][1]) if found else 0
