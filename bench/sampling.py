"""What being watched costs a build that computes: the agent's own CPU time."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import asyncssh

from bench.builds import NOTHING, Buildx
from bench.farm import BASE, Bench
from bench.page import Found, Line
from bench.runners import Runner, runner
from bench.stats import median, of
from mayfly.cli.output import show
from mayfly.errors import InfrastructureError
from mayfly.model import Size
from mayfly.vm.client import ControlClient, DialClient

ROUNDS = 2
SETTLE_S = 12.0
"""Until the build's step runs, from when buildx was started."""

LOOK_S = 30.0
MOST_SHARE = 0.01
AGENT = "/sys/fs/cgroup/system.slice/mayfly-agent.service/cgroup.procs"
BUILDKIT = "/sys/fs/cgroup/system.slice/buildkitd@own.service/cpu.stat"
COUNT = f"""
cat {BUILDKIT}
for pid in $(cat {AGENT}); do
    read name </proc/$pid/comm
    [ "$name" != python3 ] || cat /proc/$pid/task/*/schedstat
done
"""
"""What the build has used; and the agent's threads, each: nanoseconds on a CPU, first on its line
(the kernel's Documentation/scheduler/sched-stats.rst). The SSH server, in the agent's control group
too, works for the build, and for whoever asks this."""


async def sampling(bench: Bench) -> Found:
    """CPU time of the agent, against that of the build's control group, over 30 s."""
    lines, each = [], list[float]()
    for size in (bench.default, bench.smallest):
        rounds = bench.times(ROUNDS)
        show(f"{rounds} builds that compute on all CPUs of {size.name}, and their agent")
        shares = []
        for number in range(rounds):
            async with runner(bench.config, size) as there:
                context = burner(bench, size, number)
                agent_s, build_s, samples = await looked(bench, there, context)
            if build_s < 0.5 * LOOK_S * size.cpus:
                raise InfrastructureError(f"the build computed for {build_s:.0f} s only")
            shares.append(agent_s / build_s)
            each.append(agent_s / max(1, samples))
        lines.append(
            Line(
                f"overhead of sampling on a CPU-bound build ({size}): CPU time of the guest's "
                "agent by that of the build",
                f"<= {MOST_SHARE:.0%}",
                f"p50 {median(shares):.2%}, at most {max(shares):.2%} (n={len(shares)})",
                max(shares) <= MOST_SHARE,
            )
        )
    return Found(
        lines=tuple(lines),
        notes=(
            f"over {LOOK_S:.0f} s of a build with a busy loop for each vCPU, from `schedstat` of "
            "the agent's threads and `cpu.stat` of the build's control group; one sample took the "
            f"guest {of(each)}. A guest that computes on every core of this machine is also "
            "charged for what the machine takes from it.",
        ),
    )


def burner(bench: Bench, size: Size, number: int) -> Path:
    """A context whose one RUN burns all CPUs for longer than is looked at."""
    folder = bench.scratch / f"sampling-{size.name}-{number}"
    folder.mkdir()
    loop = f"timeout {SETTLE_S + LOOK_S + 10:.0f} sh -c 'while :; do :; done' &"
    (folder / "Dockerfile").write_text(
        f"FROM {bench.config.registry_host}/images/base/{BASE}\n"
        f"RUN {' '.join([loop] * size.cpus)} wait\n"
    )
    return folder


async def looked(bench: Bench, there: Runner, context: Path) -> tuple[float, float, int]:
    """CPU seconds of the agent and of the build, and samples, in `LOOK_S` of the build."""
    build = asyncio.create_task(
        Buildx(bench.config, there).seconds(context, "sampling", NOTHING, warm=False)
    )
    try:
        await asyncio.sleep(SETTLE_S)
        before, seen = await counters(bench, there), await samples(bench, there)
        started = time.monotonic()
        await asyncio.sleep(LOOK_S)
        after, seen_after = await counters(bench, there), await samples(bench, there)
        show(f"looked for {time.monotonic() - started:.0f} s")
        await build
    finally:
        build.cancel()
        await asyncio.gather(build, return_exceptions=True)
    agent_s, build_s = (late - early for early, late in zip(before, after, strict=True))
    return agent_s, build_s, seen_after - seen


async def samples(bench: Bench, there: Runner) -> int:
    """How many samples the host has taken of the runner so far; one more for being asked."""
    host = ControlClient(bench.config.run / "host.sock")
    evidence = await host.usage(there.lease.name, final=False)
    return evidence.usage.samples if evidence else 0


async def counters(bench: Bench, there: Runner) -> tuple[float, float]:
    """CPU seconds of the agent, and of BuildKit's control group, until now."""
    lease = there.lease
    known: tuple[list[asyncssh.SSHKey], list[str], list[str]]
    known = ([asyncssh.import_public_key(lease.relay.host_key)], [], [])
    sock = await DialClient(bench.config.run / "dial.sock").dial(lease.name)
    async with asyncssh.connect(
        lease.name,
        sock=sock,
        config=(),
        username="build",
        client_keys=[lease.key],
        known_hosts=known,
    ) as connection:
        told = str((await connection.run(COUNT, check=True)).stdout)
    build = re.search(r"^usage_usec (\d+)$", told, re.MULTILINE)
    threads = re.findall(r"^(\d+) \d+ \d+$", told, re.MULTILINE)
    if build is None or not threads:
        raise InfrastructureError("the guest does not tell its CPU times")
    return sum(map(int, threads)) / 1e9, int(build[1]) / 1e6
