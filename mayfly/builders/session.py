"""One builder's runner: from the first connection until it has lingered after the last one.

    idle ── a client says something ──> lease asked ──> SSH to the runner ──> relayed
      ^                                                                          │
      └──── given back (`succeeded`) <── `linger_s` over <── the last one closed ┘

There is no second attempt: when a runner is lost, or its time is up, what is connected is closed
and the reason logged, and the next connection gets a new runner. When only the way to it breaks
(the edge is started again), connections break with it, and the next ones find the same runner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from mayfly.build import ssh
from mayfly.build.holding import Api, held, patiently, ready, still_ready
from mayfly.build.reconnect import PAUSE_S, Way
from mayfly.build.stop import Stop, stoppable
from mayfly.builders.relay import Client, relay
from mayfly.errors import Cancelled, Denied, InfrastructureError, MayflyError
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import BuilderJson, LeaseJson, VerdictJson

_T = TypeVar("_T")

log = structlog.get_logger("builders")


class Hold:
    """One lease of a builder. `clients` are those that it serves or that wait for it.

    `was_ready` says that it has had a runner. `ending` is set before it is given back: from then on
    nobody may join.
    """

    def __init__(self, builder: BuilderJson, api: Api, heartbeat_s: float) -> None:
        self.was_ready = False
        self.ending = False
        self.clients: set[Client] = set()
        self._builder = builder
        self._api = api
        self._heartbeat_s = heartbeat_s
        self._changed = asyncio.Event()
        self._tunnel = _promise()
        self._stop: Stop | None = None
        self._stopped: MayflyError | None = None
        self._task = asyncio.create_task(self._run())

    async def serve(self, client: Client) -> None:
        """Relay one client until either side closes. Raises why there is no runner, and then
        nothing of the client's has been passed on.
        """
        self.clients.add(client)
        self._changed.set()
        try:
            tunnel = await client.unless_gone(self._reached())
            if tunnel is not None:
                await relay(client, *await tunnel.open())
        finally:
            self.clients.discard(client)
            self._changed.set()

    def stop(self, reason: MayflyError) -> None:
        """Give the runner back now; what is connected is closed."""
        self.ending = True
        self._stopped = self._stopped or reason
        if self._stop is not None:
            self._stop(reason)

    async def over(self) -> None:
        """Until the lease is given back."""
        await asyncio.wait({self._task})

    async def _reached(self) -> ssh.Tunnel:
        """The way to the runner, once there is one. Raises how the lease ended instead."""
        while True:
            tunnel = await asyncio.shield(self._tunnel)
            if not tunnel.lost.is_set():
                return tunnel
            await asyncio.sleep(0)  # the task that holds the lease is about to see it too

    async def _run(self) -> None:
        """The whole lease. Whoever is relayed is cut by the end of SSH, whoever waits hears why."""
        name = self._builder["name"]
        why: MayflyError = InfrastructureError(f"builder {name} has given its runner back")
        try:
            async with stoppable() as stop:
                self._stop = stop
                if self._stopped is not None:
                    raise self._stopped
                await self._lease(stop)
        except MayflyError as error:
            why = error
            log.warning("a builder's runner is no more", builder=name, reason=str(error))
        except Exception:
            log.exception("a builder's runner is no more, by a bug", builder=name)
        finally:
            self.ending = True
            if not self._tunnel.done():
                self._tunnel.set_exception(why)
                self._tunnel.exception()  # somebody has looked at it, if nobody waits

    async def _lease(self, stop: Stop) -> None:
        key, name = ssh.new_key(), self._builder["name"]
        wanted = LeaseRequest(self._builder["repo"], ssh.public_line(key), builder=name)
        unwanted = asyncio.create_task(self._deserted())
        try:
            async with held(self._api, wanted, every_s=self._heartbeat_s, stop=stop) as (
                lease,
                holder,
                _,
            ):
                log.info("a builder has asked for a runner", builder=name, lease=lease)
                view = await _before(
                    unwanted, ready(holder, lease, lambda line: log.info(line, lease=lease))
                )
                view = await self._connected(view, holder, key, unwanted)
                verdict = await patiently(lambda: _done(holder, view))
                log.info("a builder has given its runner back", lease=lease, **_told(verdict))
        finally:
            unwanted.cancel()
            await asyncio.gather(unwanted, return_exceptions=True)

    async def _connected(
        self, view: LeaseJson, api: Api, key: ssh.Key, unwanted: asyncio.Task[None]
    ) -> LeaseJson:
        """The lease once nobody wants its runner any more. Raises how it ended instead, and
        `InfrastructureError` or `Denied` when the way to the runner stays broken.
        """
        way = Way(time.monotonic())
        while True:
            opened = False
            try:
                async with ssh.connect(ssh.relay_of(view, api.tls), key) as tunnel:
                    opened = self.was_ready = True
                    self._tunnel.set_result(tunnel)
                    lost = asyncio.create_task(tunnel.lost.wait())
                    try:
                        await asyncio.wait({lost, unwanted}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        lost.cancel()
                        self._tunnel = _promise()
                    if unwanted.done():
                        return view
                    log.warning("the way to a runner broke", lease=view["id"])
            except (InfrastructureError, Denied) as error:
                log.warning("no way to a runner", lease=view["id"], reason=str(error))
                if way.given_up(time.monotonic()):
                    raise
            way = way.broken(time.monotonic(), opened=opened)
            view = await still_ready(api, view, wait_s=PAUSE_S)

    async def _deserted(self) -> None:
        """Returns once nothing has been connected for the linger; nobody may join then."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self.clients else self._builder["linger_s"]):
                    await self._changed.wait()
            except TimeoutError:
                if not self.clients:
                    self.ending = True
                    return


def _promise() -> asyncio.Future[ssh.Tunnel]:
    return asyncio.get_running_loop().create_future()


async def _before(unwanted: asyncio.Task[None], work: Awaitable[_T]) -> _T:
    """What `work` comes to. Raises `Cancelled` when `unwanted` is done first."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working, unwanted}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("nobody waits for its runner any more")
    finally:
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _told(verdict: VerdictJson) -> dict[str, str]:
    return {"outcome": verdict["outcome"], "reason": verdict["reason"]}


async def _done(api: Api, view: LeaseJson) -> VerdictJson:
    return await api.report(
        view["id"],
        outcome=Outcome.SUCCEEDED,
        attempt=view["attempt"],
        digest="",
        timings_s={},
        images=(),
    )


class Session:
    """A builder as long as it exists: at most one `Hold` at a time. `away` says why no lease can be
    asked for now, when that is known.
    """

    def __init__(
        self,
        builder: BuilderJson,
        api: Api,
        heartbeat_s: float,
        away: Callable[[], MayflyError | None] = lambda: None,
    ) -> None:
        self.builder = builder
        self._api = api
        self._heartbeat_s = heartbeat_s
        self._away = away
        self._hold: Hold | None = None
        self._removed: MayflyError | None = None

    async def serve(self, client: Client) -> None:
        """Relay a client to this builder's runner, a new one where there is none.

        Returns when either side has closed; a client that says nothing gets no runner. What goes
        wrong is logged.
        """
        try:
            if await client.spoke():
                await self._serve(client)
        except MayflyError as error:
            log.warning("a connection is closed", builder=self.builder["name"], reason=str(error))
        finally:
            client.close()

    async def _serve(self, client: Client) -> None:
        """Who comes just as a runner is lost, before that is known, gets the next one."""
        while (hold := await self._current(client)) is not None:
            was_ready = hold.was_ready
            try:
                await hold.serve(client)
                return
            except InfrastructureError:
                if not (was_ready and hold.ending):
                    raise

    async def close(self, reason: MayflyError) -> None:
        """End it: connections are cut, the runner is given back, nobody gets in any more."""
        self._removed = reason
        if self._hold is not None:
            self._hold.stop(reason)
            await self._hold.over()

    async def _current(self, client: Client) -> Hold | None:
        """The hold to join, a new one where the last has ended; None when the client has gone."""
        while self._hold is None or self._hold.ending:
            if self._removed is not None:
                raise self._removed
            if self._hold is not None:
                ended = self._hold
                if await client.unless_gone(ended.over(), gone=True):
                    return None
                if self._hold is not ended:
                    continue
            if (away := self._away()) is not None:
                raise away
            if self._removed is None:
                self._hold = Hold(self.builder, self._api, self._heartbeat_s)
        return self._hold

    @property
    def connections(self) -> int:
        """How many are connected to a runner, or wait for one."""
        return len(self._hold.clients) if self._hold else 0


async def close_all(sessions: Iterable[Session], reason: MayflyError) -> None:
    """Close them all at once, each within the time that giving a lease back may take (8 s)."""
    await asyncio.gather(*(session.close(reason) for session in sessions))
