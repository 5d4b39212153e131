"""The HTTP of `service.py`: routes, rights, and errors as JSON. Nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mayfly import __version__
from mayfly.errors import InfrastructureError, MayflyError, NotFound, Unauthenticated, UsageError
from mayfly.model import MIB, Outcome
from mayfly.orchestrator import docker, metrics, page, trust_routes
from mayfly.orchestrator.forms import BuilderForm, KeyForm, LeaseForm, ReportForm, SizeForm, Stop
from mayfly.orchestrator.rights import Admin, Asker, Holder, Reader, Serve, Who
from mayfly.orchestrator.service import LONGEST_WAIT_S, Service
from mayfly.wire import (
    AskedJson,
    BeatJson,
    BuildersJson,
    BuildJson,
    LeaseJson,
    LoggedJson,
    MadeBuilderJson,
    SizingJson,
    StatusJson,
    TokenJson,
    UsageJson,
    VerdictJson,
    WhyJson,
)

MAX_BODY_BYTES = MIB
"""Of any request; a log is sent in pieces."""

log = structlog.get_logger("orchestrator.api")


Offset = Annotated[int, Query(ge=0, le=2**53)]


def create_app(service: Service) -> FastAPI:
    """The ASGI application. It owns nothing: whoever calls this runs the reconciler."""
    app = FastAPI(
        title="Mayfly",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(_Bounded)
    app.state.service = service
    app.add_exception_handler(MayflyError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the orchestrator answers; needs no token."""
        return {"status": "ok", "version": __version__}

    @app.post("/v1/leases", status_code=201)
    async def lease_create(
        form: LeaseForm, request: Request, service: Serve, who: Who
    ) -> AskedJson:
        """Ask for a runner. With the same Idempotency-Key the same lease is answered again."""
        if form.builder:
            who.require_builders()
        else:
            who.require_leasing()
        key = request.headers.get("idempotency-key", "")
        if len(key) > 200:
            raise UsageError("Idempotency-Key is longer than 200 characters")
        return await service.ask(form.request(), key, who)

    @app.get("/v1/leases")
    async def leases(service: Serve, who: Asker) -> list[LeaseJson]:
        """Every open lease, or those that the caller asked for; oldest first."""
        return service.leases(who)

    @app.get("/v1/leases/{lease_id}")
    async def lease(
        lease_id: str,
        service: Serve,
        who: Holder,
        since: str = "",
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0,
    ) -> LeaseJson:
        """The lease; with `since` and `wait_s`, as soon as its state is another than `since`."""
        return await service.lease(lease_id, who, since, wait_s)

    @app.get("/v1/leases/{lease_id}/events")
    async def events(lease_id: str, service: Serve, _: Holder) -> StreamingResponse:
        """Server-sent events `state` and `progress` until the lease has ended."""
        service.build(lease_id)  # a missing lease is a 404, not a broken stream
        return StreamingResponse(_sse(service, lease_id), media_type="text/event-stream")

    @app.post("/v1/leases/{lease_id}/heartbeat")
    async def heartbeat(lease_id: str, service: Serve, _: Holder) -> BeatJson:
        """The client lives."""
        return service.heartbeat(lease_id)

    @app.post("/v1/leases/{lease_id}/log")
    async def log_append(
        lease_id: str, request: Request, service: Serve, _: Holder, offset: Offset
    ) -> LoggedJson:
        """Append the raw body to the build's log at `offset`; bytes already there are skipped."""
        return {"size_bytes": service.append_log(lease_id, offset, await request.body())}

    @app.post("/v1/leases/{lease_id}/report")
    async def report(lease_id: str, form: ReportForm, service: Serve, _: Holder) -> VerdictJson:
        """The build's outcome, which ends the lease."""
        return await service.report(lease_id, form)

    @app.post("/v1/leases/{lease_id}/keys")
    async def lease_key(lease_id: str, form: KeyForm, service: Serve, who: Holder) -> LeaseJson:
        """Let one more SSH key into the lease's runner; `runner` has what it takes to get there."""
        return await service.authorize(lease_id, form.ssh_public_key, who)

    @app.delete("/v1/leases/{lease_id}", status_code=204)
    async def lease_end(
        lease_id: str, service: Serve, who: Holder, outcome: Stop = Outcome.CANCELLED
    ) -> None:
        """End the lease; nothing happens to one that has ended."""
        service.end(lease_id, outcome, f"ended by {who.name}")

    @app.post("/v1/builders", status_code=201)
    async def builder_create(form: BuilderForm, service: Serve, who: Asker) -> MadeBuilderJson:
        """Make a builder for docker clients; `public_key` is its client's, where it has TLS."""
        return await service.make_builder(form, who)

    @app.get("/v1/builders")
    async def builders(
        service: Serve,
        who: Who,
        since: str = "",
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0,
    ) -> BuildersJson:
        """Every builder, or the caller's own; with `since` and `wait_s`, as soon as the revision is
        another one.
        """
        if not who.builders:
            who.require_leasing()
        return await service.builders.all(who, since, wait_s)

    @app.delete("/v1/builders/{name}", status_code=204)
    async def builder_remove(name: str, service: Serve, who: Asker) -> None:
        """Remove a builder: what is connected is cut, its certificate opens nothing any more."""
        service.remove_builder(name, who)

    @app.get("/v1/builds")
    async def builds(service: Serve, who: Asker) -> list[BuildJson]:
        """The last builds, or those that the caller asked for; youngest first."""
        return service.builds(who)

    @app.get("/v1/builds/{lease_id}")
    async def build(lease_id: str, service: Serve, _: Reader) -> BuildJson:
        """One build, running or ended."""
        return service.build(lease_id)

    @app.get("/v1/builds/{lease_id}/why")
    async def build_why(lease_id: str, service: Serve, _: Reader) -> WhyJson:
        """Why the build had its size, and what its attempts took."""
        return await service.why(lease_id)

    @app.post("/v1/size")
    async def size(form: SizeForm, service: Serve, who: Asker) -> SizingJson:
        """What such a build would get now, and why; no lease is made."""
        return await service.size(form.request(), who)

    @app.get("/v1/builds/{lease_id}/usage")
    async def build_usage(lease_id: str, service: Serve, _: Reader) -> UsageJson:
        """What a build has used, step by step and over time."""
        return service.usage(lease_id)

    @app.get("/v1/builds/{lease_id}/log")
    async def build_log(
        lease_id: str, service: Serve, _: Reader, offset: Offset = 0, follow: bool = False
    ) -> StreamingResponse:
        """The build's log from `offset` on, as far as it goes now; with `follow` until it ends."""
        service.build(lease_id)  # a missing build is a 404, not a broken stream
        text = service.follow(lease_id, offset) if follow else service.log(lease_id, offset)
        headers = {"X-Content-Type-Options": "nosniff"}  # whatever it looks like, it is text
        return StreamingResponse(text, media_type="text/plain", headers=headers)

    @app.get("/builds/{build_id}", response_class=HTMLResponse)
    async def build_page(build_id: str) -> HTMLResponse:
        """A page for people, the same for every build; needs no token, for it shows nothing
        without the one in its address.
        """
        return HTMLResponse(page.HTML, headers=dict(page.HEADERS))

    @app.get("/v1/status")
    async def status(service: Serve, _: Admin) -> StatusJson:
        """What `mayfly status --json` prints."""
        return await service.status()

    @app.get("/metrics")
    async def prometheus(service: Serve, _: Admin) -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics(), media_type=metrics.CONTENT_TYPE)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(_: Who) -> dict[str, Any]:
        return app.openapi()

    @app.get("/token")
    async def token_get(
        request: Request,
        serve: Serve,
        scope: Annotated[list[str] | None, Query()] = None,
        service: str = "",
    ) -> TokenJson:
        """Docker's token protocol, with a Mayfly token as the password of Basic."""
        asked = docker.from_query(request.headers.get("authorization", ""), scope or [], service)
        return await _registry_token(serve, asked)

    @app.post("/token")
    async def token_post(request: Request, service: Serve) -> TokenJson:
        """Docker's token protocol as an OAuth2 form (`password`, `refresh_token`)."""
        return await _registry_token(service, docker.from_form(await request.body()))

    app.include_router(trust_routes.router)
    return app


class _Bounded:
    """Refuses a body as soon as it is longer than allowed, whatever its header says.

    Starlette's own limit answers in plain text, where clients expect an error of ours.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        total = 0

        async def bounded() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, bounded, send)


async def _registry_token(service: Service, asked: docker.Asked) -> TokenJson:
    try:
        return await service.registry_token(asked)
    except NotFound as error:  # the credential's own lease
        raise Unauthenticated(error.message) from None


async def _sse(service: Service, lease_id: str) -> AsyncIterator[str]:
    async for event in service.events(lease_id):
        if event is None:
            yield ": still here\n\n"
        else:
            yield f"event: {event.kind}\ndata: {json.dumps({'text': event.text})}\n\n"


def _answer(error: MayflyError, status: int | None = None) -> JSONResponse:
    body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="mayfly"'
    return JSONResponse(body, status or error.http_status, headers)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MayflyError)  # noqa: S101
    if isinstance(error, InfrastructureError):
        log.warning("request failed", error=str(error))
    return _answer(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    """Every fault of the request in one line."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return _answer(
        UsageError("; ".join(_fault(e) for e in error.errors()), hint="see openapi.json")
    )


def _fault(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    kind = NotFound if error.status_code == 404 else UsageError
    return _answer(kind(str(error.detail)), error.status_code)


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("request failed by a bug", path=request.url.path, exc_info=error)
    return _answer(MayflyError("the orchestrator failed at this request; its log says why"))
