"""Somebody else's registry as a client sees it before a build: `/v2/` and tokens, by TLS."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from mayfly.registry import tokens
from mayfly.stack import certificates


@dataclass
class ThirdParty:
    """`challenge` is what it asks with; `users` whom it knows; `asked` what came to its tokens.

    `parameters` are those of its challenge beside the realm. A token says what it was asked for, so
    that a test can read it off.
    """

    address: str = ""
    challenge: str = "bearer"
    realm: str = ""
    users: dict[str, str] = field(default_factory=lambda: {"me": "hush"})
    refresh: str = "refresh"
    lives_s: int | None = 300
    parameters: str = 'service="third,party",scope="repository:x:pull"'
    asked: list[dict[str, object]] = field(default_factory=list)
    answer: dict[str, object] | None = None

    async def front(self, request: web.Request) -> web.Response:
        realm = self.realm or f"https://{self.address}/token?own=1"
        bearer = f'Bearer realm="{realm}",{self.parameters}'
        headers = {"bearer": [bearer], "basic": ['Basic realm="x"'], "none": []}[self.challenge]
        status = 401 if headers else 200
        return web.Response(status=status, headers=[("WWW-Authenticate", h) for h in headers])

    async def token(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        known = form.get("refresh_token") == self.refresh
        scopes = str(form.get("scope", "")).split()
        if request.method == "GET":
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            user, _, word = base64.b64decode(given).decode().partition(":")
            known = kind == "Basic" and self.users.get(user) == word
            scopes = request.query.getall("scope", [])
        self.asked.append(
            {
                "method": request.method,
                "scopes": scopes,
                "service": request.query.get("service") or form.get("service"),
                "authorization": request.headers.get("Authorization", ""),
                "query": request.query_string,
            }
        )
        if request.method == "GET" and "Authorization" not in request.headers:
            return web.json_response({"token": "anonymous"})
        if not known:
            return web.json_response({}, status=401)
        told: dict[str, object] = {"token": "for " + " ".join(scopes)}
        if self.lives_s is not None:
            told["expires_in"] = self.lives_s
        return web.json_response(told if self.answer is None else self.answer)


def own_address() -> str:
    """An address of this machine that is not loopback; empty when it has none."""
    links = json.loads(subprocess.check_output(["ip", "-j", "-4", "addr", "show", "up"]))
    found = [a["local"] for link in links for a in link.get("addr_info", ())]
    return next((each for each in found if not each.startswith("127.")), "")


@asynccontextmanager
async def third_party(
    folder: Path, host: str = "localhost"
) -> AsyncIterator[tuple[ThirdParty, Path]]:
    """The registry at `HOST:PORT` (an address of this machine), and its CA's file."""
    now = datetime.now(UTC)
    ca_key, key = (certificates.load_key(tokens.generate()) for _ in range(2))
    ca = certificates.authority(ca_key, now)
    served = certificates.server(key, [host], ca, ca_key, now)
    (folder / "third.crt").write_bytes(certificates.dump(served))
    (folder / "third.key").write_bytes(_pem(key))
    (folder / "third-ca.crt").write_bytes(certificates.dump(ca))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "third.crt", folder / "third.key")
    there = ThirdParty()
    app = web.Application()
    app.router.add_get("/v2/", there.front)
    app.router.add_route("*", "/token", there.token)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0, ssl_context=tls).start()
        there.address = f"{host}:{runner.addresses[0][1]}"
        yield there, folder / "third-ca.crt"
    finally:
        await runner.cleanup()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
