"""Which repo a build belongs to: the name its images, cache and history are kept under."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mayfly.build.args import BuildArgs
from mayfly.errors import UsageError
from mayfly.registry import grants

MAX_LENGTH = 200
_SCP = re.compile(r"(?:[^@/]+@)?[^:/]+:(?!//)(?P<path>.+)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/]*/(?P<path>.+)", re.IGNORECASE)


def name(args: BuildArgs, environ: Mapping[str, str], cwd: Path) -> str:
    """`--mayfly-repo`, else CI_REPO, else the path of git's origin, else the directory's name.

    Always matches `grants.REPOSITORY` and is at most 200 characters. Raises `UsageError` when
    nothing of the name found can be part of an image's name. git absent, or no work tree, is no
    fault.
    """
    given = args.repo or environ.get("CI_REPO", "")
    if given:
        return normalise(given)
    if args.remote:
        return normalise(origin_path(args.context.partition("#")[0]))
    return of("", cwd if args.context == "-" else (cwd / args.context).resolve())


def of(given: str, directory: Path) -> str:
    """The name `given`, else that of the repo in a directory, as `name` makes it."""
    if given:
        return normalise(given)
    origin = _git(directory, "config", "--get", "remote.origin.url")
    return normalise(origin_path(origin) if origin else directory.name)


def normalise(text: str) -> str:
    """`text` as a repository name of the distribution grammar: what is one already is left alone.

    Lower-case; what is not allowed becomes `-`; `.git` at the end and empty parts go. Raises
    `UsageError` when nothing is left or the name is longer than 200 characters.
    """
    parts = text.strip().strip("/").removesuffix(".git").lower().split("/")
    result = "/".join(filter(None, map(_usable, parts)))
    if not grants.REPOSITORY.fullmatch(result):
        raise UsageError(
            f"no repo name can be made from {text!r}", hint="name it: --mayfly-repo OWNER/NAME"
        )
    if len(result) > MAX_LENGTH:
        raise UsageError(
            f"the repo name {result[:30]}… has {len(result)} characters, {MAX_LENGTH} are allowed",
            hint="name it: --mayfly-repo OWNER/NAME",
        )
    return result


def _usable(part: str) -> str:
    if grants.REPOSITORY.fullmatch(part):
        return part
    words = re.sub(r"[^a-z0-9._-]+", "-", part)
    return re.sub(r"[._-]*([._-])[._-]*", r"\1", words).strip("._-")


def origin_path(url: str) -> str:
    """The path in a git remote: `o/r` of `git@host:o/r.git` and of `https://host/o/r`.

    Of a remote that is a local directory: its last two parts.
    """
    match = _URL.fullmatch(url) or _SCP.fullmatch(url)
    if match:
        return match["path"]
    if url.startswith("github.com/"):
        return url.removeprefix("github.com/")
    return "/".join(Path(url).parts[-2:])


def ref(environ: Mapping[str, str], directory: Path) -> str:
    """The branch or tag that is built, as a label: CI_COMMIT_REF, else git's branch, else empty."""
    return environ.get("CI_COMMIT_REF") or _git(directory, "symbolic-ref", "--short", "HEAD")


def _git(directory: Path, *words: str) -> str:
    """git's answer; empty when git, the work tree or the thing asked for is not there."""
    try:
        found = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
