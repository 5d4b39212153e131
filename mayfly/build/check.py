"""What can be known to be wrong by looking at this machine, before any VM is asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from mayfly.build.args import BuildArgs
from mayfly.errors import UsageError

DOCKER_SOCKET = "unix:///var/run/docker.sock"


def files(args: BuildArgs, cwd: Path) -> None:
    """Check that the context is a directory and the Dockerfile a file, both relative to `cwd`.

    What comes from standard input or from a URL is BuildKit's to find. Raises `UsageError`, also
    for what may not be entered or read.
    """
    try:
        _files(args, cwd)
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}", hint="check its name and its mode"
        ) from None


def _files(args: BuildArgs, cwd: Path) -> None:
    """`files`, where an `OSError` is what the system says to looking and opening."""
    if args.context == "-" and args.dockerfile == "-":
        raise UsageError(
            "context and Dockerfile cannot both be read from standard input",
            hint="give one of them by name",
        )
    if args.remote or args.context == "-":
        return
    context = cwd / args.context
    if not context.is_dir():
        what = "is not a directory" if context.exists() else "is not there"
        raise UsageError(
            f"the build context {args.context} {what}",
            hint="name the directory that holds the sources, as in: mayfly build .",
        )
    os.scandir(context).close()
    if args.dockerfile == "-" or args.dockerfile.startswith(("http://", "https://")):
        return
    if args.dockerfile:
        dockerfile = cwd / args.dockerfile
        if not dockerfile.is_file():
            beside = (context / args.dockerfile).is_file()
            raise UsageError(
                f"the Dockerfile {args.dockerfile} is not there",
                hint=f"-f is relative to the current directory: use -f {args.context}/"
                f"{args.dockerfile}"
                if beside
                else "name it with -f",
            )
    else:
        usual = (context / name for name in ("Dockerfile", "dockerfile"))
        found = next((path for path in usual if path.is_file()), None)
        if found is None:
            raise UsageError(
                f"there is no Dockerfile in {args.context}", hint="add one, or name it with -f"
            )
        dockerfile = found
    dockerfile.open("rb").close()


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
