"""The layer cache of a build: where it is, and whether there is one yet."""

from __future__ import annotations

import re
import ssl

import aiohttp

TRUST = "trusted"  # the cache's zone; proven per lease by a later issue
TIMEOUT_S = 5.0
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


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
