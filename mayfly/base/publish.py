"""`publish`: a base image in `images/base/…` of the registry, made when it is not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from mayfly import client
from mayfly.base.make import KINDS, make_base
from mayfly.base.push import push
from mayfly.config import Config, site_certificates
from mayfly.errors import Denied, InfrastructureError, Unreachable, UsageError

ACCEPTED = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the registry, by tag and by digest."""

    reference: str
    digest: str


def publish(
    config: Config, kind: str, progress: Callable[[str], None], *, force: bool = False
) -> Published:
    """Make the base image `kind` and push it as `images/base/<kind>:latest`.

    What is there stays, and is answered, unless `force`. Raises `UsageError` for an unknown kind,
    `Unreachable` when the registry does not answer, `Denied` without the admin's token, and what
    `make_base` and `push` raise; nothing half-made is left.
    """
    if kind not in KINDS:
        raise UsageError(f"no base image called {kind}", hint=f"there are {', '.join(KINDS)}")
    name = f"images/base/{kind}"
    reference = f"{config.registry_host}/{name}:latest"
    trust, token = config.state / "trust", client.token(config)
    there = _digest(config.url, name, token, trust / "ca.crt")
    if there and not force:
        progress(f"base image {kind} is in the registry")
        return Published(reference, there)
    with tempfile.TemporaryDirectory(prefix=".base-", dir=config.state) as folder:
        layout = make_base(
            kind,
            Path(folder),
            site_certificates=site_certificates(config),
            today=datetime.now(UTC).date(),
            progress=progress,
        )
        progress(f"pushing {reference}")
        return Published(reference, push(layout, reference, ca_dir=trust, token=token))


def _digest(url: str, name: str, token: str, ca: Path) -> str:
    """The digest behind `<name>:latest`; empty when there is none."""
    try:
        with httpx.Client(base_url=url, verify=str(ca), trust_env=False, timeout=30) as http:
            scope = f"repository:{name}:pull"
            asked = http.get("/token", params={"scope": scope}, auth=("mayfly", token))
            if asked.status_code == httpx.codes.UNAUTHORIZED:
                raise Denied("the registry does not know this token", hint="see MAYFLY_TOKEN")
            found = http.head(
                f"/v2/{name}/manifests/latest",
                headers={
                    "Authorization": f"Bearer {asked.raise_for_status().json()['token']}",
                    "Accept": ACCEPTED,
                },
            )
    except httpx.HTTPStatusError as error:
        raise InfrastructureError(
            f"the registry answers {error.response.status_code} for a token"
        ) from None
    except (httpx.TransportError, OSError) as error:
        raise Unreachable(
            f"the registry does not answer at {url}: {error}", hint="start it with `mayfly up`"
        ) from None
    if found.status_code == httpx.codes.NOT_FOUND:
        return ""
    if found.is_error:
        raise InfrastructureError(f"the registry answers {found.status_code} for {name}")
    return found.headers["Docker-Content-Digest"]
