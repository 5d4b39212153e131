"""Layer caches in a real registry behind a real edge: listed, emptied, gone for the next build."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from mayfly.build import cache
from mayfly.errors import Denied, InfrastructureError, Unreachable
from mayfly.registry.caches import Caches, LayerCache, caches
from mayfly.registry.grants import PULL, PUSH, Access
from tests.stack_fixture import Stack, oci_image

T = TypeVar("T")


def ask(stack: Stack, question: Callable[[Caches], Awaitable[T]], token: str = "") -> T:
    async def asking() -> T:
        url = f"https://{stack.address}"
        async with caches(url, token or stack.admin_token, stack.tls) as there:
            return await question(there)

    return asyncio.run(asking())


def push(stack: Stack, repository: str, image: Path) -> None:
    both = (Access(repository, frozenset({PULL, PUSH})),)
    token = stack.signer.registry_token("someone", both, now=datetime.now(UTC))
    stack.skopeo(
        *("copy", "--dest-cert-dir", stack.cert_dir, "--dest-registry-token", token),
        *(f"oci:{image}:t", f"docker://{stack.address}/{repository}:latest"),
    )


def is_warm(stack: Stack, repo: str, key: str) -> bool:
    """As a build asks it."""
    _, token = stack.runner(repo)
    door = cache.Door(f"https://{stack.address}", f"Bearer {token}", stack.tls)
    return asyncio.run(cache.exists(door, f"{stack.address}/cache/trusted/{repo}/{key}"))


@pytest.mark.services
def test_caches_are_listed_with_their_sizes_and_emptied_repo_by_repo(
    stack: Stack, tmp_path: Path
) -> None:
    mine, other = (f"team/c{secrets.token_hex(4)}" for _ in range(2))
    manifest, _ = oci_image(tmp_path / "one", 300_000)
    oci_image(tmp_path / "two", 100_000)
    push(stack, f"cache/trusted/{mine}/default", tmp_path / "one")
    push(stack, f"cache/trusted/{mine}/web", tmp_path / "two")
    push(stack, f"cache/untrusted/{mine}/default", tmp_path / "two")
    push(stack, f"cache/trusted/{other}/default", tmp_path / "one")
    push(stack, f"images/{mine}", tmp_path / "one")

    found = ask(stack, lambda there: there.all(mine))
    told = [(one.zone, one.repo, one.key) for one in found]
    assert told == [
        ("trusted", mine, "default"),
        ("trusted", mine, "web"),
        ("untrusted", mine, "default"),
    ]
    assert found[0].digests == (manifest,)
    assert 300_000 < found[0].size_bytes < 310_000 and found[1].size_bytes < 110_000
    everything = ask(stack, lambda there: there.all())
    assert {one.repo for one in everything} >= {mine, other}
    assert not any(one.repository.startswith("images/") for one in everything)

    assert is_warm(stack, mine, "default")

    async def empty(there: Caches) -> None:
        for one in found:
            await there.empty(one)
            await there.empty(one)  # again is fine

    ask(stack, empty)
    assert ask(stack, lambda there: there.all(mine)) == ()
    assert not is_warm(stack, mine, "default")
    assert [one.repo for one in ask(stack, lambda there: there.all(other))] == [other]
    accept = ("-H", "Accept: application/vnd.oci.image.manifest.v1+json")
    path = f"/v2/images/{mine}/manifests/{manifest}"
    assert stack.curl(path, *accept, token=admin(stack, mine)).status == 200, "images stay"


def admin(stack: Stack, repo: str) -> str:
    read = (Access(f"images/{repo}", frozenset({PULL})),)
    return stack.signer.registry_token("admin", read, now=datetime.now(UTC))


@pytest.mark.services
def test_another_token_is_denied(stack: Stack) -> None:
    with pytest.raises(Denied, match="does not know this token"):
        ask(stack, lambda there: there.all(), token="wrong")


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> Caches:
    http = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://registry")
    return Caches(http, "token")


async def test_a_token_that_may_not_list_or_delete_is_denied() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json={"token": ""})
        return httpx.Response(401)

    with pytest.raises(Denied, match="may not do that"):
        await answering(handler).all()
    one = LayerCache("cache/trusted/o/r/k", "trusted", "o/r", "k", 1, ("sha256:1",))
    with pytest.raises(Denied, match="may not do that"):
        await answering(handler).empty(one)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null"])
async def test_nonsense_is_one_line(body: bytes) -> None:
    with pytest.raises(InfrastructureError, match="/token is no JSON object"):
        await answering(lambda _: httpx.Response(200, content=body)).all()


async def test_a_registry_that_is_away_is_unreachable() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody")

    with pytest.raises(Unreachable, match="the registry does not answer: nobody"):
        await answering(handler).all()


async def test_a_list_in_pages_is_read_to_its_end() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/token":
                return httpx.Response(200, json={"token": "t"})
            case "/v2/_catalog" if "last" in request.url.params:
                return httpx.Response(200, json={"repositories": ["cache/trusted/o/r/b"]})
            case "/v2/_catalog":
                link = {"Link": '</v2/_catalog?last=a&n=1>; rel="next"'}
                names = ["cache/trusted/o/r/a", "images/o/r", "cache/trusted/o/gone/k"]
                return httpx.Response(200, json={"repositories": names}, headers=link)
            case "/v2/cache/trusted/o/gone/k/tags/list":
                return httpx.Response(404)
            case path if path.endswith("/tags/list"):
                return httpx.Response(200, json={"tags": ["latest"]})
        manifest = {"manifests": [{"digest": "sha256:1", "size": 5}, {"digest": "sha256:1"}]}
        return httpx.Response(200, json=manifest, headers={"Docker-Content-Digest": "sha256:m"})

    found = await answering(handler).all()
    assert [one.key for one in found] == ["a", "b"]
    assert {one.digests for one in found} == {("sha256:m",)}
