"""Who a credential speaks for: `verify(credential) -> Principal`, one small verifier for each kind.

A verifier returns None for a credential that is not of its kind; later kinds (NATS, Woodpecker,
OIDC) are one more each.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from mayfly.errors import Denied, Unauthenticated
from mayfly.registry.tokens import Verifier

ADMIN_PREFIX = "mayfly_admin_"

Verify = Callable[[str, datetime], "Principal | None"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `lease` is empty for anyone but a lease's holder."""

    name: str
    admin: bool = False
    lease: str = ""

    def require_admin(self) -> None:
        """Raises `Denied` unless this is the administrator."""
        if not self.admin:
            raise Denied("this needs the admin token", hint="set MAYFLY_TOKEN")

    def require(self, lease_id: str) -> None:
        """Raises `Denied` unless this is the administrator or the lease's holder."""
        if not self.admin and self.lease != lease_id:
            raise Denied("this token belongs to another lease")


class Trust:
    """All verifiers, asked in turn."""

    def __init__(self, verifiers: Sequence[Verify]) -> None:
        self._verifiers = tuple(verifiers)

    def verify(self, credential: str, now: datetime) -> Principal:
        """Who the credential speaks for. Raises `Unauthenticated`, whose message has no secret."""
        if not credential:
            raise Unauthenticated("no token", hint="send Authorization: Bearer TOKEN")
        for verifier in self._verifiers:
            if (principal := verifier(credential, now)) is not None:
                return principal
        raise Unauthenticated("unknown kind of token")


def admin(sha256_hex: str) -> Verify:
    """The admin token, of which only the hash is known here; compared in constant time."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if not credential.startswith(ADMIN_PREFIX):
            return None
        presented = hashlib.sha256(credential.encode()).hexdigest()
        if not hmac.compare_digest(presented, sha256_hex.strip().lower()):
            raise Unauthenticated("the admin token is not this farm's")
        return Principal("admin", admin=True)

    return verify


def lease_holder(tokens: Verifier) -> Verify:
    """The token that a lease's request was answered with; for that lease only."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if credential.count(".") != 2:
            return None
        lease = tokens.verify(credential, now).subject
        return Principal(f"lease:{lease}", lease=lease)

    return verify
