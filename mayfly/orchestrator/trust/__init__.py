"""Who a credential speaks for: `verify(credential) -> Principal`, one small verifier for each kind.

- `principal.py`  who is asking, and what is proven about the pipeline that asks
- `own.py`        admin token, page and lease tokens
- `static.py`     tokens that an operator gave to somebody
- `signature.py`  the signature of a Woodpecker server's requests
- `woodpecker.py` its extensions, and the tickets that they answer with
- `pipelines.py`  whether a pipeline has ended
- `oidc.py`       tokens of forges
- `policy.py`     on which terms a principal gets a lease: trusted or not, and what that means

A verifier returns None for a credential that is not of its kind. CI_* variables are labels, never
proof: nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from mayfly.config import Config
from mayfly.errors import ConfigError, Denied, Unauthenticated
from mayfly.orchestrator.trust import oidc, static
from mayfly.orchestrator.trust.own import ADMIN, HINT, admin, builders, lease_holder, reader
from mayfly.orchestrator.trust.pipelines import Pipelines
from mayfly.orchestrator.trust.principal import Origin, Principal, Verify, covers
from mayfly.orchestrator.trust.woodpecker import Woodpecker, pull_tickets, tickets
from mayfly.registry import tokens
from mayfly.registry.tokens import Signer, Verifier
from mayfly.store.trust import TrustStore

__all__ = [
    "Origin",
    "Principal",
    "Trust",
    "Verify",
    "build",
    "covers",
]


class Trust:
    """All verifiers, asked in turn, and what trust remembers."""

    def __init__(
        self, verifiers: Sequence[Verify], store: TrustStore, woodpecker: Woodpecker
    ) -> None:
        self._verifiers = tuple(verifiers)
        self.store = store
        self.woodpecker = woodpecker

    async def verify(self, credential: str, now: datetime) -> Principal:
        """Who the credential speaks for. Raises `Unauthenticated`, whose message has no secret."""
        if not credential:
            raise Unauthenticated("no token", hint="send Authorization: Bearer TOKEN")
        for verifier in self._verifiers:
            if (principal := await verifier(credential, now)) is not None:
                return principal
        raise Unauthenticated("unknown kind of token", hint=HINT)

    def named(self, name: str, since: datetime, now: datetime) -> Principal:
        """The administrator, or whom a static token was given to, by the principal's name as it was
        at `since`.

        Raises `Denied` when the token was taken back, also where another has its name by now;
        `Unauthenticated` when it has expired.
        """
        if name == ADMIN:
            return Principal(ADMIN, admin=True)
        kind, _, own = name.partition(":")
        found = next((one for one in self.store.given(kind) if one.name == own), None)
        if found is None or found.created_at > since:
            raise Denied(f"the {kind} {own!r} was revoked", hint="see `mayfly token ls`")
        return static.principal(found, now)

    def seen(self, origin: Origin | None) -> bool:
        """Whether the commit of this origin was seen on a trusted branch of its repo."""
        if origin is None or not (origin.repo and origin.commit):
            return False
        return self.store.seen(origin.repo, origin.commit)


def build(
    config: Config,
    admin_sha256: str,
    builders_sha256: str,
    signing: bytes,
    store: TrustStore,
    clock: Callable[[], datetime],
    *,
    pipelines: Pipelines | None = None,
) -> Trust:
    """Everything that this configuration trusts. `signing` is the orchestrator's private key (PEM).

    Raises `ConfigError` when the CA of an issuer cannot be read.
    """
    public, signer = tokens.public(signing), Signer(signing)
    asked = pipelines or Pipelines(config.woodpecker)
    issuers = []
    for name, options in config.oidc.items():
        try:
            issuers.append(oidc.verifier(name, options, config.url, config.trust.clock_skew_s))
        except OSError as error:
            raise ConfigError([f"oidc.{name}.ca = {options.ca!r}: {error}"]) from None
    verifiers = (
        admin(admin_sha256),
        builders(builders_sha256),
        static.verifier(store),
        tickets(Verifier(public, tokens.TICKET), asked),
        pull_tickets(Verifier(public, tokens.PULL), asked, config.trust),
        *issuers,
        reader(Verifier(public, tokens.PAGE)),
        lease_holder(Verifier(public, tokens.API)),
    )
    return Trust(verifiers, store, Woodpecker(config, store, signer, clock))
