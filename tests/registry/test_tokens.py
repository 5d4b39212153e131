"""A token is read by the one verifier it is meant for, and by no other."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import Unauthenticated
from mayfly.registry import grants, tokens
from mayfly.registry.grants import Access
from mayfly.registry.tokens import Signer, Verifier

NOW = datetime(2026, 11, 24, 12, 0, 0, 250_000, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
KEY, OTHER = tokens.generate(), tokens.generate()
PUBLIC = tokens.public(KEY)
SIGNER = Signer(KEY)
EDGE = Verifier(PUBLIC, tokens.EDGE)
ACCESS = grants.for_lease("o/r")
KID = json.loads(tokens.jwks(PUBLIC))["keys"][0]["kid"]


def runner_token() -> str:
    return SIGNER.runner_token("abc", 2, ACCESS, deadline=LATER, now=NOW)


def test_a_runner_token_says_who_what_and_until_when() -> None:
    claims = EDGE.verify(runner_token(), NOW)
    assert (claims.subject, claims.lease, claims.attempt) == ("abc-2", "abc", 2)
    assert claims.access == ACCESS
    assert claims.expires_at == LATER.replace(microsecond=0)


@given(st.from_regex(r"[a-z][a-z0-9]{7}-[0-9]{1,3}", fullmatch=True), st.text())
def test_a_service_names_a_runners_door_or_the_public_address(runner: str, other: str) -> None:
    assert tokens.runner_of(tokens.service(runner)) == runner
    assert tokens.runner_of(tokens.service()) == ""
    assert tokens.runner_of(other) == "" or other.startswith("mayfly:")


@given(st.floats(min_value=2, max_value=1e9))
def test_a_runner_token_never_outlives_its_lease(life_s: float) -> None:
    deadline = NOW + timedelta(seconds=life_s)
    token = SIGNER.runner_token("abc", 1, (), deadline=deadline, now=NOW)
    assert EDGE.verify(token, NOW).expires_at <= deadline
    with pytest.raises(Unauthenticated, match="expired"):
        EDGE.verify(token, deadline)


def test_a_token_has_ended_at_its_very_end() -> None:
    end = EDGE.verify(runner_token(), NOW).expires_at
    EDGE.verify(runner_token(), end - timedelta(microseconds=1))
    with pytest.raises(Unauthenticated, match="expired"):
        EDGE.verify(runner_token(), end)


TOKENS = {
    tokens.API: SIGNER.lease_token("abc", expires_at=LATER, now=NOW),
    tokens.EDGE: runner_token(),
    "registry token": SIGNER.registry_token("admin", ACCESS, now=NOW),
    tokens.REGISTRY: Signer(KEY, tokens.GATEWAY_ISSUER).gateway_token(ACCESS, now=NOW),
}
VERIFIERS = {
    tokens.API: Verifier(PUBLIC, tokens.API),
    tokens.EDGE: EDGE,
    tokens.REGISTRY: Verifier(PUBLIC, tokens.REGISTRY, tokens.GATEWAY_ISSUER),
}


@pytest.mark.parametrize("made_for", TOKENS)
@pytest.mark.parametrize("read_by", VERIFIERS)
def test_a_token_of_one_row_is_refused_in_every_other(made_for: str, read_by: str) -> None:
    audience = tokens.EDGE if made_for == "registry token" else made_for
    if audience == read_by:
        VERIFIERS[read_by].verify(TOKENS[made_for], NOW)
    else:
        with pytest.raises(Unauthenticated):
            VERIFIERS[read_by].verify(TOKENS[made_for], NOW)


def payload(**changes: Any) -> dict[str, Any]:
    good = jwt.decode(runner_token(), options={"verify_signature": False})
    return {k: v for k, v in {**good, **changes}.items() if v is not None}


def signed(body: dict[str, Any], key: bytes = KEY, kid: str = KID, alg: str = "ES256") -> str:
    return jwt.encode(body, key, alg, headers={"kid": kid})


def forged(header: dict[str, Any], body: dict[str, Any], signature: bytes | None = None) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    text = f"{part(header)}.{part(body)}"
    if signature is None:  # HMAC keyed with the public key, as PEM
        signature = hmac.new(PUBLIC, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


RSA = rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)
HEADER = {"typ": "JWT", "kid": KID}

WRONG = {
    "no algorithm": forged({**HEADER, "alg": "none"}, payload(), b""),
    "None": forged({**HEADER, "alg": "None"}, payload(), b""),
    "HMAC with the public key": forged({**HEADER, "alg": "HS256"}, payload()),
    "no signature": forged({**HEADER, "alg": "ES256"}, payload(), b""),
    "zero signature": forged({**HEADER, "alg": "ES256"}, payload(), bytes(64)),
    "RSA": signed(payload(), RSA, alg="RS256"),
    "another key under our name": signed(payload(), OTHER),
    "another key": signed(payload(), OTHER, kid="x"),
    "our key under another name": signed(payload(), kid="x"),
    "another audience": signed(payload(aud="mayfly-api")),
    "a list of audiences": signed(payload(aud=["mayfly-edge", "mayfly-api"])),
    "no audience": signed(payload(aud=None)),
    "another issuer": signed(payload(iss="mayfly-gateway")),
    "no issuer": signed(payload(iss=None)),
    "no subject": signed(payload(sub=None)),
    "no end": signed(payload(exp=None)),
    "ended": signed(payload(exp=int(NOW.timestamp()))),
    "an end that is none": signed(payload(exp="never")),
    "an endless end": signed(payload(exp=10**18)),
    "access that is none": signed(payload(access="*")),
    "changed": runner_token().replace(".", ".e30", 1),
    "key of its own": forged({**HEADER, "alg": "ES256", "jwk": {"kty": "EC"}}, payload(), b"x"),
    "garbage": "a.b.c",
    "empty": "",
    "not ascii": "é.é.é",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_token_is_refused(what: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        EDGE.verify(WRONG[what], NOW)
    assert "\n" not in str(caught.value)


def test_the_right_one_made_by_hand_is_not_refused() -> None:
    EDGE.verify(signed(payload()), NOW)


def test_an_answer_of_the_token_route_lives_long_enough_for_docker() -> None:
    claims = EDGE.verify(TOKENS["registry token"], NOW)
    assert (claims.expires_at - NOW).total_seconds() >= 60
    assert claims.lease == ""


def test_the_key_set_names_the_key_by_its_thumbprint() -> None:
    (entry,) = json.loads(tokens.jwks(PUBLIC))["keys"]
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{entry["x"]}","y":"{entry["y"]}"}}'
    digest = hashlib.sha256(canonical.encode()).digest()
    assert entry["kid"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert jwt.get_unverified_header(runner_token())["kid"] == entry["kid"]
    assert "d" not in entry


def test_coordinates_keep_their_leading_zeros() -> None:
    key = ec.derive_private_key(379, ec.SECP256R1())  # the first whose x begins with a zero byte
    assert key.public_key().public_numbers().x < 1 << 248
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (entry,) = json.loads(tokens.jwks(tokens.public(pem)))["keys"]
    assert len(entry["x"]) == 43


@pytest.mark.parametrize("pem", [RSA, b"", b"garbage"])
def test_a_key_of_another_kind_is_refused(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"key|load"):
        Signer(pem)


def test_a_scope_of_nothing_makes_a_token_of_nothing() -> None:
    token = SIGNER.registry_token("admin", (), now=NOW)
    assert EDGE.verify(token, NOW).access == ()
    assert not grants.allows((), Access("a", frozenset({"pull"})))
