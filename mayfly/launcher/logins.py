"""Logins from settings, as Docker's configuration holds them. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mayfly.launcher.values import Login
from mayfly.registry.reference import DOCKER_HUB, key_of

_HUB_NAMES = frozenset({"", "docker.io", "index.docker.io", "registry-1.docker.io"})


def host(registry: str) -> str:
    """The registry's host as image references have it: of an address, with or without a scheme."""
    bare = registry.strip().removeprefix("https://").removeprefix("http://")
    name = bare.partition("/")[0].lower()
    return DOCKER_HUB if name in _HUB_NAMES else name


def configuration(logins: Iterable[Login], config: Mapping[str, Any]) -> str:
    """`DOCKER_AUTH_CONFIG`: the logins, and the `auths` of a config.json for other registries.

    Of several logins for a registry the first counts.
    """
    auths: dict[str, Any] = dict(_auths(config))
    for login in reversed(tuple(logins)):
        pair = f"{login.username}:{login.password}"
        auths[key_of(host(login.registry))] = {"auth": base64.b64encode(pair.encode()).decode()}
    return json.dumps({"auths": auths}) if auths else ""


def secrets(logins: Iterable[Login], config: Mapping[str, Any]) -> Iterator[str]:
    """All in them that must not be seen: passwords, and the pairs that travel as one."""
    for login in logins:
        yield from (login.password, f"{login.username}:{login.password}")
    for entry in _auths(config).values():
        if not isinstance(entry, dict):
            continue
        for name in ("auth", "password", "identitytoken", "registrytoken"):
            text = str(entry.get(name, ""))
            yield text
            if name == "auth":
                yield from _decoded(text)


def _auths(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("auths")
    return found if isinstance(found, dict) else {}


def _decoded(auth: str) -> Iterator[str]:
    try:
        pair = base64.b64decode(auth).decode()
    except ValueError:
        return
    yield from (pair, pair.partition(":")[2].strip("\0"))
