"""The rows of the table, in its order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from bench.builds import overhead, warmth
from bench.context import context
from bench.decide import decide
from bench.farm import Bench
from bench.generic import generic
from bench.lease import lease, sizes
from bench.memory import memory
from bench.neighbour import neighbour
from bench.page import Found
from bench.quality import quality
from bench.spec import build_spec
from bench.together import together

ROWS: Mapping[str, Callable[[Bench], Awaitable[Found]]] = {
    "lease": lease,
    "generic": generic,
    "sizes": sizes,
    "together": together,
    "memory": memory,
    "overhead": overhead,
    "warmth": warmth,
    "context": context,
    "neighbour": neighbour,
    "spec": build_spec,
    "decide": decide,
    "quality": quality,
}
"""By the word that measures it: `python -m bench lease`."""
