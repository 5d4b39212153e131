"""A small HTTP service on this machine, while nothing builds and while two builds burn CPU."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench.farm import BASE, Bench
from bench.page import Found, Line
from bench.runners import REPO, none_left, run
from bench.stats import duration, median, percentile
from mayfly.cli.output import show
from mayfly.errors import InfrastructureError

ROUNDS = 3
REQUESTS = 500
PER_SECOND = 50.0
BUILDS = 2
MOST = 1.5
BURN_S = 120
BURNING = "burning-now"
START_S = 90.0


async def neighbour(bench: Bench) -> Found:
    """Idle and loaded phases in turn; the service and its client run through all of them."""
    rounds = bench.times(ROUNDS)
    show(f"{rounds} rounds: a service alone, then beside {BUILDS} builds that burn CPU")
    idle: list[float] = []
    loaded: list[float] = []
    folder = burner(bench)
    with service() as port:
        await ask(port)
        for number in range(rounds):
            idle += await ask(port)
            async with burning(bench, folder, number):
                loaded += await ask(port)
            await none_left(bench.config)
    times = percentile(loaded, 0.95) / percentile(idle, 0.95)
    return Found(
        lines=(
            Line(
                "p95 of a small HTTP service on the host while two CPU-bound builds run, against "
                f"idle; builds in {bench.default}",
                f"<= {MOST}x",
                f"{times:.2f}x; idle {of_requests(idle)}, beside builds {of_requests(loaded)}",
                times <= MOST,
            ),
        ),
        notes=(
            f"a Python process that answers 4 kB, another that asks {PER_SECOND:.0f} times a "
            "second over one connection, both with the default priority; latency is counted from "
            "when a request was due. Each build runs as many busy loops as its runner has vCPUs.",
        ),
    )


def of_requests(values: list[float]) -> str:
    """Percentiles of many."""
    p50, p95, p99 = median(values), percentile(values, 0.95), percentile(values, 0.99)
    return f"p50 {duration(p50)}, p95 {duration(p95)}, p99 {duration(p99)} (n={len(values)})"


@contextmanager
def service() -> Iterator[int]:
    """The service's port, while it runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.service", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise InfrastructureError("no pipe to the service")
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def ask(port: int) -> list[float]:
    """Latencies of one phase, in seconds."""
    words = ["ask", str(port), str(REQUESTS), str(PER_SECOND)]
    found: list[float] = json.loads(await run([sys.executable, "-m", "bench.service", *words]))
    return found


def burner(bench: Bench) -> Path:
    """A context whose one RUN burns all CPUs of its runner for at most two minutes."""
    folder = bench.scratch / "burner"
    folder.mkdir()
    loop = "timeout $BURN_S sh -c 'while :; do :; done' &"
    (folder / "Dockerfile").write_text(
        f"FROM {bench.config.registry_host}/images/base/{BASE}\n"
        f"RUN BURN_S={BURN_S}; {' '.join([loop] * bench.default.cpus)} "
        f"sleep 1; echo {BURNING}; wait\n"
    )
    return folder


@asynccontextmanager
async def burning(bench: Bench, folder: Path, number: int) -> AsyncIterator[None]:
    """Two builds that burn; yields when both do. They are interrupted on the way out."""
    builds = []
    try:
        for each in range(BUILDS):
            words = ["--no-cache", "--progress", "plain", "--mayfly-repo", REPO]
            words += ["--mayfly-cache-key", f"burn-{number}-{each}"]
            words += ["--mayfly-size", bench.default.name, str(folder)]
            builds.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "mayfly.cli.main", "build", *words),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
            )
        try:
            async with asyncio.timeout(START_S):
                await asyncio.gather(*(_burns(build) for build in builds))
        except TimeoutError:
            raise InfrastructureError(f"a build did not burn within {START_S:.0f} s") from None
        yield
        ended = [build.returncode for build in builds if build.returncode is not None]
        if ended:
            raise InfrastructureError(f"a build ended while it should burn, with {ended[0]}")
    finally:
        for build in builds:
            if build.returncode is None:
                build.terminate()
        for build in builds:
            await build.communicate()


async def _burns(build: asyncio.subprocess.Process) -> None:
    """Wait for the line that the build prints while it burns."""
    if build.stdout is None:
        raise InfrastructureError("no pipe from the build")
    last = ""
    async for line in build.stdout:
        last = line.decode(errors="replace").strip() or last
        if BURNING in last and "RUN" not in last:
            return
    raise InfrastructureError(f"a build ended before it burned: {last}")
