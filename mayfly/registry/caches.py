"""The layer caches in the farm's own registry: which there are, and how they are emptied.

A cache is a repository `cache/<trusted|untrusted>/<repo>/<key>` whose tag `latest` BuildKit writes.
To empty it is to delete its manifests: the next build of the repo begins without it. The bytes stay
in the bucket until the registry's garbage collection.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from mayfly.errors import Denied, InfrastructureError, Unreachable
from mayfly.registry import grants

TIMEOUT_S = 30.0
PAGE = 500
AT_ONCE = 8
MOST_MANIFEST_BYTES = 4 * 1024 * 1024
MEDIA = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_NAME = re.compile(r"cache/(?P<zone>trusted|untrusted)/(?P<repo>.+)/(?P<key>[^/]+)")
_NEXT = re.compile(r"<([^>]+)>\s*;\s*rel=\"?next\"?")


@dataclass(frozen=True, slots=True)
class LayerCache:
    """A cache: its repository, and what its manifests refer to, each blob counted once."""

    repository: str
    zone: str
    repo: str
    key: str
    size_bytes: int
    digests: tuple[str, ...]


@dataclass(slots=True)
class Caches:
    """Asks a registry behind Docker's token protocol. `token` is who we are to its token service.

    Every method raises `Unreachable`, `Denied` where the token may not, and
    `InfrastructureError` for answers that make no sense.
    """

    http: httpx.AsyncClient
    token: str

    async def all(self, repo: str = "") -> tuple[LayerCache, ...]:
        """The caches that have something in them, by name: of one repo, as far as its token may
        read them, or of all, which takes the administrator's.
        """
        bearer = await self._bearer(grants.caches(repo) if repo else grants.CATALOG)
        names, path = list[str](), f"/v2/_catalog?n={PAGE}"
        while path:
            answer = await self._call("GET", path, bearer)
            names += [str(name) for name in _json(answer).get("repositories") or ()]
            following = _NEXT.search(answer.headers.get("link", ""))
            path = following[1] if following else ""
        turns = asyncio.Semaphore(AT_ONCE)

        async def look(name: str, found: re.Match[str]) -> LayerCache | None:
            async with turns:
                return await self._cache(name, found)

        wanted = [(name, found) for name in names if (found := _NAME.fullmatch(name))]
        wanted = [(name, found) for name, found in wanted if repo in ("", found["repo"])]
        looked = await asyncio.gather(*(look(name, found) for name, found in wanted))
        return tuple(sorted((c for c in looked if c), key=lambda cache: cache.repository))

    async def empty(self, cache: LayerCache) -> None:
        """Delete the cache's manifests; silently where they are gone."""
        bearer = await self._bearer(grants.caches(cache.repo))
        for digest in cache.digests:
            path = f"/v2/{cache.repository}/manifests/{digest}"
            await self._call("DELETE", path, bearer, missing=True)

    async def _cache(self, name: str, found: re.Match[str]) -> LayerCache | None:
        bearer = await self._bearer(grants.caches(found["repo"]))
        listed = await self._call("GET", f"/v2/{name}/tags/list", bearer, missing=True)
        tags = [] if listed.status_code == 404 else _json(listed).get("tags") or []
        sizes: dict[str, int] = {}
        digests: dict[str, None] = {}
        for tag in tags:
            path = f"/v2/{name}/manifests/{tag}"
            answer = await self._call("GET", path, bearer, missing=True)
            if answer.status_code == 404:
                continue
            if digest := answer.headers.get("docker-content-digest"):
                digests[str(digest)] = None
            sizes |= _blobs(_json(answer))
        if not digests:
            return None
        parts = (found["zone"], found["repo"], found["key"])
        return LayerCache(name, *parts, sum(sizes.values()), tuple(digests))

    async def _bearer(self, access: grants.Access) -> str:
        answer = await self._request(
            "GET", "/token", params={"scope": str(access)}, auth=("mayfly", self.token)
        )
        if answer.status_code in (401, 403):
            raise Denied("the farm does not know this token", hint="see MAYFLY_TOKEN")
        return str(_json(_good(answer)).get("token", ""))

    async def _call(
        self, method: str, path: str, bearer: str, *, missing: bool = False
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}", "Accept": ", ".join(MEDIA)}
        answer = await self._request(method, path, headers=headers)
        if answer.status_code in (401, 403):
            raise Denied(
                "this token may not do that to layer caches",
                hint="name one of its repos (`--repo`), or set MAYFLY_TOKEN to the admin token",
            )
        return answer if missing and answer.status_code == 404 else _good(answer)

    async def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return await self.http.request(method, path, **more)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"the registry does not answer: {why}") from None


@asynccontextmanager
async def caches(url: str, token: str, tls: ssl.SSLContext | None) -> AsyncIterator[Caches]:
    """The caches of the farm at `url`."""
    async with httpx.AsyncClient(
        base_url=url, verify=tls or False, trust_env=False, timeout=TIMEOUT_S
    ) as http:
        yield Caches(http, token)


def total_bytes(found: Sequence[LayerCache]) -> int:
    """What they take together, as far as they do not share."""
    return sum(cache.size_bytes for cache in found)


def _blobs(manifest: dict[str, Any]) -> dict[str, int]:
    """The blobs that a cache's manifest, or index, refers to, with their sizes."""
    entries = [*(manifest.get("layers") or ()), *(manifest.get("manifests") or ())]
    entries += [manifest["config"]] if isinstance(manifest.get("config"), dict) else []
    return {
        str(entry.get("digest")): int(entry.get("size") or 0)
        for entry in entries
        if isinstance(entry, dict)
    }


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    raise InfrastructureError(
        f"the registry answered {answer.request.method} {answer.request.url.path} with "
        f"{answer.status_code}",
        hint="try again",
    )


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        if len(answer.content) > MOST_MANIFEST_BYTES:
            raise ValueError
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise InfrastructureError(f"the registry's {answer.request.url.path} is no JSON object")
    return said
