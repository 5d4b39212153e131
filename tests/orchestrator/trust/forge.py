"""What stands in for servers outside: a Woodpecker that signs, a forge that issues tokens."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SECRETS, REGISTRIES = "/v1/woodpecker/secrets", "/v1/woodpecker/registries"
COMMIT = "c" * 40

REPO: dict[str, Any] = {"id": 5, "full_name": "Team/App", "default_branch": "main"}
"""As Woodpecker's server sends it, as far as anybody here reads it."""

PUSH: dict[str, Any] = {
    "number": 12,
    "event": "push",
    "branch": "main",
    "ref": "refs/heads/main",
    "commit": COMMIT,
}
PULL: dict[str, Any] = {
    "number": 13,
    "event": "pull_request",
    "branch": "main",
    "ref": "refs/pull/7/head",
    "commit": "d" * 40,
}


@dataclass
class Woodpecker:
    """A server's key, and what it sends; `signed.json` shows that the real one sends the same."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def options(self) -> dict[str, Any]:
        """The section `[woodpecker]` that pins this server."""
        public = self.key.public_key()
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = public.public_bytes(serialization.Encoding.PEM, kind)
        der = public.public_bytes(serialization.Encoding.DER, kind)
        pin = f"sha256:{hashlib.sha256(der).hexdigest()}"
        return {"public_key": pem.decode(), "fingerprint": pin}

    def body(self, pipeline: Mapping[str, Any], repo: Mapping[str, Any] = REPO) -> bytes:
        told = {"repo": {**repo, "visibility": "private"}, "pipeline": {**pipeline, "errors": None}}
        return json.dumps(told).encode() + b"\n"

    def headers(self, target: str, body: bytes, at: datetime, more: str = "") -> dict[str, str]:
        """The headers of a request at that time; `more` are further parameters."""
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        created = int(at.timestamp())
        given = f'("@request-target" "content-digest");created={created}{more};alg="ed25519"'
        base = f'"@request-target": {target}\n"content-digest": {digest}\n'
        signature = self.key.sign(f'{base}"@signature-params": {given}'.encode())
        name = "woodpecker-ci-extensions"
        return {
            "Content-Type": "application/json",
            "Content-Digest": digest,
            "Signature": f"{name}=:{base64.b64encode(signature).decode()}:",
            "Signature-Input": f"{name}={given}",
        }


@dataclass
class Forge:
    """An OIDC issuer at `url`; `asked` counts how often its keys were."""

    url: str = ""
    kid: str = "one"
    key: rsa.RSAPrivateKey = field(
        default_factory=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    asked: int = 0
    broken: bool = False

    def options(self, kind: str = "forgejo", **more: Any) -> dict[str, Any]:
        return {"kind": kind, "issuer": self.url, "repos": ["team/*"], "keys": "/keys", **more}

    def token(self, now: datetime, *, key: Any = None, kid: str = "", **claims: Any) -> str:
        """A token as Forgejo's Actions make it; a claim of None is left out."""
        told = {
            "iss": self.url,
            "aud": "https://registry.mayfly.internal:5000",
            "sub": "repo:Team/App:ref:refs/heads/main",
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((now + timedelta(minutes=10)).timestamp()),
            "repository": "Team/App",
            "event_name": "push",
            "ref": "refs/heads/main",
            "ref_type": "branch",
            "sha": COMMIT,
            "run_id": "4711",
            **claims,
        }
        kept = {name: value for name, value in told.items() if value is not None}
        headers = {"kid": kid or self.kid, "jku": "http://127.0.0.1:1/evil"}
        return jwt.encode(kept, key or self.key, "RS256", headers=headers)

    async def _keys(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.broken:
            return web.Response(status=503)
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return web.json_response({"keys": [{**public, "kid": self.kid, "use": "sig"}]})


@asynccontextmanager
async def forge() -> AsyncIterator[Forge]:
    """A forge that serves its keys on loopback."""
    here = Forge()
    application = web.Application()
    application.router.add_get("/keys", here._keys)
    async with TestServer(application) as server:
        here.url = f"http://127.0.0.1:{server.port}"
        yield here


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
