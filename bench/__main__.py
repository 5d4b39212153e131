"""Measure rows on this machine and write them into `docs/benchmarks.md`.

    python -m bench [--trial] [--farm FOLDER] [ROW…]

Without a ROW all of them. `--trial` repeats everything as little as possible and writes nothing.
`--farm` keeps the bench's farm in FOLDER for the next time, which saves the making of a template
and of a base image.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.farm import Bench, farm
from bench.page import Found, page, verdict
from bench.rows import ROWS
from mayfly.cli.main import guarded
from mayfly.cli.output import complain, show
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError, UsageError
from mayfly.host import machine

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
TRIAL = 1
"""Repetitions of everything in a trial."""

ROW_LIMIT_S = 900.0
"""A row that takes longer hangs; the others are measured all the same."""


def run() -> int:
    """0 when every row was measured and reaches what it must, else 1 (or the error's status)."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with farm(given.farm, lambda n: TRIAL if given.trial else n) as bench:
        about = asyncio.run(describe(bench.config))
        missed = [name for name in given.rows if not _row(name, bench, about, given.trial)]
    if missed:
        show(f"not as it must be: {', '.join(missed)}")
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure on this machine.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--trial", action="store_true", help="repeat little, write nothing")
    parser.add_argument("--farm", type=Path, metavar="FOLDER", help="keep the farm here")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        raise UsageError(f"there is no row {min(unknown)}", hint=f"choose of {', '.join(ROWS)}")
    given.rows = [name for name in ROWS if not given.rows or name in given.rows]
    given.farm = given.farm.resolve() if given.farm else None
    return given


def _row(name: str, bench: Bench, about: str, trial: bool) -> bool:
    """Measure one row, say it, and write it; whether it holds. A failing one leaves the page."""
    started_at = time.monotonic()
    try:
        found = asyncio.run(_measured(name, bench))
    except MayflyError as error:
        show(f"{name} was not measured:")
        complain(error)
        return False
    took = time.monotonic() - started_at
    print(f"== {name}, {took:.0f} s")
    for line in found.lines:
        print(f"{verdict(line.holds).strip('*')}: {line.what}")
        print(f"    {line.measured}  (must reach: {line.must})")
    for note in found.notes:
        print(f"    {note}")
    sys.stdout.flush()
    if not trial:
        before = OUT.read_text() if OUT.exists() else ""
        day = datetime.now(UTC).date().isoformat()
        OUT.write_text(page(before, about, {name: found}, list(ROWS), day))
    return found.holds


async def _measured(name: str, bench: Bench) -> Found:
    try:
        async with asyncio.timeout(ROW_LIMIT_S):
            return await ROWS[name](bench)
    except TimeoutError:
        raise InfrastructureError(f"it took longer than {ROW_LIMIT_S:.0f} s") from None


async def describe(config: Config) -> str:
    """This machine, in one line; rows that were measured under another line do not stay."""
    found = await machine.inspect(config)
    reason = found.reason.partition(": ")[0].rstrip(".")
    return (
        f"{found.cores} cores ({found.cpu}), {found.memory_bytes / 2**30:.0f} GiB, "
        f"Linux {platform.release()}; QEMU {found.qemu}, {found.accelerator.upper()} ({reason}); "
        f"Python {platform.python_version()}."
    )


if __name__ == "__main__":
    sys.exit(guarded(run))
