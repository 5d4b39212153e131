"""Row `quality`: the policy of sizes replayed over builds that were made up. Pure simulation.

Twenty repos of fifty builds each, with a fixed seed. A repo has a need of memory that drifts, jumps
once in some, and scatters; some builds find most of their steps cached, and a few need far more
than ever. Every policy sees the same builds, one at a time, and of past ones what a runner would
have seen: the peak, or that it was killed with so much.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench import stats
from bench.farm import Bench
from bench.page import Found, Line
from mayfly.config import Config
from mayfly.ladder import Room
from mayfly.model import GIB, History, Size
from mayfly.orchestrator.sizing import decide
from mayfly.store.metrics import NEWEST

SEED, SEEDS = 39, 20
REPOS, BUILDS = 20, 50
CACHED, OUTLIERS, JUMPS = 0.3, 0.015, 0.25
"""Shares: of builds with most steps cached, of builds far off, and of repos that jump once."""

SCATTER = 0.06
"""Of a need, around the repo's own at that time (standard deviation of its logarithm)."""

LADDER = Config().sizes
ROOM = Room(1024 * GIB, 1024, 65536 * GIB, LADDER)


@dataclass(frozen=True, slots=True)
class Build:
    """What a build needs: bytes of memory, reached at the share `reached` of its seconds."""

    need: float
    seconds: float
    reached: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What a runner saw of an attempt: the peak, and what it had if it was killed, else 0."""

    peak: float
    killed: int


@dataclass(frozen=True, slots=True)
class Repo:
    language: str
    builds: tuple[Build, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Builds whose first attempt was killed, and memory granted in bytes times seconds."""

    kills: int
    granted: float


Policy = Callable[[Repo, Sequence[Seen], Build], Size]
"""The size for a build, after what was seen; only the oracle looks at the build."""


async def quality(_: Bench) -> Found:
    """OOM rate and memory-seconds of the policy, against what else one might do."""
    farm = list(repos(random.Random(SEED)))  # noqa: S311
    oracle = score(farm, foretold, grows=False)
    lines = []
    for grows in (False, True):
        how = "with growth" if grows else "without growth"
        for name, policy, must in (
            ("Mayfly", ours, True),
            ("always medium", medium, False),
            ("peak of the last 5", last_five, False),
        ):
            found = score(farm, policy, grows=grows)
            rate = found.kills / (REPOS * BUILDS)
            times = found.granted / oracle.granted
            most, holds = (1.3, rate == 0) if grows else (1.6, rate < 0.02)
            wanted = f"OOM {'0' if grows else '< 2 %'}, <= {most}x the oracle's"
            lines.append(
                Line(
                    f"sizes of 1,000 builds: {name}, {how}",
                    wanted if must else "-",
                    f"OOM {rate * 100:.1f} %, memory-seconds {times:.2f}x the oracle's",
                    holds and times <= most if must else None,
                )
            )
    return Found(tuple(lines), (about(oracle), spread()))


def about(oracle: Score) -> str:
    """What was simulated, in one line."""
    return (
        f"simulated with seed {SEED}: {REPOS} repos of {BUILDS} builds, drift of -0.4 to 1 % a "
        f"build, a jump of 1.3 to 1.6x in {JUMPS:.0%} of them, scatter {SCATTER:.0%}, {CACHED:.0%} "
        f"mostly cached, {OUTLIERS:.1%} outliers of 1.5 to 2x; the oracle knows each build's need "
        f"and takes the smallest rung ({oracle.granted / GIB / 3600:.0f} GiB-hours). A killed "
        "build is built again, whole, one size up; growth is one rung up from the moment it is "
        "needed."
    )


def spread() -> str:
    """How much of it is the seed's."""
    words = []
    for grows in (False, True):
        rates, times = [], []
        for seed in range(SEED, SEED + SEEDS):
            farm = list(repos(random.Random(seed)))  # noqa: S311
            found = score(farm, ours, grows=grows)
            rates.append(found.kills / (REPOS * BUILDS))
            times.append(found.granted / score(farm, foretold, grows=False).granted)
        how = "with growth" if grows else "without growth"
        words.append(
            f"{how} OOM {stats.median(rates):.1%} (at most {max(rates):.1%}), memory-seconds "
            f"{stats.median(times):.2f}x (at most {max(times):.2f}x)"
        )
    return f"Mayfly with {SEEDS} seeds, medians: {'; '.join(words)}"


def repos(rnd: random.Random) -> Iterator[Repo]:
    """The made-up farm."""
    for _ in range(REPOS):
        need = 2 ** rnd.uniform(-1.5, 3.6) * GIB
        seconds = 2 ** rnd.uniform(6, 10)
        drift = rnd.uniform(-0.004, 0.01)
        jump = rnd.randrange(5, BUILDS) if rnd.random() < JUMPS else None
        builds = []
        for n in range(BUILDS):
            need *= 1 + drift
            if n == jump:
                need *= rnd.uniform(1.3, 1.6)
            builds.append(_build(rnd, need, seconds))
        yield Repo("rust" if need > 3 * GIB else "javascript", tuple(builds))


def _build(rnd: random.Random, need: float, seconds: float) -> Build:
    need *= rnd.lognormvariate(0, SCATTER)
    seconds *= rnd.lognormvariate(0, 0.15)
    if rnd.random() < CACHED:
        need, seconds = need * rnd.uniform(0.1, 0.5), seconds * rnd.uniform(0.05, 0.3)
    elif rnd.random() < OUTLIERS:
        need *= rnd.uniform(1.5, 2)
    return Build(need, seconds, rnd.uniform(0.4, 0.95))


def ours(repo: Repo, seen: Sequence[Seen], _: Build) -> Size:
    """Mayfly's own."""
    return decide(None, past(seen), (repo.language,), "", ROOM).size


def medium(_: Repo, __: Sequence[Seen], ___: Build) -> Size:
    """The same for everybody."""
    return LADDER[1]


def last_five(repo: Repo, seen: Sequence[Seen], _: Build) -> Size:
    """The highest peak of the last five attempts, one rung up after a kill."""
    if not seen:
        return decide(None, None, (repo.language,), "", ROOM).size
    return _holding(max(one.killed * 1.01 or one.peak for one in seen[-5:]))


def foretold(_: Repo, __: Sequence[Seen], build: Build) -> Size:
    """The smallest rung that holds this very build."""
    return _holding(build.need)


def past(seen: Sequence[Seen]) -> History | None:
    """The history as the store's query makes it; percentiles are interpolated as its are."""
    newest = seen[-NEWEST:]
    if not newest:
        return None
    peaks = sorted(one.killed or one.peak for one in newest)
    killed = max(one.killed for one in newest)
    return History(len(newest), percentile_95(peaks), 0.0, killed)


def percentile_95(ordered: Sequence[float]) -> float:
    """As SurrealDB's `math::percentile(values, 95)`: between the two nearest ranks."""
    at = 0.95 * (len(ordered) - 1)
    below, part = int(at), at - int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * part


def score(farm: Sequence[Repo], policy: Policy, *, grows: bool) -> Score:
    """What a policy comes to over all builds. A second kill fails the build."""
    kills, granted = 0, 0.0
    for repo in farm:
        seen: list[Seen] = []
        for build in repo.builds:
            size = policy(repo, seen, build)
            cost, saw = attempt(size, build, grows=grows)
            granted += cost
            seen.append(saw)
            if saw.killed:
                kills += 1
                cost, saw = attempt(above(size), build, grows=grows)
                granted += cost
                seen.append(saw)
    return Score(kills, granted)


def attempt(size: Size, build: Build, *, grows: bool) -> tuple[float, Seen]:
    """What one attempt is granted, in bytes times seconds, and what is seen of it."""
    until = build.seconds * build.reached
    if build.need <= size.memory_bytes:
        return size.memory_bytes * build.seconds, Seen(build.need, 0)
    larger = above(size)
    if not grows or larger == size or build.need > larger.memory_bytes:
        had = larger.memory_bytes if grows else size.memory_bytes
        return size.memory_bytes * until, Seen(had, had)
    grown = larger.memory_bytes * (build.seconds - until)
    return size.memory_bytes * until + grown, Seen(build.need, 0)


def above(size: Size) -> Size:
    """One rung up; the top rung itself."""
    return dict(pairwise(LADDER)).get(size, size)


def _holding(need: float) -> Size:
    return next((size for size in LADDER if size.memory_bytes >= need), LADDER[-1])
