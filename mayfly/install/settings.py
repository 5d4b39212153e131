"""The operator's file: written for them the first time, theirs from then on."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mayfly import config as configuration
from mayfly.config import Config
from mayfly.errors import ConfigError, UsageError
from mayfly.install.places import Places

EMBEDDED = "embedded"

SECRET = re.compile(
    rf"MAYFLY_[A-Z0-9]+__(?:{'|'.join(sorted(configuration.SECRET_OPTIONS)).upper()})"
)
"""Variables that are kept in a file of root's, and not in everybody's."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was said to `mayfly install`; an empty one leaves things as they are.

    `registry` and `s3` are `embedded` or where somebody else's is. `public_port` is the one that a
    proxy listens at.
    """

    listen: str = ""
    name: str = ""
    public_port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    registry: str = ""
    s3: str = ""


def wanted(options: Options) -> Mapping[str, str | int]:
    """What the options say, by the names of the configuration. Pure."""
    found: dict[str, str | int] = {
        "server.listen": options.listen,
        "server.name": options.name,
        "server.public_port": options.public_port,
        "server.certificate": options.tls_cert and str(Path(options.tls_cert).absolute()),
        "server.key": options.tls_key and str(Path(options.tls_key).absolute()),
    }
    if options.registry not in ("", EMBEDDED):
        found["registry.kind"] = "external"
        found["registry.images"] = options.registry.removeprefix("https://").rstrip("/")
    if options.s3 not in ("", EMBEDDED):
        found["s3.endpoint"] = options.s3.rstrip("/")
    return {name: value for name, value in found.items() if value}


def text(given: Mapping[str, str | int], places: Mapping[str, str]) -> str:
    """A new file. `places` are `state` and `cache` where they are not the usual ones. Pure."""
    lines = ["# Mayfly's settings: docs/configuration.md. After a change: mayfly install\n"]
    lines += [f"{name} = {json.dumps(value)}\n" for name, value in places.items() if value]
    section = ""
    for name, value in sorted(given.items()):
        of, _, option = name.partition(".")
        if of != section:
            section = of
            lines.append(f"\n[{section}]\n")
        lines.append(f"{option} = {json.dumps(value)}\n")
    return "".join(lines)


def settle(options: Options, places: Places, environ: Mapping[str, str]) -> str:
    """The text of the operator's file: a new one, or theirs and what the options add to it.

    Raises `UsageError` where an option says other than their file, and `ConfigError` where that
    cannot be read.
    """
    given = wanted(options)
    try:
        there = places.config.read_text()
        found = tomllib.loads(there)
    except FileNotFoundError:
        state = environ.get("MAYFLY_STATE", "")
        if not places.real and not state:
            state = str(places.root / "var/lib/mayfly")
        return text(given, {"state": state, "cache": environ.get("MAYFLY_CACHE", "")})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{places.config}: {error}"]) from None
    embedded = {"registry": "registry.kind", "s3": "s3.endpoint"}
    for option, name in embedded.items():
        if getattr(options, option) == EMBEDDED:
            _agree(found, name, ("", "auto", "distribution", "zot"), places)
    for name, value in given.items():
        section, _, option = name.partition(".")
        if option in found.get(section, {}):
            _agree(found, name, (value,), places)
        else:
            there = _with(there, section, option, value)
    return there


def _with(there: str, section: str, option: str, value: str | int) -> str:
    """The text of a file with one more option, which it has not. Pure."""
    line = f"{option} = {json.dumps(value)}\n"
    header = re.compile(rf"^\[{section}\][ \t]*(?:#.*)?(?:\n|\Z)", re.MULTILINE)
    if found := header.search(there):
        return there[: found.end()].rstrip("\n") + f"\n{line}" + there[found.end() :]
    return there.rstrip("\n") + f"\n\n[{section}]\n{line}"


def _agree(
    found: Mapping[str, object], name: str, values: tuple[str | int, ...], places: Places
) -> None:
    section, _, option = name.partition(".")
    table = found.get(section)
    has = table.get(option, "") if isinstance(table, dict) else ""
    if has not in values:
        raise UsageError(
            f"{places.config} says {name} = {json.dumps(has, default=str)}",
            hint="change it there and leave the option out",
        )


def secret(places: Places, environ: Mapping[str, str]) -> dict[str, str]:
    """Secret settings: those kept by an earlier installation, and over them those of `environ`."""
    kept: dict[str, str] = {}
    if places.secrets.exists():
        for line in places.secrets.read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals:
                kept[name] = value
    return kept | {name: value for name, value in environ.items() if SECRET.fullmatch(name)}


def load(text: str, secrets: Mapping[str, str], name: Path) -> Config:
    """The configuration that a file of that text and the secrets make. `name` is the file's, or
    what it will have. Raises `ConfigError`.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        file = Path(folder) / "mayfly.toml"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
        try:
            return configuration.load({"MAYFLY_CONFIG": str(file), **secrets})
        except ConfigError as error:
            told = [fault.replace(str(file), str(name)) for fault in error.faults]
            raise ConfigError(told) from None
