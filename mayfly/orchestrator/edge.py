"""The orchestrator's few words to the edge: which runners it serves."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

import httpx

from mayfly.errors import InfrastructureError, Unreachable

TIMEOUT_S = 5.0


class Edge(Protocol):
    """Which runners the edge serves. Each call raises `Unreachable` while the edge is away."""

    async def attached(self) -> tuple[str, ...]:
        """The names of the runners that are served."""

    async def attach(self, runner: str) -> None:
        """Serve the runner; again is fine. Raises `InfrastructureError` when it is not there."""

    async def revoke(self, runner: str) -> None:
        """Serve the runner no longer and cut what is open to it; unknown ones are fine."""


class NoDoors:
    """An edge for runners that nobody can reach (the provider `fake`): that it finds none of them
    is no fault.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._missed: set[str] = set()

    async def attached(self) -> tuple[str, ...]:
        return tuple({*await self._edge.attached(), *self._missed})

    async def attach(self, runner: str) -> None:
        try:
            await self._edge.attach(runner)
        except Unreachable:
            raise
        except InfrastructureError:
            self._missed.add(runner)

    async def revoke(self, runner: str) -> None:
        self._missed.discard(runner)
        await self._edge.revoke(runner)


class EdgeClient:
    """`Edge` over the edge's admin socket."""

    def __init__(self, socket: Path, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._socket = socket
        self._http = httpx.AsyncClient(
            transport=transport or httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://edge",
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    async def __aenter__(self) -> EdgeClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def attached(self) -> tuple[str, ...]:
        answer = await self._call("GET", "/runners")
        return tuple(answer.json()["runners"])

    async def attach(self, runner: str) -> None:
        await self._call("PUT", f"/runners/{runner}")

    async def revoke(self, runner: str) -> None:
        await self._call("DELETE", f"/runners/{runner}")

    async def _call(self, method: str, path: str) -> httpx.Response:
        try:
            answer = await self._http.request(method, path)
        except httpx.TransportError as error:
            raise Unreachable(f"the edge does not answer at {self._socket}: {error}") from error
        if answer.status_code >= 500:
            raise Unreachable(f"the edge answered {method} {path} with {answer.status_code}")
        if answer.is_error:
            said = f"{answer.status_code} {answer.text[:200]}"
            raise InfrastructureError(f"the edge refused {method} {path}: {said}")
        return answer
