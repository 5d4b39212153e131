"""The page of a build: what its token opens, what the page may do, and what a browser shows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from mayfly.golden import fetch, recipe
from mayfly.model import LeaseRequest, Outcome
from mayfly.orchestrator import page, reconcile
from mayfly.registry.tokens import Signer
from tests.orchestrator.leases import KEY, NOW, SIGNING, Farm, configuration, farm
from tests.serving import Serving

REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)
HERE = Path(__file__).parent
PAGE = Path(page.__file__).with_suffix(".html")


@pytest.fixture
async def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    async with farm(configuration(tmp_path)) as running:
        yield running


def token_in(url: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {url.partition('#token=')[2]}"}


async def test_the_token_in_the_address_reads_its_build_and_does_nothing_else(f: Farm) -> None:
    asked, other = await f.api.ask(REQUEST, "a"), await f.api.ask(REQUEST, "b")
    lease, bearer = asked["id"], token_in(asked["page_url"])
    await f.api.append_log(lease, 0, b"words")
    assert (await f.http.get(f"/v1/builds/{lease}", headers=bearer)).json()["id"] == lease
    assert (await f.http.get(f"/v1/builds/{lease}/log", headers=bearer)).text == "words"
    for path in (f"/v1/builds/{other['id']}", f"/v1/builds/{other['id']}/log", "/v1/builds"):
        assert (await f.http.get(path, headers=bearer)).status_code == 403, path
    for method, path in (
        ("GET", f"/v1/leases/{lease}"),
        ("GET", f"/v1/leases/{lease}/events"),
        ("GET", "/v1/leases"),
        ("GET", "/v1/status"),
        ("GET", "/metrics"),
        ("POST", f"/v1/leases/{lease}/heartbeat"),
        ("POST", f"/v1/leases/{lease}/log?offset=5"),
        ("DELETE", f"/v1/leases/{lease}"),
    ):
        answer = await f.http.request(method, path, headers=bearer)
        assert answer.status_code == 403, f"{method} {path}"
    report = {"outcome": "cancelled"}
    path = f"/v1/leases/{lease}/report"
    assert (await f.http.post(path, headers=bearer, json=report)).status_code == 403
    basic = base64.b64encode(f"x:{asked['page_url'].partition('=')[2]}".encode()).decode()
    answer = await f.http.get("/token", headers={"Authorization": f"Basic {basic}"})
    assert answer.status_code == 401
    assert (await f.api.lease(lease))["outcome"] is None


async def test_the_token_is_good_for_a_day_longer_than_the_lease_can_last(f: Farm) -> None:
    asked = await f.api.ask(REQUEST, "a")
    path, bearer = f"/v1/builds/{asked['id']}", token_in(asked["page_url"])
    f.clock.forward(24 * 3600 + 60)
    assert (await f.http.get(path, headers=bearer)).status_code == 200
    f.clock.forward(3 * 3600)
    answer = await f.http.get(path, headers=bearer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "denied")


async def test_a_page_token_by_another_key_or_for_another_end_opens_nothing(f: Farm) -> None:
    lease = (await f.api.ask(REQUEST, "a"))["id"]
    end = NOW + timedelta(hours=1)
    mine = Signer(SIGNING)
    for token in (
        mine.runner_token(lease, 1, (), deadline=end, now=NOW),
        mine.registry_token("x", (), now=NOW),
        Signer(SIGNING, "mayfly-gateway").page_token(lease, expires_at=end, now=NOW),
        "a.b.c",
        "",
    ):
        headers = {"Authorization": f"Bearer {token}"}
        assert (await f.http.get(f"/v1/builds/{lease}", headers=headers)).status_code == 401


async def test_the_page_is_the_same_for_everybody_and_runs_nothing_but_itself(f: Farm) -> None:
    answer = await f.http.get("/builds/whatever")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == (await f.http.get("/builds/%3Cscript%3E")).text
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"\b(?:src|href|on\w+)=|https?://|style=", answer.text), "loads nothing"
    sinks = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser"
    assert not re.search(sinks, answer.text)


async def test_a_log_is_text_whatever_it_looks_like(f: Farm) -> None:
    lease = (await f.api.ask(REQUEST, "a"))["id"]
    await f.api.append_log(lease, 0, b"<html><script>alert(1)</script>")
    answer = await f.http.get(
        f"/v1/builds/{lease}/log", headers={"Authorization": f"Bearer {f.api.token}"}
    )
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


# The real thing: an edge and an orchestrator, TLS, and the page's script in a JavaScript engine.


@pytest.mark.services
async def test_a_log_is_followed_while_it_grows_and_ends_with_the_build(serving: Serving) -> None:
    async with serving.client() as api:
        asked = await api.ask(REQUEST, "follow")
        lease, headers = asked["id"], token_in(asked["page_url"])
        await api.append_log(lease, 0, b"one ")
        pieces: list[bytes] = []
        async with httpx.AsyncClient(base_url=serving.url, verify=api.tls or True) as http:
            path = f"/v1/builds/{lease}/log?follow=true&offset=1"
            async with http.stream("GET", path, headers=headers, timeout=20) as answer:
                async for piece in answer.aiter_bytes():
                    pieces.append(piece)
                    if b"".join(pieces) == b"ne ":
                        await api.append_log(lease, 4, b"two ")
                    if b"".join(pieces) == b"ne two ":
                        await api.end(lease, Outcome.CANCELLED)
                        await api.append_log(lease, 8, b"last")
        assert b"".join(pieces) == b"ne two last"


HOSTILE = (
    b"#1 <script>alert(document.cookie)</script><img src=x onerror=alert(1)>\n"
    b"#2 \x1b[31;1mred\x1b[0m \x1b]0;title\x07"
    b"\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\ \x1b(Bplain\n"
    b"#3 10%\r#3 20%\r\n"
    b"#4 \xe2\x80\xaedrawkcab \x00\x07\x7f \xff\xfe\n"
)


@pytest.mark.services
async def test_a_browser_shows_the_build_and_takes_nothing_of_it_for_html(
    serving: Serving,
) -> None:
    async with serving.client() as api:
        request = LeaseRequest(repo="team/app", ssh_public_key=KEY, ref="<b>main</b>")
        asked = await api.ask(request, "browser")
        lease = asked["id"]
        await api.append_log(lease, 0, HOSTILE[:100])
        seeing = asyncio.create_task(browse(serving, asked["page_url"]))
        await asyncio.sleep(1)
        # In pieces that cut an escape sequence and a character in two.
        for start in range(100, len(HOSTILE), 7):
            await api.append_log(lease, start, HOSTILE[start : start + 7])
        await api.end(lease, Outcome.CANCELLED)
        seen = await seeing
        again = await browse(serving, asked["page_url"])
    assert seen == again, "the page of a build that ended is the same"
    assert seen["log"].splitlines() == [
        "#1 <script>alert(document.cookie)</script><img src=x onerror=alert(1)>",
        "#2 red link plain",
        "#3 10%",
        "#3 20%",
        "#4 \ufffddrawkcab \ufffd\ufffd\ufffd \ufffd\ufffd",
    ]
    assert seen["title"] == f"team/app {lease}: cancelled"
    facts = dict(zip(seen["facts"][::2], seen["facts"][1::2], strict=True))
    assert facts["ref"] == "<b>main</b>"
    assert facts["outcome"] == "cancelled"
    assert facts["repo"] == "team/app"
    assert seen["note"] == ""


@pytest.mark.services
async def test_a_page_that_may_not_be_seen_says_so(serving: Serving) -> None:
    async with serving.client() as api:
        lease = (await api.ask(REQUEST, "other"))["id"]
        await api.end(lease, Outcome.CANCELLED)
        good = page.address(serving.url, lease, serving.token)
        assert (await browse(serving, good))["title"].endswith("cancelled")
        seen = await browse(serving, page.address(serving.url, lease))
        assert seen["note"].startswith("no token. Open the whole address that")
        seen = await browse(serving, page.address(serving.url, "nosuch<b>", serving.token))
        assert "nosuch" in seen["note"]
        assert (seen["log"], seen["facts"]) == ("", [])


async def browse(serving: Serving, address: str) -> dict[str, Any]:
    """What the page at `address` shows when nothing more happens to its build."""
    process = await asyncio.create_subprocess_exec(
        *(node(), str(HERE / "browser.js"), str(PAGE), address),
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(serving.ca)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(said)
    return found


def node() -> str:
    """A JavaScript engine: this machine's, else the one that lends npm to the golden image."""
    if found := shutil.which("node"):
        return found
    client = recipe.load().npm_client
    wheel = recipe.Wheel(client.wheel, client.version, client.sha256, client.node, path="")
    cache = Path(tempfile.gettempdir()) / "mayfly-test-node"
    cache.mkdir(exist_ok=True)
    return str(fetch.wheel_program(wheel, cache, print))
