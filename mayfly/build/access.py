"""What one build may do in registries while it runs: credentials where buildx answers from."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mayfly import client
from mayfly.build import broker
from mayfly.build.buildx import Folder
from mayfly.build.cache import Door
from mayfly.build.ssh import Relay
from mayfly.config import Registry
from mayfly.registry import credentials
from mayfly.registry.reference import host_of


@dataclass(frozen=True, slots=True)
class Granted:
    """`environment` is what buildx needs besides; `door` is where the farm's registry, which
    references call `host`, is asked for caches and bases; `warnings` are for the user.
    """

    environment: Mapping[str, str]
    host: str
    door: Door
    warnings: tuple[str, ...]


def check(registry: Registry) -> None:
    """Raises `UsageError` for what is configured wrongly for somebody else's registry."""
    credentials.farms(registry)
    trust(registry)


def trust(registry: Registry) -> ssl.SSLContext | None:
    """Whom to trust at other registries; None: whom the system does. Raises `UsageError`."""
    return client.tls_context(Path(registry.ca)) if registry.ca else None


@asynccontextmanager
async def granted(
    registry: Registry,
    registry_host: str,
    caches: str,
    relay: Relay,
    folder: Folder,
    environ: Mapping[str, str],
    *,
    reads: Iterable[str],
    writes: Iterable[str],
    proxies: Mapping[str, str],
) -> AsyncIterator[Granted]:
    """Credentials for pulling `reads` and pushing `writes`, in `folder`, within the block; beside
    them the `proxies` of the build's steps.

    `registry_host` and `caches` are the farm's, `environ` is the user's. Raises `Denied` when a
    registry that is pushed to refuses the user's login.
    """
    ours = {} if registry.external else {registry_host: relay.token}
    wants = credentials.wanted(reads, writes)
    logins = credentials.Logins(environ, credentials.farms(registry))
    tls = trust(registry)
    given = await credentials.gather(ours, wants, logins, tls)
    buy = partial(credentials.buy, tls=tls)
    async with broker.brokered(given, folder.root, environ, buy) as (config, more):
        folder.write_logins(config, proxies)
        if registry.external:
            host = host_of(caches)
            url = f"https://{credentials.registry_of(host)}"
            door = Door(url, given.authorization(host), tls)
        else:
            host = registry_host
            url = relay.url.rstrip("/").replace("ws", "http", 1)
            door = Door(url, f"Bearer {relay.token}", relay.tls)
        yield Granted(more, host, door, given.warnings)
