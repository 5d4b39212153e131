"""Run every measurement on this machine's farm and write `docs/benchmarks.md`."""

from __future__ import annotations

import asyncio
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import measure
from mayfly import base, config, demo
from mayfly.cli.main import guarded
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.host import machine

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
CLONES = 20
BOOTS = 3
PAIRS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was compared, what must be reached, what came out."""

    what: str
    must: str
    measured: str
    holds: bool


def run() -> int:
    """0 when every row holds, else 1; the table is written either way."""
    settings = config.load()
    with demo.running(settings):
        base.publish(settings, "python", show)
        found, rows, notes = asyncio.run(measured(settings))
    OUT.write_text(page(found, rows, notes))
    print(OUT.read_text())
    return 0 if all(row.holds for row in rows) else 1


async def measured(settings: Config) -> tuple[machine.Machine, list[Row], list[str]]:
    """All rows, and what is worth knowing beside them."""
    rows, notes = [], []

    show(f"{CLONES} leases, one after the other")
    await measure.lease_to_workers(settings)  # the first one fills the page cache
    taken = [await measure.lease_to_workers(settings) for _ in range(CLONES)]
    spawn = [seconds for seconds, _ in taken]
    show(f"{BOOTS} cold boots")
    boots = [await measure.cold_boot(settings) for _ in range(BOOTS)]
    p50, boot = statistics.median(spawn), statistics.median(boots)
    rows.append(
        Row(
            f"lease asked -> BuildKit's worker list answered over its SSH, p50 of {CLONES}",
            "<= 2 s under TCG",
            f"{p50:.2f} s (p95 {statistics.quantiles(spawn, n=20)[-1]:.2f} s)",
            p50 <= 2,
        )
    )
    rows.append(
        Row(
            "the same, against a cold boot of the same VM to the same answer",
            ">= 10x faster",
            f"{boot / p50:.1f}x (cold boot {boot:.1f} s, median of {BOOTS})",
            boot / p50 >= 10,
        )
    )
    phases = {name: statistics.median(p[name] for _, p in taken) for name in taken[0][1]}
    told = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in phases.items())
    notes.append(f"Phases of a lease, medians: {told}.")

    show(f"{PAIRS} pairs: mayfly build, and its buildx on a runner that is there")
    key = f"bench-{int(time.time())}"
    whole, alone, warm_runner = [], [], []
    for number in range(PAIRS):
        whole.append(await measure.mayfly_build(settings, f"{key}-{number}", "--no-cache"))
        first, again = await measure.buildx_runs(
            settings, f"{key}-{number}-x", [("--no-cache", False), ("", True)]
        )
        alone.append(first)
        warm_runner.append(again)
    a, b = statistics.median(whole), statistics.median(alone)
    rows.append(
        Row(
            "`mayfly build` against the same buildx run on an already running VM",
            "<= 1.1x + 3 s",
            f"{a:.1f} s against {b:.1f} s: {a / b:.2f}x, or 1.1x {a - 1.1 * b:+.1f} s",
            a <= 1.1 * b + 3,
        )
    )
    show(f"{PAIRS} builds with a warm cache, nothing changed")
    cold_runner, warm = [], []
    for _ in range(PAIRS):
        cold_runner += await measure.buildx_runs(settings, f"{key}-0", [("", True)])
        warm.append(await measure.mayfly_build(settings, f"{key}-0"))
    a, b = statistics.median(cold_runner), statistics.median(warm_runner)
    rows.append(
        Row(
            "cold runner with warm cache, nothing changed, against a warm runner (buildx on both)",
            "<= 1.6x",
            f"{a:.1f} s against {b:.1f} s: {a / b:.2f}x",
            a / b <= 1.6,
        )
    )
    whole_s = statistics.median(warm)
    notes.append(
        f"All of `mayfly build` with a warm cache and nothing changed, from the process's start "
        f"to its end, lease and a fresh VM included: {whole_s:.1f} s, {whole_s / b:.2f}x of buildx "
        f"alone on a warm runner."
    )
    return await machine.inspect(settings), rows, notes


def page(found: machine.Machine, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The page, as Markdown."""
    memory = found.memory_bytes / 2**30
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; a row's figures were taken in one run, on this machine:",
        "",
        f"- {datetime.now(UTC).date().isoformat()}, {found.cores} cores ({found.cpu}), "
        f"{memory:.0f} GiB, Linux {platform.release()}",
        f"- QEMU {found.qemu}, {found.accelerator.upper()} ({found.reason.rstrip('.')})",
        f"- Python {platform.python_version()}; example: `examples/python-web`",
        "",
        "| what | must reach | measured | |",
        "| --- | --- | --- | --- |",
        *(f"| {row.what} | {row.must} | {row.measured} | {verdict(row)} |" for row in rows),
        "",
        *notes,
        "",
    ]
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """What the last column says."""
    return "holds" if row.holds else "**does not hold**"


if __name__ == "__main__":
    sys.exit(guarded(run))
