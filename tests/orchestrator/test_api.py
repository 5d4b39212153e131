"""The routes: rights, bad input with stable codes, idempotency, logs, tokens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from mayfly.client import Client
from mayfly.errors import (
    Conflict,
    Denied,
    NotFound,
    TooBig,
    Unauthenticated,
    Unreachable,
    UsageError,
)
from mayfly.model import BuildSpec, LeaseRequest, Outcome
from mayfly.orchestrator import reconcile, service, states
from mayfly.orchestrator.api import MAX_BODY_BYTES, _sse
from mayfly.orchestrator.forms import CLAIMABLE, ReportForm
from mayfly.orchestrator.logs import Logs
from mayfly.registry import grants, tokens
from mayfly.store.leases import LeaseStore
from tests.orchestrator.leases import ADMIN, KEY, SIGNING, Farm, configuration, farm

ASK = {"repo": "team/app", "ssh_public_key": KEY}
REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)


@pytest.fixture
async def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    async with farm(configuration(tmp_path)) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ROOT = bearer(ADMIN)


def said(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert "\n" not in error["message"]
    return answer.status_code, error["code"], error["message"]


# Asking.


async def test_asking_answers_what_the_interface_says(f: Farm) -> None:
    answer = await f.http.post("/v1/leases", json=ASK, headers=ROOT)
    assert answer.status_code == 201
    asked = answer.json()
    assert set(asked) == {"id", "token", "state", "relay_url", "expires_at", "page_url"}
    assert asked["state"] == "queued"
    assert asked["relay_url"] == "wss://registry.mayfly.internal:5000"
    assert asked["expires_at"] == "2026-11-24T12:00:30.000Z"
    runner = f"{asked['id']}-1"
    assert len(runner) <= 12
    assert runner.replace("-", "").isalnum()


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"repo": "Team/App"}, 400, "usage", "repo: repo 'Team/App' is not a repository name"),
        ({"repo": "a" * 201}, 400, "usage", "is not a repository name"),
        ({"repo": "../etc"}, 400, "usage", "is not a repository name"),
        ({"repo": "base/debian"}, 400, "usage", "names below 'base' are Mayfly's own"),
        ({"repo": None}, 400, "usage", "repo: Input should be a valid string"),
        ({"ssh_public_key": "nonsense"}, 400, "usage", "ssh_public_key: not an OpenSSH public"),
        ({"ssh_public_key": f'command="x" {KEY}'}, 400, "usage", "not an OpenSSH public key"),
        ({"ssh_public_key": KEY + "\n" + KEY}, 201, "", ""),
        ({"ref": "a\nb"}, 400, "usage", "ref:"),
        ({"ref": "a" * 256}, 400, "usage", "ref: String should have at most 255"),
        ({"spec": {"cpu": 2, "cache_keys": ["a"], "memory_gb": None}}, 201, "", ""),
        ({"spec": None}, 201, "", ""),
        ({"spec": {"cpu": "4"}}, 400, "usage", "spec.cpu: Input should be a valid integer"),
        ({"spec": {"cpu": True}}, 400, "usage", "spec.cpu: Input should be a valid integer"),
        ({"spec": {"cpu": 0}}, 400, "usage", "spec.cpu: Input should be greater than or equal"),
        ({"spec": {"memory_gb": 1e9}}, 400, "usage", "spec.memory_gb: Input should be less than"),
        ({"spec": {"cache_keys": ["a/b"]}}, 400, "usage", "spec.cache_keys.0: String should match"),
        ({"spec": {"cache_keys": ["a"] * 9}}, 400, "usage", "spec.cache_keys:"),
        ({"spec": {"oom_retry": 1}}, 400, "usage", "spec.oom_retry: Input should be a valid bool"),
        ({"spec": {"schema_version": 2}}, 400, "usage", "spec.schema_version: Input should"),
        ({"spec": {"memory": 4}}, 400, "usage", "spec.memory: unknown field"),
        ({"spec": [4]}, 400, "usage", "spec:"),
        ({"priority": 9}, 400, "usage", "priority: unknown field"),
        ({"languages": ["rust"] * 33}, 400, "usage", "languages:"),
        ({"size": "huge"}, 400, "usage", "unknown size 'huge'"),
    ],
)
async def test_bad_requests_are_refused_in_one_line(
    f: Farm, body: dict[str, Any], status: int, code: str, message: str
) -> None:
    answer = await f.http.post("/v1/leases", json={**ASK, **body}, headers=ROOT)
    assert answer.status_code == status, answer.text
    if status == 201:
        (row,) = f.ledger.open()
        assert row.request.ssh_public_key == KEY
    else:
        assert said(answer)[:2] == (status, code)
        assert message in said(answer)[2]
        assert f.ledger.open() == ()


async def test_every_fault_is_in_the_one_line(f: Farm) -> None:
    answer = await f.http.post("/v1/leases", json={"repo": "X", "x": 1}, headers=ROOT)
    for part in ("repo: ", "ssh_public_key: Field required", "x: unknown field"):
        assert part in said(answer)[2]


async def test_what_is_no_json_or_too_long_is_refused(f: Farm) -> None:
    answer = await f.http.post("/v1/leases", content=b"{", headers=ROOT)
    assert said(answer)[:2] == (400, "usage")
    answer = await f.http.post("/v1/leases", content=b" " * (MAX_BODY_BYTES + 1), headers=ROOT)
    assert said(answer)[:2] == (413, "usage")
    answer = await f.http.post(
        "/v1/leases", json=ASK, headers={**ROOT, "Idempotency-Key": "k" * 201}
    )
    assert said(answer)[:2] == (400, "usage")


async def test_a_size_above_the_machine_names_the_largest_that_fits(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=2)) as f:
        with pytest.raises(TooBig, match=r"size t3 .* the largest that fits is t2"):
            await f.api.ask(LeaseRequest("team/app", KEY, "t3"), "")
        await f.api.ask(REQUEST, "")
        assert f.ledger.open()[0].size.name == "t1"


async def test_the_same_key_is_the_same_lease(f: Farm) -> None:
    one = await f.api.ask(REQUEST, "key")
    two = await f.api.ask(REQUEST, "key")
    assert one["id"] == two["id"]
    assert (await f.api.ask(REQUEST, ""))["id"] != (await f.api.ask(REQUEST, ""))["id"]
    with pytest.raises(Conflict):
        await f.api.ask(LeaseRequest("team/other", KEY), "key")


# Rights.

ROUTES = [
    ("GET", "/v1/leases"),
    ("POST", "/v1/leases"),
    ("GET", "/v1/leases/x"),
    ("GET", "/v1/leases/x/events"),
    ("POST", "/v1/leases/x/heartbeat"),
    ("POST", "/v1/leases/x/log?offset=0"),
    ("POST", "/v1/leases/x/report"),
    ("POST", "/v1/leases/x/keys"),
    ("DELETE", "/v1/leases/x"),
    ("GET", "/v1/builders"),
    ("POST", "/v1/builders"),
    ("DELETE", "/v1/builders/x"),
    ("GET", "/v1/builds"),
    ("GET", "/v1/builds/x"),
    ("GET", "/v1/builds/x/why"),
    ("POST", "/v1/size"),
    ("GET", "/v1/builds/x/log"),
    ("GET", "/v1/builds/x/usage"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/x"),
    ("GET", "/v1/status"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/token"),
]


def test_the_table_above_has_every_route(tmp_path: Path) -> None:
    from mayfly.orchestrator.api import create_app

    paths: dict[str, Any] = create_app(None).openapi()["paths"]  # type: ignore[arg-type]
    declared = {
        (m.upper(), p.replace("{lease_id}", "x").replace("{name}", "x"))
        for p in paths
        for m in paths[p]
    }
    tested = {(method, path.partition("?")[0]) for method, path in ROUTES}
    page = ("GET", "/builds/{build_id}")  # a file that is the same for everybody
    signed = {("POST", f"/v1/woodpecker/{name}") for name in ("secrets", "registries")}
    assert declared - tested == {("GET", "/healthz"), ("POST", "/token"), page, *signed}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "token", ["", "mayfly_admin_wrong", "a.b.c", "anything"], ids=["none", "admin", "jwt", "text"]
)
async def test_every_route_needs_a_token(f: Farm, method: str, path: str, token: str) -> None:
    answer = await f.http.request(method, path, headers=bearer(token) if token else {})
    assert said(answer)[:2] == (401, "denied")
    assert answer.headers["www-authenticate"]
    if token:
        assert token not in answer.text


async def test_only_health_is_open(f: Farm) -> None:
    assert (await f.http.get("/healthz")).json()["status"] == "ok"
    assert said(await f.http.get("/nope"))[:2] == (404, "usage")
    assert said(await f.http.put("/v1/leases", headers=ROOT))[:2] == (405, "usage")


async def test_a_lease_token_opens_its_own_lease_and_nothing_else(f: Farm) -> None:
    one, two = await f.api.ask(REQUEST, ""), await f.api.ask(REQUEST, "")
    holder = f.api.holding(one["token"])
    assert (await holder.lease(one["id"]))["id"] == one["id"]
    assert (await holder.build(one["id"]))["id"] == one["id"]
    for call in (
        holder.lease(two["id"]),
        holder.heartbeat(two["id"]),
        holder.append_log(two["id"], 0, b""),
        holder.report(two["id"], outcome=Outcome.FAILED),
        holder.end(two["id"]),
        holder.build(two["id"]),
        holder.leases(),
        holder.builds(),
        holder.status(),
        holder.ask(REQUEST, ""),
    ):
        with pytest.raises(Denied):
            await call


async def test_a_lease_token_dies(f: Farm) -> None:
    asked = await f.api.ask(REQUEST, "")
    f.clock.forward(900 + 1800 + 3600 + 29)
    holder = f.api.holding(asked["token"])
    await holder.lease(asked["id"])
    f.clock.forward(1)
    with pytest.raises(Unauthenticated, match="expired"):
        await holder.lease(asked["id"])


async def test_the_runner_is_told_to_its_holder_while_it_is_ready(f: Farm) -> None:
    asked = await f.api.ask(REQUEST, "")
    holder = f.api.holding(asked["token"])
    row = await f.until(asked["id"], "ready")
    assert (await f.api.lease(row.id))["runner"] is None
    runner = (await holder.lease(row.id))["runner"]
    assert runner and (runner["name"], runner["ssh_host_key"]) == (row.runner, row.ssh_host_key)
    claims = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE).verify(
        runner["token"], f.clock.now
    )
    assert (claims.subject, claims.lease, claims.attempt) == (row.runner, row.id, 1)
    assert claims.expires_at == row.deadline
    assert claims.access == grants.for_lease("team/app")
    await holder.end(row.id)
    assert (await holder.lease(row.id))["runner"] is None


# Ending.


async def test_the_first_outcome_wins_over_every_later_one(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    await f.api.end(lease_id, Outcome.TERMINATED)
    await f.api.end(lease_id, Outcome.CANCELLED)
    verdict = await f.api.report(lease_id, outcome=Outcome.SUCCEEDED, digest="sha256:" + "1" * 64)
    assert verdict["outcome"] == "terminated", verdict
    build = await f.api.build(lease_id)
    assert (build["outcome"], build["exit_code"], build["digest"]) == ("terminated", 143, None)


async def test_reports_and_deletes_at_once_leave_one_outcome(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    f.clock.forward(3600)  # the deadline races too
    verdicts = await asyncio.gather(
        *(f.api.report(lease_id, outcome=o) for o in sorted(CLAIMABLE)),
        *(f.api.end(lease_id) for _ in range(3)),
    )
    row = await f.until(lease_id, "ended")
    assert {v["outcome"] for v in verdicts if v} == {row.outcome}
    ended = [
        line
        for line in (await f.http.get("/metrics", headers=ROOT)).text.splitlines()
        if line.startswith("mayfly_leases_ended_total{")
    ]
    assert ended == [f'mayfly_leases_ended_total{{outcome="{row.outcome}"}} 1.0']


@pytest.mark.parametrize("outcome", sorted(Outcome))
async def test_a_client_claims_only_what_it_can_know(f: Farm, outcome: Outcome) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    if outcome in CLAIMABLE:
        assert (await f.api.report(lease_id, outcome=outcome))["outcome"] == outcome
    else:
        with pytest.raises(UsageError, match="not an outcome that a client reports"):
            await f.api.report(lease_id, outcome=outcome)
        assert f.ledger.get(lease_id).outcome is None


@pytest.mark.parametrize(
    "body",
    [
        {"outcome": "fine"},
        {},
        {"outcome": "failed", "digest": "sha256:x"},
        {"outcome": "failed", "timings_s": {"Build": 1}},
        {"outcome": "failed", "timings_s": {"build": -1}},
        {"outcome": "failed", "timings_s": {f"p{n}": 1 for n in range(65)}},
        {"outcome": "failed", "images": ["a b"]},
        {"outcome": "failed", "reason": "x" * 1001},
        {"outcome": "failed", "peak": 3},
    ],
)
async def test_a_report_is_bounded(f: Farm, body: dict[str, Any]) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    answer = await f.http.post(f"/v1/leases/{lease_id}/report", json=body, headers=ROOT)
    assert said(answer)[:2] == (400, "usage")


async def test_success_needs_a_runner(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path), reconciling=False) as f:
        lease_id = (await f.api.ask(REQUEST, ""))["id"]
        with pytest.raises(Conflict, match="never had a runner"):
            await f.api.report(lease_id, outcome=Outcome.SUCCEEDED)
        await f.api.report(lease_id, outcome=Outcome.FAILED)
        assert states.word(f.ledger.get(lease_id)) == "ended"


async def test_a_lease_is_ended_as_cancelled_or_terminated_only(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    with pytest.raises(UsageError, match="cancelled or terminated"):
        await f.api.end(lease_id, Outcome.SUCCEEDED)
    answer = await f.http.delete(f"/v1/leases/{lease_id}", headers=ROOT)
    assert (answer.status_code, answer.content) == (204, b"")
    with pytest.raises(NotFound):
        await f.api.end("nope")


@pytest.mark.parametrize(
    ("left_s", "told", "counts"),
    [
        (6, Outcome.INFRASTRUCTURE, "infrastructure"),
        (5, Outcome.INFRASTRUCTURE, "budget_exceeded"),
        (-1, Outcome.INFRASTRUCTURE, "budget_exceeded"),
        (5, Outcome.FAILED, "failed"),
    ],
)
async def test_a_connection_that_breaks_at_the_deadline_is_an_exceeded_budget(
    f: Farm, left_s: float, told: Outcome, counts: str
) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    row = await f.until(lease_id, "ready")
    f.clock.forward(row.budget_s - left_s)
    verdict = await f.service.report(lease_id, ReportForm(outcome=told, reason="mine"))
    assert verdict["outcome"] == counts
    budget = "the time budget of 60 min is used up"
    reason = budget if counts == "budget_exceeded" else "mine"
    assert f.ledger.get(lease_id).reason == reason


async def test_what_was_reported_is_shown(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    await f.api.report(
        lease_id,
        outcome=Outcome.FAILED,
        reason="RUN make exited 2",
        digest="sha256:" + "1" * 64,
        timings_s={"build": 12.5, "queue": 99},
        images=["registry.mayfly.internal:5000/images/team/app:1"],
    )
    build = await f.api.build(lease_id)
    assert (build["outcome"], build["exit_code"], build["reason"]) == (
        "failed",
        1,
        "RUN make exited 2",
    )
    assert build["timings_s"]["build"] == 12.5
    assert build["timings_s"]["queue"] == 0
    assert build["images"] == ["registry.mayfly.internal:5000/images/team/app:1"]
    (attempt,) = build["attempts"]
    assert (attempt["size"], attempt["outcome"]) == ("t1", "failed")
    assert attempt["peak_memory_bytes"] is None, "nobody has looked"


# Waiting.


async def test_a_long_poll_answers_at_the_change_and_not_before(f: Farm) -> None:
    release = f.provider.hold("create")
    asked = await f.api.ask(REQUEST, "")
    await f.until(asked["id"], "creating")
    waiting = asyncio.create_task(f.api.lease(asked["id"], since="creating", wait_s=20))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    release()
    assert (await asyncio.wait_for(waiting, 15))["state"] == "ready"
    still = await f.api.lease(asked["id"], since="ready", wait_s=0.05)
    assert still["state"] == "ready"
    assert (await f.api.lease(asked["id"], since="queued", wait_s=20))["state"] == "ready"


# The log.


async def log_of(f: Farm, lease_id: str, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in f.api.log(lease_id, offset)])


async def test_who_listens_late_hears_all_there_is_to_say_before_the_state(f: Farm) -> None:
    """A client that waits for its runner stops at `ready`: what came after it would not be heard
    (`holding.ready`).
    """
    lease = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease, states.READY)
    for line in ("one", "two"):
        f.ledger.tell(lease, line)
    told = (piece.encode() async for piece in _sse(f.service, lease))
    stream = httpx.MockTransport(lambda _: httpx.Response(200, content=told))
    async with Client("http://farm", ADMIN, transport=stream) as late, asyncio.timeout(5):
        assert [line async for line in late.events(lease)][-2:] == ["one", "two"]


async def test_a_log_is_kept_whole_however_often_pieces_are_sent(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    assert await log_of(f, lease_id) == b""
    assert await f.api.append_log(lease_id, 0, b"hello ") == 6
    assert await f.api.append_log(lease_id, 0, b"hello ") == 6
    assert await f.api.append_log(lease_id, 3, b"lo world") == 11
    with pytest.raises(Conflict, match="the log has 11 bytes"):
        await f.api.append_log(lease_id, 12, b"!")
    await f.api.end(lease_id)
    await f.until(lease_id, "ended")
    assert await f.api.append_log(lease_id, 11, b"!\n") == 13
    assert await log_of(f, lease_id) == b"hello world!\n"
    assert await log_of(f, lease_id, 6) == b"world!\n"
    with pytest.raises(NotFound):
        await log_of(f, "nope")
    with pytest.raises(NotFound):
        await f.api.append_log("nope", 0, b"x")
    with pytest.raises(NotFound):
        await log_of(f, "../../etc/passwd")


def test_a_log_has_an_end(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs", limit_bytes=10)
    assert logs.append("a", 0, b"12345678") == 8
    assert logs.append("a", 8, b"9abc") == 12
    assert logs.append("a", 12, b"more") == 16
    assert logs.append("a", 0, b"again") == 5
    text = b"".join(logs.read("a"))
    assert text.startswith(b"123456789a\n[mayfly: the log is cut here")
    assert text.count(b"\n") == 2


# Status and metrics.


async def test_status_has_what_the_interface_names(f: Farm) -> None:
    one = (await f.api.ask(LeaseRequest("team/app", KEY, "t3"), ""))["id"]
    await f.until(one, "ready")
    two = (await f.api.ask(REQUEST, ""))["id"]
    status = await f.api.status()
    assert set(status) == {
        "version", "accelerator", "registry", "golden", "pool", "leases", "builds"
    }  # fmt: skip
    pool = status["pool"]
    assert (pool["memory_bytes"], pool["memory_used_bytes"]) == (4 * 1024**3, 4 * 1024**3)
    assert (pool["cpus"], pool["cpus_used"], pool["queued"]) == (8, 2, 1)
    assert pool["limits"]["default"] == "t1"
    assert [lease["id"] for lease in status["leases"]] == [one, two]
    assert [build["id"] for build in status["builds"]] == [two, one]
    assert status["registry"] == "registry.mayfly.internal:5000"


async def dead() -> None:
    raise Unreachable("the host does not answer")


async def hanging() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("away", [dead, hanging])
async def test_status_does_without_the_machines_side(
    f: Farm, monkeypatch: pytest.MonkeyPatch, away: Callable[[], Awaitable[None]]
) -> None:
    monkeypatch.setattr(service, "ABOUT_S", 0.1)
    monkeypatch.setattr(f.service, "_about", away)
    status = await f.api.status()
    assert (status["accelerator"], status["golden"]) == ("unknown", None)


async def test_metrics_count(f: Farm) -> None:
    lease_id = (await f.api.ask(REQUEST, ""))["id"]
    await f.until(lease_id, "ready")
    text = (await f.http.get("/metrics", headers=ROOT)).text
    assert "mayfly_leases_asked_total 1.0" in text
    assert 'mayfly_leases{state="ready"} 1.0' in text
    assert "mayfly_lease_ready_seconds_count 1.0" in text


async def test_a_bug_is_told_without_its_traceback(
    f: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f.reconciler, "facts", lambda: 1 / 0)
    answer = await f.http.get("/v1/status", headers=ROOT)
    assert said(answer)[:2] == (500, "internal")
    assert "division" not in answer.text


# Docker's tokens.

SCOPE = "repository:images/team/app:pull,push"


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


def access_in(f: Farm, answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"token", "access_token", "expires_in", "issued_at"}
    assert body["token"] == body["access_token"]
    assert body["expires_in"] >= 60
    verifier = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
    return [str(item) for item in verifier.verify(body["token"], f.clock.now).access]


async def test_the_admin_gets_what_it_asks_both_ways(f: Farm) -> None:
    params = {"service": "mayfly", "scope": [SCOPE, "repository:images/base/x:pull"]}
    answer = await f.http.get("/token", params=params, headers=basic(ADMIN))
    assert access_in(f, answer) == [SCOPE, "repository:images/base/x:pull"]
    for form in (
        {"grant_type": "password", "username": "me", "password": ADMIN, "scope": SCOPE},
        {"grant_type": "refresh_token", "refresh_token": ADMIN, "scope": SCOPE},
    ):
        answer = await f.http.post("/token", content=urlencode(form))
        assert access_in(f, answer) == [SCOPE]


async def test_a_lease_gets_the_intersection_while_it_has_a_runner(f: Farm) -> None:
    asked = await f.api.ask(REQUEST, "")
    row = await f.until(asked["id"], "ready")
    scopes = [SCOPE, "repository:images/team/secret:pull", "repository:images/base/x:pull,push"]
    answer = await f.http.get("/token", params={"scope": scopes}, headers=basic(asked["token"]))
    assert access_in(f, answer) == [SCOPE, "repository:images/base/x:pull"]
    verifier = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
    assert verifier.verify(answer.json()["token"], f.clock.now).subject == row.runner
    f.clock.forward(3590)  # ten seconds before the deadline
    answer = await f.http.get("/token", params={"scope": scopes}, headers=basic(asked["token"]))
    claims = verifier.verify(answer.json()["token"], f.clock.now)
    assert (claims.expires_at, answer.json()["expires_in"]) == (row.deadline, 60)
    await f.api.end(asked["id"])
    answer = await f.http.get("/token", params={"scope": scopes}, headers=basic(asked["token"]))
    assert said(answer)[:2] == (401, "denied")


@pytest.mark.parametrize(
    "headers", [{}, basic("wrong"), bearer(ADMIN), {"Authorization": "Basic x"}]
)
async def test_wrong_credentials_get_no_token(f: Farm, headers: dict[str, str]) -> None:
    answer = await f.http.get("/token", params={"scope": SCOPE}, headers=headers)
    assert said(answer)[:2] == (401, "denied")


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"grant_type=magic", b"grant_type=password&scope=x&password=" + ADMIN.encode()],
)
async def test_token_forms_that_are_none_are_usage(f: Farm, body: bytes) -> None:
    assert said(await f.http.post("/token", content=body))[:2] == (400, "usage")


@pytest.mark.parametrize(
    ("spec", "budget_s"),
    [
        (None, 3600),
        ({"cpu": 2}, 3600),
        ({"time_budget_min": 5}, 300),
        ({"time_budget_min": 120.5}, 7230),
        ({"time_budget_min": 10080}, 240 * 60),
    ],
)
async def test_a_lease_has_the_budget_of_its_spec_as_far_as_that_is_allowed(
    f: Farm, spec: dict[str, Any] | None, budget_s: float
) -> None:
    answer = await f.http.post("/v1/leases", json={**ASK, "spec": spec}, headers=ROOT)
    lease = f.ledger.get(answer.json()["id"])
    assert lease.budget_s == budget_s
    told = f.ledger.hub.lines(lease.id)
    assert bool(told) is (spec == {"time_budget_min": 10080}), "a shortened budget is said"
    assert all("the build spec asks for 10080" in line for line in told)


async def test_a_spec_goes_through_the_client_and_the_row_unchanged(f: Farm) -> None:
    spec = BuildSpec(cpu=2, memory_gb=1.5, cache_keys=("a", "b-c"), oom_retry=False)
    request = LeaseRequest("o/r", KEY, spec=spec, languages=("go", "rust"))
    asked = await f.api.ask(request, "k")
    assert f.ledger.get(asked["id"]).request == request
    (row,) = LeaseStore(f.config.state / "orchestrator" / "db").recent(1)
    assert row.request == request
