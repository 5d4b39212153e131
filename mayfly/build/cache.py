"""The layer caches of a build: where they are, and whether there is one yet."""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from mayfly.build.args import BuildArgs
from mayfly.registry import grants
from mayfly.registry.reference import repository_of
from mayfly.wire import TermsJson

T = TypeVar("T")

TIMEOUT_S = 5.0
_LONGEST = 32
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class Cache:
    """A target's layer cache: an image reference, and whether there is something in it.

    `beside` are references of caches that are read as well, and have something in them.
    """

    reference: str
    warm: bool
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Zone:
    """Whose caches: those of trusted builds, or with a `slot` those of one source that is not."""

    name: str = grants.TRUSTED
    slot: str = ""

    def named(self, key: str) -> str:
        """The last part of a cache's name in this zone."""
        return f"{self.slot}__{key}" if self.slot else key


TRUSTED = Zone()


def zones(terms: TermsJson) -> tuple[Zone, tuple[Zone, ...]]:
    """The zone that a lease writes, and those that it reads besides."""
    own = Zone(terms["cache_to"], terms["slot"] if terms["cache_to"] != grants.TRUSTED else "")
    others = (Zone(name) for name in terms["cache_from"] if name != own.name)
    return own, tuple(others)


@dataclass(frozen=True, slots=True)
class Door:
    """How to ask a registry: its URL, what to send as `Authorization`, and whom to trust."""

    url: str
    authorization: str
    tls: ssl.SSLContext | None


def references(
    caches: str, repo: str, args: BuildArgs, keys: Sequence[str] = (), zone: Zone = TRUSTED
) -> Mapping[str, str]:
    """The cache of each target, by the target's name; those of a definition do not share one.

    `caches` and `keys` are as `reference` takes them.
    """
    if args.verb == "build":
        return {"": reference(caches, repo, args.cache_key, args.target, keys, zone)}
    front = f"{args.cache_key}-" if args.cache_key else ""
    return {name: reference(caches, repo, "", front + name, keys, zone) for name in args.names}


async def found(
    door: Door, where: Mapping[str, str], beside: Sequence[Mapping[str, str]] = ()
) -> Mapping[str, Cache]:
    """Which caches are warm, asked all at once; `beside` are those of zones that are only read.

    Never raises.
    """

    async def one(name: str) -> Cache:
        others = [zone[name] for zone in beside]
        own, *rest = await _all(exists(door, each) for each in (where[name], *others))
        read = (other for other, is_warm in zip(others, rest, strict=True) if is_warm)
        return Cache(where[name], own, tuple(read))

    return dict(zip(where, await _all(one(name) for name in where), strict=True))


async def _all(asked: Iterable[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*asked))


def reference(
    caches: str,
    repo: str,
    key: str,
    target: str,
    keys: Sequence[str] = (),
    zone: Zone = TRUSTED,
) -> str:
    """The image reference of the cache: by `key`, else by the Dockerfile's target, else default;
    and by `keys`, the build spec's `cache_keys`: with other ones it is another cache.

    `caches` is Mayfly's own registry (`HOST:PORT`), where each cache is a repository, or the one
    repository that somebody else's has for them (`HOST/OWNER/NAME`), where each is a tag: not every
    registry makes repositories for the asking, or has room in their names.
    """
    name = key or re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-") or "default"
    if keys:
        name += f"__{_joined(keys)}"
    name = zone.named(name)
    if "/" not in caches:
        return f"{caches}/cache/{zone.name}/{repo}/{name}"
    # Readable, and by the digest never another cache's, whatever `-` stands for.
    digest = hashlib.sha256("\n".join((zone.name, repo, name)).encode()).hexdigest()[:16]
    return f"{caches}:{f'{zone.name}-{repo}-{name}'.replace('/', '-')[:100]}-{digest}"


def _joined(keys: Sequence[str]) -> str:
    """The keys as one part of a name: `__` stands in no key. A digest where they are long."""
    whole = "__".join(keys)
    return whole if len(whole) <= _LONGEST else hashlib.sha256(whole.encode()).hexdigest()[:16]


async def exists(door: Door, where: str) -> bool:
    """False when the registry says that there is no such cache; True also when it does not say.

    Without asking, the first build of each repo would show an error of BuildKit's. Never raises.
    """
    tag = where.rpartition("/")[2].partition(":")[2] or "latest"
    url = f"{door.url}/v2/{repository_of(where)}/manifests/{tag}"
    headers = {"Authorization": door.authorization, "Accept": _MANIFESTS}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
            session.head(url, headers=headers, ssl=door.tls or True) as answer,
        ):
            return answer.status != 404
    except (TimeoutError, aiohttp.ClientError, OSError):
        return True
