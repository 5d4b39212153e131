"""What Prometheus sees of the orchestrator."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mayfly.model import Lease
from mayfly.orchestrator import states

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_READY_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
_BUILD_S = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Metrics:
    """Counters of one process, in a registry of their own; they start at zero with it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._asked = Counter(
            "mayfly_leases_asked", "Leases that were asked for.", registry=self._registry
        )
        self._ended = Counter(
            "mayfly_leases_ended",
            "Builds that ended, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self._calls = Counter(
            "mayfly_provider_calls",
            "Calls of the provider, by operation and result.",
            ["operation", "result"],
            registry=self._registry,
        )
        self._ready = Histogram(
            "mayfly_lease_ready_seconds",
            "Seconds from a lease being asked for to its runner being ready.",
            buckets=_READY_S,
            registry=self._registry,
        )
        self._build = Histogram(
            "mayfly_build_seconds",
            "Seconds from the runner being ready to the build's end.",
            buckets=_BUILD_S,
            registry=self._registry,
        )
        self._leases = Gauge(
            "mayfly_leases", "Open leases, by state.", ["state"], registry=self._registry
        )

    def asked(self) -> None:
        """A new lease was written."""
        self._asked.inc()

    def called(self, operation: str, result: str) -> None:
        """A provider call returned: `result` is ok or an error's code."""
        self._calls.labels(operation, result).inc()

    def changed(self, before: Lease, after: Lease) -> None:
        """A lease's row was changed."""
        if after.ready_at and not before.ready_at:
            self._ready.observe((after.ready_at - after.created_at).total_seconds())
        if after.outcome and not before.outcome:
            self._ended.labels(after.outcome).inc()
            if after.ready_at and after.ended_at:
                self._build.observe((after.ended_at - after.ready_at).total_seconds())

    def render(self, leases: Iterable[Lease]) -> bytes:
        """The exposition text, with the given open leases counted by state."""
        tally = Tally(states.word(lease) for lease in leases)
        for state in (
            states.QUEUED, states.CREATING, states.READY, states.LOST, states.DESTROYING
        ):  # fmt: skip
            self._leases.labels(state).set(tally[state])
        return generate_latest(self._registry)
