"""What a build's runner may ask the client for: tokens for this build's repositories, no more.

BuildKit asks the client for credentials of whatever host it likes, and the client (buildx) answers
from Docker's config.json. So a build gets one of its own. The farm's registry stands in it with the
runner's token. For every other registry that the build names and the user has a login for, the
login is exchanged, by us, for tokens that are good for the named repositories alone
(https://distribution.github.io/distribution/spec/auth/token/, .../oauth/); `build/broker.py` goes
on doing that while the build runs. Only where a registry knows no tokens does the login itself go
in, and that is said.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from mayfly.config import Registry
from mayfly.errors import Denied, InfrastructureError, UsageError
from mayfly.registry.grants import PULL, PUSH, Access
from mayfly.registry.reference import DOCKER_HUB, host_of, key_of, repository_of

DOCKER_HUB_REGISTRY = "registry-1.docker.io"

TIMEOUT_S = 10.0
"""For each answer of a registry, and for a credential helper."""
SHORTEST_S = 60
"""How long a token lives when the registry does not say (distribution's token specification)."""

IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - how a credential helper names a refresh token
_CHALLENGE = re.compile(
    r"(?:^|,)\s*(bearer|basic)\b([^,]*(?:,(?!\s*(?:bearer|basic)\b)[^,]*)*)", re.I
)
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Login:
    """One login: a name and password, or a refresh token (`identity`), or a finished token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    registry: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.password or self.identity or self.registry)


ANONYMOUS = Login()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A login that buys tokens for `access` at a token service, and the first one it bought."""

    realm: str
    service: str
    login: Login
    access: tuple[Access, ...]
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Given:
    """What a build's runner may ask for, by registry as Docker's configuration calls it.

    `auths` are credentials as they stand in config.json. `exchanges` are logins that buy tokens:
    they themselves go nowhere. `warnings` are for the user, one line each.
    """

    auths: Mapping[str, Mapping[str, str]]
    exchanges: Mapping[str, Exchange] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def config(self, instead: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """Docker's config.json: a runner can ask for what is in here and for nothing else.

        `instead` stands for the exchanges that it names; for the others it is their first token.
        """
        firsts = {key: {"registrytoken": each.token} for key, each in self.exchanges.items()}
        return {"auths": {**self.auths, **firsts, **instead}}

    def authorization(self, host: str) -> str:
        """What the header of that name says to a registry; empty without credentials for it."""
        entry = self.config({})["auths"].get(key_of(host), {})
        if "auth" in entry:
            return f"Basic {entry['auth']}"
        return f"Bearer {entry['registrytoken']}" if "registrytoken" in entry else ""


def wanted(reads: Iterable[str], writes: Iterable[str]) -> dict[str, tuple[Access, ...]]:
    """By registry, what a build needs that pulls the images `reads` and pushes `writes`. Pure."""
    actions: dict[tuple[str, str], frozenset[str]] = {}
    for references, needed in ((reads, {PULL}), (writes, {PULL, PUSH})):
        for reference in references:
            key = (host_of(reference), repository_of(reference))
            actions[key] = actions.get(key, frozenset()) | needed
    found: dict[str, tuple[Access, ...]] = {}
    for (host, name), needed_ in sorted(actions.items()):
        found[host] = (*found.get(host, ()), Access(name, needed_))
    return found


async def gather(
    ours: Mapping[str, str],
    wants: Mapping[str, tuple[Access, ...]],
    logins: Logins,
    tls: ssl.SSLContext | None = None,
    *,
    proxies: bool = True,
) -> Given:
    """Everything that this build's runner may ask for.

    `ours` are tokens by host that are there already; `wants` is what `wanted` says, of which those
    hosts are left out. `tls` says whom to trust (default: whom the system does), `proxies` whether
    those of the environment are used. Raises
    `Denied` when a registry that the build pushes to refuses the login; whatever else goes wrong
    with a registry is a warning, and the build goes on without credentials for it.
    """
    hosts = [host for host in wants if host not in ours]
    found = dict(zip(hosts, await asyncio.gather(*map(logins.find, hosts)), strict=True))
    known = {host: login for host, login in found.items() if login}
    auths: dict[str, Mapping[str, str]] = {
        host: {"registrytoken": token} for host, token in ours.items()
    }
    if not known:
        return Given(auths)
    trust = tls or ssl.create_default_context()
    async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=trust, trust_env=proxies) as http:
        parts = await asyncio.gather(
            *(_one(http, host, login, wants[host]) for host, login in known.items())
        )
    for part in parts:
        auths |= part.auths
    exchanges = {key: each for part in parts for key, each in part.exchanges.items()}
    return Given(auths, exchanges, tuple(line for part in parts for line in part.warnings))


async def _one(
    http: httpx.AsyncClient, host: str, login: Login, access: tuple[Access, ...]
) -> Given:
    """The same for one registry."""
    key = key_of(host)
    if login.registry:
        return Given({key: {"registrytoken": login.registry}})
    pushes = any(PUSH in item.actions for item in access)
    try:
        answer = await http.get(f"https://{registry_of(host)}/v2/")
        schemes = challenges(answer.headers.get_list("WWW-Authenticate"))
        if "bearer" in schemes:
            challenge = schemes["bearer"]
            realm, service = challenge.get("realm", ""), challenge.get("service", "")
            exchange = Exchange(realm, service, login, access)
            token, _ = await _buy(http, exchange, access)
            return Given({}, {key: replace(exchange, token=token)})
    except Denied:
        if pushes:
            raise Denied(
                f"{host} refuses the login in your Docker configuration",
                hint=f"log in again: docker login {host}",
            ) from None
        return _without(f"{host} refuses your login: building without it")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        why = str(error) or type(error).__name__
        return _without(f"{host} gives no token, building without your login there: {why}")
    if "basic" in schemes and login.password:
        pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        line = f"{host} knows no scoped tokens: this build's runner can use your login there"
        return Given({key: {"auth": pair}}, warnings=(line,))
    return _without(f"{host} asks for no login of the kind you have: building without it")


def _without(warning: str) -> Given:
    return Given({}, warnings=(warning,))


async def buy(
    exchange: Exchange, access: tuple[Access, ...], tls: ssl.SSLContext | None = None
) -> tuple[str, float]:
    """A fresh token for `access`, a part of what the exchange is for, and the seconds it lives.

    Raises `Denied` when the login is refused, and `InfrastructureError` when there is no answer.
    """
    trust = tls or ssl.create_default_context()
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=trust) as http:
            return await _buy(http, exchange, access)
    except (httpx.HTTPError, ValueError) as error:
        raise InfrastructureError(f"{exchange.realm} gives no token: {error}") from None


async def _buy(
    http: httpx.AsyncClient, exchange: Exchange, access: tuple[Access, ...]
) -> tuple[str, float]:
    """The same. Raises `Denied` when the login is refused, and `ValueError` or httpx's errors."""
    realm, login = exchange.realm, exchange.login
    if not realm.startswith("https://"):
        raise ValueError(f"its token service is not reached by https: {realm[:200]!r}")
    scopes = [str(item) for item in access]
    service = {"service": exchange.service} if exchange.service else {}
    if login.identity:
        form = {"grant_type": "refresh_token", "refresh_token": login.identity}
        form |= {"client_id": "mayfly", "scope": " ".join(scopes), **service}
        answer = await http.post(realm, data=form)
    else:
        url = httpx.URL(realm).copy_merge_params({**service, "scope": scopes})
        auth = httpx.BasicAuth(login.username, login.password) if login else None
        answer = await http.get(url, auth=auth)
    if answer.status_code in (400, 401, 403):
        raise Denied("refused")
    told = answer.raise_for_status().json()
    text = (told.get("token") or told.get("access_token")) if isinstance(told, dict) else None
    if not isinstance(text, str):
        raise ValueError("its answer holds no token")
    lives_s = told.get("expires_in") or SHORTEST_S
    return text, max(float(lives_s), SHORTEST_S)


def registry_of(host: str) -> str:
    """Where the registry is that references call `host`."""
    return DOCKER_HUB_REGISTRY if host == DOCKER_HUB else host


def challenges(headers: Iterable[str]) -> dict[str, dict[str, str]]:
    """`WWW-Authenticate` as scheme (lower case) to parameters; other schemes are left out. Pure."""
    found: dict[str, dict[str, str]] = {}
    for scheme, rest in _CHALLENGE.findall(", ".join(headers)):
        pairs = ((name.lower(), quoted or bare) for name, quoted, bare in _PARAMETER.findall(rest))
        found.setdefault(scheme.lower(), dict(pairs))
    return found


class Logins:
    """The user's own logins, as Docker's command line would find them.

    From `DOCKER_AUTH_CONFIG`, then from config.json (`DOCKER_CONFIG`, else ~/.docker): its
    credential helpers and store, which are run for the hosts that are asked for and no others, and
    its `auths`. `extra` (by host) is asked first. What cannot be read is not there.
    """

    def __init__(
        self, environ: Mapping[str, str], extra: Mapping[str, Login] | None = None
    ) -> None:
        self._environ = environ
        self._extra = dict(extra or {})
        home = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME", "/")) / ".docker")
        self._file = _json(Path(home) / "config.json")
        self._inline = _auths(_parsed(environ.get("DOCKER_AUTH_CONFIG", "")))

    async def find(self, host: str) -> Login | None:
        """The login for a registry, or None."""
        if host in self._extra:
            return self._extra[host]
        key = key_of(host)
        if login := _entry(self._inline, key):
            return login
        helpers = self._file.get("credHelpers")
        helper = helpers.get(key) if isinstance(helpers, dict) else None
        if helper := helper or self._file.get("credsStore"):
            return await self._ask(str(helper), key)
        return _entry(_auths(self._file), key)

    async def _ask(self, helper: str, key: str) -> Login | None:
        """What `docker-credential-HELPER get` answers."""
        program = f"docker-credential-{helper}"
        found = shutil.which(program, path=self._environ.get("PATH", os.defpath))
        if found is None or "/" in helper:
            return None
        process = await asyncio.create_subprocess_exec(
            *(found, "get"),
            env=dict(self._environ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, _ = await process.communicate(key.encode())
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        told = _parsed(output.decode(errors="replace")) if process.returncode == 0 else {}
        user, secret = str(told.get("Username", "")), str(told.get("Secret", ""))
        if user == IDENTITY_TOKEN_USER:
            return Login(identity=secret) or None
        return Login(user, secret) or None


def _entry(auths: Mapping[str, Any], key: str) -> Login | None:
    """A login out of `auths`; keys of old (`https://HOST/v1/`) count for their host."""
    found = auths.get(key)
    if found is None:
        found = next((auths[old] for old in auths if _hostname(old) == key), None)
    if not isinstance(found, dict):
        return None
    user, password = str(found.get("username", "")), str(found.get("password", ""))
    try:
        user_, colon, password_ = (
            base64.b64decode(str(found.get("auth", ""))).decode().partition(":")
        )
    except ValueError:
        colon = ""
    if colon:
        user, password = user_, password_.strip("\0")
    identity, registry = str(found.get("identitytoken", "")), str(found.get("registrytoken", ""))
    return Login(user, password, identity, registry) or None


def _hostname(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _auths(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("auths")
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text())
    except (OSError, ValueError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def farms(registry: Registry) -> dict[str, Login]:
    """The farm's own login for somebody else's registry, by host; empty when it names none.

    The password is the first line of its file. Raises `UsageError` when that cannot be read.
    """
    if not registry.username:
        return {}
    try:
        password = Path(registry.password_file).read_text().partition("\n")[0].strip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"registry.password_file cannot be read: {error}",
            hint="ask who runs this farm, or use your own login: leave registry.username empty",
        ) from None
    places = filter(None, (registry.images, registry.cache))
    return {host_of(place): Login(registry.username, password) for place in places}
