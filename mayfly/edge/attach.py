"""The runners that the edge serves: each has a listener of its own inside its namespace.

Which listener a connection came through says which runner is asking, before any token does. A
runner that is not attached has no listener, no relay, and its token is refused everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from mayfly.errors import InfrastructureError, MayflyError
from mayfly.model import Runner

log = logging.getLogger("mayfly.edge")

RETRY_S = 1.0
"""Between two attempts to ask the host for its runners after a start."""

CLOSE_S = 1.0
"""How long requests of a runner that is revoked may still take."""


class Dialer(Protocol):
    """What the edge wants of the host; `mayfly.vm.client.DialClient` is one.

    Each raises `NotFound` when there is no such runner, `Unreachable` when the host is down.
    """

    async def list(self) -> tuple[Runner, ...]:
        """Every runner of this machine."""

    async def dial(self, runner: str) -> socket.socket:
        """A connected, non-blocking socket to the runner's SSH server."""

    async def listen(self, runner: str) -> socket.socket:
        """A listening socket that only this runner can reach."""


@dataclass(slots=True)
class Attached:
    """A runner that is served. `tasks` are its open relays."""

    site: web.AppRunner
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Runners:
    """Which runners are served.

    `application` makes what answers on a runner's listener; `tls` is the edge's own context.
    """

    def __init__(
        self,
        dialer: Dialer,
        application: Callable[[str], web.Application],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._dialer = dialer
        self._application = application
        self._tls = tls
        self._attached: dict[str, Attached] = {}
        self._changing = asyncio.Lock()

    def __contains__(self, runner: object) -> bool:
        return runner in self._attached

    @property
    def names(self) -> tuple[str, ...]:
        """The runners that are served, sorted."""
        return tuple(sorted(self._attached))

    async def attach(self, runner: str) -> None:
        """Serve the runner; nothing happens when it is. Raises as `Dialer` does."""
        async with self._changing:
            if runner in self._attached:
                return
            listener = await self._dialer.listen(runner)
            site = web.AppRunner(
                self._application(runner),
                access_log=None,
                handler_cancellation=True,
                shutdown_timeout=CLOSE_S,
            )
            try:
                await site.setup()
                await web.SockSite(site, listener, ssl_context=self._tls).start()
            except OSError as error:
                await site.cleanup()
                listener.close()
                raise InfrastructureError(f"cannot serve {runner}: {error}") from None
            self._attached[runner] = Attached(site)
            log.info("attached %s", runner)

    async def detach(self, runner: str) -> None:
        """Serve the runner no longer and cut what is open to it; idempotent.

        Its token is refused from the first moment of this call.
        """
        attached = self._attached.pop(runner, None)
        if attached is None:
            return
        for task in attached.tasks:
            task.cancel()
        await asyncio.gather(*attached.tasks, return_exceptions=True)
        await attached.site.cleanup()
        log.info("detached %s", runner)

    @contextmanager
    def relaying(self, runner: str, task: asyncio.Task[None]) -> Iterator[None]:
        """Have `task` cancelled when the runner, which is served now, is detached."""
        tasks = self._attached[runner].tasks
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)

    async def attach_all(self) -> None:
        """Serve every runner that the host has, as after a start; waits for the host."""
        while True:
            try:
                found = await self._dialer.list()
                break
            except MayflyError as error:
                log.warning("waiting for the host: %s", error)
                await asyncio.sleep(RETRY_S)
        for runner in found:
            try:
                await self.attach(runner.name)
            except MayflyError as error:
                log.warning("cannot attach %s: %s", runner.name, error)

    async def close(self) -> None:
        """Serve none any more."""
        for runner in self.names:
            with contextlib.suppress(OSError):
                await self.detach(runner)
