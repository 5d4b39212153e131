"""Builders' records and routes: who may, what is refused, what a builder's lease is."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mayfly.build.holding import held
from mayfly.build.stop import stoppable
from mayfly.errors import Conflict, Denied, InfrastructureError, NotFound, TooBig, UsageError
from mayfly.model import Builder, LeaseRequest, Outcome
from mayfly.orchestrator import reconcile
from mayfly.orchestrator.authority import Authority
from mayfly.registry import tokens
from mayfly.store.builders import BuilderStore
from mayfly.store.trust import TrustStore
from mayfly.wire import AskedJson
from tests.orchestrator.leases import ADMIN, BUILDERS, KEY, NOW, SIGNING, Farm, configuration, farm


@pytest.fixture
async def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    async with farm(configuration(tmp_path)) as running:
        yield running


def request(builder: str) -> LeaseRequest:
    return LeaseRequest("else/where", KEY, "t3", builder=builder)


async def test_a_builders_lease_is_what_its_record_says(f: Farm) -> None:
    await f.api.make_builder("one", "team/app", "t2", 5, uid=1000)
    program = f.api.holding(BUILDERS)
    asked = await program.ask(request("one"), "k")
    lease = await f.until(asked["id"], "ready")
    assert (lease.request.repo, lease.size.name, lease.request.event) == (
        "team/app",
        "t2",
        "builder",
    )
    (one,) = (await program.builders())["builders"]
    assert (one["lease"], one["state"], one["linger_s"], one["uid"]) == (
        lease.id,
        "ready",
        5,
        1000,
    )
    # The same request again is the same lease; another one takes its place.
    assert (await program.ask(request("one"), "k"))["id"] == lease.id
    second = await program.ask(request("one"), "l")
    assert f.ledger.get(lease.id).reason == "builder one asked for another runner"
    assert f.ledger.get(second["id"]).outcome is None
    await f.api.remove_builder("one")
    row = f.ledger.get(second["id"])
    assert (row.outcome, row.reason) == (Outcome.CANCELLED, "builder one was removed by admin")
    with pytest.raises(NotFound, match="there is no builder 'one'"):
        await program.ask(request("one"), "m")
    with pytest.raises(NotFound, match="there is no builder 'one'"):
        await f.api.remove_builder("one")


async def test_who_is_ended_while_asking_gives_the_lease_back(
    f: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own token ends no lease: that takes the lease's."""
    await f.api.make_builder("one", "team/app", uid=1000)
    program, there, answered = f.api.holding(BUILDERS), asyncio.Event(), asyncio.Event()
    ask = program.ask

    async def slow(wanted: LeaseRequest, key: str) -> AskedJson:
        asked = await ask(wanted, key)
        there.set()
        await answered.wait()
        return asked

    async def hold() -> None:
        async with stoppable() as stop, held(program, request("one"), every_s=60, stop=stop):
            pytest.fail("it was ended before")

    monkeypatch.setattr(program, "ask", slow)
    holding = asyncio.create_task(hold())
    await asyncio.wait_for(there.wait(), 5)
    holding.cancel()
    answered.set()
    with pytest.raises(asyncio.CancelledError):
        await holding
    (lease,) = f.ledger.recent(9)
    assert lease.outcome is Outcome.INTERNAL


async def test_who_may(f: Farm) -> None:
    await f.api.make_builder("one", "team/app", uid=0)
    holder = f.api.holding((await f.api.ask(LeaseRequest("team/app", KEY), ""))["token"])
    program = f.api.holding(BUILDERS)
    for who in (holder, program):
        with pytest.raises(Denied):
            await who.make_builder("two", "team/app", uid=0)
        with pytest.raises(Denied):
            await who.remove_builder("one")
    with pytest.raises(Denied):
        await holder.builders()
    with pytest.raises(Denied):  # not even the administrator asks in a builder's name
        await f.api.ask(request("one"), "")
    with pytest.raises(Denied):
        await program.ask(LeaseRequest("team/app", KEY), "")
    with pytest.raises(Denied, match="not this farm's"):
        await f.api.holding(BUILDERS + "x").builders()


async def test_a_static_token_makes_builders_of_its_repos_on_its_own_terms(f: Farm) -> None:
    given = await f.api.give_token("ci", ["team/*"], trusted=False, life_s=None)
    mine, program = f.api.holding(given["token"]), f.api.holding(BUILDERS)
    await f.api.make_builder("admins", "team/app", uid=0)
    with pytest.raises(Denied, match="may not build other/app"):
        await mine.make_builder("one", "other/app", uid=0)
    await mine.make_builder("one", "team/app", uid=0)
    assert [b["name"] for b in (await mine.builders())["builders"]] == ["one"]
    with pytest.raises(NotFound):
        await mine.remove_builder("admins")
    asked = await program.ask(request("one"), "")
    lease = await f.until(asked["id"], "ready")
    assert (lease.trusted, lease.terms.principal, lease.terms.slot) == (
        False,
        "token:ci",
        "token-ci",
    )
    # Whom it was granted to may log in at its door; another token of the same repo may not.
    other = (await f.api.give_token("other", ["team/*"], trusted=False, life_s=None))["token"]
    for token, status in ((given["token"], 200), (other, 401), (ADMIN, 200)):
        basic = base64.b64encode(f"x:{token}".encode()).decode()
        answer = await f.http.get(
            "/token",
            params={"service": tokens.service(lease.runner)},
            headers={"Authorization": f"Basic {basic}"},
        )
        assert answer.status_code == status
    # It goes with its token, and not before.
    await f.api.revoke_token("ci")
    with pytest.raises(Denied, match="'ci' was revoked"):
        await program.ask(request("one"), "")
    # Another token of that name is another's word, and may be trusted with more.
    f.clock.now += timedelta(seconds=1)
    await f.api.give_token("ci", ["team/*"], trusted=True, life_s=None)
    with pytest.raises(Denied, match="'ci' was revoked"):
        await program.ask(request("one"), "")
    await f.api.remove_builder("one")
    row = f.ledger.get(lease.id)
    assert (row.outcome, row.reason) == (Outcome.CANCELLED, "builder one was removed by admin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "is no builder's name: a-z, 0-9, _ and -"),
        ({"name": ""}, "is no builder's name: a-z, 0-9, _ and -"),
        ({"name": ".status"}, "is no builder's name: a-z, 0-9, _ and -"),
        ({"name": "a" * 33}, "is no builder's name: a-z, 0-9, _ and -"),
        ({"repo": "base/x"}, "repo: "),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"linger_s": -1}, "linger_s: "),
        ({"linger_s": 3601}, "linger_s: "),
        ({"uid": None}, "either a socket"),
        ({"public_key": "x"}, "either a socket"),
        ({"public_key": "x", "uid": None}, "not a P-256 key"),
        ({"trusted": True}, "trusted: unknown field"),
    ],
)
async def test_what_is_no_builder_is_refused_in_one_line(
    f: Farm, change: dict[str, Any], message: str
) -> None:
    form = {"name": "one", "repo": "team/app", "uid": 0, **change}
    answer = await f.http.post(
        "/v1/builders", json=form, headers={"Authorization": f"Bearer {ADMIN}"}
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert (await f.api.builders())["builders"] == []


async def test_a_name_that_is_taken_and_a_size_that_does_not_fit(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path, memory_gb=2)) as f:
        await f.api.make_builder("one", "team/app", uid=0)
        with pytest.raises(Conflict, match="there is a builder 'one'"):
            await f.api.make_builder("one", "team/app", uid=0)
        with pytest.raises(TooBig):
            await f.api.make_builder("two", "team/app", "t3", uid=0)
        assert [b["name"] for b in (await f.api.builders())["builders"]] == ["one"]


async def test_nobody_makes_builders_without_end(f: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mayfly.orchestrator.builders.MOST", 2)
    mine = f.api.holding(
        (await f.api.give_token("ci", ["team/*"], trusted=False, life_s=None))["token"]
    )
    for name in ("one", "two"):
        await mine.make_builder(name, "team/app", uid=0)
    with pytest.raises(Conflict, match="token:ci has 2 builders"):
        await mine.make_builder("three", "team/app", uid=0)
    await f.api.make_builder("three", "team/app", uid=0)


async def test_one_whose_certificate_cannot_be_given_is_not_made(f: Farm) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(InfrastructureError, match=r"ca\.crt cannot be read"):  # a farm without one
        await f.api.make_builder("one", "team/app", public_key=pem.decode())
    assert (await f.api.builders())["builders"] == []


async def test_no_tls_where_the_farm_serves_none(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    none = config.model_copy(update={"builders": config.builders.model_copy(update={"listen": ""})})
    async with farm(none) as f:
        with pytest.raises(UsageError, match="serves no builders by TLS"):
            await f.api.make_builder("one", "team/app", public_key="x")


async def test_whoever_follows_hears_of_a_change_at_once(f: Farm) -> None:
    program = f.api.holding(BUILDERS)
    first = await program.builders()
    waiting = asyncio.create_task(program.builders(since=first["revision"], wait_s=20))
    await asyncio.sleep(0)
    await f.api.make_builder("one", "team/app", uid=0)
    told = await asyncio.wait_for(waiting, 5)
    assert [b["name"] for b in told["builders"]] == ["one"]
    assert told["revision"] != first["revision"]
    assert (await program.builders(since=told["revision"], wait_s=0))["revision"]


async def test_a_login_counts_at_a_runners_own_door_for_what_its_lease_may(f: Farm) -> None:
    await f.api.make_builder("one", "team/app", uid=0)
    asked = await f.api.holding(BUILDERS).ask(request("one"), "")
    lease = await f.until(asked["id"], "ready")

    async def token(password: str, runner: str, *scopes: str) -> tuple[int, tokens.Claims | None]:
        basic = base64.b64encode(f"someone:{password}".encode()).decode()
        answer = await f.http.get(
            "/token",
            params={"service": tokens.service(runner), "scope": scopes},
            headers={"Authorization": f"Basic {basic}"},
        )
        if answer.status_code != 200:
            return answer.status_code, None
        verifier = tokens.Verifier(tokens.public(SIGNING), tokens.EDGE)
        return 200, verifier.verify(answer.json()["token"], f.clock())

    wanted = ("repository:images/team/app:pull,push", "repository:images/team/other:pull,push")
    _, claims = await token(ADMIN, lease.runner, *wanted)
    assert claims is not None
    assert (claims.lease, claims.attempt) == (lease.id, 1)
    assert [str(access) for access in claims.access] == ["repository:images/team/app:pull,push"]
    _, claims = await token(ADMIN, "", *wanted)
    assert claims is not None
    assert (claims.lease, len(claims.access)) == ("", 2)
    for runner in ("nosuch-1", "x", "-", f"{lease.id}-2"):
        status, claims = await token(ADMIN, runner, *wanted)
        assert (status, claims) == (401, None), runner
    assert (await token(BUILDERS, lease.runner, *wanted))[0] == 401
    # A holder's token is its own runner's, whatever door it names.
    _, claims = await token(asked["token"], "nosuch-1", *wanted)
    assert claims is not None
    assert claims.lease == lease.id


def test_records_outlive_the_process(tmp_path: Path) -> None:
    made = Builder("b", "team/app", "t1", 60, "admin", True, NOW, uid=7)
    away = replace(made, name="a", uid=None, fingerprint="ff", expires_at=NOW)
    store = BuilderStore(tmp_path / "builders")
    for one in (made, away):
        store.add(one)
    with pytest.raises(Conflict):
        store.add(made)
    store.close()
    again = BuilderStore(tmp_path / "builders")
    assert again.all() == (away, made)
    again.remove("a")
    with pytest.raises(NotFound):
        again.get("a")
    again.close()
    assert BuilderStore(tmp_path / "builders").all() == (made,)


@pytest.mark.parametrize("kind", [BuilderStore, TrustStore])
def test_another_versions_records_are_not_touched(
    tmp_path: Path, kind: type[BuilderStore] | type[TrustStore]
) -> None:
    store = kind(tmp_path / "db")
    store._db.execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(Conflict, match="schema version 9"):
        kind(tmp_path / "db")


def test_what_trust_remembers_outlives_its_first_version(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "db")
    store.see("team/app", "c" * 40, NOW)
    store._db.execute("PRAGMA user_version = 0")  # as it was before it had one
    store.close()
    assert TrustStore(tmp_path / "db").seen("team/app", "c" * 40)


def test_the_authority_is_kept_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    first = Authority(tmp_path, NOW)
    assert Authority(tmp_path, NOW).pem == first.pem
    assert (tmp_path / "builders-ca.key").stat().st_mode & 0o077 == 0
    (tmp_path / "builders-ca.key").write_text("x")
    with pytest.raises(Exception, match="authority of builders' certificates"):
        Authority(tmp_path, NOW)
