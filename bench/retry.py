"""Builds that run out of memory: what the second attempt costs, and how soon it runs."""

from __future__ import annotations

from bench.farm import Bench
from bench.growth import next_up
from bench.page import Found, Line
from bench.stats import median, of, phases, ratio
from bench.told import Told, context_of, told
from mayfly.cli.output import show
from mayfly.errors import InfrastructureError
from mayfly.model import MIB

ROUNDS = 2
TIMES = 5
EARLIER_S = 35
MOST = 0.5
MOST_S = 6.0
SEEN = "ran out of memory in"
RUNS = r"^#\d+ "
"""What buildx begins its lines with once BuildKit builds."""


async def warm_retry(bench: Bench) -> Found:
    """A build that dies in its last step and goes on one size up; the same from nothing there."""
    size, right = bench.smallest, next_up(bench, bench.smallest)
    burn = f"timeout {EARLIER_S} sh -c 'while :; do :; done' || true"
    context = context_of(bench, "warm-retry", burn, eats(bench))
    rounds = bench.times(ROUNDS)
    show(f"{rounds} rounds: dies in {size.name}, goes on in {right.name}; the same from nothing")
    warm, whole = [], []
    for _ in range(rounds):
        build = checked(await told(bench, context, size.name, "--mayfly-no-grow"))
        warm.append(build.seconds - build.at(SEEN))
        whole.append((await told(bench, context, right.name)).seconds)
    share = ratio(warm, whole)
    return Found(
        lines=(
            Line(
                f"warm retry in {right} of a build that died in its last step in {size}, against "
                "the same build from nothing in the larger size",
                f"<= {MOST}x",
                f"{share:.2f}x; from out of memory to the end {of(warm)}, from nothing {of(whole)}",
                share <= MOST,
            ),
        ),
        notes=(
            f"its first step computes for {EARLIER_S} s whatever the size, its last one takes "
            f"{taken_mib(bench)} MiB. Both ends are those of the `mayfly build` process.",
        ),
    )


async def second_runner(bench: Bench) -> Found:
    """From the moment the build is told that memory ran out to BuildKit's first line after it."""
    size = bench.smallest
    context = context_of(bench, "second-runner", eats(bench))
    times = bench.times(TIMES)
    show(f"{times} builds that run out of memory in {size.name}")
    taken: list[float] = []
    steps: list[dict[str, float]] = []
    for _ in range(times):
        build = checked(await told(bench, context, size.name, "--mayfly-no-grow"))
        seen_s = build.at(SEEN)
        taken.append(build.at(RUNS, seen_s) - seen_s)
        steps.append(build.row["timings_s"])
    return Found(
        lines=(
            Line(
                "out of memory seen -> the build runs on the second runner, with the first one's "
                f"disk; {size} to {next_up(bench, size)}",
                f"p50 <= {MOST_S:.0f} s under TCG",
                of(taken),
                median(taken) <= MOST_S,
            ),
        ),
        notes=(
            f"phases of the second attempt, medians: {phases(steps)}. `quiesce` (the first puts "
            "its disk down and ends) goes on beside the clone; `scratch` is the disk taken up by "
            "the second: its parts are `guest.disk`, `guest.mount`, `guest.wake`, `guest.serve`.",
        ),
    )


def taken_mib(bench: Bench) -> int:
    """More than the smallest size has."""
    return int(1.4 * bench.smallest.memory_bytes / MIB)


def eats(bench: Bench) -> str:
    """The step that runs out of memory."""
    return f"python3 /eat.py {taken_mib(bench)} 0"


def checked(build: Told) -> Told:
    """The build, which went on with its disk. Raises `InfrastructureError` for any other."""
    build.at("finished steps are kept")
    if [outcome for _, outcome in build.attempts] != ["oom", "succeeded"]:
        raise InfrastructureError(f"it did not go on as it should: {build.attempts}")
    return build
