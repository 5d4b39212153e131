"""One request passed on to a program of this machine, streaming both ways.

Nothing is buffered and nothing decompressed: what one side writes the other reads, at the pace of
the slower one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import (
    BaseConnector,
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ServerDisconnectedError,
    TCPConnector,
    web,
)
from aiohttp.connector import UnixConnector
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from mayfly.errors import InfrastructureError, Unreachable, UsageError

CHUNK = 256 * 1024

PATIENCE_S = 10
"""How long a program that does not accept connections is waited for: it is being restarted."""

PAUSE_S = 0.1
"""Between two tries."""

STORE_S = 2.0
"""How long a store may take to say anything at all."""

PAGE_S = 30.0
"""How long an answer may take that is read whole."""

OK, NOT_FOUND = 200, 404

_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers that belong to one connection (RFC 9110, 7.6.1)."""

_OWN = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
"""Headers that only the edge may set."""

_REPEATABLE = {"GET", "HEAD", "POST"}
"""Methods that may be used twice when they have no body: the registry's POST begins an upload."""

_REQUEST = _HOP | _OWN | {"host", "expect", "content-length"}


def end_to_end(
    headers: CIMultiDictProxy[str], without: set[str] = _HOP, *, leave: tuple[str, ...] = ()
) -> CIMultiDict[str]:
    """The headers that travel on: not those of the connection, nor those it names. Pure."""
    named = {
        part.strip().lower()
        for value in headers.getall("Connection", [])
        for part in value.split(",")
    }
    drop = without | named | {name.lower() for name in leave}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in drop)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a program is waited for, in seconds.

    `brief_s`: its silence after a request that may be made twice; `long_s`: after any other, once
    the whole request has been sent; None: as long as it likes. `again_s`: a request that may be
    made twice is made again for that long when the program breaks off, or answers with a fault of
    its own (5xx).
    """

    brief_s: float | None = None
    long_s: float | None = None
    again_s: float = 0


class Backend:
    """An HTTP program at a unix socket's path or at `HOST:PORT`. Use within `async with`.

    `name` is how people know it. `store`, for a program at `HOST:PORT` that says 404 while the
    place where it keeps everything is away, is that place's URL: a 404 then counts as a fault.
    """

    def __init__(
        self, name: str, address: Path | str, patience: Patience = Patience(), *, store: str = ""
    ) -> None:
        self.name = name
        self._address = address
        self._patience = patience
        self._store = store
        self._session: ClientSession | None = None

    async def open(self) -> None:
        """Be ready to pass requests on; the program need not run yet."""
        self._session = ClientSession(
            connector=self._connector(),
            auto_decompress=False,
            timeout=ClientTimeout(total=None, sock_connect=5),
            read_bufsize=CHUNK,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    def _connector(self) -> BaseConnector:
        """A connection for each: one that is kept may be closed just as it is used again."""
        if isinstance(self._address, Path):
            return UnixConnector(str(self._address), limit=0, force_close=True)
        return TCPConnector(limit=0, force_close=True)

    async def close(self) -> None:
        """Let go of every connection."""
        if self._session is not None:
            await self._session.close()

    async def forward(
        self,
        request: web.Request,
        target: str,
        headers: Mapping[str, str],
        *,
        drop: tuple[str, ...],
    ) -> web.StreamResponse:
        """The program's answer, already sent on to whoever asked.

        `target` is path and query, passed on byte for byte. `headers` are added; those in `drop`
        are not passed on. Raises `Unreachable` when the program does not answer
        (it is given `PATIENCE_S` seconds to accept the connection, and its `Patience` to answer),
        `InfrastructureError` when it breaks off before its first byte, and `ConnectionError` when
        either side breaks off later: then the other one has been cut too.
        """
        if self._session is None:
            raise Unreachable(f"{self.name} is not open")
        if not target.startswith("/"):
            raise UsageError("the request's target is not a path")
        sent = end_to_end(request.headers, _REQUEST, leave=drop)
        sent.update(headers)
        if request.content_length is not None:
            sent["Content-Length"] = str(request.content_length)
        try:
            answer = await self._send(self._session, request, target, sent)
        except ClientConnectionError as error:
            raise Unreachable(f"{self.name} does not answer: {error}") from None
        except (ClientError, TimeoutError) as error:
            raise InfrastructureError(f"{self.name} failed: {error}") from None
        async with answer:
            return await _answer(request, answer)

    async def page(self, target: str, headers: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
        """A JSON object of the program's, and the target of what follows it (empty: nothing).

        Raises `Unreachable` when the program does not answer and `InfrastructureError` for any
        other answer than such an object.
        """
        if self._session is None:
            raise Unreachable(f"{self.name} is not open")
        authority = "localhost" if isinstance(self._address, Path) else self._address
        url = URL(f"http://{authority}{target}", encoded=True)
        try:
            async with self._session.get(
                url, headers=headers, timeout=ClientTimeout(total=PAGE_S)
            ) as answer:
                text = await answer.read()
                said = json.loads(text) if answer.status == OK else None
                link = answer.links.get("next")
        except ClientConnectionError as error:
            raise Unreachable(f"{self.name} does not answer: {error}") from None
        except (ClientError, TimeoutError, ValueError) as error:
            raise InfrastructureError(f"{self.name} failed: {error}") from None
        if not isinstance(said, dict):
            raise InfrastructureError(f"{self.name} answered {answer.status}, and no JSON object")
        return said, relative(str(link["url"])) if link else ""

    async def _send(
        self,
        session: ClientSession,
        request: web.Request,
        target: str,
        headers: CIMultiDict[str],
    ) -> ClientResponse:
        loop = asyncio.get_running_loop()
        authority = "localhost" if isinstance(self._address, Path) else self._address
        brief = request.method in _REPEATABLE and not request.body_exists
        again_s = self._patience.again_s if brief else 0
        silence_s = self._patience.brief_s if brief else self._patience.long_s
        troubled_at: float | None = None

        def over(patience_s: float) -> bool:
            nonlocal troubled_at
            troubled_at = troubled_at or loop.time()
            return loop.time() >= troubled_at + patience_s

        while True:
            try:
                answer = await session.request(
                    request.method,
                    URL(f"http://{authority}{target}", encoded=True),
                    headers=headers,
                    data=request.content if request.body_exists else None,
                    allow_redirects=False,
                    timeout=ClientTimeout(total=None, sock_connect=5, sock_read=silence_s),
                )
            except ClientConnectorError:  # nothing has been sent yet
                if over(PATIENCE_S):
                    raise
            except (ServerDisconnectedError, ClientOSError):
                if over(again_s):
                    raise
            else:
                hidden = answer.status == NOT_FOUND and await self._store_is_away(session)
                if not hidden and (answer.status < 500 or over(again_s)):
                    return answer
                answer.close()
                if hidden and over(again_s):
                    raise ClientConnectionError("what it stores in is away")
            await asyncio.sleep(PAUSE_S)

    async def _store_is_away(self, session: ClientSession) -> bool:
        if not self._store:
            return False
        try:
            async with session.get(self._store, timeout=ClientTimeout(total=STORE_S)) as answer:
                return answer.status >= 500
        except (ClientError, OSError, TimeoutError):
            return True

    async def __aenter__(self) -> Backend:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _answer(request: web.Request, answer: ClientResponse) -> web.StreamResponse:
    headers = end_to_end(answer.headers)
    if "Location" in headers:
        headers["Location"] = relative(headers["Location"])
    ours = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    await ours.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await ours.write(chunk)
    except ClientError as error:
        # With which aiohttp cuts the connection: half an answer must not look like a whole one.
        raise ConnectionResetError(f"the answer broke off: {error}") from None
    await ours.write_eof()
    return ours


def relative(location: str) -> str:
    """A `Location` of a program behind the edge as path and query, good at every name of ours."""
    url = URL(location, encoded=True)
    return str(url.relative()) if url.absolute else location
