"""The way to a runner's SSH server: a WebSocket's binary frames are its TCP stream.

The runner is taken from the token, never from the caller. Each side is read only as fast as the
other takes it. Neither side says "half closed": SSH does not use it, so the end of one direction
ends both, after what is under way has been delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import WSCloseCode, WSMsgType, web

from mayfly.edge.attach import Dialer, Runners
from mayfly.errors import Denied, NotFound, Unauthenticated, Unreachable
from mayfly.registry.tokens import Claims, Verifier

log = logging.getLogger("mayfly.edge")

CHUNK = 128 * 1024
"""Bytes that are read from the runner at a time."""

MAX_FRAME = 1024 * 1024
"""The longest frame that a client may send; longer ones end the connection."""

CLOSE_S = 5
"""How long the other side may take to confirm the end."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Answers `GET /v1/leases/{id}/ssh`."""

    verifier: Verifier
    runners: Runners
    dialer: Dialer

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Relay until one side ends, the runner is detached, or the token's deadline passes.

        Raises, before anything is upgraded, `Unauthenticated`, `Denied` (another lease's token),
        `NotFound` (the runner is gone) or `Unreachable` (it, or the host, does not answer).
        """
        now = datetime.now(UTC)
        claims = self._identify(request, now)
        runner = f"{claims.lease}-{claims.attempt}"
        if runner not in self.runners:
            raise NotFound(f"runner {runner} is not there (any more)")
        try:
            connection = await self.dialer.dial(runner)
            reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        except OSError as error:
            raise Unreachable(f"runner {runner} does not answer: {error}") from None
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_FRAME, timeout=CLOSE_S)
        try:
            await socket.prepare(request)
            if runner in self.runners:  # still
                began = time.monotonic()
                log.info("relay to %s opened", runner)
                left_s = (claims.expires_at - now).total_seconds()
                pump = asyncio.create_task(_pump(socket, reader, writer, left_s))
                with self.runners.relaying(runner, pump):
                    try:
                        await asyncio.wait({pump})
                    finally:
                        pump.cancel()
                        await asyncio.gather(pump, return_exceptions=True)
                log.info("relay to %s closed after %.1f s", runner, time.monotonic() - began)
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await writer.wait_closed()
            await socket.close()
        return socket

    def _identify(self, request: web.Request, now: datetime) -> Claims:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("a runner's token is needed")
        claims = self.verifier.verify(token.strip(), now)
        if not claims.lease:
            raise Denied("this is not a runner's token")
        if claims.lease != request.match_info["id"]:
            raise Denied("the token is another lease's")
        return claims


async def _pump(
    socket: web.WebSocketResponse,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    left_s: float,
) -> None:
    """Carry bytes both ways until either way ends, or `left_s` seconds have passed."""
    ways = (
        asyncio.create_task(_to_runner(socket, writer)),
        asyncio.create_task(_to_client(reader, socket)),
    )
    try:
        await asyncio.wait(ways, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _to_runner(socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"binary frames only")
            return
        writer.write(message.data)
        await writer.drain()


async def _to_client(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while chunk := await reader.read(CHUNK):
        await socket.send_bytes(chunk)
