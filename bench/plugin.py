"""The Woodpecker plugin: how soon it asks for a lease, and a whole build against `mayfly build`."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from bench.builds import NOTHING, mayfly_build
from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import REPO, none_left, run
from bench.stats import median, of, ratio
from mayfly import client
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.model import Outcome

STARTS = 20
PAIRS = 3
MOST_S = 0.4
MOST_TIMES = 1.05
PROGRAM = Path(sys.executable).with_name("buildkit-launcher")
_BUILD = re.compile(rb": build (\w+) of ")


async def plugin(bench: Bench) -> Found:
    """20 starts until the lease is asked for; then 3 pairs of whole builds, in turn."""
    context = bench.example("plugin")
    starts, pairs = bench.times(STARTS), bench.times(PAIRS)
    show(f"{starts} starts of the plugin")
    asked = [await start(bench, context) for _ in range(starts)]
    show(f"{pairs} pairs: the plugin, and mayfly build")
    key = f"plugin-{int(time.time())}"
    ours, theirs = [], []
    for number in range(pairs):
        ours.append(await whole(bench, context, f"{key}-{number}"))
        await none_left(bench.config)
        seconds, _ = await mayfly_build(bench, context, f"{key}-{number}-x", NOTHING)
        theirs.append(seconds)
        await none_left(bench.config)
    times = ratio(ours, theirs)
    return Found(
        lines=(
            Line(
                "plugin start to lease asked (in the orchestrator's hands, through the edge)",
                f"<= {MOST_S:.1f} s p50",
                of(asked),
                median(asked) <= MOST_S,
            ),
            Line(
                "the plugin against `mayfly build`, whole processes; `examples/python-web` from "
                f"nothing, {bench.default}",
                f"<= {MOST_TIMES}x",
                f"{times:.2f}x; plugin {of(ours)}, mayfly {of(theirs)}",
                times <= MOST_TIMES,
            ),
        ),
    )


def environ(config: Config, context: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """What a step of the example's pipeline has."""
    given = {
        "url": config.url,
        "token": client.token(config),
        "ca": str(config.state / "ca" / "ca.crt"),
        "context": str(context),
        "repo": f"images/{REPO}",
        "tags": "bench",
        **settings,
    }
    ci = {"CI_REPO": REPO, "CI_COMMIT_REF": "refs/heads/main", "CI_PIPELINE_NUMBER": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if cache := os.environ.get("MAYFLY_CACHE"):
        kept["MAYFLY_CACHE"] = cache
    return kept | ci | {f"PLUGIN_{name.upper()}": value for name, value in given.items()}


async def start(bench: Bench, context: Path) -> float:
    """Seconds from starting the program to the moment at which its lease was made."""
    began_at = time.time()  # the orchestrator's moment is on the same machine's clock
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        env=environ(bench.config, context, {"size": bench.smallest.name}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    said = b""
    while not (found := _BUILD.search(said)):
        line = await process.stderr.readline()
        if not line:
            raise InfrastructureError(f"the plugin asked for nothing: {said.decode()}")
        said += line
    async with client.from_environment(bench.config) as api:
        made = await api.build(found[1].decode())
        await api.end(made["id"], Outcome.CANCELLED)
    process.terminate()
    await process.communicate()
    await none_left(bench.config)
    return datetime.fromisoformat(made["created_at"]).timestamp() - began_at


async def whole(bench: Bench, context: Path, key: str) -> float:
    """Seconds from start to end of the plugin's process."""
    settings = {"size": bench.default.name, "cache_key": key, "no_cache": "true"}
    began_at = time.monotonic()
    await run([str(PROGRAM)], environ(bench.config, context, settings))
    return time.monotonic() - began_at
