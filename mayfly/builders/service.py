"""The builders of the farm as this program serves them: doors open and close with their records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from mayfly.build.holding import Api
from mayfly.builders.door import SocketDoor, TlsDoor
from mayfly.builders.session import Session, close_all
from mayfly.client import LONGEST_WAIT_S, Client
from mayfly.config import Config
from mayfly.errors import Cancelled, InfrastructureError, MayflyError, Terminated
from mayfly.wire import BuilderJson, BuildersJson

log = structlog.get_logger("builders")

AWAY_S = 5.0
"""An orchestrator that has been silent for so long is not just being started again: connections
that need a runner are closed at once."""

PAUSE_S = 1.0
"""Between two tries to hear of the builders, while the orchestrator is away."""


@dataclass(frozen=True, slots=True)
class Served:
    """One builder with its door; None where that is the TLS address of all."""

    session: Session
    door: SocketDoor | None


class Builders:
    """Serves what `follow` is told of. `api` is the farm as this program's own token sees it."""

    def __init__(self, config: Config, api: Api) -> None:
        self._config = config
        self._api = api
        self._served: dict[str, Served] = {}
        self._by_fingerprint: dict[str, Session] = {}
        self._trouble: MayflyError | None = None
        self._since_s = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        listen = config.builders.listen
        ca = config.state / "ca"
        self._tls = TlsDoor(listen, ca, self._by_fingerprint) if listen else None

    async def run(self, farm: Client) -> None:
        """Follow the farm's builders, for ever; without the orchestrator they stay as they are."""
        revision = ""
        while True:
            try:
                told = await farm.builders(since=revision, wait_s=LONGEST_WAIT_S)
                self._trouble = None
                await self.follow(told)
                revision = told["revision"]
            except MayflyError as error:
                if self._trouble is None:
                    log.warning("builders are as last heard of", reason=str(error))
                    self._trouble, self._since_s = error, time.monotonic()
                await asyncio.sleep(PAUSE_S)

    def away(self) -> MayflyError | None:
        """Why no lease can be asked for, when that has been so for a while."""
        return self._trouble if time.monotonic() - self._since_s > AWAY_S else None

    async def follow(self, told: BuildersJson) -> None:
        """Open the doors of builders that are new, close those of builders that are gone."""
        wanted = {_key(builder): builder for builder in told["builders"]}
        for key in [key for key in self._served if key not in wanted]:
            self._remove(key)
        for key, builder in wanted.items():
            if key not in self._served:
                await self._add(key, builder)
        if self._tls is not None:
            await self._tls.open(told["authority"])

    async def close(self, reason: MayflyError) -> None:
        """Close every door, cut what is connected, give every runner back."""
        if self._tls is not None:
            self._tls.close()
        for one in self._served.values():
            if one.door is not None:
                one.door.close()
        sessions = [one.session for one in self._served.values()]
        await asyncio.gather(close_all(sessions, reason), *self._closing)

    @property
    def connections(self) -> Mapping[str, int]:
        """How many are connected, by the builder's name."""
        return {
            one.session.builder["name"]: one.session.connections for one in self._served.values()
        }

    async def _add(self, key: str, builder: BuilderJson) -> None:
        session = Session(builder, self._api, self._config.lease.heartbeat_s, self.away)
        door = None
        if builder["fingerprint"]:
            self._by_fingerprint[builder["fingerprint"]] = session
        else:
            door = SocketDoor(session, self._config.run / "builders" / f"{builder['name']}.sock")
            try:
                await door.open()
            except InfrastructureError as error:
                log.error("a builder has no socket", builder=builder["name"], reason=str(error))
        self._served[key] = Served(session, door)

    def _remove(self, key: str) -> None:
        one = self._served.pop(key)
        builder = one.session.builder
        self._by_fingerprint.pop(builder["fingerprint"], None)
        if one.door is not None:
            one.door.close()
        removed = Cancelled(f"builder {builder['name']} was removed")
        task = asyncio.create_task(one.session.close(removed))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _key(builder: BuilderJson) -> str:
    """Another one of the same name, made after the first was removed, is another builder."""
    return f"{builder['name']} {builder['created_at']} {builder['fingerprint']}"


async def serve(config: Config, farm: Client) -> None:
    """Until cancelled; then everything is given back."""
    builders = Builders(config, farm)
    for left in (config.run / "builders").glob("*.sock"):  # of a program that was killed
        with suppress(OSError):
            left.unlink()
    try:
        await builders.run(farm)
    finally:
        await builders.close(Terminated("the program that serves builders was ended"))
