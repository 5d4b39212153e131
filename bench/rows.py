"""The rows of the table, in its order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from bench.builder import builder
from bench.builds import overhead, warmth
from bench.context import context
from bench.decide import decide
from bench.farm import Bench
from bench.generic import generic
from bench.growth import burst, grown
from bench.lease import lease, sizes
from bench.memory import memory
from bench.neighbour import neighbour
from bench.page import Found
from bench.plugin import plugin
from bench.quality import quality
from bench.retry import second_runner, warm_retry
from bench.sampling import sampling
from bench.spec import build_spec
from bench.together import together
from bench.weekly import run

ROWS: Mapping[str, Callable[[Bench], Awaitable[Found]]] = {
    "lease": lease,
    "generic": generic,
    "sizes": sizes,
    "together": together,
    "memory": memory,
    "overhead": overhead,
    "plugin": plugin,
    "warmth": warmth,
    "run": run,
    "context": context,
    "neighbour": neighbour,
    "grown": grown,
    "burst": burst,
    "warm-retry": warm_retry,
    "second-runner": second_runner,
    "sampling": sampling,
    "builder": builder,
    "spec": build_spec,
    "decide": decide,
    "quality": quality,
}
"""By the word that measures it: `python -m bench lease`."""
