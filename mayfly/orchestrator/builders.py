"""Builders of docker clients: their records, and what a lease for one of them is.

Who relays their connections is a program of its own (`mayfly/builders/`), which asks for leases as
any client does; what such a lease may do is decided here, from the record.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mayfly.config import Config
from mayfly.errors import Conflict, Denied, InfrastructureError, UsageError
from mayfly.model import Builder, BuildSpec, Lease, LeaseRequest
from mayfly.orchestrator import states, views
from mayfly.orchestrator.authority import Authority
from mayfly.orchestrator.forms import BuilderForm
from mayfly.orchestrator.trust import Principal
from mayfly.store.builders import BuilderStore, absent
from mayfly.wire import BuilderJson, BuildersJson, MadeBuilderJson

EVENT = "builder"
"""The label of its leases; sizing keeps their records, and takes no history from them: a runner
that waits for somebody to connect says little about what a build needs."""

IDLE = "idle"

MOST = 100
"""Builders of one principal: each has a door, and a line in every list."""

SPEC = BuildSpec(oom_retry=False)
"""A docker client knows nothing of a second attempt: its connection is to one runner."""


class Builders:
    """The builders of one farm. `open_leases` tells which leases there are now."""

    def __init__(
        self,
        config: Config,
        store: BuilderStore,
        authority: Authority,
        open_leases: Callable[[], Iterable[Lease]],
        clock: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._store = store
        self._authority = authority
        self._open_leases = open_leases
        self._clock = clock
        self._revision = secrets.token_hex(8)
        self._changed = asyncio.Event()

    def make(self, form: BuilderForm, who: Principal, *, trusted: bool) -> MadeBuilderJson:
        """A new builder, on disk; its leases have the rights of `who`.

        Raises `Conflict` for a name that is taken and for one more than `MOST`, `Denied` for a
        pipeline's credential, which ends before a builder does, and `UsageError` for a key that is
        none, or for TLS where the farm serves none. Repo and size have been looked at.
        """
        if not who.admin and (who.origin is None or who.origin.vouched is None):
            raise Denied(
                "a builder outlives this credential", hint="use a token of `mayfly token create`"
            )
        if form.public_key and not self._config.builders.listen:
            raise UsageError(
                "this farm serves no builders by TLS", hint="set builders.listen, or use a socket"
            )
        own = [one for one in self._store.all() if who.made(one.principal, one.created_at)]
        if len(own) >= MOST:
            raise Conflict(
                f"{who.name} has {len(own)} builders", hint="remove one: see `mayfly builder ls`"
            )
        now = self._clock()
        issued = self._authority.issue(form.public_key, form.name, now) if form.public_key else None
        authority = _ca(self._config.state) if issued else ""
        linger_s = form.linger_s if form.linger_s is not None else self._config.builders.linger_s
        builder = Builder(
            name=form.name,
            repo=form.repo,
            size=form.size,
            linger_s=linger_s,
            principal=who.name,
            trusted=trusted,
            created_at=now,
            uid=form.uid,
            fingerprint=issued.fingerprint if issued else "",
            expires_at=issued.expires_at if issued else None,
        )
        self._store.add(builder)
        self._news()
        return {
            "builder": self._view(builder),
            "certificate": issued.pem if issued else "",
            "ca": authority,
        }

    def remove(self, name: str, who: Principal) -> None:
        """Forget a builder: its certificate opens nothing any more.

        Raises `NotFound`, also for one that is not the caller's, who is no administrator.
        """
        if not _sees(who, self._store.get(name)):
            raise absent(name)
        self._store.remove(name)
        self._news()

    async def all(self, who: Principal, since: str = "", wait_s: float = 0) -> BuildersJson:
        """Every builder that the caller may see, as soon as the revision is not `since`, or after
        `wait_s` seconds.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while since == self._revision:
                    await self._changed.wait()
        return {
            "revision": self._revision,
            "authority": self._authority.pem,
            "builders": [self._view(one) for one in self._store.all() if _sees(who, one)],
        }

    def lease_of(self, request: LeaseRequest) -> tuple[LeaseRequest, Builder]:
        """What is leased for a request that names a builder, and the record, which says it all but
        the key. Raises `NotFound`.
        """
        builder = self._store.get(request.builder)
        asked = replace(
            request, repo=builder.repo, size=builder.size, event=EVENT, spec=SPEC, grow=True
        )
        return asked, builder

    def leases(self, name: str) -> tuple[Lease, ...]:
        """Its leases that have not ended, oldest first: one, or none."""
        return tuple(
            lease
            for lease in self._open_leases()
            if lease.request.builder == name and states.is_running(lease)
        )

    def _news(self) -> None:
        self._revision = secrets.token_hex(8)
        self._changed.set()
        self._changed = asyncio.Event()

    def _view(self, builder: Builder) -> BuilderJson:
        leases = self.leases(builder.name)
        lease = leases[-1] if leases else None
        return {
            "name": builder.name,
            "repo": builder.repo,
            "size": builder.size,
            "linger_s": builder.linger_s,
            "principal": builder.principal,
            "trusted": builder.trusted,
            "created_at": views.time(builder.created_at),
            "uid": builder.uid,
            "fingerprint": builder.fingerprint,
            "expires_at": views.time(builder.expires_at) if builder.expires_at else None,
            "address": address(builder, self._config),
            "lease": lease.id if lease else None,
            "state": states.word(lease) if lease else IDLE,
        }


def _sees(who: Principal, builder: Builder) -> bool:
    return who.admin or who.builders or who.made(builder.principal, builder.created_at)


def address(builder: Builder, config: Config) -> str:
    """What buildx connects to. Pure."""
    if builder.fingerprint:
        return f"tcp://{config.server.name}:{config.builders.port}"
    return f"unix://{config.run / 'builders' / f'{builder.name}.sock'}"


def _ca(state: Path) -> str:
    path = state / "ca" / "ca.crt"
    try:
        return path.read_text()
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from None
