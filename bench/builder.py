"""Stock buildx through a builder: from its start to BuildKit's list of workers, a lease between."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import REPO, none_left, run
from bench.stats import duration, median, of
from mayfly import client
from mayfly.cli import docker_side
from mayfly.cli.output import show
from mayfly.errors import InfrastructureError
from mayfly.tools import tools_dir

TIMES = 20
MOST_S = 1.8
NAME = "bench"


async def builder(bench: Bench) -> Found:
    """`buildx inspect`, and buildctl for what is buildx's own, each with a fresh runner."""
    config, home = bench.config, bench.scratch / "docker"
    env = {**os.environ, "DOCKER_CONFIG": str(home)}
    env.pop("BUILDX_CONFIG", None)
    asked = docker_side.Wanted(
        NAME,
        REPO,
        bench.default.name,
        0,
        None,
        tls=False,
        buildx=(str(tools_dir(config.cache) / "buildx"),),
        folder=home / "mayfly" / NAME,
    )
    inspect = [*asked.buildx, "inspect", NAME]
    async with client.from_environment(config) as farm:
        address = await docker_side.made(farm, asked, env)
        buildctl = [str(tools_dir(config.cache) / "buildctl"), "--addr", address]
        taken: list[float] = []
        bare: list[float] = []
        try:
            show(f"{bench.times(TIMES)} times buildx inspect, and buildctl debug workers, in turn")
            await timed(inspect, env, bench, "running")  # the first one fills the page cache
            for _ in range(bench.times(TIMES)):
                taken.append(await timed(inspect, env, bench, "running"))
                bare.append(await timed([*buildctl, "debug", "workers"], env, bench, "linux"))
        finally:
            docker_side.forget(NAME, env)
            await farm.remove_builder(NAME)
    return Found(
        lines=(
            Line(
                "`docker buildx` connect -> worker list through `mayfly builder`, no runner being "
                f"there: a whole `buildx inspect`; size {bench.default}",
                f"p50 <= {MOST_S} s under TCG",
                of(taken),
                median(taken) <= MOST_S,
            ),
        ),
        notes=(
            f"the same with `buildctl debug workers`: p50 {duration(median(bare))}; from the start "
            "of the program to its end, with a lease of its own each time (linger 0).",
        ),
    )


async def timed(argv: list[str], env: dict[str, str], bench: Bench, word: str) -> float:
    """Seconds that a program takes which says `word` of a builder with a runner.

    Raises `InfrastructureError` when it does not.
    """
    started_at = time.monotonic()
    said = await run(argv, env)
    taken_s = time.monotonic() - started_at
    if word not in said:
        raise InfrastructureError(f"{Path(argv[0]).name} did not reach a runner")
    await none_left(bench.config)
    return taken_s
