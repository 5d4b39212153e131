"""A build spec, evaluated as `mayfly build` does it: in a process that can do nothing else."""

from __future__ import annotations

import time

from bench.farm import EXAMPLE, Bench
from bench.page import Found, Line
from bench.stats import median, of
from mayfly import spec

RUNS = 100
MOST_S = 0.15
FILE = EXAMPLE.parent / "rust-service" / spec.NAME


async def build_spec(bench: Bench) -> Found:
    """The example's spec, read and evaluated so many times. No runner takes part."""
    root = spec.root_of(FILE.parent)
    taken = []
    for _ in range(bench.times(RUNS)):
        began_s = time.perf_counter()
        spec.load(FILE, root)
        taken.append(time.perf_counter() - began_s)
    what = "spec evaluation, sandboxed: a process of its own, from the file to the checked spec"
    line = Line(what, f"p50 <= {MOST_S} s", of(taken), median(taken) <= MOST_S)
    return Found(lines=(line,))
