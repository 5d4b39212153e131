"""`mayfly build` against buildx alone; a cold runner against a warm one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import REPO, Runner, run, runner
from bench.stats import duration, median, of, phases, ratio
from mayfly import flow
from mayfly.build import buildx, cache, progress
from mayfly.cli.output import show
from mayfly.config import Config

PAIRS = 3
ROUNDS = 3
FACTOR, PLUS_S = 1.1, 2.0
MOST_COLD = 1.5
NOTHING = "--no-cache"


@dataclass(frozen=True, slots=True)
class Buildx:
    """buildx on a runner that is there and connected: the very commands of `mayfly build`."""

    config: Config
    there: Runner
    _named: list[bool] = field(default_factory=list)

    async def seconds(self, context: Path, key: str, *flags: str, warm: bool) -> float:
        """How long a build of `context` takes; `warm`: there is a cache `key` to import."""
        request = flow.prepare(words(context, key, *flags), self.config, os.environ, Path.cwd())
        env = buildx.environment(request.environ, request.args, self.there.folder)
        if not self._named:
            await progress.quietly(buildx.create_argv(request.buildx, self.there.folder), env)
            self._named.append(True)
        where = cache.references(request.caches, REPO, request.args)
        caches = {name: cache.Cache(reference, warm) for name, reference in where.items()}
        command = buildx.build_argv(request.buildx, request.args, self.there.folder, caches)
        started_at = time.monotonic()
        await run(command, env)
        return time.monotonic() - started_at


async def overhead(bench: Bench) -> Found:
    """`mayfly build` from nothing, and the same buildx from nothing on a runner, in turn."""
    context = bench.example("overhead")
    key = f"overhead-{int(time.time())}"
    pairs = bench.times(PAIRS)
    show(f"{pairs} pairs: mayfly build, and its buildx on a runner that is there")
    whole, alone = [], []
    told: list[dict[str, float]] = []
    for number in range(pairs):
        seconds, phase = await mayfly_build(bench, context, f"{key}-{number}", NOTHING)
        whole.append(seconds)
        told.append(phase)
        async with runner(bench.config, bench.default) as there:
            build = Buildx(bench.config, there)
            alone.append(await build.seconds(context, f"{key}-{number}-x", NOTHING, warm=False))
    more_s = median(whole) - FACTOR * median(alone)
    outside = [s - sum(phase.values()) for s, phase in zip(whole, told, strict=True)]
    return Found(
        lines=(
            Line(
                "`mayfly build` (the whole process) against the same buildx run on an already "
                f"running VM; `examples/python-web` from nothing, {bench.default}",
                f"<= {FACTOR}x + {PLUS_S:.0f} s",
                f"{FACTOR}x {more_s:+.1f} s ({ratio(whole, alone):.2f}x); "
                f"mayfly {of(whole)}, buildx {of(alone)}",
                more_s <= PLUS_S,
            ),
        ),
        notes=(
            f"phases of `mayfly build`, medians: {phases(told)}; outside them (the process's "
            f"start, asking, reporting, its end) {duration(median(outside))}.",
        ),
    )


@dataclass(slots=True)
class Times:
    """One comparison's times on a cold and on a warm runner."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{ratio(self.cold, self.warm):.2f}x; cold {of(self.cold)}, warm {of(self.warm)}"


async def warmth(bench: Bench) -> Found:
    """Builds on a runner that has built them before, and on fresh ones with the cache imported."""
    context = bench.example("warmth")
    rounds = bench.times(ROUNDS)
    show(f"{rounds} rounds: a warm runner, then cold ones with its cache")
    nothing, unchanged, changed = Times(), Times(), Times()
    whole: list[float] = []
    for number in range(rounds):
        key = f"warmth-{int(time.time())}"
        async with runner(bench.config, bench.default) as there:
            build = Buildx(bench.config, there)
            nothing.cold.append(await build.seconds(context, key, NOTHING, warm=False))
            nothing.warm.append(await build.seconds(context, key, NOTHING, warm=True))
            unchanged.warm.append(await build.seconds(context, key, warm=True))
            change(context, f"{number} on a warm runner")
            changed.warm.append(await build.seconds(context, key, warm=True))
        unchanged.cold.append(await fresh(bench, context, key))
        whole.append((await mayfly_build(bench, context, key))[0])
        change(context, f"{number} on a cold runner")
        changed.cold.append(await fresh(bench, context, key))
    least = ratio(unchanged.cold, unchanged.warm)
    what = "cold runner with warm cache against a warm runner (buildx alone on both)"
    return Found(
        lines=(
            Line(
                f"{what}, nothing changed; {bench.default}",
                f"<= {MOST_COLD}x",
                str(unchanged),
                least <= MOST_COLD,
            ),
            Line(f"{what}, one source file changed", "print", str(changed), None),
            Line(
                "cold runner against a warm runner, from nothing (`--no-cache`)",
                "print",
                str(nothing),
                None,
            ),
        ),
        notes=(
            "all of `mayfly build` with a warm cache and nothing changed, lease and a fresh VM "
            f"included: {of(whole)}, {ratio(whole, unchanged.warm):.2f}x of buildx alone on a warm "
            "runner. The example is `examples/python-web`.",
        ),
    )


async def fresh(bench: Bench, context: Path, key: str) -> float:
    """buildx's seconds on a fresh runner, with the cache `key` imported."""
    async with runner(bench.config, bench.default) as there:
        return await Buildx(bench.config, there).seconds(context, key, warm=True)


def change(context: Path, how: str) -> None:
    """One source file is another than in any build before."""
    file = context / "hello.py"
    text = file.read_text().partition("\n# changed:")[0].rstrip("\n")
    file.write_text(f"{text}\n# changed: {how}, {time.time_ns()}\n")


async def mayfly_build(
    bench: Bench, context: Path, key: str, *flags: str
) -> tuple[float, dict[str, float]]:
    """`mayfly build` as a person runs it: seconds from start to end of the process; its phases."""
    metadata = bench.scratch / "metadata.json"
    more = [*flags, "--metadata-file", str(metadata), "--mayfly-size", bench.default.name]
    started_at = time.monotonic()
    await run([sys.executable, "-m", "mayfly.cli.main", "build", *words(context, key, *more)])
    seconds = time.monotonic() - started_at
    return seconds, json.loads(metadata.read_text())["mayfly"]["timings_s"]


def words(context: Path, key: str, *flags: str) -> Sequence[str]:
    """The arguments of `mayfly build`."""
    own = ["--mayfly-repo", REPO, "--mayfly-cache-key", key]
    return [*flags, *own, "-t", f"images/{REPO}:bench", "--push", str(context)]
