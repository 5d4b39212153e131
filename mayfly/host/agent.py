"""The host's end of the channel to a guest's agent.

The guest may be anybody's once a build has run in it: every line is bounded, only the answer that
was asked for is looked at, and nothing in it is used but as a bounded number or a short text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.errors import InfrastructureError

MAX_LINE = 64 * 1024
MAX_STRAY_LINES = 64
"""Lines that are not the answer, after which a guest is taken to be out of its mind."""


class Agent:
    """One connection to the agent in a guest."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last = 0
        writer.write(b"\n")  # ends whatever a predecessor left in the middle of a line

    async def call(
        self, op: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """Ask for `op` and return the answer.

        Raises `InfrastructureError` when the guest refuses, answers nonsense, or not in time.
        """
        self._last += 1
        request = {"id": self._last, "op": op, **(arguments or {})}
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                return await self._answer(op)
        except TimeoutError:
            raise InfrastructureError(
                f"the guest's agent did not answer `{op}` within {timeout_s:.0f} s"
            ) from None
        except asyncio.LimitOverrunError:
            raise InfrastructureError(
                f"the guest's agent answered `{op}` with a line of over {MAX_LINE} bytes"
            ) from None
        except (OSError, EOFError, ValueError) as error:
            raise InfrastructureError(f"the guest's agent broke off `{op}`: {error}") from None

    async def _answer(self, op: str) -> dict[str, Any]:
        for _ in range(MAX_STRAY_LINES):
            line = await self._reader.readuntil(b"\n")
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict) and message.get("id") == self._last:
                    if message.get("ok") is True:
                        return message
                    reason = ascii(str(message.get("error", "no reason")))[:200]
                    raise InfrastructureError(f"the guest's agent refused `{op}`: {reason}")
        raise InfrastructureError(f"the guest's agent did not answer `{op}` but talked on")


@contextlib.asynccontextmanager
async def agent(path: Path) -> AsyncIterator[Agent]:
    """The agent behind QEMU's socket at `path`. Raises `InfrastructureError` when QEMU is gone."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
    except OSError as error:
        raise InfrastructureError(f"no agent channel at {path}: {error}") from None
    try:
        yield Agent(reader, writer)
    finally:
        writer.close()


class Channel:
    """The agent behind QEMU's socket at `path`, for several who ask: one call at a time.

    QEMU serves one connection only, so this one is kept; after a call that failed it is made anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._connection = contextlib.AsyncExitStack()
        self._agent: Agent | None = None

    async def call(
        self, op: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """As `Agent.call`; the time begins when it is this call's turn."""
        async with self._turn:
            try:
                if self._agent is None:
                    self._agent = await self._connection.enter_async_context(agent(self._path))
                return await self._agent.call(op, arguments, timeout_s=timeout_s)
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Let the connection go; the next call makes another."""
        self._agent = None
        await self._connection.aclose()
