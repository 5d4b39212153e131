"""`python -m mayfly.orchestrator`: the service on its unix socket, until SIGTERM or SIGINT.

Ending it touches no lease and no runner: the next one finds both as they are.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

import structlog
import uvicorn

from mayfly import vm
from mayfly.config import Config, load
from mayfly.errors import Conflict, InfrastructureError, MayflyError
from mayfly.ladder import free_disk_bytes, physical
from mayfly.orchestrator import trust
from mayfly.orchestrator.api import create_app
from mayfly.orchestrator.authority import Authority
from mayfly.orchestrator.builders import Builders
from mayfly.orchestrator.edge import Edge, EdgeClient, NoDoors
from mayfly.orchestrator.events import Hub
from mayfly.orchestrator.evidence import EvidenceFiles
from mayfly.orchestrator.ledger import Ledger
from mayfly.orchestrator.limits import limits
from mayfly.orchestrator.logs import Logs
from mayfly.orchestrator.metrics import Metrics
from mayfly.orchestrator.reconcile import Reconciler
from mayfly.orchestrator.service import Service
from mayfly.orchestrator.sizing.records import Records
from mayfly.registry import tokens
from mayfly.store.builders import BuilderStore
from mayfly.store.leases import LeaseStore
from mayfly.store.metrics import MetricsStore
from mayfly.store.spool import Spool
from mayfly.store.trust import TrustStore
from mayfly.vm.provider import Provider

DRAIN_S = 2
"""Seconds that requests under way get at the end; long polls and event streams are cut."""


def now() -> datetime:
    """The one place where the orchestrator reads the wall clock."""
    return datetime.now(UTC)


async def serve(config: Config, provider: Provider) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises `InfrastructureError` when a key is missing, `Conflict` when another orchestrator runs
    on the same state or another version wrote it.
    """
    home, keys = config.state / "orchestrator", config.state / "keys"
    signing = _secret(keys / "lease.key")
    admin_sha256 = _secret(keys / "admin.sha256").decode()
    builders_sha256 = _secret(keys / "builders.sha256").decode()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = config.run / "api" / "orchestrator.sock"
    socket.parent.mkdir(mode=0o750, parents=True, exist_ok=True)

    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(home / "lock"))
        store = stack.enter_context(closing(LeaseStore(home / "leases.sqlite")))
        trusting = stack.enter_context(closing(TrustStore(home / "trust.sqlite")))
        client = await stack.enter_async_context(EdgeClient(config.run / "edge" / "edge.sock"))
        edge: Edge = client if provider.doors else NoDoors(client)
        metrics, room = Metrics(), limits(config, *physical(config.state))
        spool = stack.enter_context(closing(Spool(home / "spool.sqlite")))
        past = _metrics_store(config)
        stack.push_async_callback(past.close)
        records = Records(past, spool, room, metrics, now, config.metrics)
        ledger = Ledger(store, Hub(), metrics, records.closed)
        local = provider.golden and not config.pool.disk_gb
        disk_free = partial(free_disk_bytes, config.state) if local else None
        evidence = EvidenceFiles(home / "usage")
        rows = stack.enter_context(closing(BuilderStore(home / "builders.sqlite")))
        builders = Builders(config, rows, Authority(home, now()), ledger.open, now)
        reconciler = Reconciler(ledger, provider, edge, room, metrics, now, evidence, disk_free)
        service = Service(
            config,
            room,
            ledger,
            reconciler,
            trust.build(config, admin_sha256, builders_sha256, signing, trusting, now),
            tokens.Signer(signing),
            Logs(home / "logs"),
            evidence,
            metrics,
            now,
            provider.about,
            records,
            builders,
        )
        server = _Server(
            uvicorn.Config(
                create_app(service),
                uds=str(socket),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        async with asyncio.TaskGroup() as tasks:
            loops = (reconciler.run(), reconciler.warm(), records.run())
            work = [tasks.create_task(loop) for loop in loops]
            await server.serve()
            for task in work:
                task.cancel()


def _metrics_store(config: Config) -> MetricsStore:
    """The configured server, or the embedded one below the state."""
    given = config.metrics
    url = given.url or f"surrealkv://{config.state / 'orchestrator' / 'metrics'}"
    return MetricsStore(url, username=given.username, password=given.password)


class _Server(uvicorn.Server):
    """uvicorn, with signals left to us: its own handling ends the process before the rest can."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


@contextmanager
def _only_one(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another orchestrator runs on {path.parent}", hint="see `mayfly status`"
            ) from None
        yield file


def _secret(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be read: {error.strerror}", hint="`mayfly up` makes it"
        ) from None


def main() -> int:
    """The exit status: 0 after a signal, else that of the error, told in one line on stderr."""
    structlog.configure(
        # The default shows the local variables of every frame, and so tokens.
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        config = load()
        asyncio.run(serve(config, vm.provider(config)))
    except MayflyError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
