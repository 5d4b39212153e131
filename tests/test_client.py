"""The API's client: where it dials, with which token, and what it makes of failures."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from mayfly import client
from mayfly.client import Client, from_environment
from mayfly.config import Config
from mayfly.errors import (
    BuildFailed,
    Conflict,
    Denied,
    InfrastructureError,
    MayflyError,
    NotFound,
    TooBig,
    Unauthenticated,
    Unreachable,
    UsageError,
)


def answering(status: int, **more: Any) -> Client:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, **more))
    return Client("http://farm", "token", transport=transport)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "usage", UsageError),
        (401, "denied", Unauthenticated),
        (403, "denied", Denied),
        (404, "usage", NotFound),
        (409, "usage", Conflict),
        (409, "cancelled", MayflyError),
        (422, "too_big", TooBig),
        (422, "failed", BuildFailed),
        (503, "infrastructure", InfrastructureError),
        (500, "internal", MayflyError),
        (500, "from-the-future", MayflyError),
    ],
)
async def test_errors_come_back_as_what_they_were(
    status: int, code: str, kind: type[MayflyError]
) -> None:
    body = {"error": {"code": code, "message": "why", "hint": "do that"}}
    async with answering(status, json=body) as api:
        with pytest.raises(kind) as caught:
            await api.leases()
    assert str(caught.value) == "why - do that"


@pytest.mark.parametrize(
    "more", [{"text": "Bad Gateway"}, {"json": []}, {"json": {"error": "x"}}, {"content": b"\xff"}]
)
async def test_an_answer_that_is_not_mayflys_is_unreachable(more: dict[str, Any]) -> None:
    async with answering(502, **more) as api:
        with pytest.raises(Unreachable, match="answered 502 Bad Gateway"):
            await api.leases()
        with pytest.raises(Unreachable):
            _ = [line async for line in api.events("x")]


async def test_nobody_there_is_one_line_that_says_what_to_do() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}", "token") as api:
        for call in (api.leases(), api.heartbeat("x")):
            with pytest.raises(Unreachable) as caught:
                await call
            line = str(caught.value)
            assert f"127.0.0.1:{port}" in line
            assert line.endswith("start it with `mayfly up`, or set MAYFLY_URL")
            assert "\n" not in line
        with pytest.raises(Unreachable):
            _ = [piece async for piece in api.log("x")]


async def test_the_token_is_sent_and_a_holder_sends_its_own() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json=[])

    async with Client("http://farm", "admin", transport=httpx.MockTransport(answer)) as api:
        await api.leases()
        await api.holding("lease").builds()
        await api.builds()
    assert seen == ["Bearer admin", "Bearer lease", "Bearer admin"]


async def test_events_are_lines_until_there_is_nothing_to_wait_for() -> None:
    stream = (
        'event: state\ndata: {"text": "queued"}\n\n: still here\n\n'
        'event: progress\ndata: {"text": "one"}\n\n'
        'event: progress\ndata: {"text": "two"}\n\n'
        'event: state\ndata: {"text": "ready"}\n\n'
        'event: progress\ndata: {"text": "late"}\n\n'
    )
    async with answering(200, text=stream) as api:
        assert [line async for line in api.events("x")] == ["one", "two"]


async def test_ids_stay_inside_their_place_in_the_path() -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    async with Client("http://farm", "t", transport=httpx.MockTransport(answer)) as api:
        await api.lease("status?x")
        for wrong in ("", ".", "..", "../status", "a\n"):
            with pytest.raises(NotFound, match="there is no lease"):
                await api.lease(wrong)
    assert paths == ["/v1/leases/status%3Fx?since=&wait_s=0"]


# The environment.


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "admin.token").write_text("mayfly_admin_x\n")
    return Config(state=tmp_path)


def test_the_environment_names_the_farm(config: Config) -> None:
    api = from_environment(config, {"MAYFLY_URL": "https://f.example:5000/", "MAYFLY_TOKEN": "t"})
    assert (api.url, api.token) == ("https://f.example:5000", "t")


def test_this_machines_farm_is_the_default(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [()])
    api = from_environment(config, {})
    assert (api.url, api.token) == ("https://registry.mayfly.internal:5000", "mayfly_admin_x")


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:5001", "https://127.0.0.1:5001"),
        ("0.0.0.0:5000", "https://127.0.0.1:5000"),
        ("192.0.2.7:443", "https://192.0.2.7:443"),
        ("[::1]:5000", "https://[::1]:5000"),
    ],
)
def test_without_its_name_the_farm_is_dialled_by_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str, url: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    config = Config.model_validate({"state": tmp_path, "server": {"listen": listen}})
    assert client.local_url(config) == url


def test_a_missing_token_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Denied, match=r"MAYFLY_TOKEN is not set and .*admin.token does not exist"):
        from_environment(Config(state=tmp_path), {})


def test_the_local_admin_token_goes_to_no_other_farm(config: Config) -> None:
    with pytest.raises(Denied, match="set MAYFLY_TOKEN"):
        from_environment(config, {"MAYFLY_URL": "https://f.example:5000"})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9:80", "[::1]:5000"])
def test_a_farm_on_this_machine_may_be_dialled_without_tls(config: Config, host: str) -> None:
    url = f"http://{host}"
    assert from_environment(config, {"MAYFLY_URL": url, "MAYFLY_TOKEN": "t"}).url == url


@pytest.mark.parametrize(
    "environ",
    [
        {"MAYFLY_CA": "/nowhere.crt"},
        {"MAYFLY_CA": "@garbage"},
        {"MAYFLY_TOKEN": "tökén"},
        {"MAYFLY_TOKEN": "a\nb"},
        *(
            {"MAYFLY_URL": url, "MAYFLY_TOKEN": "t"}
            for url in (
                "farm.example",
                "ftp://farm.example",
                "https://",
                "https://:5000",
                "https://foo:bar",
                "https://foo:99999",
                "https://xn--",
                "https://foo\n",
                "http://[::1",
                "http://farm.example",
                "http://localhost.example",
            )
        ),
    ],
    ids=str,
)
def test_a_wrong_environment_is_usage(config: Config, environ: dict[str, str]) -> None:
    (config.state / "garbage").write_text("nonsense")
    named = {k: v.replace("@", f"{config.state}/") for k, v in environ.items()}
    with pytest.raises(UsageError) as caught:
        from_environment(config, named)
    assert "\n" not in str(caught.value)
