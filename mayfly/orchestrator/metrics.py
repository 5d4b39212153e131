"""What Prometheus sees of the orchestrator."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mayfly.model import GIB, Lease, Size, Usage
from mayfly.orchestrator import states

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_READY_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
_GIB = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_DECIDE_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3)
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
            "Seconds from a lease, or another attempt, being asked for to its runner being ready.",
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

        self._sized = Counter(
            "mayfly_sizes_decided",
            "Sizes that leases got, by size and by the tier that decided.",
            ["size", "tier"],
            registry=self._registry,
        )
        self._decide = Histogram(
            "mayfly_decide_seconds",
            "Seconds that deciding on a size took, the question to the metrics store included.",
            buckets=_DECIDE_S,
            registry=self._registry,
        )
        self._needed = Histogram(
            "mayfly_attempt_memory_bytes",
            "Memory that an attempt needed at most, page cache aside.",
            buckets=[gib * GIB for gib in _GIB],
            registry=self._registry,
        )
        self._shares = Histogram(
            "mayfly_attempt_memory_share",
            "The same, as a share of the memory that it had.",
            buckets=_SHARES,
            registry=self._registry,
        )
        self._cpus = Histogram(
            "mayfly_attempt_cpu_share",
            "95th percentile of an attempt's use of CPU, as a share of its vCPUs.",
            buckets=_SHARES,
            registry=self._registry,
        )
        self._killed = Counter(
            "mayfly_attempts_oom_killed",
            "Attempts in which the kernel killed for want of memory, by size.",
            ["size"],
            registry=self._registry,
        )
        self._vm = Counter(
            "mayfly_vm_seconds", "Seconds that VMs were there, by size.", ["size"],
            registry=self._registry,
        )  # fmt: skip
        self._cost = Counter(
            "mayfly_cost", "What VMs came to, where prices are configured.", registry=self._registry
        )
        self._store = Gauge(
            "mayfly_metrics_store_up",
            "Whether the store of build metrics is there.",
            registry=self._registry,
        )
        self._waiting = Gauge(
            "mayfly_records_waiting",
            "Records of attempts that wait for the store of build metrics.",
            registry=self._registry,
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
            self._ready.observe((after.ready_at - after.began_at).total_seconds())
        if after.outcome and not before.outcome:
            self._ended.labels(after.outcome).inc()
            if after.ready_at and after.ended_at:
                self._build.observe((after.ended_at - after.ready_at).total_seconds())

    def decided(self, seconds: float) -> None:
        """A size was decided on, for a lease or for somebody who wants to know."""
        self._decide.observe(seconds)

    def sized(self, size: str, tier: str) -> None:
        """A lease got that size."""
        self._sized.labels(size, tier).inc()

    def used(self, size: Size, usage: Usage, memory_bytes: int) -> None:
        """An attempt is over that had the size, and `memory_bytes` with what it grew by."""
        self._needed.observe(usage.memory_bytes)
        self._shares.observe(usage.memory_bytes / memory_bytes)
        self._cpus.observe(usage.cpu / size.cpus)
        if usage.oom_kills:
            self._killed.labels(size.name).inc()

    def cost(self, size: str, vm_s: float, cost: float | None) -> None:
        """A VM is gone that was there for so long."""
        self._vm.labels(size).inc(vm_s)
        self._cost.inc(cost or 0)

    def store(self, *, is_open: bool, waiting: int) -> None:
        """How the store of build metrics is."""
        self._store.set(is_open)
        self._waiting.set(waiting)

    def render(self, leases: Iterable[Lease]) -> bytes:
        """The exposition text, with the given open leases counted by state."""
        tally = Tally(states.word(lease) for lease in leases)
        for state in (
            *(states.QUEUED, states.CREATING, states.READY, states.KEPT),
            *(states.LOST, states.DESTROYING),
        ):  # fmt: skip
            self._leases.labels(state).set(tally[state])
        return generate_latest(self._registry)
