"""A base image that is not there is the user's fault, a registry that is away is not."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientTimeout, web

from mayfly.build import bases
from mayfly.build.cache import Door
from tests.stack_fixture import free_port

HOST = "registry.mayfly.internal:5000"


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        (f"{HOST}/images/base/x", "/v2/images/base/x/manifests/latest"),
        (f"{HOST}/images/base/x:1.2", "/v2/images/base/x/manifests/1.2"),
        (f"{HOST}/images/o/r@sha256:ab", "/v2/images/o/r/manifests/sha256:ab"),
        ("alpine", "/v2/library/alpine/manifests/latest"),
        (f"{HOST}/images/o/r:1@sha256:ab", "/v2/images/o/r/manifests/sha256:ab"),
    ],
)
def test_where_a_manifest_is(reference: str, path: str) -> None:
    assert bases.manifest(reference) == path


def test_other_registries_are_not_ours_to_ask() -> None:
    found = bases.of(HOST, [f"{HOST}/a", "docker.io/library/b", "c", f"{HOST}/a", "ghcr.io/d"])
    assert found == (f"{HOST}/a",)


@pytest.mark.parametrize(
    ("status", "away"), [(200, False), (404, False), (401, False), (403, False), (503, True)]
)
async def test_any_answer_but_a_fault_of_its_own_is_an_answer(status: int, away: bool) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.headers["Authorization"] == "Bearer t"
        return web.Response(status=status)

    application = web.Application()
    application.router.add_get("/v2/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        found = await bases.unreadable(Door(url, "Bearer t", None), [f"{HOST}/images/base/x:1"])
    finally:
        await runner.cleanup()
    assert found == (f"{HOST}/images/base/x:1" if away else "")
    assert asked == ["/v2/images/base/x/manifests/1"]


async def test_silence_and_absence_are_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert await bases.unreadable(Door(url, "", None), ["h:1/x"]) == "h:1/x"
    assert await bases.unreadable(Door(url, "", None), []) == ""
    monkeypatch.setattr(bases, "LIMIT", ClientTimeout(total=0.3))
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(5):
        assert await bases.unreadable(Door(url, "", None), ["h:1/x"]) == "h:1/x"
    silent.close()
