"""Who a credential speaks for: `verify(credential) -> Principal`, one small verifier for each kind.

- `principal.py`  who is asking, and what is proven about the pipeline that asks
- `own.py`        admin token, page and lease tokens
- `policy.py`     on which terms a principal gets a lease: trusted or not, and what that means

A verifier returns None for a credential that is not of its kind. CI_* variables are labels, never
proof: nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mayfly.errors import Unauthenticated
from mayfly.orchestrator.trust.own import HINT, admin, lease_holder, reader
from mayfly.orchestrator.trust.principal import Origin, Principal, Verify, covers

__all__ = [
    "Origin",
    "Principal",
    "Trust",
    "Verify",
    "admin",
    "covers",
    "lease_holder",
    "reader",
]


class Trust:
    """All verifiers, asked in turn."""

    def __init__(self, verifiers: Sequence[Verify]) -> None:
        self._verifiers = tuple(verifiers)

    async def verify(self, credential: str, now: datetime) -> Principal:
        """Who the credential speaks for. Raises `Unauthenticated`, whose message has no secret."""
        if not credential:
            raise Unauthenticated("no token", hint="send Authorization: Bearer TOKEN")
        for verifier in self._verifiers:
            if (principal := await verifier(credential, now)) is not None:
                return principal
        raise Unauthenticated("unknown kind of token", hint=HINT)
