"""What stands before a token service: who may come through, and what becomes of it. By curl."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mayfly.build.broker import brokered
from mayfly.errors import Denied
from mayfly.registry.credentials import ANONYMOUS, Exchange, Given, Login
from mayfly.registry.grants import Access
from tests.build.third_party import own_address, third_party

BOTH = frozenset({"pull", "push"})
REALM = "https://auth.example/token"
GIVEN = Given(
    {"farm": {"registrytoken": "t"}},
    {
        "hub.example": Exchange(
            REALM, "hub", Login("me", "hush"), (Access("a/b", BOTH),), token="first"
        ),
        "local.example": Exchange("https://127.0.0.1:1/token", "", Login("me", "hush"), (), "one"),
    },
)
SCOPE = "repository:a/b:pull"


@dataclass
class Open:
    """A broker that runs; `bought` is what it has asked for, with whose login."""

    config: dict[str, object]
    env: dict[str, str]
    bought: list[tuple[Login, tuple[Access, ...]]] = field(default_factory=list)
    refuse: bool = False

    @property
    def word(self) -> str:
        return urlsplit(self.env["HTTPS_PROXY"]).password or ""

    async def curl(self, url: str, *words: str, proxy: str = "") -> tuple[int, str]:
        """Status and body, by way of the broker; the status of the proxy when that refuses."""
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "--max-time", "20", "-o", "-", "-w", "\n%{http_code} %{http_connect}"),
            *("--proxy", proxy or self.env["HTTPS_PROXY"]),
            *("--cacert", self.env["SSL_CERT_FILE"], *words, url),
            env={},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        body, _, codes = (await process.communicate())[0].decode().rpartition("\n")
        status, connect = map(int, codes.split())
        return status or connect, body


@asynccontextmanager
async def opened(folder: Path, **environ: str) -> AsyncIterator[Open]:
    made: list[Open] = []

    async def buy(exchange: Exchange, access: tuple[Access, ...]) -> tuple[str, float]:
        made[0].bought.append((exchange.login, access))
        if made[0].refuse:
            raise Denied("no more")
        return f"fresh {len(made[0].bought)}", 300.0

    async with brokered(GIVEN, folder, environ, buy) as (config, env):
        made.append(Open(config, env))
        yield made[0]
    assert not (folder / "tokens.sock").exists()


async def test_the_builds_own_word_buys_fresh_tokens_for_what_is_the_builds(tmp_path: Path) -> None:
    async with opened(tmp_path) as there:
        form = ("-d", f"grant_type=password&password={there.word}&username=mayfly&scope={SCOPE}")
        for number in (1, 2):
            status, body = await there.curl(REALM, *form)
            assert status == 200
            token = f"fresh {number}"
            assert json.loads(body) == {"token": token, "access_token": token, "expires_in": 300}
        basic = ("-u", f"mayfly:{there.word}", "-G", "-d", f"scope={SCOPE}")
        assert (await there.curl(REALM, *basic))[0] == 200
        ours = (Access("a/b", frozenset({"pull"})),)
        assert there.bought == 3 * [(Login("me", "hush"), ours)]
        # A part of it is ours, then nothing: what anybody gets.
        for scope, login in ((f"{SCOPE}+repository:c/d:pull", "me"), ("repository:c/d:pull", "")):
            form = ("-d", f"password={there.word}&scope={scope}")
            assert (await there.curl(REALM, *form))[0] == 200
            assert there.bought[-1][0].username == login
        assert there.bought[-2][1] == ours
        assert there.bought[-1] == (ANONYMOUS, (Access("c/d", frozenset({"pull"})),))


async def test_what_is_in_the_configuration_is_good_for_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as there:
        text = json.dumps(there.config)
        assert "hush" not in text
        assert '"registrytoken": "t"' in text, "the farm's own token stays"
        assert '"registrytoken": "one"' in text, "no proxy stands before what is on loopback"
        assert "first" not in text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (REALM, ("-d", f"password=wrong&scope={SCOPE}")),
        (REALM, ("-G", "-d", f"scope={SCOPE}")),
        (REALM, ("-u", "me:hush")),
        ("https://auth.example/other", ()),
        ("https://auth.example/", ()),
    ],
)
async def test_without_that_word_and_beside_that_service_nothing_is_bought(
    tmp_path: Path, url: str, words: tuple[str, ...]
) -> None:
    async with opened(tmp_path) as there:
        assert (await there.curl(url, *words))[0] == 403
        assert there.bought == []


async def test_a_refused_login_and_a_strange_scope_are_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as there:
        form = ("-d", f"password={there.word}&scope=nonsense")
        assert (await there.curl(REALM, *form))[0] == 400
        there.refuse = True
        form = ("-d", f"password={there.word}&scope={SCOPE}")
        assert (await there.curl(REALM, *form))[0] == 403


async def test_others_get_through_and_neither_strangers_nor_plain_http_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as there:
        port = urlsplit(there.env["HTTPS_PROXY"]).port
        assert (await there.curl(REALM, proxy=f"http://127.0.0.1:{port}"))[0] == 407
        assert (await there.curl(REALM, proxy=f"http://mayfly:x@127.0.0.1:{port}"))[0] == 407
        assert (await there.curl("http://192.0.2.1/latest"))[0] == 403
        assert (await there.curl("https://127.0.0.1:1/"))[0] == 502
        assert (await there.curl("https://169.254.169.254/"))[0] == 502


async def test_the_users_own_proxy_is_used_for_others(tmp_path: Path) -> None:
    """A second broker plays the company's proxy: it lets only through what is not on loopback."""
    address = own_address() or pytest.skip("this machine has no address but loopback")
    (tmp_path / "theirs").mkdir()
    async with third_party(tmp_path, address) as (third, ca), opened(tmp_path / "theirs") as theirs:
        proxy = theirs.env["HTTPS_PROXY"]
        ours = tmp_path / "ours"
        for no_proxy, wanted in (("", 502), (f"x.example,{address}", 200)):
            ours.mkdir(exist_ok=True)
            environ = {"HTTPS_PROXY": proxy.replace(theirs.word, "wrong"), "NO_PROXY": no_proxy}
            async with opened(ours, SSL_CERT_FILE=str(ca), **environ) as there:
                url = f"https://{third.address}/token"
                assert (await there.curl(url, "-G"))[0] == wanted, "its password is wrong"
        async with opened(ours, SSL_CERT_FILE=str(ca), HTTPS_PROXY=proxy) as there:
            assert (await there.curl(url, "-G"))[0] == 200


async def test_where_there_is_nothing_to_exchange_nothing_is_started(tmp_path: Path) -> None:
    async def buy(exchange: Exchange, access: tuple[Access, ...]) -> tuple[str, float]:
        raise AssertionError

    given = Given({"farm": {"registrytoken": "t"}})
    async with brokered(given, tmp_path, {}, buy) as (config, env):
        assert (config, env) == ({"auths": {"farm": {"registrytoken": "t"}}}, {})
    assert list(tmp_path.iterdir()) == []
