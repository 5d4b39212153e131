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
from mayfly.registry import tokens
from mayfly.registry.tokens import Verifier

ADMIN_PREFIX = "mayfly_admin_"
BUILDERS_PREFIX = "mayfly_builders_"

_HINT = "MAYFLY_TOKEN must be what the farm's own `admin.token` holds"

Verify = Callable[[str, datetime], "Principal | None"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `lease` is empty for anyone but a lease's holder; `reads` is a build that
    may be read, and nothing else. `builders` is the program that relays docker clients: it reads
    builders and asks for their leases.
    """

    name: str
    admin: bool = False
    lease: str = ""
    reads: str = ""
    builders: bool = False

    def require_builders(self) -> None:
        """Raises `Denied` unless this is the builders' program."""
        if not self.builders:
            raise Denied("a builder's leases are asked for by the program that serves it")

    def require_admin(self) -> None:
        """Raises `Denied` unless this is the administrator."""
        if not self.admin:
            raise Denied("this needs the admin token", hint="set MAYFLY_TOKEN")

    def require(self, lease_id: str) -> None:
        """Raises `Denied` unless this is the administrator or the lease's holder."""
        if not self.admin and self.lease != lease_id:
            raise Denied("this token belongs to another lease")

    def require_reading(self, build_id: str) -> None:
        """Raises `Denied` unless this may read the build."""
        if self.reads != build_id:
            self.require(build_id)


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
        raise Unauthenticated("unknown kind of token", hint=_HINT)


def admin(sha256_hex: str) -> Verify:
    """The admin token, of which only the hash is known here; compared in constant time."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if not credential.startswith(ADMIN_PREFIX):
            return None
        presented = hashlib.sha256(credential.encode()).hexdigest()
        if not hmac.compare_digest(presented, sha256_hex.strip().lower()):
            raise Unauthenticated("the admin token is not this farm's", hint=_HINT)
        return Principal("admin", admin=True)

    return verify


def builders(sha256_hex: str) -> Verify:
    """The token of the program that relays docker clients; hashed and compared as `admin`'s."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if not credential.startswith(BUILDERS_PREFIX):
            return None
        presented = hashlib.sha256(credential.encode()).hexdigest()
        if not hmac.compare_digest(presented, sha256_hex.strip().lower()):
            raise Unauthenticated("the builders' token is not this farm's")
        return Principal("builders", builders=True)

    return verify


def reader(pages: Verifier) -> Verify:
    """The token in the address of a build's page; it reads that build."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if tokens.audience(credential) != tokens.PAGE:
            return None
        build = pages.verify(credential, now).subject
        return Principal(f"page:{build}", reads=build)

    return verify


def lease_holder(holders: Verifier) -> Verify:
    """The token that a lease's request was answered with; for that lease only."""

    def verify(credential: str, now: datetime) -> Principal | None:
        if credential.count(".") != 2:
            return None
        lease = holders.verify(credential, now).subject
        return Principal(f"lease:{lease}", lease=lease)

    return verify
