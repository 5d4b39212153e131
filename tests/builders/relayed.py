"""A farm for builders: a real orchestrator in memory, and runners that are real SSH servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mayfly.build.holding import Api
from mayfly.builders.relay import Client as Connection
from mayfly.builders.session import Session, close_all
from mayfly.client import Client
from mayfly.errors import MayflyError, Terminated
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import AskedJson, BeatJson, BuilderJson, LeaseJson, VerdictJson
from tests.build.fake_runner import TOKEN, FakeRunner, fake_runner
from tests.orchestrator.leases import BUILDERS, Farm


@dataclass
class Relayed:
    """The farm's API as the builders' program has it; a lease's runner is in `runners`."""

    api: Client
    stack: AsyncExitStack
    buildkit: Path
    runners: dict[str, FakeRunner] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    refuse: list[MayflyError] = field(default_factory=list)
    tls: None = None

    def holding(self, token: str) -> Api:
        return replace(self, api=self.api.holding(token))

    async def ask(self, request: LeaseRequest, idempotency_key: str) -> AskedJson:
        if self.refuse:
            raise self.refuse.pop()
        asked = await self.api.ask(request, idempotency_key)
        there = fake_runner(request.ssh_public_key, self.buildkit)
        self.runners[asked["id"]] = await self.stack.enter_async_context(there)
        return asked

    async def lease(self, lease: str, *, wait_s: float = 0, since: str = "") -> LeaseJson:
        view = await self.api.lease(lease, wait_s=wait_s, since=since)
        if view["runner"] is not None:
            there = self.runners[lease]
            view["relay_url"] = there.url
            view["runner"]["ssh_host_key"] = there.host_key
            view["runner"]["token"] = TOKEN
        return view

    def events(self, lease: str) -> AsyncIterator[str]:
        return self.api.events(lease)

    async def heartbeat(self, lease: str) -> BeatJson:
        return await self.api.heartbeat(lease)

    async def append_log(self, lease: str, offset: int, data: bytes) -> int:
        return await self.api.append_log(lease, offset, data)

    async def report(
        self,
        lease: str,
        *,
        outcome: Outcome,
        attempt: int,
        digest: str,
        timings_s: Mapping[str, float],
        images: Sequence[str],
    ) -> VerdictJson:
        return await self.api.report(lease, outcome=outcome, attempt=attempt)

    async def end(self, lease: str, outcome: Outcome) -> None:
        await self.api.end(lease, outcome)


@asynccontextmanager
async def relayed(f: Farm, folder: Path) -> AsyncIterator[Relayed]:
    """`f` as the builders' program sees it; its BuildKit says back what it hears."""
    buildkit = folder / "buildkitd.sock"

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(echo, buildkit)
    async with AsyncExitStack() as stack:
        there = Relayed(f.api.holding(BUILDERS), stack, buildkit)
        try:
            yield there
        finally:
            await close_all(there.sessions, Terminated("the test is over"))
    server.close()


async def builder(f: Farm, name: str, **more: float | str) -> BuilderJson:
    """A new builder of the farm."""
    fields = {"size": "t1", "linger_s": 0.1, **more}
    made = await f.api.make_builder(name, f"team/{name}", uid=0, **fields)  # type: ignore[arg-type]
    return made["builder"]


@dataclass
class Docker:
    """A docker client's end of a connection to a session."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    served: asyncio.Task[None]

    async def say(self, text: bytes) -> bytes:
        """What comes back; empty when the connection is closed instead."""
        self.writer.write(text)
        try:
            async with asyncio.timeout(60):
                return await self.reader.read(65536)
        except ConnectionError:  # it was closed just now, with our words under way
            return b""

    async def closed(self) -> None:
        """Until the other side has closed."""
        async with asyncio.timeout(60):
            while await self.reader.read(65536):
                pass

    async def close(self) -> None:
        self.writer.close()
        async with asyncio.timeout(60):
            await self.served


@asynccontextmanager
async def docker(session: Session, folder: Path) -> AsyncIterator[Docker]:
    """A client that has connected and said nothing."""
    loop = asyncio.get_running_loop()
    there: asyncio.Future[asyncio.Task[None]] = loop.create_future()
    path = folder / f"door-{len(list(folder.glob('door-*')))}"

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.set_result(loop.create_task(session.serve(Connection(reader, writer))))

    server = await asyncio.start_unix_server(serve, path)
    reader, writer = await asyncio.open_unix_connection(path)
    served = await there
    try:
        yield Docker(reader, writer, served)
    finally:
        writer.close()
        server.close()
        await asyncio.wait({served}, timeout=5)
