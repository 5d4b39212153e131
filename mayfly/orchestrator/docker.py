"""Docker's token protocol, as far as its requests go: what was asked, and by whom. Pure.

Both kinds are read: GET with Basic credentials, and OAuth2's form POST. The password (or refresh
token) is a Mayfly token; the user name says nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from mayfly.errors import UsageError
from mayfly.registry.grants import Access, parse_scope
from mayfly.registry.tokens import runner_of

MIN_LIFE_S = 60
"""Clients take a shorter `expires_in` for this much anyway."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a registry token. `credential` is empty when none was given; `runner` is at
    whose door it is to be shown, empty for the public one.
    """

    credential: str
    scopes: tuple[Access, ...]
    runner: str = ""


def from_query(authorization: str, scopes: Sequence[str], service: str = "") -> Asked:
    """A GET: the Authorization header (Basic), every `scope` parameter, and `service`.

    Raises `UsageError` for a scope that is not one.
    """
    return Asked(_basic(authorization), parse_scope(" ".join(scopes)), runner_of(service))


def from_form(body: bytes) -> Asked:
    """A POST: the form's grant and `scope`. Raises `UsageError` for what this is not."""
    try:
        fields = parse_qs(body.decode(), max_num_fields=32)
    except ValueError:
        raise UsageError("the token request is not a form") from None
    secrets = {"password": "password", "refresh_token": "refresh_token"}
    grant = fields.get("grant_type", [""])[0]
    if grant not in secrets:
        raise UsageError(
            f"grant_type {grant[:40]!r} is not known", hint="use password or refresh_token"
        )
    credential = fields.get(secrets[grant], [""])[0]
    scopes = parse_scope(" ".join(fields.get("scope", [])))
    return Asked(credential, scopes, runner_of(fields.get("service", [""])[0]))


def _basic(authorization: str) -> str:
    kind, _, encoded = authorization.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:  # binascii's and codecs' are such, and that of what is not ASCII
        return ""
