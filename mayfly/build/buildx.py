"""How buildx is called: argument lists, environment and configuration. Pure but for `Folder`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mayfly.build import bake
from mayfly.build.args import BuildArgs

if TYPE_CHECKING:
    from mayfly.build.cache import Cache

BUILDER = "mayfly"
PREFIX = "mayfly-"
HELD = "held"
"""In a `Folder`, locked for as long as the build lives."""

# Of the caller's environment, what would point buildx at another builder, daemon or login.
_FOREIGN = frozenset(
    {"BUILDX_BUILDER", "BUILDX_CONFIG", "BUILDKIT_HOST", "DOCKER_AUTH_CONFIG", "DOCKER_CONTEXT"}
)
# Docker's words for proxies, by the build arguments' names.
_PROXY_KEYS = {"http_proxy": "httpProxy", "https_proxy": "httpsProxy", "no_proxy": "noProxy"}
# What says how definitions are read: a plan has been read.
_READING = frozenset({"BUILDX_BAKE_FILE", "BUILDX_BAKE_FILE_RELATIVE_PATHS"})
_EXPORT = {"mode": "max", "compression": "zstd", "ignore-error": "true"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A build's own directory (0700): BuildKit's socket and buildx's and Docker's configuration.

    It holds tokens, so it must not outlive the build.
    """

    root: Path

    @property
    def socket(self) -> Path:
        return self.root / "buildkitd.sock"

    @property
    def metadata(self) -> Path:
        return self.root / "metadata.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def stdin(self) -> Path:
        return self.root / "stdin"

    @property
    def buildx_config(self) -> Path:
        return self.root / "buildx"

    @property
    def docker_config(self) -> Path:
        return self.root / "docker"

    def remove(self) -> None:
        """Remove it with all that is in it; silently when it is gone."""
        shutil.rmtree(self.root, ignore_errors=True)

    def write_plan(self, plan: Mapping[str, Any] | None) -> None:
        """Keep the definition that `bake` builds from; nothing for `build`, which has none."""
        if plan is not None:
            self.plan.write_text(json.dumps(plan))

    def write_logins(
        self, config: Mapping[str, Any], proxies: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Make `config` what BuildKit's session answers from when it asks for credentials, and
        `proxies` (by `args.PROXIES`) those of every step: of what that file says of them buildx
        makes build arguments (its `GetProxyConfig`), and of these BuildKit both spellings.
        """
        of = {key: proxies[name] for name, key in _PROXY_KEYS.items() if proxies.get(name)}
        config = {**config, **({"proxies": {"default": of}} if of else {})}
        file = self.docker_config / "config.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))


@contextmanager
def folder() -> Iterator[Folder]:
    """A fresh `Folder`; removed with all that is in it on the way out, whatever happened. What a
    process that was killed by SIGKILL left goes when the same user makes the next one.
    """
    _sweep()
    made = Folder(Path(tempfile.mkdtemp(prefix=PREFIX)))
    try:
        with (made.root / "new").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            (made.root / "new").rename(made.root / HELD)  # never there and not held, while we live
            made.docker_config.mkdir()
            made.buildx_config.mkdir()
            yield made
    finally:
        made.remove()


def _sweep() -> None:
    """Remove the folders of this user that nobody holds any more (flock(2) ends with a process)."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = root.lstat()  # one of ours nobody else can put a link in the place of
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                with (root / HELD).open() as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Folder(root).remove()


def create_argv(program: Path, there: Folder) -> tuple[str, ...]:
    """`buildx create`: names the forwarded socket as a builder; it need not be there yet."""
    return (
        str(program),
        "create",
        "--name",
        BUILDER,
        "--driver",
        "remote",
        f"unix://{there.socket}",
    )


def build_argv(
    program: Path, args: BuildArgs, there: Folder, caches: Mapping[str, Cache]
) -> tuple[str, ...]:
    """`buildx build` or `bake`: ours first, so that the user's, untouched, have the last word.

    The layer cache of each target (`caches`, by its name) is imported when it is warm, as are
    those beside it, and exported; a failing export does not fail the build. What builds nothing
    (`--check`) leaves them alone. For `bake` all of that is in the plan (`plan`).
    """
    ours: list[str] = []
    if not args.metadata_file:
        ours += ["--metadata-file", str(there.metadata)]
    if args.plan is not None:
        return (str(program), "bake", *ours, "--file", str(there.plan), *args.buildx)
    for entries in _cache_entries(args, caches).values():
        for flag, entry in entries.items():
            for each in entry:
                ours += [f"--{flag}", ",".join(f"{key}={value}" for key, value in each.items())]
    if not args.kept:
        ours += ["--output", "type=cacheonly"]
    return (str(program), "build", *ours, *args.buildx)


def plan(args: BuildArgs, caches: Mapping[str, Cache]) -> Mapping[str, Any] | None:
    """The definition that `bake` builds from, with the caches in it; None for `build`."""
    return None if args.plan is None else bake.completed(args.plan, _cache_entries(args, caches))


def _cache_entries(
    args: BuildArgs, caches: Mapping[str, Cache]
) -> Mapping[str, Mapping[str, list[dict[str, str]]]]:
    """Each target's `cache-from` and `cache-to`, as fields; none where nothing is built."""
    if not args.builds:
        return {}
    return {
        name: {
            "cache-from": [
                {"type": "registry", "ref": each}
                for each in (*((cache.reference,) if cache.warm else ()), *cache.beside)
            ],
            "cache-to": [{"type": "registry", "ref": cache.reference, **_EXPORT}],
        }
        for name, cache in caches.items()
    }


def history_argv(program: Path) -> tuple[str, ...]:
    """`buildx history logs`: the plain log of the newest build, after it ended."""
    return (str(program), "history", "logs", "--progress", "plain", "^0")


def environment(environ: Mapping[str, str], args: BuildArgs, there: Folder) -> dict[str, str]:
    """The caller's environment, with this build's configuration in place of the user's."""
    kept = {name: value for name, value in environ.items() if name not in _FOREIGN | _READING}
    ours = {
        "BUILDX_BUILDER": BUILDER,
        "BUILDX_CONFIG": str(there.buildx_config),
        "DOCKER_CONFIG": str(there.docker_config),
    }
    if not args.metadata_file:
        ours["BUILDX_METADATA_PROVENANCE"] = "disabled"
    return kept | ours
