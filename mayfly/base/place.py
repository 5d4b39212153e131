"""Where base images go: the farm's own registry, or somebody else's; and as whom."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path

from mayfly import client
from mayfly.config import Config
from mayfly.errors import Denied
from mayfly.registry import credentials
from mayfly.registry.credentials import Login, Logins
from mayfly.registry.reference import host_of, image, repository_of


@dataclass(frozen=True, slots=True)
class Place:
    """A repository. `ca` is a PEM file to trust beside the system's, `login` whom to push as."""

    repository: str
    url: str
    ca: Path | None
    login: Login | None
    own: bool

    @property
    def name(self) -> str:
        """The repository's name within its registry."""
        return repository_of(self.repository)

    @property
    def tls(self) -> ssl.SSLContext:
        return client.tls_context(self.ca)

    def trust(self, folder: Path) -> Path | None:
        """A folder with nothing but the CA, as skopeo wants it; it is made within `folder`."""
        if self.ca is None:
            return None
        made = folder / "trust"
        made.mkdir(exist_ok=True)
        shutil.copy(self.ca, made / "ca.crt")
        return made

    def authorization(self) -> str:
        """The header that reads and writes the repository; empty without a login.

        Raises `Denied` when the registry refuses the login.
        """
        host = host_of(self.repository)
        logins = Logins({}, {host: self.login} if self.login else {})
        wants = credentials.wanted([], [self.repository])
        try:
            given = asyncio.run(
                credentials.gather({}, wants, logins, self.tls, proxies=not self.own)
            )
        except Denied:
            if self.own:
                raise Denied(
                    "the registry does not know this token", hint="see MAYFLY_TOKEN"
                ) from None
            raise
        return given.authorization(host)


def place(config: Config, name: str) -> Place:
    """The place of `images/…` (`name`, without a tag). Raises `Denied` without the admin's token
    for a registry of the farm's own, and `UsageError` for what is configured wrongly.
    """
    if not config.registry.external:
        login = Login("mayfly", client.token(config))
        ca = config.state / "trust" / "ca.crt"
        return Place(image(config.images, name), config.url, ca, login, own=True)
    repository = image(config.images, name)
    host = host_of(repository)
    logins = Logins(os.environ, credentials.farms(config.registry))
    ca_ = Path(config.registry.ca) if config.registry.ca else None
    url = f"https://{credentials.registry_of(host)}"
    return Place(repository, url, ca_, asyncio.run(logins.find(host)), own=False)
