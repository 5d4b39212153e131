"""What is answered where.

public listener     /v2/…                    gateway
                    /v1/leases/{id}/ssh      relay
                    everything else          orchestrator
runner's listener   /v2/…                    gateway, that runner's token only
admin socket        GET /runners             {"runners": [NAME, …]}
                    PUT /runners/{runner}    attach (idempotent)
                    DELETE /runners/{runner} detach (idempotent)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from mayfly.config import Config
from mayfly.edge.attach import Dialer, Runners
from mayfly.edge.gateway import Elsewhere, Gateway
from mayfly.edge.proxy import Backend, Patience
from mayfly.edge.relay import Relay
from mayfly.errors import MayflyError, NotFound
from mayfly.registry import distribution, tokens
from mayfly.registry.tokens import Signer, Verifier

log = logging.getLogger("mayfly.edge")

REGISTRY = Patience(brief_s=60, long_s=120, again_s=20)
"""A registry or bucket that dies or hangs, and is started again (`stack.supervise.HUNG_S`), delays
a build; one that stays away must not hang it. BuildKit makes four tries at most, with 7 s between
them in all (its `retryhandler`), so that whatever it asks has an answer or an error within 9 min,
and within 90 s where it is told that there is none. `long_s` is what a bucket may need to put
together the parts of a large layer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Edge:
    """Everything the edge answers with, put together from configuration and a `Dialer`.

    `tls` serves the runners' listeners. Use within `async with`: leaving closes everything.
    Raises `OSError` and `ValueError` when a key is missing or not one.
    """

    def __init__(self, config: Config, dialer: Dialer, tls: ssl.SSLContext | None) -> None:
        keys = config.state / "keys"
        verifier = Verifier((keys / "lease.pub").read_bytes(), tokens.EDGE)
        signer = Signer((keys / "gateway.key").read_bytes(), tokens.GATEWAY_ISSUER)
        self.runners = Runners(dialer, self.runner, tls)
        self.orchestrator = Backend("the orchestrator", config.run / "api" / "orchestrator.sock")
        # zot says that there is no such repository while its bucket is away.
        store = config.s3.endpoint if config.registry.kind == "zot" else ""
        self.registry = Backend("the registry", registry_address(config), REGISTRY, store=store)
        self._gateway: Gateway | Elsewhere = Gateway(
            config, self.registry, verifier, signer, self.runners
        )
        if config.registry.external:
            self._gateway = Elsewhere(config.registry.images)
        self._relay = Relay(verifier, self.runners, dialer)

    def public(self) -> web.Application:
        """For the one public address."""
        application = web.Application(middlewares=[errors])
        application.router.add_get("/v1/leases/{id}/ssh", self._relay.answer)
        application.router.add_route("*", "/{path:.*}", self._public)
        return application

    def runner(self, name: str) -> web.Application:
        """For the listener of one runner."""

        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._gateway.answer(request, here=name)

        application = web.Application(middlewares=[errors])
        application.router.add_route("*", "/{path:.*}", answer)
        return application

    def admin(self) -> web.Application:
        """For the orchestrator."""

        async def names(request: web.Request) -> web.Response:
            return web.json_response({"runners": self.runners.names})

        async def attach(request: web.Request) -> web.Response:
            await self.runners.attach(request.match_info["runner"])
            return web.Response(status=204)

        async def detach(request: web.Request) -> web.Response:
            await self.runners.detach(request.match_info["runner"])
            return web.Response(status=204)

        application = web.Application(middlewares=[errors])
        application.router.add_get("/runners", names)
        application.router.add_put("/runners/{runner}", attach)
        application.router.add_delete("/runners/{runner}", detach)
        return application

    async def _public(self, request: web.Request) -> web.StreamResponse:
        if _is_registry(request):
            return await self._gateway.answer(request)
        forwarded = {
            "X-Forwarded-For": request.remote or "",
            "X-Forwarded-Proto": request.scheme,
            "Host": request.host,
        }
        return await self.orchestrator.forward(request, request.raw_path, forwarded, drop=())

    async def __aenter__(self) -> Edge:
        await self.orchestrator.open()
        await self.registry.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runners.close()
        await self.registry.close()
        await self.orchestrator.close()


def registry_address(config: Config) -> Path | str:
    """Where the registry that Mayfly runs is found; its kind is settled."""
    if config.registry.kind == "zot":
        return f"127.0.0.1:{config.registry.port}"
    return distribution.socket(config)


def _is_registry(request: web.Request) -> bool:
    return request.raw_path.startswith("/v2/") or request.raw_path.partition("?")[0] == "/v2"


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as the API writes them."""
    try:
        return await handler(request)
    except MayflyError as error:
        return _error(error)
    except web.HTTPException as error:
        return _error(NotFound(f"{request.method} {request.path[:300]}: {error.reason}"))


def _error(error: MayflyError) -> web.Response:
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    return web.json_response({"error": body}, status=error.http_status)


def tls_context(folder: Path, name: str = "edge") -> ssl.SSLContext:
    """The edge's certificate and key: `edge`'s by Mayfly's CA, which is what runners trust, or
    `public`, the operator's own. Raises `OSError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return context


@asynccontextmanager
async def serving(
    application: web.Application, make: Callable[[web.AppRunner], web.BaseSite]
) -> AsyncIterator[None]:
    """Serve an application at the site that `make` puts it to, within the block."""
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=1
    )
    await runner.setup()
    try:
        await make(runner).start()
        yield
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await runner.cleanup()
