"""The way to the registry: who asks, what the request needs, and a short token for just that.

The path is read strictly and passed on as it came. The registry (distribution or zot) reads it once
more and checks what it finds against the token made here, so that a path that the two read
differently is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from mayfly.config import Config
from mayfly.edge.attach import Runners
from mayfly.edge.proxy import Backend
from mayfly.errors import Denied, MayflyError, NotFound, Unauthenticated
from mayfly.registry import grants, tokens
from mayfly.registry.grants import CATALOG, DELETE, OWN_CATALOG, PULL, PUSH, Access
from mayfly.registry.tokens import Claims, Signer, Verifier

log = logging.getLogger("mayfly.edge")

_REST = re.compile(
    r"(?:manifests/[A-Za-z0-9_][A-Za-z0-9_.:+-]*"
    r"|blobs/[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Fa-f0-9]{32,}"
    r"|(?P<upload>blobs/uploads/(?:[A-Za-z0-9][A-Za-z0-9_.=-]*)?)"
    r"|tags/list"
    r"|referrers/[a-z0-9]+:[A-Fa-f0-9]{32,})"
)

_ACTIONS = {
    "GET": {PULL},
    "HEAD": {PULL},
    "POST": {PULL, PUSH},
    "PUT": {PULL, PUSH},
    "PATCH": {PULL, PUSH},
    "DELETE": {DELETE},
}
"""What the registry wants for a method; reading is a part of writing."""

CATALOG_PAGE = 500
"""Repositories that the registry is asked for at once; distribution gives no more than 1000."""

_ZOT_CATALOG = Access("", frozenset({PULL}))
"""What zot wants for the list of all repositories; distribution knows no such repository."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a request to the registry is about.

    `asked` must be granted; `passed` is what the registry wants to see for it. `optional`, when
    not granted, is taken out of the request instead (a blob mounted from another repository).
    """

    target: str
    asked: tuple[Access, ...] = ()
    passed: tuple[Access, ...] = ()
    optional: tuple[Access, ...] = ()
    target_without: str = ""


def need(method: str, target: str) -> Need:
    """What a request needs. `target` is path and query as they came. Pure.

    Raises `NotFound` for what is not of the registry's API.
    """
    path, _, query = target.partition("?")
    if path in ("/v2", "/v2/"):
        return Need("/v2/")  # without anything behind it: zot asks for nothing more only then
    if path == "/v2/_catalog":
        return Need(target, (CATALOG,), (CATALOG, _ZOT_CATALOG))
    start, name, rest = _split(path)
    if start != "/v2" or method not in _ACTIONS or not grants.is_repository(name):
        raise NotFound(f"{method} {path[:300]} is not of the registry's API")
    passed = Access(name, frozenset(_ACTIONS[method]))
    upload = _REST.fullmatch(rest)
    is_upload = upload is not None and upload["upload"] is not None
    # To give up one's own upload is no more than to push.
    asked = Access(name, frozenset({PUSH})) if method == "DELETE" and is_upload else passed
    fields = parse_qsl(query, keep_blank_values=True)
    sources = [value for key, value in fields if key == "from"]
    mounts = any(key == "mount" for key, _ in fields)
    if method != "POST" or not is_upload or not (sources or mounts):
        return Need(target, (asked,), (passed,))
    kept = urlencode([(key, value) for key, value in fields if key not in ("from", "mount")])
    without = f"{path}?{kept}" if kept else path
    if not sources:  # from wherever the registry finds it, that is: from anybody's
        return Need(without, (asked,), (passed,))
    source = tuple(Access(name, frozenset({PULL})) for name in sources)
    return Need(target, (asked,), (passed,), source, without)


def _split(path: str) -> tuple[str, str, str]:
    """`/v2`, repository, and the rest of a path; nothing of it when it is none of the API's.

    What a path is about stands in its last two or three parts, so there is one way to read it.
    """
    parts = path.split("/")
    for length in (2, 3):
        rest = "/".join(parts[-length:])
        if _REST.fullmatch(rest):
            return "/".join(parts[:2]), "/".join(parts[2:-length]), rest
    return "", "", path


@dataclass(frozen=True, slots=True)
class Gateway:
    """Answers `/v2/…`, for everybody (`here` empty) or on the listener of one runner."""

    config: Config
    registry: Backend
    verifier: Verifier
    signer: Signer
    runners: Runners

    async def answer(self, request: web.Request, here: str = "") -> web.StreamResponse:
        """The registry's answer, or a refusal as docker clients read it."""
        what = Need("")
        try:
            what = need(request.method, request.raw_path)
            claims = self.identify(request.headers.get("Authorization", ""), here)
            if what.asked == (CATALOG,) and grants.allows(claims.access, OWN_CATALOG):
                return web.json_response({"repositories": await self._own(claims)})
            target, passed = self._admit(claims, what)
            token = self.signer.gateway_token(passed, now=datetime.now(UTC))
            answer = await self.registry.forward(
                request,
                target,
                {"Authorization": f"Bearer {token}"},
                drop=("Authorization", "Cookie"),
            )
        except Unauthenticated as error:
            return self._refusal(error, what, "UNAUTHORIZED", here, challenge="")
        except InsufficientScope as error:
            log.info("denied: %s", error)
            return self._refusal(error, what, "DENIED", here, challenge="insufficient_scope")
        except Denied as error:
            log.info("denied: %s", error)
            return self._refusal(error, what, "DENIED")
        except NotFound as error:
            return self._refusal(error, what, "UNSUPPORTED")
        except MayflyError as error:
            log.warning("registry: %s", error)
            return self._refusal(error, what, "UNAVAILABLE")
        return answer

    def identify(self, authorization: str, here: str) -> Claims:
        """Who asks. Raises `Unauthenticated`.

        A runner's token counts while its runner is attached, and on a runner's listener only that
        runner's does.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("authentication required")
        claims = self.verifier.verify(token.strip(), datetime.now(UTC))
        runner = f"{claims.lease}-{claims.attempt}" if claims.lease else ""
        if here and runner != here:
            raise Unauthenticated("the token is not this runner's")
        if runner and runner not in self.runners:
            raise Unauthenticated("the token's runner is gone")
        return claims

    async def _own(self, claims: Claims) -> list[str]:
        """All repositories that the token may pull. Of others not even a page's mark is told."""
        names, target = list[str](), f"/v2/_catalog?n={CATALOG_PAGE}"
        while target:
            token = self.signer.gateway_token((CATALOG, _ZOT_CATALOG), now=datetime.now(UTC))
            page, target = await self.registry.page(target, {"Authorization": f"Bearer {token}"})
            names += [str(name) for name in page.get("repositories") or ()]
        pull = frozenset({PULL})
        return [name for name in names if grants.allows(claims.access, Access(name, pull))]

    def _admit(self, claims: Claims, what: Need) -> tuple[str, tuple[Access, ...]]:
        """Where the request goes, and what its token to the registry says. Raises `Denied`."""
        for access in what.asked:
            if not grants.allows(claims.access, access):
                message = f"{claims.subject} may not {'/'.join(sorted(access.actions))}"
                error = Denied if claims.lease else InsufficientScope
                raise error(f"{message} {access.name}")
        if not what.optional:
            return what.target, what.passed
        if all(grants.allows(claims.access, access) for access in what.optional):
            return what.target, (*what.passed, *what.optional)
        return what.target_without, what.passed

    def _refusal(
        self,
        error: MayflyError,
        what: Need,
        code: str,
        here: str = "",
        *,
        challenge: Literal["", "insufficient_scope"] | None = None,
    ) -> web.Response:
        headers: dict[str, str] = {}
        status = error.http_status
        if challenge is not None:
            status = 401
            headers["WWW-Authenticate"] = self._challenge(what, challenge, here)
        return refusal(status, code, str(error), headers)

    def _challenge(self, what: Need, error: str, here: str) -> str:
        fields = {"realm": f"{self.config.url}/token", "service": tokens.service(here)}
        sources = (access for access in what.optional if grants.is_repository(access.name))
        scopes = [str(access) for access in (*what.asked, *sources)]
        if scopes:
            fields["scope"] = " ".join(scopes)
        if error:
            fields["error"] = error
        return "Bearer " + ",".join(f'{key}="{value}"' for key, value in fields.items())


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Stands where the gateway would, on a farm whose images are in somebody else's registry."""

    images: str

    async def answer(self, request: web.Request, here: str = "") -> web.StreamResponse:
        """Says where they are."""
        return refusal(404, "UNSUPPORTED", f"this farm's images are at {self.images}", {})


class InsufficientScope(Denied):
    """A docker client's token is for something else; it will ask for another one."""


def refusal(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """An error as the distribution specification writes it."""
    return web.json_response(
        {"errors": [{"code": code, "message": message, "detail": None}]},
        status=status,
        headers={"Docker-Distribution-Api-Version": "registry/2.0", **headers},
    )
