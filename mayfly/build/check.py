"""What can be known to be wrong by looking at this machine, before any VM is asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from mayfly.build import bake
from mayfly.build.args import BuildArgs, Target
from mayfly.errors import UsageError

_OFF = frozenset({"0", "f", "false"})
DOCKER_SOCKET = "unix:///var/run/docker.sock"


def files(args: BuildArgs, cwd: Path) -> None:
    """Check that contexts are directories and Dockerfiles files, all relative to `cwd`.

    What comes from standard input or from a URL is BuildKit's to find. Raises `UsageError`, also
    for what may not be entered or read.
    """
    try:
        for target in args.targets:
            _files(target, cwd)
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}", hint="check its name and its mode"
        ) from None


def contexts_there(args: BuildArgs, cwd: Path) -> bool:
    """Whether every context that should be a directory here is one."""
    local = (t for t in args.targets if not t.remote and t.context != "-")
    return all(os.path.isdir(cwd / target.context) for target in local)  # noqa: PTH112 - never raises


def results(args: BuildArgs, cwd: Path) -> None:
    """Check that what is written at the end of a build can be written, before it begins.

    Raises `UsageError`.
    """
    for flag, name in (("--metadata-file", args.metadata_file), ("--iidfile", args.iidfile)):
        file = cwd / name
        if not name:
            continue
        if file.is_dir():
            why, hint = f"{name} is a folder", "name a file in it"
        elif not file.parent.is_dir():
            why, hint = f"{file.parent.relative_to(cwd)} is not a folder", "make it first"
        elif not os.access(file if file.exists() else file.parent, os.W_OK):
            why, hint = "it may not be written", "choose another place"
        else:
            continue
        raise UsageError(f"{flag} {name} cannot be written: {why}", hint=hint)


def _files(target: Target, cwd: Path) -> None:
    """`files`, where an `OSError` is what the system says to looking and opening."""
    if target.context == "-" and target.dockerfile == "-":
        raise UsageError(
            "context and Dockerfile cannot both be read from standard input",
            hint="give one of them by name",
        )
    of = f"target {target.name}: " if target.name else ""
    for path in target.contexts:
        if not (cwd / path.removeprefix("cwd://")).is_dir():
            raise UsageError(
                f"{of}the named context {path} is not a directory here",
                hint="name a directory, or an image as docker-image://NAME",
            )
    if target.remote or target.context == "-":
        return
    context = cwd / target.context
    if not context.is_dir():
        what = "is not a directory" if context.exists() else "is not there"
        raise UsageError(
            f"{of}the build context {target.context} {what}",
            hint="name the directory that holds the sources"
            if target.name
            else "name the directory that holds the sources, as in: mayfly build .",
        )
    os.scandir(context).close()
    dockerfile = _dockerfile(target, cwd, context, of)
    if dockerfile is not None:
        dockerfile.open("rb").close()


def _dockerfile(target: Target, cwd: Path, context: Path, of: str) -> Path | None:
    """The file, which is there; None when it is not one of this machine's."""
    name = target.dockerfile
    if name is None or name == "-" or name.startswith(("http://", "https://")):
        return None
    if name:
        if (cwd / name).is_file():
            return cwd / name
        beside = not target.name and (context / name).is_file()
        raise UsageError(
            f"{of}the Dockerfile {name} is not there",
            hint=f"-f is relative to the current directory: use -f {target.context}/{name}"
            if beside
            else "name it in the definition, beside its context"
            if target.name
            else "name it with -f",
        )
    usual = (context / name for name in ("Dockerfile", "dockerfile"))
    found = next((path for path in usual if path.is_file()), None)
    if found is None:
        raise UsageError(
            f"{of}there is no Dockerfile in {target.context}",
            hint="add one, or name it in the definition"
            if target.name
            else "add one, or name it with -f",
        )
    return found


def leave(args: BuildArgs, environ: Mapping[str, str], cwd: Path) -> None:
    """Check that a definition uses no path outside the working directory without the user's leave.

    buildx asks the same, but only once it has a runner. Raises `UsageError`.
    """
    if args.plan is None or environ.get("BUILDX_BAKE_ENTITLEMENTS_FS", "").lower() in _OFF:
        return
    given = bake.allowed(args.buildx)
    for target, entitlement, path in bake.wanted(args.plan):
        homes = given[entitlement] if entitlement == "ssh" else (".", *given[entitlement])
        there = (cwd / path).resolve()
        if not any(home == "*" or there.is_relative_to((cwd / home).resolve()) for home in homes):
            raise UsageError(
                f"target {target} uses {path or 'your SSH agent'}"
                + (", which is outside this directory" if path else ""),
                hint=f"allow it: --allow {entitlement}{path and '='}{path}",
            )


def docker_answers(environ: Mapping[str, str]) -> bool:
    """Whether a Docker daemon is there for `--load`: DOCKER_HOST, else the usual socket."""
    host = environ.get("DOCKER_HOST") or DOCKER_SOCKET
    scheme, _, path = host.partition("://")
    if scheme != "unix":
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
