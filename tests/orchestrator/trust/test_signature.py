"""Signed requests: those that Woodpecker's own code made, and everything that is not quite one."""

from __future__ import annotations

import base64
import json
import re
import string
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import Unauthenticated
from mayfly.orchestrator.trust import signature
from tests.orchestrator.leases import NOW
from tests.orchestrator.trust.forge import PUSH, SECRETS, Woodpecker, utc

REAL = json.loads((Path(__file__).parent / "signed.json").read_text())
"""Made by Woodpecker's code, by `signed/main.go` in a checkout of the commit that docs name."""

SERVER = Woodpecker()
KEY = SERVER.key.public_key()
BODY = SERVER.body(PUSH)


def lists(headers: dict[str, str]) -> dict[str, list[str]]:
    return {name.lower(): [value] for name, value in headers.items()}


def good() -> dict[str, list[str]]:
    return lists(SERVER.headers(SECRETS, BODY, NOW))


def verify(
    headers: dict[str, list[str]],
    *,
    target: str = SECRETS,
    body: bytes = BODY,
    off_s: float = 0,
    key: Any = KEY,
) -> signature.Verified:
    return signature.verify(key, target, headers, body, NOW + timedelta(seconds=off_s), 60)


@pytest.mark.parametrize("number", range(len(REAL["requests"])))
def test_what_the_real_server_signed_is_genuine(number: int) -> None:
    sent = REAL["requests"][number]
    headers = {name.lower(): values for name, values in sent["headers"].items()}
    (created,) = re.findall(r"created=(\d+)", headers["signature-input"][0])
    at, body = utc(int(created)), base64.b64decode(sent["body"])
    key = signature.load(REAL["public_key"])
    genuine = signature.verify(key, sent["target"], headers, body, at, 60)
    assert genuine.until == at + timedelta(seconds=61)
    for target, text in ((sent["target"] + "x", body), (sent["target"], body + b" ")):
        with pytest.raises(Unauthenticated):
            signature.verify(key, target, headers, text, at, 60)
    assert len({r["headers"]["Signature"][0] for r in REAL["requests"]}) == 4


SIGNED = ("content-digest", "signature", "signature-input")


def changed(sent: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, list[str]], bytes]]:
    """The request (as in `REAL`) as often as it has bytes that count, each time with another one
    changed: its target, its headers by lower-case name, its body.
    """
    target, body = sent["target"], base64.b64decode(sent["body"])
    headers = {name.lower(): values for name, values in sent["headers"].items()}
    for at, byte in enumerate(body):
        yield target, headers, body[:at] + bytes([byte ^ 1]) + body[at + 1 :]
    for text in _typos(target):
        yield text, headers, body
    for name in SIGNED:
        for text in _typos(headers[name][0]):
            yield target, {**headers, name: [text]}, body


BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def _typos(text: str) -> Iterator[str]:
    """Also the last letter of base64, of which some bits are of no account."""
    for at, letter in enumerate(text):
        others = {chr(ord(letter) ^ 1), letter.swapcase()}
        if letter in BASE64:
            others.add(BASE64[BASE64.index(letter) ^ 1])
        for other in sorted(others - {letter}):
            yield text[:at] + other + text[at + 1 :]


def test_a_request_that_is_changed_in_one_byte_is_refused() -> None:
    key, sent = signature.load(REAL["public_key"]), REAL["requests"][0]
    (created,) = re.findall(r"created=(\d+)", sent["headers"]["Signature-Input"][0])
    for target, headers, body in changed(sent):
        with pytest.raises(Unauthenticated):
            signature.verify(key, target, headers, body, utc(int(created)), 60)


def test_what_we_sign_in_tests_has_the_real_ones_form() -> None:
    real = REAL["requests"][0]["headers"]
    ours = SERVER.headers(SECRETS, BODY, NOW)
    for name in ("Content-Digest", "Signature", "Signature-Input"):
        shape = re.sub(r"[A-Za-z0-9+/]{40,}={0,2}|\d{9,}", "X", real[name][0])
        assert re.sub(r"[A-Za-z0-9+/]{40,}={0,2}|\d{9,}", "X", ours[name]) == shape


@pytest.mark.parametrize("off_s", [-60, 0, 60])
def test_clocks_may_differ_a_little(off_s: float) -> None:
    verify(good(), off_s=off_s)


@pytest.mark.parametrize(("off_s", "said"), [(-61, "61 s ahead"), (61, "61 s ago"), (1e6, "ago")])
def test_clocks_may_not_differ_much(off_s: float, said: str) -> None:
    with pytest.raises(Unauthenticated, match=rf"{said}.*trust\.clock_skew_s"):
        verify(good(), off_s=off_s)


def _changed(name: str, old: str, new: str) -> dict[str, list[str]]:
    headers = good()
    (value,) = headers[name]
    assert old in value
    return {**headers, name: [value.replace(old, new)]}


BAD: dict[str, dict[str, list[str]]] = {
    "no signature": {k: v for k, v in good().items() if k != "signature"},
    "no input": {k: v for k, v in good().items() if k != "signature-input"},
    "no digest": {k: v for k, v in good().items() if k != "content-digest"},
    "two digests": {**good(), "content-digest": good()["content-digest"] * 2},
    "two signatures": {
        **good(),
        "signature": [f"{good()['signature'][0]}, x={good()['signature'][0].partition('=')[2]}"],
    },
    "another label": _changed("signature", "woodpecker", "wood"),
    "another digest": _changed("content-digest", "sha-256=:", "sha-256=:AAAA"),
    "a weak digest": _changed("content-digest", "sha-256", "md5"),
    "another date": _changed("signature-input", "created=", "created=1"),
    "no date": _changed("signature-input", "created=", "expires="),
    "a date twice": _changed("signature-input", ";alg", ";created=1;alg"),
    "another algorithm": _changed("signature-input", "ed25519", "hmac-sha256"),
    "a nonce that was not signed": _changed("signature-input", ";alg", ';nonce="x";alg'),
    "less is signed": _changed("signature-input", ' "content-digest"', ""),
    "another order": _changed(
        "signature-input",
        '("@request-target" "content-digest")',
        '("content-digest" "@request-target")',
    ),
    "draft-cavage": {
        **good(),
        "signature": ['keyId="k",algorithm="ed25519",headers="(request-target)",signature="AAAA"'],
    },
    "no base64": _changed("signature", ":", ":*"),
    "a short signature": {**good(), "signature": ["woodpecker-ci-extensions=:AAAA:"]},
    "another key": lists(Woodpecker().headers(SECRETS, BODY, NOW)),
    "another body": lists(SERVER.headers(SECRETS, b"{}", NOW)),
    "another path": lists(SERVER.headers("/v1/woodpecker/registries", BODY, NOW)),
    "expired": lists(SERVER.headers(SECRETS, BODY, NOW, f";expires={int(NOW.timestamp()) - 61}")),
    "a date far away": lists(SERVER.headers(SECRETS, BODY, NOW, ";expires=999999999999")),
}


@pytest.mark.parametrize("name", BAD)
def test_everything_else_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(BAD[name])
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(["content-digest", "signature", "signature-input"]),
    st.text(max_size=200) | st.binary(max_size=90).map(lambda b: f"sig=:{b.hex()}:"),
)
def test_no_header_does_worse_than_be_refused(name: str, value: str) -> None:
    with pytest.raises(Unauthenticated):
        verify({**good(), name: [value]})


@given(st.binary(max_size=200))
def test_no_other_body_is_believed(body: bytes) -> None:
    if body != BODY:
        with pytest.raises(Unauthenticated):
            verify(good(), body=body)


def test_the_same_request_has_the_same_id_and_no_other_has() -> None:
    at, later = NOW, NOW + timedelta(seconds=1)
    other = SERVER.body({**PUSH, "number": 99})
    ids = [
        verify(lists(SERVER.headers(SECRETS, BODY, at))).id,
        verify(lists(SERVER.headers(SECRETS, BODY, later))).id,
        verify(lists(SERVER.headers(SECRETS, BODY, at, ';nonce="x"'))).id,
        verify(lists(SERVER.headers(SECRETS, other, at)), body=other).id,
        verify(lists(SERVER.headers("/x", BODY, at)), target="/x").id,
    ]
    assert len(set(ids)) == len(ids)
    assert verify(good()).id == ids[0]
