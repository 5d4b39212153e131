"""`mayfly run`: a command in a fresh VM, as a person runs it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import REPO
from bench.stats import duration, median, of
from mayfly.cli.output import show

RUNS = 20
MOST_S = 2.0
FILES = 50
COMMAND = [sys.executable, "-m", "mayfly.cli.main", "run", "--repo", REPO]


async def run(bench: Bench) -> Found:
    """`mayfly run -- true`, from the process's start to its end: from an empty folder, and from one
    with some files; `python -c pass` beside it says what of that is the interpreter's.
    """
    empty, some = bench.scratch / "empty", bench.scratch / "some"
    for folder in (empty, some):
        folder.mkdir(exist_ok=True)
    for number in range(FILES):
        (some / f"file-{number}").write_bytes(b"x" * 2000)
    show("mayfly run -- true")
    seconds(empty, bench)  # the first one fills the page cache
    alone, full, imports = [], [], []
    for _ in range(bench.times(RUNS)):
        alone.append(seconds(empty, bench))
        full.append(seconds(some, bench))
        imports.append(timed([*COMMAND, "--help"], empty))
    return Found(
        lines=(
            Line(
                "`mayfly run -- true` (the whole process), nothing in the directory, on the "
                f"runner's own system; {bench.default}",
                f"<= {MOST_S:.0f} s p50 under TCG",
                of(alone),
                median(alone) <= MOST_S,
            ),
            Line(f"the same with {FILES} files of 2 kB in it", "print", of(full), None),
        ),
        notes=(
            f"of that `mayfly run --help`, which asks nobody, takes {duration(median(imports))} "
            "(median).",
        ),
    )


def seconds(folder: Path, bench: Bench) -> float:
    """How long `mayfly run -- true` takes in `folder`."""
    return timed([*COMMAND, "--size", bench.default.name, "--", "true"], folder)


def timed(argv: list[str], folder: Path) -> float:
    """Seconds of a program, which must succeed, from its start to its end."""
    began = time.monotonic()
    subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.monotonic() - began
