"""`publish`: a base image in `images/base/…` of the registry, made for what is not there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from mayfly import users
from mayfly.base import oci
from mayfly.base.make import known, make_base
from mayfly.base.place import Place, place
from mayfly.base.platform import OWN, Platform, name_of
from mayfly.base.push import push
from mayfly.config import Config, site_certificates
from mayfly.debian.bootstrap import need_root, remove_tree
from mayfly.errors import InfrastructureError, Unreachable
from mayfly.tools import locked

_UNFINISHED = ".new-"
_ACCEPTED = f"{oci.MANIFEST}, {oci.INDEX}"


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the registry, by tag and by digest."""

    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class Present:
    """What a tag stands for: its digest, and the OCI descriptor of each platform's manifest."""

    digest: str = ""
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def publish(
    config: Config,
    kind: str,
    progress: Callable[[str], None],
    *,
    platforms: Sequence[Platform] = (OWN,),
    force: bool = False,
) -> Published:
    """Make the base image `kind` for `platforms` and push it as `images/base/<kind>:latest`.

    A platform that is there stays, asked for or not, unless it is asked for with `force`. The tag
    is set last: it stands for a manifest, or for an index of several platforms', and never for half
    of them.

    Raises `UsageError` for an unknown kind, `Unreachable` when the registry does not answer,
    `Denied` without the admin's token or when a login is refused, and what `make_base` and `push`
    raise; nothing half-made is left.
    """
    known(kind)
    to = place(config, f"images/base/{kind}")

    def lacking() -> tuple[Present, list[Platform]]:
        there = _present(to)
        return there, [p for p in platforms if force or p.name not in there.manifests]

    there, missing = lacking()
    if missing:
        need_root()
        folder = config.state / "base"
        waiting = "waiting for another base image"
        with users.readable(), locked(folder, progress, waiting):
            for abandoned in folder.glob(f"{_UNFINISHED}*"):
                remove_tree(abandoned)
            there, missing = lacking()  # another one may have made it, or changed the tag
            if missing:
                with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as work:
                    digest = _make(config, kind, to, there, missing, Path(work), progress)
                return Published(f"{to.repository}:latest", digest)
    progress(f"base image {kind} is in the registry")
    return Published(f"{to.repository}:latest", there.digest)


def _make(
    config: Config,
    kind: str,
    to: Place,
    there: Present,
    missing: Sequence[Platform],
    work: Path,
    progress: Callable[[str], None],
) -> str:
    """Make the images for `missing`, and push them beside what is `there`; the tag's digest."""

    def send(layout: Path, target: str) -> str:
        ca_dir = to.trust(work)
        return push(layout, f"{to.repository}{target}", ca_dir=ca_dir, login=to.login)

    made = {
        platform.name: make_base(
            kind,
            work / str(number),
            site_certificates=site_certificates(config),
            today=datetime.now(UTC).date(),
            progress=progress,
            platform=platform,
        )
        for number, platform in enumerate(missing)
    }
    new = {p.name: {**oci.descriptor(made[p.name]), "platform": p.oci} for p in missing}
    manifests = {**there.manifests, **new}
    progress(f"pushing {to.repository}:latest for {', '.join(sorted(manifests))}")
    if len(manifests) == 1:
        return send(made[missing[0].name], ":latest")
    for platform in missing:
        send(made[platform.name], f"@{new[platform.name]['digest']}")
    index = work / "index"
    oci.write_index(index, [manifests[name] for name in sorted(manifests)], tag="latest")
    return send(index, ":latest")


def _present(at: Place) -> Present:
    """What `<name>:latest` stands for; nothing where there is no such tag."""
    name, url = at.name, at.url
    try:
        with httpx.Client(base_url=url, verify=at.tls, trust_env=not at.own, timeout=30) as http:
            authorization = at.authorization()
            bearer = {"Authorization": authorization} if authorization else {}
            found = http.get(
                f"/v2/{name}/manifests/latest", headers={**bearer, "Accept": _ACCEPTED}
            )
            if found.status_code == httpx.codes.NOT_FOUND:
                return Present()
            digest = found.raise_for_status().headers["Docker-Content-Digest"]
            manifest = found.json()
            if "manifests" in manifest:
                return Present(digest, {name_of(m["platform"]): m for m in manifest["manifests"]})
            config = http.get(f"/v2/{name}/blobs/{manifest['config']['digest']}", headers=bearer)
            platform = config.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        raise InfrastructureError(
            f"the registry answers {error.response.status_code} for {name}"
        ) from None
    except (httpx.TransportError, OSError) as error:
        raise Unreachable(
            f"the registry does not answer at {url}: {error}",
            hint="start it with `mayfly up`" if at.own else "see [registry] of the configuration",
        ) from None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise InfrastructureError(
            f"{name}:latest in the registry is no image that `mayfly base push` makes",
            hint="remove that tag",
        ) from None
    size = len(found.content)
    of = {key: platform[key] for key in ("os", "architecture", "variant") if key in platform}
    one = {"mediaType": oci.MANIFEST, "digest": digest, "size": size, "platform": of}
    return Present(digest, {name_of(of): one})
