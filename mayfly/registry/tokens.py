"""Every signed token of Mayfly: ES256 JWTs, made by a `Signer`, read by a `Verifier`.

| token | made by | audience | says |
| --- | --- | --- | --- |
| lease token | orchestrator | `mayfly-api` | the holder of lease `sub` |
| page token | orchestrator | `mayfly-page` | may read build `sub`: its row and its log |
| ticket | orchestrator | `mayfly-ticket` | a pipeline, which may ask for leases: its `origin` |
| pull ticket | orchestrator | `mayfly-pull` | a pipeline, whose later steps pull: its `origin` |
| runner token | orchestrator | `mayfly-edge` | one runner: its relay, its `access` at the gateway |
| registry token | orchestrator | `mayfly-edge` | a person's docker client: `access` for 5 minutes |
| gateway token | edge | `mayfly-registry` | what one request needs; only distribution reads it |

A verifier is made for one key, one issuer and one audience, and takes nothing else: neither another
algorithm nor a token of another row. Time is always passed in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mayfly.errors import Unauthenticated
from mayfly.registry import grants
from mayfly.registry.grants import Access

ALGORITHM = "ES256"
ISSUER, GATEWAY_ISSUER = "mayfly", "mayfly-gateway"
API, PAGE, EDGE, REGISTRY = "mayfly-api", "mayfly-page", "mayfly-edge", "mayfly-registry"
TICKET, PULL = "mayfly-ticket", "mayfly-pull"
REGISTRY_TOKEN_S, GATEWAY_TOKEN_S = 300, 120


SERVICE = "mayfly"


def service(runner: str = "") -> str:
    """Docker's `service`: for whom a token is wanted, the public address or a runner's own door.

    So a docker client that logs in with a token of its own gets one that counts at that door.
    """
    return f"{SERVICE}:{runner}" if runner else SERVICE


def runner_of(service: str) -> str:
    """The runner that a `service` names; empty for the public address, and what is none of ours."""
    return service.removeprefix(f"{SERVICE}:") if service.startswith(f"{SERVICE}:") else ""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. `lease` is empty where the token is not a runner's, `origin`
    where it is no ticket.
    """

    subject: str
    expires_at: datetime
    access: tuple[Access, ...] = ()
    lease: str = ""
    attempt: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict)


def audience(token: str) -> str:
    """Whom a token says it is for, unverified; empty when it says nothing of the kind."""
    try:
        found = jwt.decode(token, options={"verify_signature": False}).get("aud")
    except jwt.InvalidTokenError:
        return ""
    return found if isinstance(found, str) else ""


def generate() -> bytes:
    """A new P-256 private key, PEM (PKCS #8)."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public(private_pem: bytes) -> bytes:
    """The public key that belongs to a private one, both PEM. Raises `ValueError`."""
    return (
        _private(private_pem)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def jwks(public_pem: bytes) -> str:
    """The key set that distribution verifies with: JSON of one key, `kid` its thumbprint."""
    key = _public(public_pem)
    entry = {**_jwk(key), "kid": thumbprint(key), "use": "sig", "alg": ALGORITHM}
    return json.dumps({"keys": [entry]}, indent=2) + "\n"


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """RFC 7638: base64url of the SHA-256 of the key's canonical JSON; what `kid` must be."""
    canonical = json.dumps(_jwk(key), sort_keys=True, separators=(",", ":"))
    return _base64url(hashlib.sha256(canonical.encode()).digest())


class Signer:
    """Signs with one private key (PEM) in the name of one issuer."""

    def __init__(self, private_pem: bytes, issuer: str = ISSUER) -> None:
        self._key = _private(private_pem)
        self._issuer = issuer
        self._kid = thumbprint(self._key.public_key())

    def lease_token(self, lease: str, *, expires_at: datetime, now: datetime) -> str:
        """For the lease's own routes of the API."""
        return self._sign(API, lease, expires_at, now)

    def page_token(self, build: str, *, expires_at: datetime, now: datetime) -> str:
        """For the page of one build, which reads and cannot change anything."""
        return self._sign(PAGE, build, expires_at, now)

    def runner_token(
        self,
        lease: str,
        attempt: int,
        access: Iterable[Access],
        *,
        deadline: datetime,
        now: datetime,
    ) -> str:
        """For the relay to the runner `<lease>-<attempt>`, and for the gateway; dies at deadline.

        The whole second before it: a token never outlives its lease.
        """
        subject = f"{lease}-{attempt}"
        return self._sign(EDGE, subject, deadline, now, access, lease=lease, attempt=attempt)

    def ticket(
        self,
        principal: str,
        origin: Mapping[str, Any],
        *,
        expires_at: datetime,
        now: datetime,
        pulling: bool = False,
    ) -> str:
        """For a pipeline: to ask for leases, or to pull what it has built."""
        audience = PULL if pulling else TICKET
        return self._sign(audience, principal, expires_at, now, origin=dict(origin))

    def registry_token(self, principal: str, access: Iterable[Access], *, now: datetime) -> str:
        """What `/token` answers a docker client; lives `REGISTRY_TOKEN_S` seconds."""
        return self._sign(EDGE, principal, now + timedelta(seconds=REGISTRY_TOKEN_S), now, access)

    def gateway_token(self, access: Iterable[Access], *, now: datetime) -> str:
        """For one request to distribution; lives `GATEWAY_TOKEN_S` seconds."""
        expires_at = now + timedelta(seconds=GATEWAY_TOKEN_S)
        return self._sign(REGISTRY, "gateway", expires_at, now, access)

    def _sign(
        self,
        audience: str,
        subject: str,
        expires_at: datetime,
        now: datetime,
        access: Iterable[Access] | None = None,
        **more: Any,
    ) -> str:
        issued = int(now.timestamp())
        payload = {
            "iss": self._issuer,
            "aud": audience,
            "sub": subject,
            "exp": int(expires_at.timestamp()),
            "iat": issued,
            "nbf": issued,
            **more,
        }
        if access is not None:
            payload["access"] = grants.claims(access)
        return jwt.encode(payload, self._key, ALGORITHM, headers={"kid": self._kid})


class Verifier:
    """Reads the tokens of one public key (PEM), one audience, one issuer; refuses all others."""

    def __init__(self, public_pem: bytes, audience: str, issuer: str = ISSUER) -> None:
        self._key = _public(public_pem)
        self._audience = audience
        self._issuer = issuer
        self._kid = thumbprint(self._key)

    def verify(self, token: str, now: datetime) -> Claims:
        """What the token says. Raises `Unauthenticated`, which tells people why and no secret."""
        try:
            if jwt.get_unverified_header(token).get("kid") != self._kid:
                raise Unauthenticated("the token is signed by a key that is not this farm's")
            payload = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp", "iat", "sub", "aud", "iss"],
                    "strict_aud": True,
                    # with the caller's clock, below
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            claims = Claims(
                subject=payload["sub"],
                expires_at=datetime.fromtimestamp(int(payload["exp"]), UTC),
                access=grants.from_claims(payload.get("access", [])),
                lease=str(payload.get("lease", "")),
                attempt=int(payload.get("attempt", 0)),
                origin=dict(payload.get("origin", {})),
            )
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError) as error:
            raise Unauthenticated(f"the token is not valid here: {error}") from None
        if claims.expires_at <= now:
            raise Unauthenticated("the token has expired")
        return claims


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ValueError("not a P-256 private key")
    return key


def _public(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("not a P-256 public key")
    return key


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (_base64url(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
