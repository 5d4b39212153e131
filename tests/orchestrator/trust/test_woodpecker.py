"""Woodpecker's extensions and the tickets that they answer with."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly import __version__
from mayfly.config import Config, load
from mayfly.config import Woodpecker as Options
from mayfly.errors import ConfigError, InfrastructureError, UsageError
from mayfly.orchestrator import states
from mayfly.orchestrator.trust import pipelines as asking
from mayfly.orchestrator.trust.pipelines import ENDED, Pipelines
from mayfly.orchestrator.trust.woodpecker import Woodpecker as Extension
from mayfly.registry import grants, tokens
from mayfly.store import trust as store
from mayfly.store.trust import TrustStore
from tests.orchestrator.leases import ADMIN, KEY, NOW, SIGNING, Farm
from tests.orchestrator.trust.conftest import Made
from tests.orchestrator.trust.forge import (
    COMMIT,
    PULL,
    PUSH,
    REGISTRIES,
    REPO,
    SECRETS,
    Woodpecker,
)
from tests.orchestrator.trust.test_signature import REAL

TAG = {**PUSH, "event": "tag", "branch": "refs/tags/v1", "ref": "refs/tags/v1", "number": 20}


async def send(
    f: Farm,
    server: Woodpecker,
    pipeline: dict[str, Any],
    target: str = SECRETS,
    repo: dict[str, Any] = REPO,
) -> httpx.Response:
    f.clock.forward(1)  # no two requests of a server have one second and one body
    body = server.body(pipeline, repo)
    headers = server.headers(target, body, f.clock.now)
    return await f.http.post(target, content=body, headers=headers)


async def ticket(f: Farm, server: Woodpecker, pipeline: dict[str, Any], **more: Any) -> str:
    answer = await send(f, server, pipeline, **more)
    assert answer.status_code == 200, answer.text
    (secret,) = answer.json()["secrets"]
    return str(secret["value"])


async def ask(f: Farm, token: str, **more: Any) -> httpx.Response:
    body = {"repo": "team/app", "ssh_public_key": KEY, **more}
    return await f.http.post("/v1/leases", json=body, headers={"Authorization": f"Bearer {token}"})


async def lease(f: Farm, token: str, **more: Any) -> Any:
    answer = await ask(f, token, **more)
    assert answer.status_code == 201, answer.text
    return f.ledger.get(answer.json()["id"])


async def test_the_answer_is_a_ticket_for_our_plugin_only(f: Farm, server: Woodpecker) -> None:
    answer = await send(f, server, PULL)
    (secret,) = answer.json()["secrets"]
    assert secret["name"] == "mayfly_token"
    plugin = "registry.mayfly.internal:5000/images/mayfly/buildkit-launcher"
    assert secret["images"] == [plugin, f"{plugin}:{__version__}"]
    assert secret["events"] == ["pull_request"]
    closed = (await send(f, server, {**PULL, "event": "pull_request_closed"})).json()
    assert closed["secrets"][0]["events"] == ["pull_request"], "Woodpecker's filter knows no other"
    claims = tokens.Verifier(tokens.public(SIGNING), tokens.TICKET).verify(
        secret["value"], f.clock.now
    )
    assert claims.subject == "woodpecker:team/app#13"
    assert claims.expires_at == f.clock.now - timedelta(seconds=1) + timedelta(hours=24)
    told = claims.origin
    assert (told["repos"], told["event"], told["pull_request"]) == (
        ["team/app"],
        "pull_request",
        7,
    )
    assert (told["commit"], told["branch"], told["pipeline"]) == ("d" * 40, "", [5, 13])


@pytest.mark.parametrize("number", range(4))
async def test_the_real_servers_requests_are_answered(made: Made, number: int) -> None:
    sent = REAL["requests"][number]
    pin = Config.model_validate  # the fault names the fingerprint that the key has
    with pytest.raises(
        ValueError, match=r"has the fingerprint sha256:[0-9a-f]{64}, and not"
    ) as bad:
        pin({"woodpecker": {"public_key": REAL["public_key"], "fingerprint": f"sha256:{'0' * 64}"}})
    fingerprint = str(bad.value).partition("fingerprint ")[2][:71]
    given = {"public_key": REAL["public_key"], "fingerprint": fingerprint}
    async with made(woodpecker=given) as f:
        at = int(sent["headers"]["Signature-Input"][0].partition("created=")[2][:10])
        f.clock.forward(at - NOW.timestamp())
        body = base64.b64decode(sent["body"])
        headers = [(name, value) for name, values in sent["headers"].items() for value in values]
        answer = await f.http.post(sent["target"], content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        if sent["target"] == SECRETS:
            row = await lease(f, answer.json()["secrets"][0]["value"])
            assert row.terms.principal == f"woodpecker:team/app#{12 - number // 2}"
            assert row.trusted is (number == 2), row.terms
        else:
            assert answer.json()["registries"][0]["address"] == f.config.registry_host


async def test_a_replay_is_refused_and_what_the_server_sends_anew_is_not(
    f: Farm, server: Woodpecker
) -> None:
    body = server.body(PUSH)
    headers = server.headers(SECRETS, body, f.clock.now)

    async def again(target: str = SECRETS) -> httpx.Response:
        return await f.http.post(target, content=body, headers=headers)

    assert (await again()).status_code == 200
    for _ in range(2):
        answer = await again()
        assert answer.status_code == 503, "the server's own client tries again after a 5xx only"
        assert "answered before" in answer.json()["error"]["message"]
    assert (await again(REGISTRIES)).status_code == 401
    f.clock.forward(61)
    assert (await again()).status_code == 401, "its date refuses it when it is forgotten"
    assert (await send(f, server, PUSH)).status_code == 200


async def test_an_orchestrator_that_restarts_still_knows_a_replay(
    made: Made, server: Woodpecker
) -> None:
    body = server.body(PUSH)
    headers = server.headers(SECRETS, body, NOW)
    statuses = []
    for _ in range(2):
        async with made(woodpecker=server.options) as f:
            statuses.append((await f.http.post(SECRETS, content=body, headers=headers)).status_code)
    assert statuses == [200, 503]


async def test_another_servers_requests_are_refused(f: Farm) -> None:
    answer = await send(f, Woodpecker(), PUSH)
    assert answer.status_code == 401
    assert "not the pinned key's" in answer.json()["error"]["message"]


async def test_without_a_pinned_key_nobody_is_believed(made: Made, server: Woodpecker) -> None:
    async with made() as f:
        for target in (SECRETS, REGISTRIES):
            assert (await send(f, server, PUSH, target)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"{", b'{"repo": {}, "pipeline": {}}', b'{"repo": null, "pipeline": null}'],
)
async def test_a_signed_body_that_makes_no_sense_is_one_line(
    f: Farm, server: Woodpecker, body: bytes
) -> None:
    headers = server.headers(SECRETS, body, f.clock.now)
    answer = await f.http.post(SECRETS, content=body, headers=headers)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["other/app", "base/debian", "team/_app", ""])
async def test_a_repo_that_gets_no_ticket_gets_an_empty_answer(
    made: Made, server: Woodpecker, name: str
) -> None:
    async with made(woodpecker={**server.options, "repos": ["team/*"]}) as f:
        repo = {**REPO, "full_name": name}
        assert (await send(f, server, PUSH, repo=repo)).json() == {"secrets": []}
        assert (await send(f, server, PUSH, REGISTRIES, repo)).json() == {"registries": []}
        assert (await send(f, server, PUSH)).json()["secrets"]


SAYS: list[tuple[dict[str, Any], bool, str]] = [
    (PUSH, True, ""),
    ({**PUSH, "event": "cron"}, True, ""),
    ({**PUSH, "event": "manual"}, True, ""),
    ({**PUSH, "branch": "feature/x", "ref": "refs/heads/feature/x"}, False, "branch-feature-x"),
    (PULL, False, "7"),
    ({**PULL, "from_fork": True}, False, "7"),
    ({**PULL, "ref": "refs/merge-requests/8/head"}, False, "8"),
    ({**PULL, "ref": "refs/pull-requests/9/from"}, False, "9"),
    ({**PULL, "event": "pull_request_metadata"}, False, "7"),
    ({**PULL, "event": "deployment"}, False, "7"),
    ({**PULL, "ref": ""}, False, "ref-dddd"),
    (TAG, False, "ref-refs-tags-v1"),
    ({**PUSH, "event": "release"}, False, "ref-refs-heads-main"),
    ({**PUSH, "event": ""}, False, "branch-main"),
]
"""What the server says of a pipeline, whether its builds are trusted, and how their slot begins."""


async def test_what_the_server_says_decides_and_claims_do_not(f: Farm, server: Woodpecker) -> None:
    claims = {"event": "push", "ref": "refs/heads/main"}
    for pipeline, trusted, slot in SAYS:
        repo = {**REPO, "full_name": f"team/r{len(f.ledger.open())}"}  # none has seen the commit
        given = await ticket(f, server, pipeline, repo=repo)
        row = await lease(f, given, repo=repo["full_name"], **claims)
        assert row.trusted is trusted, (pipeline, row.terms.why)
        assert row.terms.slot.startswith(slot)
        assert bool(row.terms.slot) is not trusted
        assert row.request.event == (pipeline["event"] or "push")
        assert row.budget_s == (3600 if trusted else 1800)
        assert row.terms.largest == ("" if trusted else "t2")


async def test_a_tag_is_trusted_when_its_commit_was_pushed_to_the_default_branch(
    f: Farm, server: Woodpecker
) -> None:
    given = await ticket(f, server, TAG)
    assert not (await lease(f, given)).trusted
    branch = {**PUSH, "branch": "feature"}
    await send(f, server, branch)
    await send(f, server, {**PULL, "commit": COMMIT})
    await send(f, server, PUSH, repo={**REPO, "full_name": "team/other"})
    assert not (await lease(f, given)).trusted, "none of those puts it on this default branch"
    await send(f, server, PUSH)
    assert (await lease(f, given)).trusted, "it is looked up when the lease is asked for"
    assert not (await lease(f, await ticket(f, server, {**TAG, "commit": "e" * 40}))).trusted


async def test_a_ticket_is_for_one_repo_and_a_while(f: Farm, server: Woodpecker) -> None:
    given = await ticket(f, server, PUSH)
    answer = await ask(f, given, repo="team/other")
    assert answer.status_code == 403
    assert "may not build team/other" in answer.json()["error"]["message"]
    f.clock.forward(24 * 3600 - 2)
    assert (await ask(f, given)).status_code == 201
    f.clock.forward(3)
    answer = await ask(f, given)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "the token has expired"


async def test_a_pipeline_sees_its_own_builds_only(f: Farm, server: Woodpecker) -> None:
    mine, other = await ticket(f, server, PUSH), await ticket(f, server, {**PUSH, "number": 30})
    one, two = await lease(f, mine), await lease(f, other)
    ours = await f.api.ask(one.request, "")
    for token, own in ((mine, one), (other, two)):
        bearer = {"Authorization": f"Bearer {token}"}
        for route in ("/v1/leases", "/v1/builds"):
            assert [row["id"] for row in (await f.http.get(route, headers=bearer)).json()] == [
                own.id
            ]
        for row in (one.id, two.id, ours["id"], "nosuch"):
            wanted = 200 if row == own.id else 403
            for route in (f"/v1/leases/{row}", f"/v1/builds/{row}", f"/v1/builds/{row}/log"):
                assert (await f.http.get(route, headers=bearer)).status_code == wanted, route
        for route in ("/v1/status", "/metrics", "/v1/tokens"):
            assert (await f.http.get(route, headers=bearer)).status_code == 403
        assert (await f.http.delete(f"/v1/leases/{ours['id']}", headers=bearer)).status_code == 403
        assert (await f.http.delete(f"/v1/leases/{own.id}", headers=bearer)).status_code == 204
    assert (
        len((await f.http.get("/v1/builds", headers={"Authorization": f"Bearer {ADMIN}"})).json())
        == 3
    )


async def test_the_size_of_what_is_not_trusted_is_bounded(f: Farm, server: Woodpecker) -> None:
    given = await ticket(f, server, PULL)
    for body in ({"size": "t3"}, {"spec": {"memory_gb": 3}}):
        answer = await ask(f, given, **body)
        assert answer.json()["error"]["code"] == "too_big", body
        assert "not trusted" in answer.json()["error"]["message"]
        assert "trust.untrusted_size" in answer.json()["error"]["hint"]
    assert (await lease(f, given, size="t2")).size.name == "t2"
    row = await lease(f, given, spec={"time_budget_min": 200})
    assert row.budget_s == 1800
    assert (await lease(f, await ticket(f, server, PUSH), size="t3")).size.name == "t3"


async def test_of_one_pull_request_one_build_has_a_runner(f: Farm, server: Woodpecker) -> None:
    first = await lease(f, await ticket(f, server, PULL))
    await f.until(first.id, "ready")
    second = await lease(f, await ticket(f, server, {**PULL, "number": 14}))
    other = await lease(f, await ticket(f, server, {**PULL, "ref": "refs/pull/8/head"}))
    trusted = await lease(f, await ticket(f, server, PUSH))
    for row in (other, trusted):  # asked for later, and held back by nobody
        await f.until(row.id, "ready")
    assert states.word(f.ledger.get(second.id)) == states.QUEUED
    await f.api.end(first.id)
    await f.until(second.id, "ready")


async def test_a_denied_push_makes_no_lease(f: Farm, server: Woodpecker) -> None:
    given = await ticket(f, server, PULL)
    answer = await ask(f, given, pushes=["images/team/app"])
    assert answer.status_code == 403
    assert answer.json()["error"]["hint"] == "use -t images/pr/team/app/7"
    assert f.ledger.open() == ()
    row = await lease(f, given, pushes=["images/pr/team/app/7"])
    await f.until(row.id, "ready")
    told = (
        await f.http.get(f"/v1/leases/{row.id}", headers={"Authorization": f"Bearer {given}"})
    ).json()
    assert told["terms"] == {
        "principal": "woodpecker:team/app#13",
        "trusted": False,
        "why": "it builds a pull request",
        "slot": "7",
        "images": ["images/pr/team/app/7"],
        "cache_to": "untrusted",
        "cache_from": ["untrusted", "trusted"],
        "largest": "t2",
    }
    assert told["runner"] is None, "the runner is for who holds the lease's own token"


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"mayfly:{password}".encode()).decode()}


@pytest.mark.parametrize(("pipeline", "slot"), [(PUSH, ""), (PULL, "7")])
async def test_later_steps_pull_what_was_built_and_do_nothing_else(
    f: Farm, server: Woodpecker, pipeline: dict[str, Any], slot: str
) -> None:
    (login,) = (await send(f, server, pipeline, REGISTRIES)).json()["registries"]
    assert (login["address"], login["username"]) == ("registry.mayfly.internal:5000", "mayfly")
    asked = [
        f"repository:{name}:pull,push,delete"
        for name in (
            "images/team/app",
            "images/team/app/web",
            "images/pr/team/app/7",
            "images/pr/team/app/8",
            "images/team/other",
            "images/base/debian",
            "images/mayfly/buildkit-launcher",
            "cache/trusted/team/app/default",
        )
    ]
    answer = await f.http.get(
        "/token",
        params={"scope": [*asked, str(grants.caches("team/app")), str(grants.CATALOG)]},
        headers=basic(login["password"]),
    )
    assert answer.status_code == 200
    edge = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
    access = edge.verify(answer.json()["token"], f.clock.now).access
    assert {(each.name, *each.actions) for each in access} == {
        (name, "pull")
        for name in (
            "images/team/app",
            "images/team/app/web",
            *(["images/pr/team/app/7"] if slot else []),
            "images/base/debian",
            "images/mayfly/buildkit-launcher",
        )
    }
    bearer = {"Authorization": f"Bearer {login['password']}"}
    for route in ("/v1/leases", "/v1/builds", "/v1/status"):
        assert (await f.http.get(route, headers=bearer)).status_code == 403
    assert (await ask(f, login["password"])).status_code == 403


@pytest.mark.parametrize(("pipeline", "own"), [(PUSH, ()), (PULL, ("images/pr/team/app/7",))])
async def test_a_ticket_pulls_and_never_pushes(
    f: Farm, server: Woodpecker, pipeline: dict[str, Any], own: tuple[str, ...]
) -> None:
    given = await ticket(f, server, pipeline)
    names = ["images/team/app", "images/pr/team/app/7", "images/mayfly/buildkit-launcher"]
    names += ["images/team/other", "images/pr/team/app/8", "images/pr/team/other/7"]
    names += ["cache/trusted/team/app/default"]
    asked = {"scope": [f"repository:{name}:pull,push,delete" for name in names]}
    answer = await f.http.get("/token", params=asked, headers=basic(given))
    edge = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
    pulled = ["images/team/app", *own, "images/mayfly/buildkit-launcher"]
    assert edge.verify(answer.json()["token"], f.clock.now).access == tuple(
        grants.Access(name, frozenset({"pull"})) for name in pulled
    )


async def test_a_farm_with_somebody_elses_registry_gives_no_login(
    made: Made, server: Woodpecker
) -> None:
    registry = {"kind": "external", "images": "ghcr.io/acme"}
    async with made(woodpecker=server.options, registry=registry) as f:
        assert (await send(f, server, PUSH, REGISTRIES)).json() == {"registries": []}


# Whether a pipeline has ended.


class Api:
    """Woodpecker's API: the status of every pipeline, or an HTTP status."""

    def __init__(self) -> None:
        self.says: str | int | httpx.Response = "running"
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer hush"
        self.asked.append(request.url.path)
        if isinstance(self.says, int):
            return httpx.Response(self.says)
        if isinstance(self.says, httpx.Response):
            return self.says
        return httpx.Response(200, json={"number": 12, "status": self.says})


def pipelines(api: Api) -> Pipelines:
    options = Options(url="https://ci.example", token="hush")
    return Pipelines(options, httpx.MockTransport(api))


async def test_the_ticket_of_a_pipeline_that_has_ended_is_refused(
    made: Made, server: Woodpecker
) -> None:
    api = Api()
    async with made({"pipelines": pipelines(api)}, woodpecker=server.options) as f:
        given = await ticket(f, server, PUSH)
        assert (await ask(f, given)).status_code == 201
        assert api.asked == ["/api/repos/5/pipelines/12"]
    api.says = "success"
    async with made({"pipelines": pipelines(api)}, woodpecker=server.options) as f:
        answer = await ask(f, given)
        assert answer.status_code == 401
        said = "the pipeline of woodpecker:team/app#12 has ended"
        assert answer.json()["error"]["message"] == said
        assert len(api.asked) == 2
        assert (await ask(f, given)).status_code == 401
        assert len(api.asked) == 2, "what has ended has ended"


@pytest.mark.parametrize(
    ("says", "ended"),
    [
        *((status, True) for status in sorted(ENDED)),
        ("running", False),
        ("pending", False),
        ("blocked", False),
        ("what is this", False),
        (404, True),
        (401, False),
        (500, False),
        (httpx.Response(200, text="no JSON"), False),
        (httpx.Response(200, json=[1]), False),
        (httpx.Response(302, headers={"Location": "https://elsewhere"}), False),
    ],
)
async def test_who_does_not_say_that_it_has_ended_ends_nothing(
    says: str | int | httpx.Response, ended: bool
) -> None:
    api = Api()
    api.says = says
    assert await pipelines(api).ended(5, 12) is ended


async def test_what_is_remembered_of_pipelines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "REMEMBERED", 3)
    monkeypatch.setattr(asking, "FRESH_S", 3600)
    api = Api()
    asked = pipelines(api)
    for number in (1, 2, 3, 4, 4, 1):
        await asked.ended(1, number)
    assert [path.rpartition("/")[2] for path in api.asked] == ["1", "2", "3", "4", "1"]
    assert not await Pipelines(Options()).ended(1, 1), "nobody is asked"


# What is remembered.


def test_signatures_are_forgotten_in_time_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = TrustStore(tmp_path / "db")
    until = NOW + timedelta(seconds=60)
    assert here.first_time("a", until, NOW)
    assert not here.first_time("a", until, NOW)
    assert not here.first_time("a", until, until)
    assert here.first_time("a", until, until + timedelta(seconds=1))
    monkeypatch.setattr(store, "MOST_SIGNATURES", 3)
    for name in "bc":
        assert here.first_time(name, until + timedelta(hours=1), until)
    with pytest.raises(InfrastructureError, match="3 signed requests"):
        here.first_time("d", until, until)


def test_commits_are_kept_by_age_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = TrustStore(tmp_path / "db")
    monkeypatch.setattr(store, "MOST_COMMITS", 3)
    for day in range(5):
        here.see("team/app", str(day), NOW + timedelta(days=day))
    assert [here.seen("team/app", str(day)) for day in range(5)] == [False, False, True, True, True]
    assert not here.seen("team/other", "4")
    here.see("team/app", "9", NOW + timedelta(days=500))
    assert [here.seen("team/app", each) for each in ("4", "9")] == [False, True]


_texts = st.text(max_size=30)
_odd = st.none() | st.booleans() | st.integers() | _texts | st.lists(_texts, max_size=2)
_named = st.sampled_from([*REPO, *PUSH, "from_fork", "netrc"])
_parts = st.dictionaries(_named, _odd, max_size=4)


@given(_parts, _parts)
def test_whatever_a_server_signs_is_a_ticket_or_one_line(
    repo: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    server = Woodpecker()
    config = Config.model_validate({"woodpecker": server.options})
    here, signer = TrustStore(":memory:"), tokens.Signer(SIGNING)
    extension = Extension(config, here, signer, lambda: NOW)
    body = server.body({**PUSH, **pipeline}, {**REPO, **repo})
    headers = server.headers(SECRETS, body, NOW)
    try:
        answer = extension.secrets(SECRETS, {n.lower(): [v] for n, v in headers.items()}, body)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    finally:
        here.close()
    assert len(answer["secrets"]) <= 1


# What is configured.


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"public_key": "x"}, "public_key and fingerprint go together"),
        ({"public_key": "x", "fingerprint": f"sha256:{'0' * 64}"}, "is not a public key in PEM"),
        (
            {"public_key": tokens.public(SIGNING).decode(), "fingerprint": f"sha256:{'0' * 64}"},
            "is not an Ed25519 key",
        ),
        ({"fingerprint": "1234"}, "woodpecker.fingerprint"),
        ({"repos": ["Team/App"]}, "is no pattern of repos"),
        ({"url": "http://ci.example"}, "write it as https://HOST"),
        ({"url": "https://me:you@ci.example"}, "write it as https://HOST"),
        ({"url": "http://localhost:1@ci.example"}, "write it as https://HOST"),
        ({"token": "hush"}, "token is for url, which is empty"),
    ],
)
def test_what_is_wrong_with_the_section_is_said(
    section: dict[str, Any], said: str, tmp_path: Path
) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in section.items()]
    path = tmp_path / "mayfly.toml"
    path.write_text("\n".join(["[woodpecker]", *lines]))
    with pytest.raises(ConfigError) as caught:
        load({"MAYFLY_CONFIG": str(path)})
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)
