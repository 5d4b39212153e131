"""A builder on the docker client's side: key and certificate, a link to the socket, buildx's list.

All of it is below `<docker's configuration>/mayfly/NAME`, but for a link that the user names and
what buildx keeps itself; `forget` takes away what `made` made.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mayfly import config as configuration
from mayfly import flow
from mayfly.build import repo as repos
from mayfly.client import Client
from mayfly.errors import InfrastructureError, MachineUnfit, MayflyError, UsageError
from mayfly.model import BUILDER_NAME
from mayfly.registry import grants
from mayfly.wire import BuilderJson, MadeBuilderJson

SOCKET_S = 10.0
"""How long a socket may take to be there; the program that serves it hears of it at once."""

DOCKERS = ("docker", "buildx")
ENDPOINT = "endpoint"
LONGEST_PATH = 107
"""Bytes in the path of a unix socket (unix(7)), without the one that ends it."""

BUILDX_S = 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, checked as far as it can be here. `buildx` is how buildx is called, empty
    where there is none; `folder` is where the files are.
    """

    name: str
    repo: str
    size: str
    linger_s: float | None
    link: Path | None
    tls: bool
    buildx: tuple[str, ...]
    folder: Path

    @property
    def way(self) -> Path | None:
        """The link by which a socket is reached: the user's, else one for buildx, else none."""
        return self.link or (self.folder / "socket" if self.buildx else None)

    @property
    def driver_options(self) -> tuple[str, ...]:
        """`--driver-opt` of `buildx create`; none for a socket."""
        if not self.tls:
            return ()
        files = (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))
        return tuple(f"{option}={self.folder / file}" for option, file in files)

    def argv(self, endpoint: str, program: Sequence[str]) -> tuple[str, ...]:
        """`buildx create`."""
        options = ("--driver-opt", ",".join(self.driver_options)) if self.tls else ()
        return (*program, "create", "--name", self.name, "--driver", "remote", *options, endpoint)

    def by_hand(self, endpoint: str) -> str:
        """The line for whoever tells buildx themselves."""
        return shlex.join(self.argv(endpoint, DOCKERS))

    @property
    def without_dockers(self) -> str:
        """What to say where `docker buildx` is no command; empty where it is, or is not told."""
        if self.buildx in ((), DOCKERS):
            return ""
        program, plugins = shlex.join(self.buildx), self.folder.parent.parent / "cli-plugins"
        install = shlex.join(("install", "-D", *self.buildx, f"{plugins}/docker-buildx"))
        return (
            f"`docker buildx` is no command here: say {program} in its place, or make it one by "
            f"`{install}`"
        )


def wanted(
    name: str,
    repo: str,
    size: str,
    linger_s: float | None,
    named_socket: str,
    *,
    tls: bool,
    register: bool,
    environ: Mapping[str, str],
    cwd: Path,
) -> Wanted:
    """Raises `UsageError` for what cannot be."""
    if not _is_name(name):
        raise UsageError(
            f"{name!r} is no name for a builder", hint="use a-z 0-9 _ -, a letter first, 32 at most"
        )
    link = Path(os.path.abspath(cwd / named_socket)) if named_socket else None  # noqa: PTH100 - links stay
    if link is not None and tls:
        raise UsageError("--socket and --tls exclude each other", hint="give one of them")
    if link is not None and (link.exists() or link.is_symlink()):
        raise UsageError(f"--socket {link}: there is something already", hint="remove it first")
    if link is not None and not link.parent.is_dir():
        raise UsageError(f"--socket {link}: there is no folder {link.parent}")
    folder = docker_folder(environ) / "mayfly" / name
    if folder.exists():
        raise UsageError(
            f"{folder} is there already", hint=f"take another name, or `mayfly builder rm {name}`"
        )
    named = grants.check_repo(repos.of(repo or environ.get("CI_REPO", ""), cwd))
    program = buildx(environ) if register else ()
    made = Wanted(name, named, size, linger_s, link, tls, program, folder)
    if not tls and len(os.fsencode(made.way or "")) > LONGEST_PATH:
        raise UsageError(
            f"{made.way}: too long for a socket's path", hint="give a shorter one with --socket"
        )
    return made


def docker_folder(environ: Mapping[str, str]) -> Path:
    """Docker's configuration, where buildx's is too unless BUILDX_CONFIG says otherwise."""
    return Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker").absolute()


def buildx(environ: Mapping[str, str]) -> tuple[str, ...]:
    """How buildx is called here: docker's own, else Mayfly's; empty where there is neither.

    Both keep their builders in the same place.
    """
    with suppress(OSError, subprocess.SubprocessError):
        known = [*DOCKERS, "version"]
        done = subprocess.run(
            known, env=environ, capture_output=True, timeout=BUILDX_S, check=False
        )
        if done.returncode == 0:
            return DOCKERS
    try:
        return (str(flow.buildx_of(configuration.load(environ))),)
    except MachineUnfit:
        found = shutil.which("buildx", path=environ.get("PATH"))
        return (found,) if found else ()


async def made(farm: Client, asked: Wanted, environ: Mapping[str, str]) -> str:
    """Make it on the farm and on this side; what buildx connects to.

    When this side fails nothing is left on either. Raises what the farm says, `UsageError` where
    the farm's sockets are on another machine, and for what buildx says.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    answer = await farm.make_builder(
        asked.name,
        asked.repo,
        asked.size,
        asked.linger_s,
        uid=None if asked.tls else _user(environ),
        public_key=public.decode() if asked.tls else "",
    )
    try:
        return await _here(asked, answer, key, environ)
    except BaseException as error:
        forget(asked.name, environ)
        with suppress(MayflyError):
            await farm.remove_builder(asked.name)
        if isinstance(error, OSError):
            raise UsageError(f"{error.filename}: {error.strerror}") from None
        raise


async def _here(
    asked: Wanted,
    answer: MadeBuilderJson,
    key: ec.EllipticCurvePrivateKey,
    environ: Mapping[str, str],
) -> str:
    """buildx comes first: it tries to connect, which would cost a runner if it could."""
    address = answer["builder"]["address"]
    link = None if asked.tls else asked.way
    endpoint = f"unix://{link}" if link else address
    asked.folder.mkdir(mode=0o700, parents=True)
    _write(asked.folder / ENDPOINT, f"{endpoint}\n".encode())
    if asked.buildx:
        _run(asked.argv(endpoint, asked.buildx), environ)
    if asked.tls:
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(asked.folder / "key.pem", pem)
        _write(asked.folder / "cert.pem", answer["certificate"].encode())
        _write(asked.folder / "ca.pem", answer["ca"].encode())
        _answered(endpoint)
        return endpoint
    path = Path(address.removeprefix("unix://"))
    await _there(path, answer["builder"])
    if link is not None:
        link.symlink_to(path)
    return endpoint


def _answered(endpoint: str) -> None:
    """Raises `UsageError` when nobody listens there; who says nothing costs no runner."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SOCKET_S).close()
    except OSError as error:
        raise UsageError(
            f"nobody answers at {endpoint}: {error.strerror or error}",
            hint="see builders.listen and log/builders.log of the farm",
        ) from None


async def _there(path: Path, builder: BuilderJson) -> None:
    """Until the builder's socket is there. Raises `UsageError` where that cannot be."""
    if not os.access(path.parent, os.X_OK):
        raise UsageError(
            f"the farm's sockets are not on this machine: there is no {path.parent}",
            hint="use --tls",
        )
    until = time.monotonic() + SOCKET_S
    while not path.is_socket():
        if time.monotonic() > until:
            raise InfrastructureError(
                f"nobody serves {builder['name']} at {path}", hint="see `mayfly status`"
            )
        await asyncio.sleep(0.05)


def forget(name: str, environ: Mapping[str, str]) -> bool:
    """Take away what there is of it on this side; another builder of buildx's stays. Whether there
    was anything; idempotent.
    """
    folder = docker_folder(environ) / "mayfly" / name
    if not _is_name(name) or not folder.is_dir():
        return False
    with suppress(OSError):
        endpoint = (folder / ENDPOINT).read_text().strip()
        link = Path(endpoint.removeprefix("unix://"))
        if endpoint.startswith("unix://") and link.is_symlink():
            link.unlink()
        if endpoint in _instance(name, environ):
            with suppress(MayflyError):
                _run((*buildx(environ), "rm", name), environ)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _is_name(name: str) -> bool:
    return re.fullmatch(BUILDER_NAME, name) is not None


def _instance(name: str, environ: Mapping[str, str]) -> str:
    """What buildx keeps of a builder; empty when it knows none of that name."""
    place = Path(environ.get("BUILDX_CONFIG") or docker_folder(environ) / "buildx")
    try:
        return (place / "instances" / name).read_text()
    except OSError:
        return ""


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raises `UsageError` with buildx's own words."""
    try:
        done = subprocess.run(
            argv, env=environ, capture_output=True, text=True, timeout=BUILDX_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{argv[0]}: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2].removeprefix("ERROR: ")
        raise UsageError(f"buildx does not take it: {said}", hint="or use --no-register")


def _user(environ: Mapping[str, str]) -> int:
    """Who uses the socket: whoever calls, through sudo too."""
    through = environ.get("SUDO_UID", "")
    return int(through) if os.getuid() == 0 and through.isdigit() else os.getuid()


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
