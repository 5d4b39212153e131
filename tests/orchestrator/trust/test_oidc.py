"""OIDC tokens of forges: what is believed, by whose keys, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mayfly.config import Issuer
from mayfly.config import Trust as Policy
from mayfly.errors import InfrastructureError, Unauthenticated
from mayfly.orchestrator.trust import oidc, policy
from mayfly.orchestrator.trust.oidc import KINDS, origin
from mayfly.orchestrator.trust.principal import Principal, Verify
from tests.orchestrator.leases import KEY, NOW
from tests.orchestrator.trust.conftest import Made
from tests.orchestrator.trust.forge import COMMIT, Forge, forge

AUDIENCE = "https://registry.mayfly.internal:5000"
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
async def here() -> AsyncIterator[Forge]:
    async with forge() as serving:
        yield serving


def verifier(here: Forge, **more: Any) -> Verify:
    return oidc.verifier("git", Issuer.model_validate(here.options(**more)), AUDIENCE, 60)


async def accepted(here: Forge, token: str, **more: Any) -> Principal:
    found = await verifier(here, **more)(token, NOW)
    assert found is not None
    return found


async def test_a_token_says_what_its_pipeline_is(here: Forge) -> None:
    found = await accepted(here, here.token(NOW))
    assert found.name == "oidc.git:team/app#4711"
    assert found.origin is not None
    assert found.origin.repos == ("team/app",)
    assert (found.origin.event, found.origin.branch, found.origin.commit) == (
        "push",
        "main",
        COMMIT,
    )
    assert not found.admin


async def test_another_issuers_token_is_for_another_verifier(here: Forge) -> None:
    verify = verifier(here)
    for token in (here.token(NOW, iss="https://evil.example"), "a.b.c", "x", "a" * 20_000 + ".."):
        assert await verify(token, NOW) is None
    assert here.asked == 0, "for a stranger's token nobody is asked for keys"


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"aud": "https://elsewhere"}, "Audience"),
        ({"aud": None}, "aud"),
        ({"exp": int((NOW - timedelta(seconds=61)).timestamp())}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "not valid here"),
        ({"nbf": int((NOW + timedelta(seconds=61)).timestamp())}, "clock_skew_s"),
        ({"repository": "other/app"}, "not among the repos of oidc.git"),
        ({"repository": None}, "no claim repository"),
        ({"repository": "team/_x"}, "is not a repository name"),
        ({"kid": "two"}, "is none of http"),
        ({"key": STRANGER}, "not valid here"),
    ],
)
async def test_what_is_refused(here: Forge, claims: dict[str, Any], said: str) -> None:
    with pytest.raises(Unauthenticated, match=said):
        await accepted(here, here.token(NOW, **claims))


async def test_clocks_may_differ_a_little(here: Forge) -> None:
    for off_s in (-60, 60):
        at = NOW + timedelta(seconds=off_s)
        await accepted(here, here.token(at))
    await accepted(here, here.token(NOW, exp=int((NOW - timedelta(seconds=59)).timestamp())))


async def test_a_token_that_is_not_signed_or_by_a_shared_secret_is_refused(here: Forge) -> None:
    claims = jwt.decode(here.token(NOW), options={"verify_signature": False})
    keys: dict[str, Any] = {"none": None, "HS256": "x" * 64}
    for algorithm, key in keys.items():
        token = jwt.encode(claims, key, algorithm, headers={"kid": here.kid})
        with pytest.raises(Unauthenticated, match="is signed by"):
            await accepted(here, token)
    assert here.asked == 0


async def test_a_list_of_audiences_holds_ours(here: Forge) -> None:
    await accepted(here, here.token(NOW, aud=["https://x", AUDIENCE]))
    await accepted(here, here.token(NOW, aud="mayfly"), audience="mayfly")


async def test_keys_are_kept_and_fetched_again_when_they_change(
    here: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = verifier(here)
    await asyncio.gather(*(verify(here.token(NOW), NOW) for _ in range(20)))
    assert here.asked == 1
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await verify(here.token(NOW, kid=f"unknown-{number}"), NOW)
    assert here.asked == 1, "whoever makes up key ids makes nobody fetch"
    here.kid, here.key = "two", STRANGER
    verify = verifier(here)
    assert await verify(here.token(NOW), NOW)
    assert here.asked == 2


async def test_an_issuer_that_is_away_is_infrastructure_and_not_asked_again_at_once(
    here: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.broken, verify = True, verifier(here)
    for _ in range(5):
        with pytest.raises(InfrastructureError):
            await verify(here.token(NOW), NOW)
    assert here.asked == 1
    here.broken = False
    monkeypatch.setattr(oidc, "AGAIN_S", 0.0)
    assert await verify(here.token(NOW), NOW)


GITHUB = {"repository": "Acme/App", "sha": COMMIT, "run_id": "1", "ref_type": "branch"}
GITLAB = {"project_path": "acme/sub/app", "sha": COMMIT, "pipeline_id": "1"}


@pytest.mark.parametrize(
    ("kind", "claims", "event", "branch", "pull_request", "trusted"),
    [
        ("github", {"event_name": "push", "ref": "refs/heads/main"}, "push", "main", 0, True),
        ("forgejo", {"event_name": "push", "ref": "refs/heads/main"}, "push", "main", 0, True),
        ("github", {"event_name": "push", "ref": "refs/heads/x/y"}, "push", "x/y", 0, False),
        (
            "github",
            {"event_name": "push", "ref": "refs/tags/main", "ref_type": "tag"},
            "tag",
            "",
            0,
            False,
        ),
        ("github", {"event_name": "schedule", "ref": "refs/heads/main"}, "cron", "main", 0, True),
        (
            "github",
            {"event_name": "workflow_dispatch", "ref": "refs/heads/main"},
            "manual",
            "main",
            0,
            True,
        ),
        (
            "github",
            {"event_name": "pull_request", "ref": "refs/pull/7/merge"},
            "pull_request",
            "",
            7,
            False,
        ),
        (
            "github",
            {"event_name": "pull_request_target", "ref": "refs/heads/main"},
            "pull_request",
            "",
            0,
            False,
        ),
        ("github", {"event_name": "push", "ref": "refs/pull/7/head"}, "pull_request", "", 7, False),
        (
            "github",
            {"event_name": "repository_dispatch", "ref": "refs/heads/main"},
            "github:repository_dispatch",
            "main",
            0,
            False,
        ),
        ("github", {"event_name": "manual", "ref": "refs/heads/main"}, "github:manual", "main", 0,
         False),
        ("github", {"ref": "refs/heads/main"}, "github:unknown", "main", 0, False),
        (
            "gitlab",
            {"pipeline_source": "push", "ref": "main", "ref_type": "branch"},
            "push",
            "main",
            0,
            True,
        ),
        (
            "gitlab",
            {"pipeline_source": "push", "ref": "main", "ref_type": "tag"},
            "tag",
            "",
            0,
            False,
        ),
        (
            "gitlab",
            {"pipeline_source": "schedule", "ref": "main", "ref_type": "branch"},
            "cron",
            "main",
            0,
            True,
        ),
        (
            "gitlab",
            {"pipeline_source": "web", "ref": "main", "ref_type": "branch"},
            "manual",
            "main",
            0,
            True,
        ),
        (
            "gitlab",
            {"pipeline_source": "merge_request_event", "ref": "refs/merge-requests/9/head"},
            "pull_request",
            "",
            9,
            False,
        ),
        (
            "gitlab",
            {"pipeline_source": "merge_request_event", "ref": "main", "ref_type": "branch"},
            "pull_request",
            "",
            0,
            False,
        ),
        ("gitlab", {"pipeline_source": "push", "ref": "refs/heads/main"}, "push", "", 0, False),
        ("github", {"event_name": "push", "ref": "refs/heads/refs/heads/main"}, "push", "", 0,
         False),
        (
            "gitlab",
            {"pipeline_source": "trigger", "ref": "main", "ref_type": "branch"},
            "gitlab:trigger",
            "main",
            0,
            False,
        ),
    ],
)  # fmt: skip
def test_what_each_forge_calls_it(
    kind: str, claims: dict[str, str], event: str, branch: str, pull_request: int, trusted: bool
) -> None:
    base = GITLAB if kind == "gitlab" else GITHUB
    options = Issuer.model_validate({"kind": kind, "issuer": "https://x", "repos": ["acme/**"]})
    found, run = origin(options, {**base, **claims})
    assert run == "1"
    assert found.repo == ("acme/sub/app" if kind == "gitlab" else "acme/app")
    assert (found.event, found.branch, found.pull_request) == (event, branch, pull_request)
    assert policy.standing(found, Policy())[0] is trusted
    assert KINDS[kind].keys.startswith("/")


def test_names_of_claims_events_and_branches_can_be_configured() -> None:
    options = Issuer.model_validate(
        {
            "kind": "gitlab",
            "issuer": "https://x",
            "repos": ["**"],
            "claims": {"repo": "job_project_path", "run": "jti"},
            "events": {"api": "manual"},
            "default_branches": {"acme/app": "trunk"},
        }
    )
    claims = {"job_project_path": "Acme/App", "jti": "j", "pipeline_source": "api"}
    found, run = origin(options, {**claims, "ref": "trunk", "ref_type": "branch"})
    assert (found.repo, found.event, run) == ("acme/app", "manual", "j")
    assert policy.standing(found, Policy())[0]


async def test_a_forges_token_gets_a_lease_and_its_push_makes_a_tag_trusted(
    made: Made, here: Forge
) -> None:
    async with made(oidc={"git": here.options()}) as f:
        now = f.clock.now

        async def trusted(token: str, status: int = 201) -> bool:
            answer = await f.http.post(
                "/v1/leases",
                json={"repo": "team/app", "ssh_public_key": KEY},
                headers={"Authorization": f"Bearer {token}"},
            )
            assert answer.status_code == status, answer.text
            return status == 201 and f.ledger.get(answer.json()["id"]).trusted

        tag = here.token(now, ref="refs/tags/v1", ref_type="tag")
        pull = here.token(now, event_name="pull_request", ref="refs/pull/7/merge")
        assert not await trusted(pull)
        assert not await trusted(tag)
        assert await trusted(here.token(now))
        assert await trusted(tag)
        await trusted(here.token(now, repository="team/other"), 403)
        here.broken = True
        f.clock.forward(11 * 60 + 1)
        await trusted(tag, 401)


async def test_what_is_wrong_with_an_issuer_is_said() -> None:
    good = {"kind": "github", "issuer": "https://x", "repos": ["acme/*"]}
    changes: tuple[dict[str, Any], ...] = (
        {"issuer": "http://git.example"},
        {"issuer": ""},
        {"repos": []},
        {"kind": "gitea"},
        {"claims": {"repository": "x"}},
        {"events": {"api": "whatever"}},
        {"keys": "https://elsewhere/keys"},
    )
    for change in changes:
        with pytest.raises(ValueError, match="validation error"):
            Issuer.model_validate({**good, **change})
    Issuer.model_validate(good)
