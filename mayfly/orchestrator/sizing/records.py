"""What builds took, on its way into the store of metrics, and what sizing gets back out of it.

A record is on this machine's disk (`Spool`) before anything else, and moves to the store when that
is there. Nobody waits long for the store: sizing goes on without a history and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from mayfly.config import Metrics as Options
from mayfly.errors import InfrastructureError, MayflyError, Unreachable
from mayfly.ladder import Room, up_to
from mayfly.model import GIB, Attempt, History, Lease, LeaseRequest, Size, Usage
from mayfly.orchestrator.metrics import Metrics
from mayfly.orchestrator.sizing import explain
from mayfly.orchestrator.sizing.decide import Decision, decide
from mayfly.store.metrics import MetricsStore
from mayfly.store.spool import Spool
from mayfly.wire import RecordJson, SizingJson, WhyJson

PATIENCE_S = 2.0
"""How long a request for a size waits for its history."""

OPENING_S = 5.0
"""How long it waits for a store that is just being opened, when the orchestrator has just begun."""

TICK_S = 5.0
BATCH = 100
PRUNE_EVERY = timedelta(hours=6)

TRUSTED_EVENTS = frozenset({"manual", "push", "tag", "release", "deployment", "cron"})
"""Only trusted leases make history. What the administrator's token asks for is one, whatever event
it claims; a label is no proof, but one that says less than could be proven is believed."""

_SIZING = TypeAdapter(SizingJson)

log = structlog.get_logger("orchestrator.sizing")


@dataclass(frozen=True, slots=True)
class Prices:
    """What a VM costs for an hour: each vCPU, and each GiB of memory. Both 0: nobody says."""

    cpu_hour: float = 0.0
    gib_hour: float = 0.0

    def cost(self, size: Size, memory_bytes: int, seconds: float) -> float | None:
        """Of a VM that ran so long and had that much memory; None without prices."""
        if not (self.cpu_hour or self.gib_hour):
            return None
        hourly = size.cpus * self.cpu_hour + memory_bytes / GIB * self.gib_hour
        return hourly * seconds / 3600


class Records:
    """The one owner of the store of metrics; `run` must be running for anything to reach it."""

    def __init__(
        self,
        store: MetricsStore,
        spool: Spool,
        room: Room,
        metrics: Metrics,
        clock: Callable[[], datetime],
        options: Options,
    ) -> None:
        self._store = store
        self._spool = spool
        self._room = room
        self._metrics = metrics
        self._clock = clock
        self._keep = timedelta(days=options.keep_days)
        self._prices = Prices(options.price_cpu_hour, options.price_gib_hour)
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()  # to open the store, whatever came of it
        self._pruned_at: datetime | None = None
        self._finished: set[str] = set()  # runners of open leases whose time is counted
        self._trouble = ""

    async def decide(self, request: LeaseRequest, largest: str = "") -> Decision:
        """The size for a request, from what is known now; none larger than the rung `largest`.

        Raises what `decide` raises.
        """
        started_at = time.perf_counter()
        history, trouble = await self._history(request)
        room = replace(self._room, sizes=up_to(self._room.sizes, largest))
        decision = decide(request.spec, history, request.languages, request.size, room, trouble)
        self._metrics.decided(time.perf_counter() - started_at)
        return decision

    def decided(self, lease: Lease, decision: Decision) -> None:
        """A lease has got that size: keep why."""
        self._metrics.sized(decision.size.name, decision.tier)
        with _logged("why a build has its size is not kept"):
            self._spool.decide(lease.id, explain.as_json(decision))

    def finished(
        self,
        lease: Lease,
        usage: Usage | None = None,
        *,
        grown_bytes: int = 0,
        started_at: datetime | None = None,
        steps: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """An attempt of the lease is over, as its row says: have its record written.

        `usage` is what its runner saw, told once; a record without it counts in no history.
        `grown_bytes` is the memory that was plugged in while it ran. Its VM was begun at
        `started_at`, by default when the lease was admitted. Raises nothing: a record is worth
        less than a build.
        """
        record = self._record(lease, usage, grown_bytes, started_at, steps)
        if usage:
            self._metrics.used(lease.size, usage, lease.size.memory_bytes + grown_bytes)
        if lease.runner not in self._finished:
            self._finished.add(lease.runner)
            self._metrics.cost(lease.size.name, record["vm_s"], record.get("cost"))
        with _logged("a build's record is not kept"):
            told = self._spool.decision(lease.id)
            self._spool.put(lease.runner, {**record, **({"sizing": told} if told else {})})
        self._wake.set()

    def closed(self, lease: Lease) -> None:
        """Nothing of the lease is left but its row: each attempt has a record, the last one the
        build's outcome.
        """
        for row, over in attempts(lease):
            self.finished(row, over.usage, grown_bytes=over.grown_bytes, started_at=_begun(row))
        if lease.runner in self._finished:
            late = {"outcome": lease.outcome, "timings_s": dict(lease.timings_s)}
            with _logged("a build's outcome is not kept"):
                self._spool.put(lease.runner, {"build": lease.id, "attempt": lease.attempt, **late})
            self._wake.set()
        else:
            self.finished(
                lease, lease.usage, grown_bytes=lease.grown_bytes, started_at=_begun(lease)
            )
        self._finished -= {f"{lease.id}-{number}" for number in range(1, lease.attempt + 1)}
        with _logged("a build's explanation stays on disk"):
            self._spool.forget(lease.id)

    async def why(self, lease: Lease) -> WhyJson:
        """Why a build has its size, and what its attempts took so far."""
        found: dict[int, Mapping[str, Any]] = {}
        trouble = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = {one["attempt"]: one for one in await self._store.attempts(lease.id)}
        except (MayflyError, TimeoutError) as error:
            trouble = str(error) or "the metrics store is busy"
        for _, one in self._spool.of_build(lease.id):
            found[one["attempt"]] = {**found.get(one["attempt"], {}), **one}
        kept = (one["sizing"] for one in found.values() if "sizing" in one)
        sizing = _told(self._spool.decision(lease.id) or next(kept, None))
        return {
            "build": lease.id,
            "repo": lease.request.repo,
            "target": lease.request.target,
            "sizing": sizing,
            "attempts": [_shown(found[number]) for number in sorted(found)],
            "trouble": trouble,
        }

    async def run(self) -> None:
        """Open the store, move to it what waits, and prune it, for ever."""
        while True:
            self._wake.clear()
            try:
                await self._store.open()
                self._tried.set()
                await self._move()
                await self._prune()
                self._trouble = ""
            except MayflyError as error:
                if str(error) != self._trouble:
                    log.warning("records wait for the metrics store", error=str(error))
                self._trouble = str(error)
            except Exception:
                log.exception("records wait for the metrics store")
            self._tried.set()
            with suppress(InfrastructureError):
                self._metrics.store(is_open=self._store.is_open, waiting=self._spool.count())
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()

    async def _history(self, request: LeaseRequest) -> tuple[History | None, str]:
        """The repo's history, or why there is none although there may be a past."""
        try:
            async with asyncio.timeout(OPENING_S):
                await self._tried.wait()
            if not self._store.is_open:
                return None, "the metrics store is away, so past builds do not count"
            async with asyncio.timeout(PATIENCE_S):
                return await self._store.history(request.repo, request.target, self._clock()), ""
        except TimeoutError:
            return None, "the metrics store is busy, so past builds do not count"
        except MayflyError as error:
            log.warning("sized without a history", repo=request.repo, error=str(error))
            return None, "the metrics store has a fault, so past builds do not count"

    async def _move(self) -> None:
        while records := self._spool.waiting(BATCH):
            await self._put(records)
            self._spool.written(records)

    async def _put(self, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Write records; one that the store will never take keeps no other from it."""
        try:
            await self._store.put(records)
        except Unreachable:
            raise
        except InfrastructureError as error:
            if len(records) == 1:
                log.error("a record is lost", runner=records[0][0], error=str(error))
                return
            for one in records:
                await self._put([one])

    async def _prune(self) -> None:
        now = self._clock()
        if self._pruned_at is None or now - self._pruned_at >= PRUNE_EVERY:
            await self._store.prune(now - self._keep)
            self._pruned_at = now

    def _record(
        self,
        lease: Lease,
        usage: Usage | None,
        grown_bytes: int,
        started_at: datetime | None,
        steps: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        request, ended_at = lease.request, lease.ended_at or self._clock()
        if started_at is None and "queue" in lease.timings_s:
            started_at = lease.created_at + timedelta(seconds=lease.timings_s["queue"])
        vm_s = max(0.0, (ended_at - started_at).total_seconds()) if started_at else 0.0
        trusted = lease.trusted and request.event in TRUSTED_EVENTS
        counts = trusted and request.counts
        record: dict[str, Any] = {
            "build": lease.id,
            "attempt": lease.attempt,
            "repo": request.repo,
            "ref": request.ref,
            "target": request.target,
            "event": request.event,
            "trusted": trusted,
            "asked": request.size,
            "declared": asdict(request.spec) if request.spec else None,
            "given": explain.size_json(lease.size),
            "outcome": lease.outcome,
            "created_at": lease.created_at.isoformat(),
            "ready_at": lease.ready_at.isoformat() if lease.ready_at else None,
            "ended_at": ended_at.isoformat(),
            "timings_s": dict(lease.timings_s),
            "vm_s": vm_s,
        }
        memory = lease.size.memory_bytes + grown_bytes
        if usage or grown_bytes:
            record |= {"grown_bytes": grown_bytes, "memory_limit_bytes": memory}
        if usage:
            record |= {"usage": asdict(usage), "counts": counts and usage.samples > 0}
        if steps:
            record["steps"] = [dict(step) for step in steps]
        if (cost := self._prices.cost(lease.size, memory, vm_s)) is not None:
            record["cost"] = cost
        return record


def attempts(lease: Lease) -> Iterator[tuple[Lease, Attempt]]:
    """The attempts before the last, each with the lease as its row was at that attempt's end."""
    for number, over in enumerate(lease.earlier):
        row = replace(
            lease,
            attempt=number + 1,
            size=over.size,
            outcome=over.outcome,
            ended_at=over.ended_at,
            timings_s=over.timings_s,
            earlier=lease.earlier[:number],
        )
        yield row, over


def _begun(lease: Lease) -> datetime | None:
    """When the attempt's VM was begun, if that is another moment than the lease's admission."""
    return lease.earlier[-1].ended_at if lease.earlier else None


@contextmanager
def _logged(trouble: str) -> Iterator[None]:
    """A fault of the spool's disk is told to the log, not to the build."""
    try:
        yield
    except InfrastructureError as error:
        log.warning(trouble, error=str(error))


def _told(kept: Any) -> SizingJson | None:
    """An explanation as this version writes them; None for another's."""
    try:
        return _SIZING.validate_python(kept)
    except ValidationError:
        return None


def _shown(record: Mapping[str, Any]) -> RecordJson:
    """What is there of a record; another version's may lack anything."""
    usage, given = record.get("usage") or {}, record.get("given") or {}
    return {
        "attempt": record["attempt"],
        "size": given.get("name", ""),
        "memory_limit_bytes": record.get("memory_limit_bytes", given.get("memory_bytes", 0)),
        "outcome": record.get("outcome"),
        "memory_bytes": usage.get("memory_bytes"),
        "cpu": usage.get("cpu"),
        "oom_kills": usage.get("oom_kills"),
        "counts": record.get("counts", False),
        "vm_s": record.get("vm_s", 0.0),
        "cost": record.get("cost"),
    }
