"""One client's connection and a runner's, joined: bytes both ways, none of them read."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

import asyncssh

CHUNK = 256 * 1024
AHEAD = 1024 * 1024
"""Bytes that a client may send before there is a runner: HTTP/2 says hello in a few hundred."""

FIRST_S = 30.0
"""Who has connected and says nothing for so long is closed: no client of BuildKit's does."""

_T = TypeVar("_T")


class Client:
    """A docker client's connection. What it sends before there is a runner is kept for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = bytearray()

    async def spoke(self) -> bool:
        """Whether it has said anything (within 30 s); False when it has gone instead."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(FIRST_S):
                self.head += await self.reader.read(CHUNK)
        return bool(self.head)

    async def unless_gone(self, work: Awaitable[_T], *, gone: _T | None = None) -> _T | None:
        """What `work` comes to; `gone` when the client closes first, and `work` is cancelled."""
        working = asyncio.ensure_future(work)
        listening = asyncio.create_task(self._listen())
        try:
            await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return gone
            return working.result()
        finally:
            # The reader is free again before anybody else reads.
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async def _listen(self) -> None:
        """Returns when the client has gone; keeps what it says."""
        with suppress(OSError):
            while data := await self.reader.read(CHUNK):
                self.head += data
                if len(self.head) > AHEAD:
                    await asyncio.Event().wait()  # it says no more, so its going is not seen

    def close(self) -> None:
        """Close it; what was written before is still sent. Idempotent."""
        self.writer.close()


async def relay(
    client: Client, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]
) -> None:
    """Pass on both ways until either side closes or breaks, then close both."""
    try:
        writer.write(bytes(client.head))
        ways = {
            asyncio.create_task(_there(client.reader, writer)),
            asyncio.create_task(_back(reader, client.writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    finally:
        with suppress(OSError, asyncssh.Error):
            writer.close()
        client.close()


async def _there(reader: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes]) -> None:
    with suppress(OSError, ssl.SSLError, asyncssh.Error):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


async def _back(reader: asyncssh.SSHReader[bytes], writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, ssl.SSLError, asyncssh.Error):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
