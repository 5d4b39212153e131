"""Static tokens: an operator's word for what has no forge to vouch for it.

A token is shown once, when it is made; only its SHA-256 is kept. That is enough, and quick: it has
256 random bits, so there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from mayfly.errors import Unauthenticated
from mayfly.orchestrator.trust.principal import Origin, Principal, Verify
from mayfly.store.trust import Given, TrustStore

PREFIX = "mayfly_token_"


def create(
    store: TrustStore,
    name: str,
    repos: Sequence[str],
    *,
    trusted: bool,
    life_s: float | None,
    now: datetime,
) -> tuple[str, Given]:
    """A new token for builds of `repos` (patterns), good for `life_s` seconds or until revoked.

    Raises `Conflict` for a name that is taken.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    expires_at = now + timedelta(seconds=life_s) if life_s is not None else None
    one = Given(name, sha256(token), tuple(repos), trusted, now, expires_at)
    store.give(one)
    return token, one


def verifier(store: TrustStore) -> Verify:
    """The tokens of `mayfly token`."""

    async def verify(credential: str, now: datetime) -> Principal | None:
        if not credential.startswith(PREFIX):
            return None
        found = store.known(sha256(credential))
        if found is None:
            raise Unauthenticated("the token is not known here, or was revoked")
        return principal(found, now)

    return verify


def principal(found: Given, now: datetime) -> Principal:
    """Who a given token, or a certificate, speaks for. Raises `Unauthenticated` when it is over."""
    if found.expires_at is not None and found.expires_at <= now:
        raise Unauthenticated(f"the {found.kind} {found.name!r} has expired")
    origin = Origin(found.repos, vouched=found.trusted)
    return Principal(f"{found.kind}:{found.name}", origin=origin, since=found.created_at)


def sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
