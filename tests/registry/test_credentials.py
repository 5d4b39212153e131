"""A login becomes a token for this build's repositories, and nothing of other hosts is touched."""

from __future__ import annotations

import base64
import json
import re
import ssl
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build.cache import reference
from mayfly.config import Registry
from mayfly.errors import Denied, UsageError
from mayfly.registry.credentials import Given, Login, Logins, buy, challenges, farms, gather, wanted
from mayfly.registry.grants import Access
from mayfly.registry.reference import host_of, image, repository_of
from tests.build.third_party import ThirdParty, third_party
from tests.stack_fixture import Stack

FARM = "registry.mayfly.internal:5000"
HUB = "https://index.docker.io/v1/"
PULL, BOTH = frozenset({"pull"}), frozenset({"pull", "push"})


@pytest.mark.parametrize(
    ("reference", "host", "name"),
    [
        ("alpine", "docker.io", "library/alpine"),
        ("alpine:3@sha256:00", "docker.io", "library/alpine"),
        ("team/app:1", "docker.io", "team/app"),
        ("docker.io/team/app", "docker.io", "team/app"),
        ("index.docker.io/team/app", "docker.io", "team/app"),
        ("ghcr.io/team/app:1", "ghcr.io", "team/app"),
        ("localhost/app", "localhost", "app"),
        ("h:5000/a/b/c:1", "h:5000", "a/b/c"),
        ("[::1]:5000/a@sha256:00", "[::1]:5000", "a"),
    ],
)
def test_where_a_reference_points(reference: str, host: str, name: str) -> None:
    assert (host_of(reference), repository_of(reference)) == (host, name)


def test_what_a_build_needs_is_asked_for_once_a_repository() -> None:
    found = wanted(["ghcr.io/a/b:1", "alpine", "ghcr.io/a/c"], ["ghcr.io/a/b:2", "x.io/y"])
    assert found == {
        "docker.io": (Access("library/alpine", PULL),),
        "ghcr.io": (Access("a/b", BOTH), Access("a/c", PULL)),
        "x.io": (Access("y", BOTH),),
    }


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (
            ['Bearer realm="https://a/token",service="s, t",scope="repository:a:pull,push"'],
            {
                "bearer": {
                    "realm": "https://a/token",
                    "service": "s, t",
                    "scope": "repository:a:pull,push",
                }
            },
        ),
        (["Basic realm=x", "bearer realm=y"], {"basic": {"realm": "x"}, "bearer": {"realm": "y"}}),
        (
            ['Basic realm="a", Bearer realm="b"'],
            {"basic": {"realm": "a"}, "bearer": {"realm": "b"}},
        ),
        (["Negotiate", 'Digest realm="Bearer"'], {}),
        ([""], {}),
        ([], {}),
    ],
)
def test_a_challenge_is_read(headers: list[str], found: object) -> None:
    assert challenges(headers) == found


@given(st.lists(st.text(st.sampled_from('bearBEARsic realm="=, \\'), max_size=30), max_size=3))
def test_no_challenge_is_too_strange(headers: list[str]) -> None:
    assert set(challenges(headers)) <= {"bearer", "basic"}


def environ(tmp_path: Path, config: Mapping[str, Any], **more: str) -> dict[str, str]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", **more}


def encoded(user: str, word: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{word}".encode()).decode()}


async def test_logins_are_found_where_docker_finds_them(tmp_path: Path) -> None:
    config = {
        "auths": {
            "ghcr.io": encoded("me", "a:b"),
            HUB: {"username": "me", "password": "hub"},
            "https://old.io/v1/": encoded("me", "old"),
            "token.io": {"identitytoken": "refresh"},
            "both.io": encoded("me", "file"),
            "broken.io": {"auth": "%%%"},
            "empty.io": {},
            "odd.io": "me",
        }
    }
    inline = json.dumps(
        {"auths": {"both.io": encoded("me", "inline"), "ci.io": encoded("ci", "x")}}
    )
    logins = Logins(environ(tmp_path, config, DOCKER_AUTH_CONFIG=inline))
    found = {
        host: await logins.find(host)
        for host in ("ghcr.io", "docker.io", "old.io", "token.io", "both.io", "ci.io")
    }
    assert found == {
        "ghcr.io": Login("me", "a:b"),
        "docker.io": Login("me", "hub"),
        "old.io": Login("me", "old"),
        "token.io": Login(identity="refresh"),
        "both.io": Login("me", "inline"),
        "ci.io": Login("ci", "x"),
    }
    for host in ("broken.io", "empty.io", "odd.io", "none.io", "cr.io"):
        assert await logins.find(host) is None
    own = Logins({}, {"ghcr.io": Login("farm", "s")})
    assert await own.find("ghcr.io") == Login("farm", "s")


@pytest.mark.parametrize("text", [None, "{broken", "[]", '{"auths": []}'])
async def test_an_unreadable_docker_configuration_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert await Logins({"DOCKER_CONFIG": str(tmp_path)}).find("ghcr.io") is None


async def test_a_credential_helper_is_asked_for_named_hosts_and_no_others(tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-own"
    helper.write_text(
        "#!/bin/sh\n"
        f'host=$(cat); echo "$1 $host" >> {tmp_path}/asked\n'
        'case $host in none.io) exit 1;; token.io) user="<token>";; *) user=me;; esac\n'
        'echo "{\\"Username\\": \\"$user\\", \\"Secret\\": \\"for $host\\"}"\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    config = {"credsStore": "own", "credHelpers": {"gcr.io": "missing", "bad.io": "../own"}}
    logins = Logins(environ(tmp_path, config))
    assert await logins.find("quay.io") == Login("me", "for quay.io")
    assert await logins.find("token.io") == Login(identity="for token.io")
    assert await logins.find("none.io") is None
    assert await logins.find("gcr.io") is None
    assert await logins.find("bad.io") is None
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["get quay.io", "get token.io", "get none.io"]


def test_no_secret_is_shown() -> None:
    assert "hush" not in repr(Login("me", "hush", "hush", "hush"))


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[tuple[ThirdParty, ssl.SSLContext]]:
    async with third_party(tmp_path) as (registry, ca):
        yield registry, ssl.create_default_context(cafile=ca)


def known(registry: ThirdParty, **logins: Login) -> Logins:
    return Logins({}, {registry.address: logins.get("login", Login("me", "hush"))})


async def test_a_login_becomes_a_token_for_the_builds_repositories(
    there: tuple[ThirdParty, ssl.SSLContext],
) -> None:
    registry, tls = there
    host = registry.address
    wants = wanted([f"{host}/a/base"], [f"{host}/a/app:1", f"{FARM}/images/a/b"])
    found = await gather({FARM: "ours"}, wants, known(registry), tls)
    token = "for repository:a/app:pull,push repository:a/base:pull"
    assert found.config({}) == {
        "auths": {FARM: {"registrytoken": "ours"}, host: {"registrytoken": token}}
    }
    assert found.config({host: {}})["auths"][host] == {}
    assert found.warnings == ()
    (asked,) = registry.asked
    assert asked["service"] == "third,party"
    assert "own=1" in str(asked["query"]), "what the realm says already stays"


async def test_a_refresh_token_is_exchanged_by_post(
    there: tuple[ThirdParty, ssl.SSLContext],
) -> None:
    registry, tls = there
    registry.lives_s = None
    login = known(registry, login=Login(identity="refresh"))
    found = await gather({}, wanted([f"{registry.address}/a/b"], []), login, tls)
    exchange = found.exchanges[registry.address]
    assert exchange.token == "for repository:a/b:pull"
    assert registry.asked[0]["method"] == "POST"
    assert await buy(exchange, (), tls) == ("for ", 60), "what is not said is a minute"


async def test_without_a_login_nobody_is_asked(there: tuple[ThirdParty, ssl.SSLContext]) -> None:
    registry, tls = there
    found = await gather({FARM: "t"}, wanted([], [f"{registry.address}/a"]), Logins({}), tls)
    assert found.config({}) == {"auths": {FARM: {"registrytoken": "t"}}}
    assert registry.asked == []


async def test_a_refused_login_is_said_before_the_build_that_would_push(
    there: tuple[ThirdParty, ssl.SSLContext],
) -> None:
    registry, tls = there
    wrong = known(registry, login=Login("me", "wrong"))
    with pytest.raises(Denied, match=f"{registry.address} refuses the login .* docker login"):
        await gather({}, wanted([], [f"{registry.address}/a"]), wrong, tls)
    found = await gather({}, wanted([f"{registry.address}/a"], []), wrong, tls)
    assert found.auths == {}
    assert "refuses your login" in found.warnings[0]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"realm": "http://127.0.0.1:1/token"}, "not reached by https"),
        ({"realm": "https://"}, "gives no token"),
        ({"realm": "https://127.0.0.1:1/token"}, "gives no token"),
        ({"answer": {}}, "holds no token"),
        ({"answer": {"token": 1}}, "holds no token"),
        ({"answer": {"token": "t", "expires_in": "soon"}}, "gives no token"),
        ({"challenge": "none"}, "asks for no login"),
        ({"address": "localhost:1"}, "gives no token"),
    ],
)
async def test_what_goes_wrong_with_a_registry_is_a_warning_and_gives_nothing(
    there: tuple[ThirdParty, ssl.SSLContext], change: Mapping[str, Any], warning: str
) -> None:
    registry, tls = there
    for name, value in change.items():
        setattr(registry, name, value)
    found = await gather({}, wanted([], [f"{registry.address}/a"]), known(registry), tls)
    assert found.config({}) == {"auths": {}}
    (line,) = found.warnings
    assert warning in line
    assert registry.address in line
    assert "hush" not in line


async def test_a_registry_that_knows_no_tokens_gets_the_login_and_it_is_said(
    there: tuple[ThirdParty, ssl.SSLContext],
) -> None:
    registry, tls = there
    registry.challenge = "basic"
    found = await gather({}, wanted([], [f"{registry.address}/a"]), known(registry), tls)
    assert found.auths == {registry.address: encoded("me", "hush")}
    assert "can use your login" in found.warnings[0]
    refresh = known(registry, login=Login(identity="refresh"))
    assert (await gather({}, wanted([], [f"{registry.address}/a"]), refresh, tls)).auths == {}


async def test_a_finished_token_of_the_users_goes_in_as_it_is(
    there: tuple[ThirdParty, ssl.SSLContext],
) -> None:
    registry, tls = there
    login = known(registry, login=Login(registry="own"))
    found = await gather({}, wanted([], [f"{registry.address}/a"]), login, tls)
    assert found.auths == {registry.address: {"registrytoken": "own"}}


@pytest.mark.services
async def test_a_real_registry_takes_the_token_for_what_was_named_and_for_nothing_else(
    stack: Stack,
) -> None:
    logins = Logins({}, {stack.address: Login("someone", stack.admin_token)})
    wants = wanted([f"{stack.address}/images/a/base"], [f"{stack.address}/images/a/app:1"])
    found = await gather({}, wants, logins, stack.tls)
    token = found.exchanges[stack.address].token
    start = "blobs/uploads/"
    assert stack.curl(f"/v2/images/a/app/{start}", "-X", "POST", token=token).status == 202
    assert stack.curl(f"/v2/images/a/base/{start}", "-X", "POST", token=token).status in (401, 403)
    assert stack.curl("/v2/images/a/base/manifests/x", token=token).status == 404
    assert stack.curl("/v2/images/b/app/manifests/x", token=token).status in (401, 403)


def test_the_farms_own_login_is_for_its_registry(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_text("hush\nmore")
    registry = Registry(
        kind="external",
        images="ghcr.io/acme",
        cache="quay.io/acme/cache",
        username="farm",
        password_file=str(word),
    )
    login = Login("farm", "hush")
    assert farms(registry) == {"ghcr.io": login, "quay.io": login}
    assert farms(Registry()) == {}
    word.unlink()
    with pytest.raises(UsageError, match=r"password_file cannot be read.*own login"):
        farms(registry)


def test_what_a_registry_is_asked_with() -> None:
    given = Given({HUB: {"registrytoken": "t"}, "basic.io": {"auth": "YTpi"}})
    assert given.authorization("docker.io") == "Bearer t"
    assert given.authorization("basic.io") == "Basic YTpi"
    assert given.authorization("ghcr.io") == ""


@pytest.mark.parametrize(
    ("registry", "name", "reference"),
    [
        (FARM, "images/team/web:1", f"{FARM}/images/team/web:1"),
        (FARM, "ghcr.io/a/b", "ghcr.io/a/b"),
        ("ghcr.io/acme", "images/team/web:1", "ghcr.io/acme/team/web:1"),
        ("git.example:3000/acme", "images/web", "git.example:3000/acme/web"),
        ("docker.io/acme", "images/web:1", "docker.io/acme/web:1"),
        ("docker.io/acme", "images/team/web:1", "docker.io/acme/team--web:1"),
        ("docker.io/acme/all", "images/team/web", "docker.io/acme/all--team--web"),
        ("docker.io/acme", "web:1", "web:1"),
    ],
)
def test_what_images_stands_for(registry: str, name: str, reference: str) -> None:
    assert image(registry, name) == reference


PART = st.from_regex(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)
NAMES = st.lists(PART, min_size=1, max_size=4).map(lambda parts: "images/" + "/".join(parts))


@given(NAMES, NAMES, st.sampled_from([FARM, "ghcr.io/acme", "docker.io/acme", "docker.io/a/b"]))
def test_no_two_names_are_one_image(one: str, two: str, registry: str) -> None:
    try:
        found = image(registry, one), image(registry, two)
    except UsageError:
        assert "--" in one + two
        return
    assert (found[0] == found[1]) == (one == two)
    assert all(repository_of(f"{name}:t").count("/") < 2 or "docker.io" not in name
               for name in found)  # fmt: skip


@given(NAMES, NAMES, PART, PART)
def test_no_two_caches_are_one_tag(one: str, two: str, key: str, other: str) -> None:
    caches = "docker.io/acme/mayfly-cache"
    first = reference(caches, one.removeprefix("images/"), key, "")
    second = reference(caches, two.removeprefix("images/"), other, "")
    assert (first == second) == ((one, key) == (two, other))
    where, _, tag = first.rpartition(":")
    assert where == caches
    assert re.fullmatch(r"\w[\w.-]{0,127}", tag, re.ASCII)
