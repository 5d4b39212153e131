"""The layer caches of a build: where they are, and whether there is one yet."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from mayfly.build.args import BuildArgs

TRUST = "trusted"  # the cache's zone; proven per lease by a later issue
TIMEOUT_S = 5.0
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class Cache:
    """A target's layer cache: an image reference, and whether there is something in it."""

    reference: str
    warm: bool


def references(registry_host: str, repo: str, args: BuildArgs) -> Mapping[str, str]:
    """The cache of each target, by the target's name; those of a definition do not share one."""
    if args.verb == "build":
        return {"": reference(registry_host, repo, args.cache_key, args.target)}
    front = f"{args.cache_key}-" if args.cache_key else ""
    return {name: reference(registry_host, repo, "", front + name) for name in args.names}


async def found(
    relay_url: str, where: Mapping[str, str], token: str, tls: ssl.SSLContext | None
) -> Mapping[str, Cache]:
    """Which caches are warm, asked all at once. Never raises."""
    warm = await asyncio.gather(*(exists(relay_url, ref, token, tls) for ref in where.values()))
    return {name: Cache(where[name], is_warm) for name, is_warm in zip(where, warm, strict=True)}


def reference(registry_host: str, repo: str, key: str, target: str) -> str:
    """The image reference of the cache: by `key`, else by the Dockerfile's target, else default."""
    name = key or re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-") or "default"
    return f"{registry_host}/cache/{TRUST}/{repo}/{name}"


async def exists(relay_url: str, where: str, token: str, tls: ssl.SSLContext | None) -> bool:
    """False when the registry says that there is no such cache; True also when it does not say.

    Without asking, the first build of each repo would show an error of BuildKit's. Never raises.
    """
    edge = relay_url.rstrip("/").replace("ws", "http", 1)
    url = f"{edge}/v2/{where.partition('/')[2]}/manifests/latest"
    headers = {"Authorization": f"Bearer {token}", "Accept": _MANIFESTS}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
            session.head(url, headers=headers, ssl=tls or True) as answer,
        ):
            return answer.status != 404
    except (TimeoutError, aiohttp.ClientError, OSError):
        return True
