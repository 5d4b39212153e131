"""Static tokens: made by the administrator, shown once, kept as a hash, scoped, over in time."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mayfly.registry import grants, tokens
from tests.orchestrator.leases import ADMIN, KEY, SIGNING, Farm

ROOT = {"Authorization": f"Bearer {ADMIN}"}
ASK = {"name": "ci", "repos": ["team/*"]}


async def make(f: Farm, **more: Any) -> httpx.Response:
    return await f.http.post("/v1/tokens", json={**ASK, **more}, headers=ROOT)


async def ask(f: Farm, token: str, **more: Any) -> httpx.Response:
    body = {"repo": "team/app", "ssh_public_key": KEY, **more}
    return await f.http.post("/v1/leases", json=body, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_token_is_shown_once_and_works_for_its_repos(f: Farm, trusted: bool) -> None:
    made = (await make(f, trusted=trusted)).json()
    token = made.pop("token")
    assert token.startswith("mayfly_token_")
    assert made == {
        "name": "ci",
        "repos": ["team/*"],
        "trusted": trusted,
        "created_at": "2026-11-24T12:00:00.000Z",
        "expires_at": None,
    }
    assert (await f.http.get("/v1/tokens", headers=ROOT)).json() == [made]
    answer = await ask(f, token, event="push", ref="refs/heads/main")
    row = f.ledger.get(answer.json()["id"])
    assert row.trusted is trusted
    assert row.terms.principal == "token:ci"
    assert row.terms.slot == ("" if trusted else "token-ci")
    assert (await ask(f, token, repo="team/app/sub")).status_code == 403
    assert (await ask(f, token, repo="other/app")).status_code == 403


@pytest.mark.parametrize(
    ("trusted", "own"), [(True, ()), (False, ("images/pr/team/app/token-ci",))]
)
async def test_it_pulls_the_plugin_its_repos_images_and_what_its_builds_made(
    f: Farm, trusted: bool, own: tuple[str, ...]
) -> None:
    token = (await make(f, trusted=trusted)).json()["token"]
    names = ["images/mayfly/buildkit-launcher", "images/team/app", "images/team/app/web"]
    names += ["images/pr/team/app/token-ci", "images/pr/team/app/token-other", "images/pr/team/app"]
    names += ["images/pr/other/app/token-ci", "images/other/app", "cache/trusted/team/app/default"]
    asked = {"scope": [f"repository:{name}:pull,push" for name in names]}
    answer = await f.http.get("/token", params=asked, auth=("mayfly", token))
    edge = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
    access = edge.verify(answer.json()["token"], f.clock.now).access
    assert [each.name for each in access] == [*names[:3], *own]
    assert all(each.actions == {"pull"} for each in access)


@pytest.mark.parametrize(("trusted", "slot"), [(True, ""), (False, "token-ci")])
async def test_it_lists_and_empties_the_caches_that_its_builds_write(
    f: Farm, trusted: bool, slot: str
) -> None:
    token = (await make(f, trusted=trusted)).json()["token"]
    edge = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)

    async def access(repo: str) -> tuple[grants.Access, ...]:
        asked = {"scope": str(grants.caches(repo))}
        answer = await f.http.get("/token", params=asked, auth=("mayfly", token))
        return edge.verify(answer.json()["token"], f.clock.now).access

    assert await access("team/app") == grants.for_caches("team/app", slot)
    for other in ("other/app", "team/app/sub", "*", "team/*", ""):
        assert await access(other) == (), other


async def test_only_its_hash_is_on_disk(f: Farm) -> None:
    token = (await make(f)).json()["token"]
    home = f.config.state / "orchestrator"
    kept = b"".join(path.read_bytes() for path in home.glob("trust*"))
    assert b"team/*" in kept
    assert token.encode() not in kept
    assert token.removeprefix("mayfly_token_").encode() not in kept


async def test_a_token_ends_by_time_and_by_revocation(f: Farm) -> None:
    short = (await make(f, life_s=60)).json()
    assert short["expires_at"] == "2026-11-24T12:01:00.000Z"
    other = (await make(f, name="other")).json()["token"]
    f.clock.forward(60)
    answer = await ask(f, short["token"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        401,
        "the token 'ci' has expired",
    )
    lease = (await ask(f, other)).json()
    assert (await f.http.delete("/v1/tokens/other", headers=ROOT)).status_code == 204
    answer = await ask(f, other)
    assert answer.status_code == 401
    assert "was revoked" in answer.json()["error"]["message"]
    beat = f"/v1/leases/{lease['id']}/heartbeat"
    holder = {"Authorization": f"Bearer {lease['token']}"}
    assert (await f.http.post(beat, headers=holder)).status_code == 200, "its leases go on"
    assert (await f.http.delete("/v1/tokens/other", headers=ROOT)).status_code == 404
    assert (await make(f)).status_code == 409, "one that has expired is still there to be seen"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "A"},
        {"name": ""},
        {"name": "a/b"},
        {"repos": []},
        {"repos": ["Team/App"]},
        {"repos": ["team app"]},
        {"repos": ["a"] * 65},
        {"life_s": 1},
        {"life_s": 1e12},
        {"trusted": "perhaps"},
        {"more": 1},
    ],
)
async def test_bad_requests_are_refused_in_one_line(f: Farm, body: dict[str, Any]) -> None:
    answer = await make(f, **body)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
    assert (await f.http.get("/v1/tokens", headers=ROOT)).json() == []


async def test_nobody_but_the_administrator_makes_or_sees_tokens(f: Farm) -> None:
    token = (await make(f, repos=["**"], trusted=True)).json()["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await f.http.post("/v1/tokens", json=ASK, headers=bearer)).status_code == 403
    assert (await f.http.get("/v1/tokens", headers=bearer)).status_code == 403
    assert (await f.http.delete("/v1/tokens/ci", headers=bearer)).status_code == 403
    for wrong in ("mayfly_token_", "mayfly_token_x", f"{token}x"):
        assert (await ask(f, wrong)).status_code == 401


async def test_a_new_token_is_not_the_revoked_one_that_had_its_name(f: Farm) -> None:
    """It was lost, or was another's: what that one built, and who looks into it, is not its own."""
    old = (await make(f)).json()["token"]
    key = {"Idempotency-Key": "k"}
    body = {"repo": "team/app", "ssh_public_key": KEY}
    bearer = {"Authorization": f"Bearer {old}"}
    asked = (await f.http.post("/v1/leases", json=body, headers={**bearer, **key})).json()
    row = await f.until(asked["id"], "ready")
    await f.http.post(
        "/v1/builders", json={"name": "b", "repo": "team/app", "uid": 0}, headers=bearer
    )
    assert (await f.http.delete("/v1/tokens/ci", headers=ROOT)).status_code == 204
    f.clock.forward(0.01)
    again = (await make(f)).json()["token"]
    for token, status in ((again, 403), (ADMIN, 200)):
        bearer = {"Authorization": f"Bearer {token}"}
        for route in (f"/v1/leases/{row.id}", f"/v1/builds/{row.id}", f"/v1/builds/{row.id}/log"):
            assert (await f.http.get(route, headers=bearer)).status_code == status, route
        there = {"service": tokens.service(row.runner)}
        answer = await f.http.get("/token", params=there, auth=("mayfly", token))
        assert answer.status_code == (200 if status == 200 else 401)
    bearer = {"Authorization": f"Bearer {again}"}
    assert (await f.http.delete(f"/v1/leases/{row.id}", headers=bearer)).status_code == 403
    for route in ("/v1/leases", "/v1/builds"):
        assert (await f.http.get(route, headers=bearer)).json() == []
    assert (await f.http.get("/v1/builders", headers=bearer)).json()["builders"] == []
    assert (await f.http.delete("/v1/builders/b", headers=bearer)).status_code == 404
    own = (await f.http.post("/v1/leases", json=body, headers={**bearer, **key})).json()
    assert own["id"] != row.id, "whatever the old one called its requests"
    assert [one["id"] for one in (await f.http.get("/v1/leases", headers=bearer)).json()] == [
        own["id"]
    ]
