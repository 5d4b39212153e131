"""Woodpecker's secret and registry extensions: its server says which pipeline runs, signed.

When a pipeline is triggered the server POSTs `{repo, pipeline}`; the answer is a ticket for that
pipeline as a secret that only our plugin image sees, and a pull ticket as credentials by which
agents pull what the pipeline has built. What is believed of the request is in `origin`. Checked
against Woodpecker's `server/services/{secret,registry}/http.go`, `server/model/{repo,pipeline}.go`
and `pipeline/frontend/yaml/compiler` at commit a4cb541b82dea1967d5b5577ff80a472b349afb2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mayfly import __version__
from mayfly.config import Config, Trust
from mayfly.errors import InfrastructureError, NotFound, Unauthenticated, UsageError
from mayfly.orchestrator.trust import policy, signature
from mayfly.orchestrator.trust.pipelines import Pipelines
from mayfly.orchestrator.trust.principal import (
    Origin,
    Principal,
    Verify,
    covers,
    pull_request_of,
)
from mayfly.registry import grants, tokens
from mayfly.registry.tokens import Claims, Signer, Verifier
from mayfly.store.trust import TrustStore
from mayfly.wire import RegistriesJson, SecretsJson

PLUGIN = "images/mayfly/buildkit-launcher"

log = structlog.get_logger("orchestrator.woodpecker")


class _Lenient(BaseModel):
    """A part of the server's own JSON: what is not named here is of no interest."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Repo(_Lenient):
    id: int = 0
    full_name: str = Field(max_length=1000)
    default_branch: str = Field("", max_length=500)


class _Pipeline(_Lenient):
    number: int = Field(ge=1)
    event: str = Field(max_length=100)
    branch: str = Field("", max_length=500)
    ref: str = Field("", max_length=500)
    commit: str = Field("", max_length=100)
    from_fork: bool = False


class _Request(_Lenient):
    repo: _Repo
    pipeline: _Pipeline


class Woodpecker:
    """Answers the server that the configuration pins.

    `signer` signs tickets; `clock` tells the time. Every method raises `NotFound` where no server
    is configured, and `Unauthenticated` for a request that is not the server's own, and now.

    A request that was answered before is refused as `InfrastructureError` (503): the server itself,
    which lost our answer, asks again with another date, as it does not after a 401 or the like.
    """

    def __init__(
        self, config: Config, store: TrustStore, signer: Signer, clock: Callable[[], datetime]
    ) -> None:
        self._config = config
        self._store = store
        self._signer = signer
        self._clock = clock
        given = config.woodpecker
        self._key = signature.load(given.public_key) if given.public_key else None

    def secrets(
        self, target: str, headers: Mapping[str, Sequence[str]], body: bytes
    ) -> SecretsJson:
        """A ticket as a secret for our plugin; no secret for a pipeline that gets none.

        Not the 204 of Woodpecker's documentation: its client would take the empty body for a broken
        answer, and ask three times.
        """
        asked = self._asked(target, headers, body)
        if (about := self._about(asked)) is None:
            return {"secrets": []}
        name, origin = about
        value = self._ticket(name, origin, asked, pulling=False)
        # The plugin's event filter knows one word for all events of pull requests.
        event = "pull_request" if _is_pull(asked.pipeline.event) else asked.pipeline.event
        secret = self._config.woodpecker.secret
        log.info("ticket given", pipeline=name, on=event, branch=origin.branch)
        return {
            "secrets": [
                {"name": secret, "value": value, "images": list(self.images()), "events": [event]}
            ]
        }

    def registries(
        self, target: str, headers: Mapping[str, Sequence[str]], body: bytes
    ) -> RegistriesJson:
        """What later steps pull with; no login for a pipeline that gets none."""
        asked = self._asked(target, headers, body)
        about = self._about(asked)
        if about is None or self._config.registry.external:
            return {"registries": []}
        name, origin = about
        password = self._ticket(name, origin, asked, pulling=True)
        host = self._config.registry_host
        return {"registries": [{"address": host, "username": "mayfly", "password": password}]}

    def images(self) -> tuple[str, ...]:
        """The images that see the ticket.

        Woodpecker reads a name with a colon, as that of a port, as one with a tag: without another
        it stands for `latest` alone (`imageHasTag` in its `yaml/utils/image.go`).
        """
        ours = f"{self._config.registry_host}/{PLUGIN}"
        return self._config.woodpecker.plugin_images or (ours, f"{ours}:{__version__}")

    def _asked(self, target: str, headers: Mapping[str, Sequence[str]], body: bytes) -> _Request:
        if self._key is None:
            raise NotFound(
                "no Woodpecker server is configured here", hint="see [woodpecker] in docs/trust.md"
            )
        now, skew_s = self._clock(), self._config.trust.clock_skew_s
        genuine = signature.verify(self._key, target, headers, body, now, skew_s)
        if not self._store.first_time(genuine.id, genuine.until, now):
            raise InfrastructureError(
                "this very request has been answered before", hint="send it anew, with its own date"
            )
        try:
            return _Request.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the body"
            raise UsageError(f"{where} of the request: {first['msg']}") from None

    def _about(self, asked: _Request) -> tuple[str, Origin] | None:
        """The principal's name and origin; None where the pipeline's repo gets no ticket."""
        found = origin(asked.repo, asked.pipeline)
        try:
            grants.check_repo(found.repo)
        except UsageError as error:
            log.info("no ticket", reason=error.message)
            return None
        if not covers(self._config.woodpecker.repos, found.repo):
            log.info("no ticket", reason=f"{found.repo} is not among woodpecker.repos")
            return None
        if policy.proves_commit(found, self._config.trust):
            self._store.see(found.repo, found.commit, self._clock())
        return f"woodpecker:{found.repo}#{asked.pipeline.number}", found

    def _ticket(self, name: str, found: Origin, asked: _Request, *, pulling: bool) -> str:
        now = self._clock()
        until = now + timedelta(hours=self._config.trust.ticket_max_age_h)
        told = {**asdict(found), "pipeline": [asked.repo.id, asked.pipeline.number]}
        return self._signer.ticket(name, told, expires_at=until, now=now, pulling=pulling)


def origin(repo: _Repo, pipeline: _Pipeline) -> Origin:
    """What the server says about its pipeline. Pure.

    The branch of a pull request is the one that it is meant for, and says nothing about what is
    built; a tag's is its own ref. A deployment of a pull request is told by its ref.
    """
    pull = pull_request_of(pipeline.ref)
    on_branch = not (pull or _is_pull(pipeline.event) or pipeline.event in policy.BY_COMMIT)
    return Origin(
        repos=(repo.full_name.lower(),),
        event=pipeline.event,
        branch=pipeline.branch.removeprefix("refs/heads/") if on_branch else "",
        default_branch=repo.default_branch,
        ref=pipeline.ref,
        commit=pipeline.commit,
        pull_request=pull,
        fork=pipeline.from_fork,
    )


def tickets(given: Verifier, pipelines: Pipelines) -> Verify:
    """The tickets by which a pipeline asks for leases, until it has ended or they expire."""

    async def verify(credential: str, now: datetime) -> Principal | None:
        if tokens.audience(credential) != tokens.TICKET:
            return None
        claims = given.verify(credential, now)
        await _require_running(claims, pipelines)
        return Principal(claims.subject, origin=_origin(claims))

    return verify


def pull_tickets(given: Verifier, pipelines: Pipelines, options: Trust) -> Verify:
    """The tickets by which a pipeline's later steps pull what it has built."""

    async def verify(credential: str, now: datetime) -> Principal | None:
        if tokens.audience(credential) != tokens.PULL:
            return None
        claims = given.verify(credential, now)
        await _require_running(claims, pipelines)
        found = _origin(claims)
        trusted, _ = policy.standing(found, options)
        at = "" if trusted else policy.slot(Principal(claims.subject, origin=found))
        return Principal(f"pull:{claims.subject}", pulls=found.repo, pulls_slot=at)

    return verify


async def _require_running(claims: Claims, pipelines: Pipelines) -> None:
    repo, number = claims.origin["pipeline"]
    if await pipelines.ended(repo, number):
        raise Unauthenticated(f"the pipeline of {claims.subject} has ended")


def _origin(claims: Claims) -> Origin:
    told: dict[str, Any] = {
        name: claims.origin[name] for name in Origin.__dataclass_fields__ if name in claims.origin
    }
    return Origin(**told | {"repos": tuple(told["repos"])})


def _is_pull(event: str) -> bool:
    return event.startswith("pull_request")
