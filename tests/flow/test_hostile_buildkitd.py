"""A runner whose buildkitd was replaced asks the client for credentials, through the real buildx.

The one that asks (`tools/hostile`) is made of BuildKit's own libraries.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mayfly import flow, tools
from mayfly.build import pair, result, ssh
from mayfly.config import Config
from mayfly.model import Outcome
from tests.build.fake_runner import TOKEN, fake_runner, pair_of
from tests.build.third_party import ThirdParty, own_address, third_party
from tests.flow.fake_farm import FakeFarm

SECRET = "the-users-own-password"
HUB = "https://index.docker.io/v1/"
OTHERS = (
    *("ghcr.io", "registry-1.docker.io", "docker.io", "index.docker.io", HUB, "dhi.io"),
    *("registry.scout.docker.com", "ci.example", "", "*", "registry.mayfly.internal"),
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    source = Path(__file__).parents[2] / "tools"
    cache = Config().cache
    go = tools._go(cache, print)
    argv = [str(go), "build", *tools._FLAGS, "-o", str(program), "./hostile"]
    subprocess.run(argv, cwd=source, env=tools._go_environment(cache), check=True)
    return program


def login(user: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@asynccontextmanager
async def asking(program: Path, socket: Path, questions: object) -> AsyncIterator[Path]:
    """Serves as a buildkitd at `socket`; the file that is yielded gets the answers."""
    answers = socket.with_suffix(".answers")
    with answers.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            program, socket, stdin=asyncio.subprocess.PIPE, stdout=out
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(questions).encode())
            process.stdin.close()
            while not socket.exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
            yield answers
        finally:
            process.terminate()
            await process.wait()


async def ask(
    hostile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: flow.Request,
    questions: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """What a whole build is asked for by its runner, and what it answers."""
    key = ssh.new_key()
    monkeypatch.setattr(pair, "new", lambda: pair_of(key))
    # It says nothing of a build while it asks; it is not to be taken for one that is only slow.
    monkeypatch.setattr(result, "BEGIN_S", 3600.0)
    socket = tmp_path / "replaced.sock"
    async with (
        asking(hostile, socket, questions) as answers,
        fake_runner(ssh.public_line(key), socket) as runner,
        asyncio.timeout(60),
    ):
        built = await flow.build(request, FakeFarm(runner), Config(), print)
    assert built.outcome is Outcome.FAILED
    told: list[dict[str, Any]] = json.loads(answers.read_text())
    assert len(told) == len(questions)
    return told


def question(host: str, realm: str, name: str) -> dict[str, Any]:
    scopes = [f"repository:{name}:pull,push"]
    return {"host": host, "realm": realm, "service": "any", "scopes": scopes}


async def test_it_gets_this_builds_tokens_and_nothing_of_any_other_host(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with third_party(tmp_path) as (third, ca):
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        request = prepared(tmp_path, third)
        questions = [
            question(host, f"https://{third.address}/token", name)
            for host in (request.registry_host, third.address, *OTHERS)
            for name in ("team/app", "team/other")
        ]
        told = await ask(hostile, tmp_path, monkeypatch, request, questions)

    # Of this build's two registries: the tokens, whatever it says it wants them for.
    tokens = {request.registry_host: TOKEN, third.address: "for repository:team/app:pull,push"}
    for answer in told[:4]:
        assert answer["token"] == tokens[answer["host"]]
    # Of all others: what anybody gets who asks that token service without a word.
    for answer in told[4:]:
        assert answer["token"] in ("anonymous", "")
    for answer in told:
        assert (answer["username"], answer["secret"]) == ("", "")
    everything = json.dumps(told) + json.dumps(third.asked[1:])
    for leak in (SECRET, login("me")["auth"], "for repository:team/other"):
        assert leak not in everything

    # Our own exchange carried the login; nothing that the runner brought about did.
    carried = [bool(asked["authorization"]) for asked in third.asked]
    assert carried == [True, *(False for _ in carried[1:])]
    assert len(carried) > 1, "the client was brought to ask, so there was something to see"


async def test_it_gets_fresh_tokens_for_the_builds_own_repository_and_the_login_never(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, where the token service is not on loopback: then the client stands before it."""
    address = own_address()
    if not address:
        pytest.skip("this machine has no address but loopback")
    (tmp_path / "evil").mkdir()
    async with (
        third_party(tmp_path, address) as (third, ca),
        third_party(tmp_path / "evil", address) as (evil, evil_ca),
        plain(address) as (plain_url, plainly),
    ):
        both = tmp_path / "both.crt"
        both.write_bytes(ca.read_bytes() + evil_ca.read_bytes())
        monkeypatch.setenv("SSL_CERT_FILE", str(both))
        request = prepared(tmp_path, third)
        realm = f"https://{third.address}/token"
        questions = [
            question(third.address, realm, "team/app"),
            question(third.address, realm, "team/other"),
            question(third.address, f"https://{evil.address}/token", "team/app"),
            question(third.address, plain_url, "team/app"),
            question("ghcr.io", realm, "team/app"),
            question("ghcr.io", plain_url, "team/app"),
        ]
        told = await ask(hostile, tmp_path, monkeypatch, request, questions)

    assert [answer["token"] for answer in told] == [
        "for repository:team/app:pull,push",
        "anonymous",
        *("", "", "", ""),
    ]
    # Each token of the build's was bought by the client with the login, and for no more than that.
    bought = [asked["scopes"] for asked in third.asked if asked["authorization"]]
    assert bought == 2 * [["repository:team/app:pull,push"]]
    # Who is sent to another service than the registry's brings a word that is good for nothing.
    assert evil.asked
    words = {answer["secret"] for answer in told if answer["host"] == third.address}
    assert len(words) == 1
    assert words.isdisjoint({"", "hush", SECRET})
    assert "hush" not in json.dumps([told, evil.asked])
    assert login("me", "hush")["auth"] not in json.dumps([told, evil.asked])
    assert plainly == [], "no address is reached by plain HTTP"
    assert [answer["secret"] for answer in told[4:]] == ["", ""]


@asynccontextmanager
async def plain(address: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Something that answers anybody by HTTP, as a cloud's metadata service does; who asked."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"Token": "of the machine's own role"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 0).start()
        yield f"http://{address}:{runner.addresses[0][1]}/latest", asked
    finally:
        await runner.cleanup()


def prepared(tmp_path: Path, third: ThirdParty) -> flow.Request:
    """A build by somebody with logins everywhere, which names the farm and one more registry."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\n")
    docker = tmp_path / "docker"
    docker.mkdir()
    auths = {host: login("me") for host in (*OTHERS, "registry.mayfly.internal:5000") if host}
    auths |= {third.address: login("me", third.users["me"])}
    (docker / "config.json").write_text(json.dumps({"auths": auths}))
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "DOCKER_CONFIG": str(docker),
        "DOCKER_AUTH_CONFIG": json.dumps({"auths": {"ci.example": login("me")}}),
        "SSL_CERT_FILE": os.environ["SSL_CERT_FILE"],
    }
    words = ("-t", f"{third.address}/team/app:1", "--push", "--mayfly-repo", "team/app", context)
    return flow.prepare([str(word) for word in words], Config(), environ, tmp_path)
