"""Which registry a farm runs, settled once for a state: zot, distribution, or somebody else's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from mayfly import users
from mayfly.config import S3, Config
from mayfly.errors import MachineUnfit, MayflyError
from mayfly.registry import distribution, zot
from mayfly.stack import loopback, secrets
from mayfly.stack.certificates import load
from mayfly.stack.files import PUBLIC, place, read
from mayfly.tools import tools_dir


def kind(config: Config) -> str:
    """`distribution`, `zot` or `external`.

    With `auto` it is what this state has had from its first start on, since zot and distribution
    do not see each other's images; at the first start zot where it is on PATH.
    """
    if config.registry.kind != "auto":
        return config.registry.kind
    kept = (read(_kind(config)) or b"").decode(errors="replace").strip()
    if kept in ("distribution", "zot"):
        return kept
    return "zot" if shutil.which("zot") else "distribution"


def program(config: Config) -> Path:
    """The registry's program. Raises `MachineUnfit` when it is not there."""
    if kind(config) != "zot":
        return tools_dir(config.cache) / "registry"
    found = shutil.which("zot")
    if found is None:
        raise MachineUnfit(
            "zot is this farm's registry and is not on PATH",
            hint="install it, or set registry.kind",
        )
    return Path(found)


def faults(config: Config) -> Iterator[MayflyError]:
    """What this machine lacks for the registry, besides the tools; nothing is changed."""
    if kind(config) == "zot":
        try:
            program(config)
        except MayflyError as error:
            yield error
    for option in ("ca", "password_file"):
        path = getattr(config.registry, option)
        try:
            text = Path(path).read_bytes() if path else b""
        except OSError as error:
            yield MachineUnfit(f"registry.{option}: {path} cannot be read: {error.strerror}")
            continue
        if option == "ca" and path and load(text) is None:
            yield MachineUnfit(f"registry.ca: {path} holds no certificate", hint="name a PEM file")


def settle(config: Config) -> Config:
    """The configuration with the registry's kind and port as they are from now on; written down.

    The folders of `users.FOLDERS` are there. Raises `OSError`, and `InfrastructureError` when no
    port is free.
    """
    chosen = kind(config)
    changes: dict[str, object] = {"kind": chosen}
    if chosen != "external":
        place(_kind(config), f"{chosen}\n".encode(), mode=PUBLIC)
    if chosen == "zot" and not config.registry.port:
        file = config.state / "registry" / "ports.json"
        changes["port"] = loopback.ports(file, ("zot",))["zot"]
    return config.model_copy(update={"registry": config.registry.model_copy(update=changes)})


def configure(config: Config, s3: S3) -> Path:
    """Write the configuration of the registry that is settled; its file.

    Raises `ConfigError` when the bucket cannot be named, and `OSError`.
    """
    folder = config.state / "registry"
    if config.registry.kind == "zot":
        file, text = folder / "zot.json", zot.text(zot.settings(config, s3))
    else:
        http_secret = secrets.http(config).decode()
        file = folder / "config.yml"
        text = distribution.text(distribution.settings(config, s3, http_secret))
    place(file, text.encode(), owner=users.REGISTRY)
    return file


def _kind(config: Config) -> Path:
    return config.state / "registry" / "kind"
