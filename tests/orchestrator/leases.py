"""Leases, clocks and whole orchestrators for tests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from mayfly.client import Client
from mayfly.config import Config
from mayfly.errors import Unreachable
from mayfly.model import GIB, Desired, Lease, LeaseRequest, Observed, Operation, Runner, Size
from mayfly.orchestrator import reconcile, states, trust
from mayfly.orchestrator.api import create_app
from mayfly.orchestrator.authority import Authority
from mayfly.orchestrator.builders import Builders
from mayfly.orchestrator.events import Hub
from mayfly.orchestrator.evidence import EvidenceFiles
from mayfly.orchestrator.ledger import Ledger
from mayfly.orchestrator.limits import limits
from mayfly.orchestrator.logs import Logs
from mayfly.orchestrator.metrics import Metrics
from mayfly.orchestrator.service import Service
from mayfly.orchestrator.sizing.records import Records
from mayfly.orchestrator.trust.pipelines import Pipelines
from mayfly.registry import tokens
from mayfly.store.builders import BuilderStore
from mayfly.store.leases import LeaseStore
from mayfly.store.metrics import MetricsStore
from mayfly.store.spool import Spool
from mayfly.store.trust import TrustStore
from mayfly.vm.fake import Fake

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ADMIN = "mayfly_admin_" + "a" * 43
BUILDERS = "mayfly_builders_" + "b" * 43
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
LADDER = {
    "t1": {"cpu": 1, "memory_gb": 1, "disk_gb": 4},
    "t2": {"cpu": 2, "memory_gb": 2, "disk_gb": 8},
    "t3": {"cpu": 2, "memory_gb": 4, "disk_gb": 16},
}
T1, T2, T3 = (
    Size(name, rung["cpu"], rung["memory_gb"] * GIB, rung["disk_gb"] * GIB)
    for name, rung in LADDER.items()
)
SIGNING = tokens.generate()


def lease(
    name: str = "aaaa",
    triple: tuple[Desired, Observed, Operation] = (
        Desired.RUNNING,
        Observed.ABSENT,
        Operation.NONE,
    ),
    *,
    size: Size = T1,
    **more: Any,
) -> Lease:
    desired, observed, operation = triple
    fields: dict[str, Any] = {
        "id": name,
        "request": LeaseRequest(repo="team/app", ssh_public_key=KEY),
        "size": size,
        "desired": desired,
        "observed": observed,
        "operation": operation,
        "attempt": 1,
        "created_at": NOW,
        "expires_at": NOW + timedelta(seconds=30),
        "budget_s": 3600.0,
    }
    return Lease(**{**fields, **more})


def seen(*runners: str, size: str = "t1") -> dict[str, Runner]:
    return {name: Runner(name, size, ready=True) for name in runners}


@dataclass
class Clock:
    """The wall clock, which only a test moves on."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class FakeEdge:
    """An edge that serves names; `down` makes it unreachable."""

    serves: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False

    async def attached(self) -> tuple[str, ...]:
        self._answer()
        return tuple(self.serves)

    async def attach(self, runner: str) -> None:
        self._answer()
        self.calls.append(("attach", runner))
        self.serves.add(runner)

    async def revoke(self, runner: str) -> None:
        self._answer()
        self.calls.append(("revoke", runner))
        self.serves.discard(runner)

    def _answer(self) -> None:
        if self.down:
            raise Unreachable("the edge is down")


@dataclass
class Farm:
    """One orchestrator's life over a state directory that outlives it."""

    config: Config
    provider: Fake
    edge: FakeEdge
    clock: Clock
    ledger: Ledger
    reconciler: reconcile.Reconciler
    service: Service
    records: Records
    api: Client
    http: httpx.AsyncClient

    async def until(self, lease_id: str, state: str, timeout_s: float = 30) -> Lease:
        with self.ledger.hub.listen(lease_id) as news:
            async with asyncio.timeout(timeout_s):
                while states.word(self.ledger.get(lease_id)) != state:
                    await news.get()
        return self.ledger.get(lease_id)

    async def settled(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def configuration(state: Path, **pool: Any) -> Config:
    return Config.model_validate(
        {"state": state, "ladder": LADDER, "pool": {"memory_gb": 4, **pool}}
    )


@asynccontextmanager
async def farm(
    config: Config,
    provider: Fake | None = None,
    edge: FakeEdge | None = None,
    clock: Clock | None = None,
    *,
    cores: int = 4,
    reconciling: bool = True,
    past: MetricsStore | None = None,
    pipelines: Pipelines | None = None,
) -> AsyncIterator[Farm]:
    """An orchestrator with its loops running. Leaving it is its death: rows stay as they are."""
    provider, edge, clock = provider or Fake(), edge or FakeEdge(), clock or Clock()
    home = config.state / "orchestrator"
    home.mkdir(parents=True, exist_ok=True)
    room, store, metrics = (
        limits(config, 64 * GIB, cores, 1024 * GIB),
        LeaseStore(home / "db"),
        Metrics(),
    )
    past, spool = past or MetricsStore("mem://"), Spool(home / "spool")
    rows = BuilderStore(home / "builders")
    admin, trusting = hashlib.sha256(ADMIN.encode()).hexdigest(), TrustStore(home / "trust")
    program = hashlib.sha256(BUILDERS.encode()).hexdigest()
    records = Records(past, spool, room, metrics, clock, config.metrics)
    ledger = Ledger(store, Hub(), metrics, records.closed)
    evidence = EvidenceFiles(home / "usage")
    reconciler = reconcile.Reconciler(ledger, provider, edge, room, metrics, clock, evidence)
    service = Service(
        config,
        room,
        ledger,
        reconciler,
        trust.build(config, admin, program, SIGNING, trusting, clock, pipelines=pipelines),
        tokens.Signer(SIGNING),
        Logs(home / "logs"),
        evidence,
        metrics,
        clock,
        provider.about,
        records,
        Builders(config, rows, Authority(home, clock()), ledger.open, clock),
    )
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    loops = [records.run(), *([reconciler.run()] if reconciling else [])]
    running = [asyncio.create_task(loop) for loop in loops]
    try:
        async with (
            Client("http://farm", ADMIN, transport=transport) as api,
            httpx.AsyncClient(transport=transport, base_url="http://farm") as http,
        ):
            await records._tried.wait()  # until then a build may be sized without its history
            yield Farm(
                config, provider, edge, clock, ledger, reconciler, service, records, api, http
            )
    finally:
        for loop in running:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop
        await past.close()
        rows.close()
        spool.close()
        store.close()
        trusting.close()
