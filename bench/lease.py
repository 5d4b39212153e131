"""A lease against a cold boot: from asking to sshd, and to BuildKit's list of workers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from operator import attrgetter
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
WITHIN = 1.3
"""What the time to a runner may differ by between sizes."""
UNDER_TCG = "under TCG"


async def lease(bench: Bench) -> Found:
    """30 leases of the default size, with a cold boot after each ten."""
    await one(bench.config, bench.default)  # the first one fills the page cache
    taken: list[Taken] = []
    boots: list[float] = []
    clones, cold = bench.times(CLONES), bench.times(BOOTS)
    for number in range(cold):
        show(f"leases, and cold boot {number + 1} of {cold}")
        taken += [await one(bench.config, bench.default) for _ in range(clones // cold)]
        boots.append(await cold_boot(bench.config))
    verified = [each.verified_s for each in taken]
    answered = [each.answered_s for each in taken]
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
                of(answered),
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
            "seconds from asking, medians: ready "
            f"{duration(median([each.ready_s for each in taken]))}, host key "
            f"{duration(p50)}, logged in {duration(median([each.connected_s for each in taken]))}, "
            f"workers {duration(median(answered))}; the lease's phases, medians: "
            f"{phases([each.phases_s for each in taken])}.",
            "the cold boot is counted from QEMU's start to the answer inside the guest, without "
            "SSH, so it is not made to look slower than it is.",
        ),
    )


async def sizes(bench: Bench) -> Found:
    """Leases of the smallest and the largest size of Mayfly's own ladder that fit, in turn, and of
    the bench's one below them, which nothing is asked of.
    """
    asked = (bench.default, bench.largest, bench.smallest)
    taken: dict[str, list[Taken]] = {size.name: [] for size in asked}
    show(f"leases of {', '.join(taken)} in turn")
    for _ in range(bench.times(CLONES_OF_A_SIZE)):
        for size in asked:
            taken[size.name].append(await one(bench.config, size))
    lines = []
    for size, must in ((bench.default, WITHIN), (bench.smallest, None)):
        for what, read in (
            ("sshd's host key", attrgetter("verified_s")),
            ("BuildKit's worker list", attrgetter("answered_s")),
        ):
            small = [read(each) for each in taken[size.name]]
            large = [read(each) for each in taken[bench.largest.name]]
            apart = max(ratio(small, large), ratio(large, small))
            lines.append(
                Line(
                    f"lease asked -> {what}: {size} and {bench.largest}",
                    f"within {must}x of each other" if must else "print",
                    f"{apart:.2f}x; {size.name} {of(small)}, {bench.largest.name} {of(large)}",
                    apart <= must if must else None,
                )
            )
    return Found(tuple(lines))


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds from asking for a lease to it being ready, to the host key proved, to being logged
    in and to BuildKit's workers; and the lease's phases."""

    ready_s: float
    verified_s: float
    connected_s: float
    answered_s: float
    phases_s: dict[str, float]


async def one(config: Config, size: Size) -> Taken:
    """One lease, from asking to its VM being gone."""
    async with runner(config, size) as there:
        answered_s = await workers(config, there)
        lease = there.lease
        return Taken(lease.ready_s, there.verified_s, there.connected_s, answered_s, lease.phases_s)


async def cold_boot(config: Config) -> float:
    """Seconds from starting QEMU on the golden image to BuildKit's workers, read in the guest.

    The same machine and disks as a template's. Under TCG some boots fail (`template.ATTEMPTS`);
    such a boot is made again. Raises `InfrastructureError`.
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
            except InfrastructureError:
                continue
    raise InfrastructureError("every cold boot failed")
