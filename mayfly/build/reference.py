"""Image references, taken apart as Docker does it. Pure."""

from __future__ import annotations

DOCKER_HUB = "docker.io"
"""The host of a reference that names none."""


def host_of(reference: str) -> str:
    """The registry's host in an image reference: `docker.io` where it names none."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return DOCKER_HUB if first == "index.docker.io" else first
    return DOCKER_HUB


def repository_of(reference: str) -> str:
    """`images/o/r` of `host:5000/images/o/r:tag`; `library/alpine` of `alpine`."""
    first, slash, path = reference.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        path = reference
    name = path.partition("@")[0].partition(":")[0]
    return f"library/{name}" if host_of(reference) == DOCKER_HUB and "/" not in name else name
