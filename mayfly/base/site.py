"""Where this site's package managers get things, for images: read from this machine's settings.

A site with a mirror of PyPI, npm, crates.io or Go's modules has told the tools on this machine;
images made here know it as well, and no Dockerfile says a word. Addresses alone are taken, never
one with a password in it, since an image is for everybody who may pull it, and never one at
loopback, where a build finds nobody but itself.
"""

from __future__ import annotations

import configparser
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Site:
    """Files (path in the image to text), environment, and what was left out, with the reason."""

    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What settings are read from: an environment, a home folder, and the root folder."""

    env: Mapping[str, str]
    home: Path
    root: Path = Path("/")

    def texts(self, *paths: str) -> list[str]:
        """The files that are there, in this order; `~/` is the home folder."""
        found = []
        for path in paths:
            place = self.home / path[2:] if path.startswith("~/") else self.root / path.lstrip("/")
            try:
                found.append(place.read_text())
            except (OSError, UnicodeDecodeError):
                continue
        return found


def read(tools: Collection[str], machine: Machine) -> Site:
    """The site's settings for some of `READERS`. What cannot be parsed counts as not there."""
    files: dict[str, str] = {}
    env: dict[str, str] = {}
    left_out: list[str] = []
    for tool in tools:
        found = READERS[tool](machine)
        files |= found.files
        env |= found.env
        left_out += found.left_out
    return Site(files, env, tuple(left_out))


def unfit(address: str) -> str:
    """Why an address, or one of a list of them, is not for an image; empty when it is."""
    if re.search(r"//[^/\s,|]*@", address):
        return "has a password in it"
    hosts = re.findall(r"//(\[[^]/]*\]|[^][:/\s,|\"]+)", address)
    return "is at this machine's loopback" if any(map(_loopback, hosts)) else ""


def _loopback(host: str) -> bool:
    """Whether a name, or an address, stands for the machine itself wherever it is said."""
    host = host.strip("[]").rstrip(".").lower()
    if host in ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"):
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"127(\.\d+){1,2}", host) is not None
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return (mapped or number).is_loopback or (mapped or number).is_unspecified


def fit(tool: str, settings: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The settings that are for an image, and what to say of the others."""
    bad = {name: reason for name, value in settings.items() if (reason := unfit(value))}
    kept = {name: value for name, value in settings.items() if name not in bad}
    return kept, tuple(f"{tool}'s {name} {reason}" for name, reason in bad.items())


def _pip(machine: Machine) -> Site:
    """pip's order: global files, the user's, the environment (pip documentation, configuration)."""
    found: dict[str, str] = {}
    for text in machine.texts("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf",
                              "~/.config/pip/pip.conf"):  # fmt: skip
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for name in ("index-url", "extra-index-url"):
            if value := parser.get("global", name, fallback="").split():
                found[name] = " ".join(value)
    for name in ("index-url", "extra-index-url"):
        if value := machine.env.get(f"PIP_{name.upper().replace('-', '_')}", "").split():
            found[name] = " ".join(value)
    kept, left_out = fit("pip", found)
    lines = [f"{name} = {value}\n" for name, value in kept.items()]
    return Site(
        {"etc/pip.conf": "".join(["[global]\n", *lines])} if kept else {}, left_out=left_out
    )


def _npm(machine: Machine) -> Site:
    """npm's order: global file, the user's, the environment. Registries only, scoped ones too.

    The result is npm's own built-in configuration, so that a project's and a user's stand above it;
    it also holds the place of global packages, which is not below Debian's /usr/bin/node.
    """
    found: dict[str, str] = {}
    for text in machine.texts("/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc", "~/.npmrc"):
        for line in text.splitlines():
            name, equals, value = (part.strip() for part in line.partition("="))
            if equals and (name == "registry" or (name[:1] == "@" and name.endswith(":registry"))):
                found[name] = value.strip("\"'")
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if machine.env.get(name):
            found["registry"] = machine.env[name]
    kept, left_out = fit("npm", found)
    lines = ["prefix=/usr/local\n", *(f"{name}={value}\n" for name, value in kept.items())]
    return Site({"usr/local/lib/node_modules/npm/npmrc": "".join(lines)}, left_out=left_out)


def _cargo(machine: Machine) -> Site:
    """Source replacement and registries' indexes (The Cargo Book, configuration)."""
    home = Path(machine.env.get("CARGO_HOME") or machine.home / ".cargo")
    table: dict[str, Any] = {}
    for name in ("config.toml", "config"):
        try:
            table = tomllib.loads((home / name).read_text())
            break
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue
    lines: list[str] = []
    left_out: list[str] = []
    for section, names in (("source", ("replace-with", "registry")), ("registries", ("index",))):
        entries: Any = table.get(section)
        for entry, settings in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(settings, dict):
                continue
            found = {n: settings[n] for n in names if isinstance(settings.get(n), str)}
            kept, bad = fit(f"cargo's {section}.{entry}", found)
            left_out += bad
            if kept:
                lines.append(f"[{section}.{json.dumps(entry)}]\n")
                lines += (f"{name} = {json.dumps(value)}\n" for name, value in kept.items())
    if left_out:  # A source that is replaced by one that is left out would be no source at all.
        lines = []
    files = {"usr/local/cargo/config.toml": "".join(lines)} if lines else {}
    return Site(files, left_out=tuple(left_out))


def _go(machine: Machine) -> Site:
    """What `go env -w` keeps, below the environment (go help environment)."""
    names = ("GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB")
    found: dict[str, str] = {}
    for text in machine.texts("~/.config/go/env"):
        pairs = (line.partition("=") for line in text.splitlines())
        found |= {name: value for name, _, value in pairs if name in names and value}
    found |= {name: machine.env[name] for name in names if machine.env.get(name)}
    kept, left_out = fit("Go", found)
    return Site(env=kept, left_out=left_out)


READERS: Mapping[str, Callable[[Machine], Site]] = {
    "cargo": _cargo,
    "go": _go,
    "npm": _npm,
    "pip": _pip,
}
