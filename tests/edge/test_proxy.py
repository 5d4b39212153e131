"""How long the edge waits for a program behind it, and what it asks for twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mayfly.edge.app import errors, serving
from mayfly.edge.proxy import Backend, Patience
from tests.stack_fixture import free_port

SILENT = Patience(brief_s=0.3, long_s=0.6, again_s=1)
LONG = Patience(brief_s=30, long_s=30, again_s=30)


@dataclass
class Program:
    """What stands behind: answers with the next of `statuses`; 0 is silence, -1 breaks off."""

    statuses: list[int]
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {(await request.read()).decode()}".strip())
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            await asyncio.sleep(30)
        if status == -1 and request.transport:
            request.transport.abort()
        return web.Response(status=max(status, 200))


@asynccontextmanager
async def behind(program: Program, tmp_path: Path, patience: Patience) -> AsyncIterator[str]:
    """The address of an edge that has only this program behind it."""
    path, port = tmp_path / "program.sock", free_port()
    there, here = web.Application(), web.Application(middlewares=[errors])
    there.router.add_route("*", "/{path:.*}", program.answer)
    async with (
        serving(there, lambda runner: web.UnixSite(runner, str(path))),
        Backend("the program", path, patience) as backend,
    ):

        async def forward(request: web.Request) -> web.StreamResponse:
            return await backend.forward(request, request.raw_path, {}, drop=())

        here.router.add_route("*", "/{path:.*}", forward)
        async with serving(here, lambda runner: web.TCPSite(runner, "127.0.0.1", port)):
            yield f"http://127.0.0.1:{port}/x"


@pytest.mark.parametrize(
    ("method", "body", "statuses", "answered", "times"),
    [
        ("GET", "", [500, -1, 503], 200, 4),
        ("HEAD", "", [503], 200, 2),
        ("POST", "", [500], 200, 2),
        ("POST", "b", [500], 500, 1),
        ("PUT", "b", [500], 500, 1),
        ("PATCH", "b", [-1], 503, 1),
        ("DELETE", "", [500], 500, 1),
        ("GET", "", [404], 404, 1),
        ("GET", "", [0], 503, 1),
        ("PUT", "b", [0], 503, 1),
    ],
)
async def test_only_what_may_be_done_twice_is_asked_again_and_silence_has_an_end(
    tmp_path: Path, method: str, body: str, statuses: list[int], answered: int, times: int
) -> None:
    program = Program(list(statuses))
    async with (
        asyncio.timeout(60),
        behind(program, tmp_path, SILENT if 0 in statuses else LONG) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body or None) as answer,
    ):
        assert answer.status == answered
    assert program.asked == [f"{method} {body}".strip()] * times


async def test_a_program_that_stays_away_has_the_last_word_in_the_end(tmp_path: Path) -> None:
    program = Program([500] * 1000)
    async with (
        asyncio.timeout(60),
        behind(program, tmp_path, replace(LONG, again_s=1)) as url,
        aiohttp.ClientSession() as session,
        session.get(url) as answer,
    ):
        assert answer.status == 500
    assert len(program.asked) > 1
