"""OIDC tokens of forges: Forgejo Actions, GitHub, GitLab.

What a forge calls its claims is data (`KINDS`), which the configuration can amend. A token is
believed when a configured issuer's key has signed it for this farm's audience, and what it says is
about a repo that the issuer may speak for. Keys come from the issuer's own address only, whatever a
token's header says, are kept for five minutes, and an unknown one makes them be fetched again
twice a minute at most (PyJWT's PyJWKClient, which follows no redirect).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import structlog
from jwt import PyJWK, PyJWKClient

from mayfly.config import Issuer
from mayfly.errors import InfrastructureError, Unauthenticated, UsageError
from mayfly.orchestrator.trust.principal import (
    Origin,
    Principal,
    Verify,
    covers,
    pull_request_of,
)
from mayfly.registry import grants

ALGORITHMS = ("RS256", "ES256", "EdDSA")
TIMEOUT_S = 5.0
LONGEST = 16 * 1024
"""Characters of a token; those of forges have 2,000 or so."""

AGAIN_S = 10.0
"""For how long an issuer that does not answer is not asked again."""

log = structlog.get_logger("orchestrator.oidc")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a forge calls things: claims and events by our words, the path of its key set, and what
    stands in front of a branch's name in its `ref`.
    """

    keys: str
    claims: Mapping[str, str]
    events: Mapping[str, str]
    branches: str = "refs/heads/"


_ACTIONS = {
    "repo": "repository",
    "event": "event_name",
    "ref": "ref",
    "ref_type": "ref_type",
    "commit": "sha",
    "run": "run_id",
}
_ACTIONS_EVENTS = {
    "push": "push",
    "schedule": "cron",
    "workflow_dispatch": "manual",
    "release": "release",
    "deployment": "deployment",
    "pull_request": "pull_request",
    "pull_request_target": "pull_request",
}

KINDS: Mapping[str, Kind] = {
    "forgejo": Kind("/.well-known/keys", _ACTIONS, _ACTIONS_EVENTS),
    "github": Kind("/.well-known/jwks", _ACTIONS, _ACTIONS_EVENTS),
    "gitlab": Kind(
        "/oauth/discovery/keys",
        {
            "repo": "project_path",
            "event": "pipeline_source",
            "ref": "ref",
            "ref_type": "ref_type",
            "commit": "sha",
            "run": "pipeline_id",
        },
        {
            "push": "push",
            "schedule": "cron",
            "web": "manual",
            "merge_request_event": "pull_request",
            "external_pull_request_event": "pull_request",
        },
        branches="",
    ),
}
"""Forgejo's issuer is `https://HOST/api/actions`, GitHub's
`https://token.actions.githubusercontent.com`, GitLab's its own address."""


def origin(options: Issuer, claims: Mapping[str, Any]) -> tuple[Origin, str]:
    """What verified claims say about a pipeline, and the run that they are about. Pure.

    An event that is not known is none of ours: it has the kind's name in front. Raises
    `Unauthenticated` when the repo is missing.
    """
    kind = KINDS[options.kind]
    names: dict[str, str] = {**kind.claims, **options.claims}  # type: ignore[dict-item]
    said = {ours: str(claims.get(theirs, "")) for ours, theirs in names.items()}
    repo, ref = said["repo"].lower(), said["ref"]
    if not repo:
        raise Unauthenticated(f"the token has no claim {names['repo']}")
    event = {**kind.events, **options.events}.get(
        said["event"], f"{options.kind}:{said['event'] or 'unknown'}"
    )
    is_tag = ref.startswith("refs/tags/") or said["ref_type"] == "tag"
    if event == "push" and is_tag:
        event = "tag"
    pull = pull_request_of(ref)
    if pull:  # whatever the event: what is built there is a pull request's
        event = "pull_request"
    on_branch = event not in ("pull_request", "tag", "release") and not is_tag
    # A branch may itself be called refs/heads/main: what is behind our prefix is no other branch.
    branch = ref.removeprefix(kind.branches) if on_branch else ""
    found = Origin(
        repos=(repo,),
        event=event,
        branch="" if branch.startswith("refs/") else branch,
        default_branch=options.default_branches.get(repo, options.default_branch),
        ref=ref,
        commit=said["commit"],
        pull_request=pull,
    )
    return found, said["run"]


class Keys:
    """The key set of one issuer, asked for by one caller at a time, beside the event loop."""

    def __init__(self, options: Issuer) -> None:
        url = options.issuer + (options.keys or KINDS[options.kind].keys)
        context = ssl.create_default_context()
        if options.ca:
            context.load_verify_locations(Path(options.ca))
        self._client = PyJWKClient(url, timeout=TIMEOUT_S, ssl_context=context)
        self._url = url
        self._lock = asyncio.Lock()
        self._failed_at = 0.0

    async def key(self, kid: str) -> PyJWK:
        """The key of that id. Raises `Unauthenticated` when the issuer has none,
        `InfrastructureError` when it does not answer.
        """
        async with self._lock:
            if self._failed_at and time.monotonic() - self._failed_at < AGAIN_S:
                raise InfrastructureError(f"{self._url} did not answer a moment ago")
            try:
                return await asyncio.to_thread(self._client.get_signing_key, kid)
            except (jwt.PyJWKClientConnectionError, OSError, ValueError) as error:
                self._failed_at = time.monotonic()
                log.warning("an issuer's keys cannot be had", url=self._url, error=str(error))
                raise InfrastructureError(f"the keys at {self._url} cannot be had") from None
            except jwt.PyJWTError:
                raise Unauthenticated(f"the token's key is none of {self._url}") from None


def verifier(name: str, options: Issuer, audience: str, skew_s: float) -> Verify:
    """The tokens of one configured issuer.

    Raises `OSError` (`ssl.SSLError`) when its CA cannot be read.
    """
    keys = Keys(options)
    wanted = options.audience or audience

    async def verify(credential: str, now: datetime) -> Principal | None:
        if credential.count(".") != 2 or len(credential) > LONGEST:
            return None
        try:
            if jwt.decode(credential, options={"verify_signature": False}).get("iss") != (
                options.issuer
            ):
                return None
            header = jwt.get_unverified_header(credential)
        except jwt.InvalidTokenError:
            return None
        if header.get("alg") not in ALGORITHMS:
            raise Unauthenticated(f"the token is signed by {str(header.get('alg'))[:20]!r}")
        key = await keys.key(str(header.get("kid", "")))
        if key.algorithm_name not in ALGORITHMS:
            raise Unauthenticated("the token's key is of a kind that is not taken here")
        claims = _verified(credential, key, options.issuer, wanted, now, skew_s)
        found, run = origin(options, claims)
        try:
            grants.check_repo(found.repo)
        except UsageError as error:
            raise Unauthenticated(error.message, hint=error.hint) from None
        if not covers(options.repos, found.repo):
            raise Unauthenticated(
                f"{found.repo[:200]} is not among the repos of oidc.{name}",
                hint="its operator can add it there",
            )
        about = f"#{run}" if run else f"@{found.commit or found.ref}"
        return Principal(f"oidc.{name}:{found.repo}{about}"[:300], origin=found)

    return verify


def _verified(
    token: str, key: PyJWK, issuer: str, audience: str, now: datetime, skew_s: float
) -> Mapping[str, Any]:
    """The claims of a token of this issuer for this audience, now. Raises `Unauthenticated`."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm_name],
            audience=audience,
            issuer=issuer,
            options={
                "require": ["exp", "iat", "aud", "iss"],
                # with the caller's clock, below
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
        until = datetime.fromtimestamp(int(claims["exp"]), UTC)
        start = datetime.fromtimestamp(int(claims.get("nbf", claims["iat"])), UTC)
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError) as error:
        raise Unauthenticated(f"the token is not valid here: {error}") from None
    skew = timedelta(seconds=skew_s)
    if until + skew <= now:
        raise Unauthenticated("the token has expired")
    if start - skew > now:
        raise Unauthenticated("the token is not valid yet: see trust.clock_skew_s")
    return claims
