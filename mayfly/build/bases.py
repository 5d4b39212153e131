"""Whether a base image that a build could not read is the registry's fault, or was never there."""

from __future__ import annotations

from collections.abc import Iterable

import aiohttp

from mayfly.build.cache import Door
from mayfly.registry.reference import host_of, repository_of

LIMIT = aiohttp.ClientTimeout(total=15.0)
"""A registry that takes longer to say whether it has an image does not serve."""

_MANIFESTS = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"


def of(host: str, references: Iterable[str]) -> tuple[str, ...]:
    """Those of the references that stand in the registry at `host`, each once. Pure."""
    return tuple(dict.fromkeys(r for r in references if host_of(r) == host))


def manifest(reference: str) -> str:
    """The path at which a registry has the manifest of `HOST/NAME[:TAG][@DIGEST]`. Pure."""
    name, _, digest = reference.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return f"/v2/{repository_of(reference)}/manifests/{digest or tag or 'latest'}"


async def unreadable(door: Door, references: Iterable[str]) -> str:
    """The first of the references about which the registry has no answer; empty when it has.

    That there is no such image, or that it is not for this build, is an answer. Never raises.
    """
    headers = {"Authorization": door.authorization, "Accept": _MANIFESTS}
    for reference in references:
        url = door.url + manifest(reference)
        try:
            async with (
                aiohttp.ClientSession(timeout=LIMIT) as session,
                session.head(url, headers=headers, ssl=door.tls or True) as answer,
            ):
                if answer.status >= 500:
                    return reference
        except (TimeoutError, aiohttp.ClientError, OSError):
            return reference
    return ""
