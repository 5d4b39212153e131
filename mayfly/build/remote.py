"""A context in git, as much of it as has to be seen before there is a runner: names and specs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

from mayfly.build.args import is_remote
from mayfly.errors import UsageError
from mayfly.spec import NAME

PATIENCE_S = 60.0
IMPORTABLE = frozenset({".json", ".ncl", ".toml", ".txt", ".yaml", ".yml"})
MOST_FILES = 1000

_ARCHIVE = re.compile(r"https?://(?![^?#]*\.git(?:[?#]|$))")
_HINT = "name its build spec with --mayfly-spec PATH, or `--mayfly-spec none` to go without"


@dataclass(frozen=True, slots=True)
class Git:
    """A git context: where, at which ref (empty: the default branch), in which folder of it."""

    url: str
    ref: str
    subdir: str


@dataclass(frozen=True, slots=True)
class Tree:
    """What was fetched of it to `root`: `names` of the files in the context's folder, and `spec`,
    the nearest build spec's path, empty where there is none; with it all that it may import.
    """

    root: Path
    names: tuple[str, ...]
    spec: str


def git(context: str) -> Git | None:
    """The context's parts when it is in git, as BuildKit reads them (`URL#REF:SUBDIR`, and
    `URL?branch=…&subdir=…`); None for archives, directories and standard input.
    """
    if not is_remote(context) or _ARCHIVE.match(context):
        return None
    where, _, fragment = context.partition("#")
    ref, _, subdir = fragment.partition(":")
    url, _, query = where.partition("?")
    asked = {key: values[-1] for key, values in parse_qs(query).items()}
    for key in ("ref", "branch", "tag", "commit"):
        ref = asked.get(key, ref)
    if url.startswith("github.com/"):
        url = f"https://{url}"
    return Git(url, ref, asked.get("subdir", subdir).strip("/"))


@contextmanager
def fetched(context: Git, environ: Mapping[str, str]) -> Iterator[Tree]:
    """What is needed of the context, in a folder that is gone afterwards.

    Only trees and the files that a spec may be made of travel, where the server can do that. git
    asks nobody for a password. Raises `UsageError` when it cannot read the context.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        root = Path(folder).resolve()
        runs = _Runs(root, environ)
        runs("init", "--quiet")
        runs("remote", "add", "origin", "--", context.url)
        runs(
            *("fetch", "--quiet", "--depth=1", "--no-tags", "--filter=blob:none"),
            *("--", "origin", context.ref or "HEAD"),
        )
        listed = runs("ls-tree", "-r", "-z", "--name-only", "FETCH_HEAD").split("\0")
        here = PurePosixPath(context.subdir)
        names = tuple(p.name for p in map(PurePosixPath, listed) if p.parent == here)
        found = next((str(p / NAME) for p in (here, *here.parents) if str(p / NAME) in listed), "")
        if found:
            wanted = [path for path in listed if Path(path).suffix in IMPORTABLE][:MOST_FILES]
            paths = "\0".join({found, *wanted})
            runs(
                *("checkout", "--quiet", "FETCH_HEAD"),
                *("--pathspec-from-file=-", "--pathspec-file-nul"),
                given=paths,
            )
        yield Tree(root, names, found)


@dataclass(frozen=True, slots=True)
class _Runs:
    """git in a folder, by the user's own settings for remotes and logins."""

    folder: Path
    environ: Mapping[str, str]

    def __call__(self, *words: str, given: str = "") -> str:
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=self.folder,
                env={
                    **self.environ,
                    "GIT_TERMINAL_PROMPT": "0",
                    "GIT_SSH_COMMAND": self.environ.get("GIT_SSH_COMMAND") or "ssh -oBatchMode=yes",
                    "GIT_LFS_SKIP_SMUDGE": "1",
                    "GIT_LITERAL_PATHSPECS": "1",
                },
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or f"no answer within {PATIENCE_S:.0f} s"
            raise UsageError(
                f"the git context cannot be read here: git: {why}", hint=_HINT
            ) from None
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [
                "no reason given"
            ]
            raise UsageError(f"the git context cannot be read here: {said[-1]}", hint=_HINT)
        return done.stdout
