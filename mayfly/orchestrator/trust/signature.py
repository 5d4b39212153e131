"""The signature of a Woodpecker server's requests: HTTP Message Signatures (RFC 9421), ed25519.

Read off Woodpecker's own code, `server/services/utils/http.go` at commit
a4cb541b82dea1967d5b5577ff80a472b349afb2 (v3.17 and what followed), which signs with
github.com/yaronf/httpsign v0.5.2. Its documentation still names draft-cavage; its code does not
speak that since v3.0. What it sends is always

    Content-Digest: sha-256=:BASE64:
    Signature: woodpecker-ci-extensions=:BASE64:
    Signature-Input: woodpecker-ci-extensions=("@request-target" "content-digest")
                     ;created=N;alg="ed25519"           (on one line)

so that just this is read here, strictly, and all else refused: one signature, those two components
in that order. `created` is the date; there is no nonce, but one that is there is signed and counts.
Method and host are not signed: whoever a repo's administrator had the server call can pass the
request on, which is why a ticket is good for the repo and pipeline in the body and for no other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mayfly.errors import Unauthenticated

_LABEL = r"([a-z*][a-z0-9_.*-]{0,63})"
_PARAMETER = r';([a-z]{1,16})=(\d{1,12}|"[ !#-\[\]-~]{0,128}")'
_INPUT = re.compile(rf'{_LABEL}=(\("@request-target" "content-digest"\)((?:{_PARAMETER}){{1,8}}))')
_SIGNATURE = re.compile(rf"{_LABEL}=:([A-Za-z0-9+/]+={{0,2}}):")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]+={0,2}):")


@dataclass(frozen=True, slots=True)
class Verified:
    """A genuine request. `id` is the same for the same request sent again, and no other's; from
    `until` on its date refuses it, so that it need not be remembered for longer.
    """

    id: str
    until: datetime


def load(pem: str) -> Ed25519PublicKey:
    """The key that a configuration has checked already."""
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, Ed25519PublicKey)  # noqa: S101 - config.Woodpecker sees to it
    return key


def verify(
    key: Ed25519PublicKey,
    target: str,
    headers: Mapping[str, Sequence[str]],
    body: bytes,
    now: datetime,
    skew_s: float,
) -> Verified:
    """That the server with this key sent this request within `skew_s` of now.

    `target` is path and query as they came, `headers` have every value by lower-case name. Raises
    `Unauthenticated`, which says what is wrong with it. Pure: whether it came before is for the
    caller to know.
    """
    digest_header = _one(headers, "content-digest")
    given = _match(_INPUT, _one(headers, "signature-input"), "Signature-Input")
    signed = _match(_SIGNATURE, _one(headers, "signature"), "Signature")
    digest = _match(_DIGEST, digest_header, "Content-Digest")
    if signed[1] != given[1]:
        raise Unauthenticated("Signature and Signature-Input name different signatures")
    parameters = _parameters(given[3])
    if parameters.get("alg", "ed25519") != "ed25519":
        raise Unauthenticated("the request is not signed by ed25519")
    created = _time(parameters.get("created", ""))
    until = created + timedelta(seconds=skew_s)
    if "expires" in parameters:
        until = min(until, _time(parameters["expires"]) + timedelta(seconds=skew_s))
    if created - now > timedelta(seconds=skew_s) or now > until:
        off = (created - now).total_seconds()
        raise Unauthenticated(
            f"the request's date is {abs(off):.0f} s {'ahead' if off > 0 else 'ago'}, or it has "
            f"expired: clocks may differ by {skew_s:g} s (trust.clock_skew_s)"
        )
    if not hmac.compare_digest(_bytes(digest[1]), hashlib.sha256(body).digest()):
        raise Unauthenticated("the body is not the one that Content-Digest is about")
    base = (
        f'"@request-target": {target}\n"content-digest": {digest_header}\n'
        f'"@signature-params": {given[2]}'
    )
    try:
        key.verify(_bytes(signed[2]), base.encode())
    except InvalidSignature:
        raise Unauthenticated(
            "the signature is not the pinned key's for this request",
            hint="see [woodpecker] in the farm's configuration",
        ) from None
    about = "\n".join((target, digest[1], str(created), parameters.get("nonce", "")))
    return Verified(hashlib.sha256(about.encode()).hexdigest(), until + timedelta(seconds=1))


def _one(headers: Mapping[str, Sequence[str]], name: str) -> str:
    values = headers.get(name, ())
    if len(values) != 1:
        raise Unauthenticated(f"the request has {len(values) or 'no'} {name} header")
    return values[0].strip(" \t")


def _match(pattern: re.Pattern[str], value: str, name: str) -> re.Match[str]:
    found = pattern.fullmatch(value)
    if found is None:
        raise Unauthenticated(f"{name} is not what a Woodpecker server sends")
    return found


def _parameters(text: str) -> Mapping[str, str]:
    pairs = re.findall(_PARAMETER, text)
    if len({name for name, _ in pairs}) != len(pairs):
        raise Unauthenticated("Signature-Input names a parameter twice")
    return {name: value.strip('"') for name, value in pairs}


def _time(text: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise Unauthenticated("Signature-Input has no date") from None


def _bytes(text: str) -> bytes:
    """What the text stands for. Only its canonical form is taken: others decode to the same."""
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error:
        found = b""
    if base64.b64encode(found).decode() != text:
        raise Unauthenticated("a header has no proper base64")
    return found
