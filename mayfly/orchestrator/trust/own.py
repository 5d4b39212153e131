"""The verifiers of what this farm has given out itself: to its administrator, its own programs, the
readers of pages and the holders of leases.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

from mayfly.errors import Unauthenticated
from mayfly.orchestrator.trust.principal import Principal, Verify
from mayfly.registry import tokens
from mayfly.registry.tokens import Verifier

ADMIN_PREFIX = "mayfly_admin_"
BUILDERS_PREFIX = "mayfly_builders_"

ADMIN = "admin"
"""The administrator's name as a principal; all other names have a kind and a colon in front."""

_ADMIN = "MAYFLY_TOKEN must be what the farm's own `admin.token` holds"

HINT = (
    "MAYFLY_TOKEN must be what the farm's own `admin.token` holds, a token of `mayfly token`, "
    "or one that a forge in the farm's configuration gave"
)


def admin(sha256_hex: str) -> Verify:
    """The admin token."""
    who = Principal(ADMIN, admin=True)
    return _hashed(ADMIN_PREFIX, sha256_hex, who, "the admin token is not this farm's", _ADMIN)


def builders(sha256_hex: str) -> Verify:
    """The token of the program that relays docker clients."""
    who = Principal("builders", builders=True)
    return _hashed(BUILDERS_PREFIX, sha256_hex, who, "the builders' token is not this farm's")


def _hashed(prefix: str, sha256_hex: str, who: Principal, refusal: str, hint: str = "") -> Verify:
    """One secret, of which only the hash is known here; compared in constant time."""

    async def verify(credential: str, now: datetime) -> Principal | None:
        if not credential.startswith(prefix):
            return None
        presented = hashlib.sha256(credential.encode()).hexdigest()
        if not hmac.compare_digest(presented, sha256_hex.strip().lower()):
            raise Unauthenticated(refusal, hint=hint)
        return who

    return verify


def reader(pages: Verifier) -> Verify:
    """The token in the address of a build's page; it reads that build."""

    async def verify(credential: str, now: datetime) -> Principal | None:
        if tokens.audience(credential) != tokens.PAGE:
            return None
        build = pages.verify(credential, now).subject
        return Principal(f"page:{build}", reads=build)

    return verify


def lease_holder(holders: Verifier) -> Verify:
    """The token that a lease's request was answered with; for that lease only.

    It comes last of all that read tokens of three parts: it refuses what the others left.
    """

    async def verify(credential: str, now: datetime) -> Principal | None:
        if credential.count(".") != 2:
            return None
        lease = holders.verify(credential, now).subject
        return Principal(f"lease:{lease}", lease=lease)

    return verify
