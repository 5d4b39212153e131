"""The page of a build: what its token opens, and what the page may do."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from mayfly.model import LeaseRequest, Outcome
from mayfly.orchestrator import reconcile
from mayfly.registry.tokens import Signer
from tests.orchestrator.leases import KEY, NOW, SIGNING, Farm, configuration, farm
from tests.serving import Serving

REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)


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
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
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
