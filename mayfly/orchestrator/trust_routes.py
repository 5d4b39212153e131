"""The routes of `trust/`: static tokens (admin), and what a Woodpecker server calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request

from mayfly.orchestrator import views
from mayfly.orchestrator.forms import TokenForm
from mayfly.orchestrator.rights import Admin, Serve
from mayfly.wire import GivenJson, NewTokenJson, RegistriesJson, SecretsJson

router = APIRouter()


@router.post("/v1/tokens", status_code=201)
async def token_create(form: TokenForm, service: Serve, _: Admin) -> NewTokenJson:
    """A new static token, which is shown this once."""
    return service.give_token(form)


@router.get("/v1/tokens")
async def tokens(service: Serve, _: Admin) -> list[GivenJson]:
    """Every static token that was not revoked, by name."""
    return [views.given(one) for one in service.trust.store.given()]


@router.delete("/v1/tokens/{name}", status_code=204)
async def token_revoke(name: str, service: Serve, _: Admin) -> None:
    """Refuse a static token from now on; leases that it has go on."""
    service.trust.store.take_back(name)


@router.post("/v1/woodpecker/secrets")
async def woodpecker_secrets(request: Request, service: Serve) -> SecretsJson:
    """Woodpecker's secret extension: a ticket for the pipeline that its server tells of, signed."""
    body = await request.body()
    return service.trust.woodpecker.secrets(_target(request), _headers(request), body)


@router.post("/v1/woodpecker/registries")
async def woodpecker_registries(request: Request, service: Serve) -> RegistriesJson:
    """Woodpecker's registry extension: what its agents pull the pipeline's images with."""
    body = await request.body()
    return service.trust.woodpecker.registries(_target(request), _headers(request), body)


def _target(request: Request) -> str:
    """Path and query as they came: what is signed."""
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope["raw_path"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _headers(request: Request) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, value in request.headers.items():
        found[name].append(value)
    return found
