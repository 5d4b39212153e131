"""A lease against a cold boot: from asking to sshd, and to BuildKit's list of workers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import runner, workers
from bench.stats import duration, median, of, percentile, phases, ratio
from mayfly import golden
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host import machine, template
from mayfly.model import Size

CLONES = 30
BOOTS = 3
CLONES_OF_A_SIZE = 10
UNDER_TCG = "under TCG"


async def lease(bench: Bench) -> Found:
    """30 leases of the default size, with a cold boot after each ten."""
    await one(bench.config, bench.default)  # the first one fills the page cache
    verified, logged_in, answered, boots = [], [], [], []
    phase: list[dict[str, float]] = []
    clones, cold = bench.times(CLONES), bench.times(BOOTS)
    for number in range(cold):
        show(f"leases, and cold boot {number + 1} of {cold}")
        for _ in range(clones // cold):
            taken = await one(bench.config, bench.default)
            verified.append(taken[0])
            logged_in.append(taken[1])
            answered.append(taken[2])
            phase.append(taken[3])
        boots.append(await cold_boot(bench.config))
    p50, p95 = median(verified), percentile(verified, 0.95)
    times = ratio(boots, answered)
    size = str(bench.default)
    return Found(
        lines=(
            Line(
                "lease asked -> sshd answers with its own new host key: key exchange completed "
                f"against the pinned key, through the edge; size {size}",
                f"p50 <= 0.6 s, p95 <= 1.2 s {UNDER_TCG}",
                of(verified),
                p50 <= 0.6 and p95 <= 1.2,
            ),
            Line(
                "the same lease -> BuildKit's worker list answered over that SSH",
                f"p50 <= 1.6 s {UNDER_TCG}",
                f"{of(answered)}; logged in at {duration(median(logged_in))}",
                median(answered) <= 1.6,
            ),
            Line(
                "worker list: a cold boot of the same VM to the same answer, against the lease",
                ">= 12x",
                f"{times:.1f}x; cold boot {of(boots)}",
                times >= 12,
            ),
        ),
        notes=(
            f"phases of a lease, medians: {phases(phase)}.",
            "the cold boot is counted from QEMU's start to the answer inside the guest, without "
            "SSH, so it is not made to look slower than it is.",
        ),
    )


async def sizes(bench: Bench) -> Found:
    """Leases of the smallest and of the largest size in turn."""
    taken: dict[str, list[tuple[float, float]]] = {"small": [], "large": []}
    show(f"leases of {bench.smallest.name} and {bench.largest.name} in turn")
    for _ in range(bench.times(CLONES_OF_A_SIZE)):
        for name, size in (("small", bench.smallest), ("large", bench.largest)):
            verified, _, answered, _ = await one(bench.config, size)
            taken[name].append((verified, answered))
    lines = []
    for number, what in enumerate(("sshd's host key", "BuildKit's worker list")):
        small = [pair[number] for pair in taken["small"]]
        large = [pair[number] for pair in taken["large"]]
        apart = max(ratio(small, large), ratio(large, small))
        lines.append(
            Line(
                f"lease asked -> {what}: {bench.smallest} and {bench.largest}",
                "within 1.3x of each other",
                f"{apart:.2f}x; {bench.smallest.name} {of(small)}, "
                f"{bench.largest.name} {of(large)}",
                apart <= 1.3,
            )
        )
    return Found(tuple(lines))


async def one(config: Config, size: Size) -> tuple[float, float, float, dict[str, float]]:
    """One lease: seconds to the host key, to being logged in and to the workers; its phases."""
    async with runner(config, size) as there:
        answered = await workers(config, there)
        return there.verified_s, there.connected_s, answered, dict(there.lease.phases_s)


async def cold_boot(config: Config) -> float:
    """Seconds from starting QEMU on the golden image to BuildKit's workers, read in the guest.

    The same machine and disks as a template's. Under TCG QEMU dies at some boots
    (`template.ATTEMPTS`); such a boot is made again. Raises `InfrastructureError`.
    """
    image, found = golden.newest(config.state), await machine.inspect(config)
    frozen = template.current(config, found)
    if image is None or frozen is None:
        raise MachineUnfit("there is no template to compare with", hint="run `mayfly up` first")
    for _ in range(template.ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=config.state) as folder:
            place = replace(frozen, path=Path(folder))
            started_at = time.monotonic()
            try:
                async with template.booted(config, place, image, lambda _: None):
                    return time.monotonic() - started_at
            except template.QemuDied:
                continue
    raise InfrastructureError("QEMU died at every cold boot")
