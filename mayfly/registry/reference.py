"""Image references, put together for a farm and taken apart as Docker does it. Pure."""

from __future__ import annotations

from mayfly.errors import UsageError

DOCKER_HUB = "docker.io"
"""The host of a reference that names none."""

DOCKER_HUB_KEY = "https://index.docker.io/v1/"

IMAGES = "images/"


def image(registry: str, name: str) -> str:
    """`images/…` (`name`, with or without a tag) as BuildKit must see it; another name as it is.

    `registry` is Mayfly's own (`HOST:PORT`), of whose names `images/` is a part, or what it stands
    for in somebody else's (`HOST/OWNER`). Docker Hub has no names of more than two parts: there
    `--` joins all that follow the owner. Raises `UsageError` for a name that has one already.
    """
    if not name.startswith(IMAGES):
        return name
    if "/" not in registry:
        return f"{registry}/{name}"
    path = name.removeprefix(IMAGES)
    if host_of(registry) != DOCKER_HUB:
        return f"{registry}/{path}"
    path, colon, tag = path.partition(":")
    if "--" in path:
        raise UsageError(
            f"{name}: on Docker Hub `--` stands for the `/` in names", hint="use a single -"
        )
    host, owner, *more = [*registry.split("/"), *path.split("/")]
    return f"{host}/{owner}/{'--'.join(more)}{colon}{tag}"


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


def key_of(host: str) -> str:
    """How Docker's configuration spells the registry that references call `host`."""
    return DOCKER_HUB_KEY if host == DOCKER_HUB else host
