"""What `mayfly run` is asked for, checked; and where the command is to run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.build import declared, repo
from mayfly.build.args import KEEP_MIN, BuildArgs, Target, whole
from mayfly.config import Config
from mayfly.errors import UsageError
from mayfly.model import BuildSpec
from mayfly.registry import grants
from mayfly.run import artifacts, ignored

NONE = "none"
"""As an image: the runner's own system."""

BASES: Mapping[str, str] = {
    "rust": "images/base/rust",
    "go": "images/base/go",
    "javascript": "images/base/node",
    "python": "images/base/python",
}
"""The base image for a language (`languages.py`), where Mayfly makes one."""

STAGE = "run"
"""What such a build's target is called: runs have a history of sizes of their own."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may say. `env` has NAME=VALUE, or NAME for what it is here."""

    size: str = ""
    repo: str = ""
    image: str = ""
    spec: str = ""
    artifacts: Sequence[str] = ()
    env: Sequence[str] = ()
    keep: bool = False
    result: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A command that nothing is known to be wrong with yet.

    `image` is empty for the runner's own system. `args` is what a build of `folder` would have,
    `spec` and `languages` are what the folder says of itself.
    """

    command: tuple[str, ...]
    image: str
    folder: Path
    args: BuildArgs
    repo: str
    ref: str
    event: str
    spec: BuildSpec | None = None
    languages: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The command with its environment in front."""
        env = tuple(f"{name}={value}" for name, value in self.env.items())
        return ("env", *env, *self.command) if env else self.command


def prepare(
    command: Sequence[str],
    options: Options,
    config: Config,
    environ: Mapping[str, str],
    folder: Path,
) -> Run:
    """The command with all that belongs to it, checked as far as it can be here.

    Raises `UsageError` and `SchemaError` (the directory's build spec).
    """
    if not command or not command[0]:
        raise UsageError("there is no command", hint="write it behind --: mayfly run -- cargo test")
    if any("\0" in word for word in command):
        raise UsageError("the command has a NUL character")
    args = BuildArgs(
        verb="build",
        buildx=(),
        targets=(Target(context=".", stage=STAGE, outputs=True),),
        builds=False,
        progress="rawjson",
        size=options.size,
        repo=options.repo,
        spec=options.spec,
        keep_min=KEEP_MIN if options.keep else 0,
    )
    spec, languages = declared.declared(args, environ, folder)
    ignored.patterns(folder)  # a wrong .dockerignore is said now
    if options.result and not (folder / options.result).parent.is_dir():
        raise UsageError(f"--result {options.result}: its folder is not there")
    image = options.image
    if not image:
        image = next((BASES[language] for language in languages if language in BASES), NONE)
    return Run(
        command=tuple(command),
        image="" if image == NONE else whole(image, config.images),
        folder=folder,
        args=args,
        repo=grants.check_repo(repo.name(args, environ, folder)),
        ref=repo.ref(environ, folder),
        event=environ.get("CI_PIPELINE_EVENT") or "manual",
        spec=spec,
        languages=languages,
        artifacts=artifacts.checked(options.artifacts),
        env=dict(_env(options.env, environ)),
    )


def _env(given: Sequence[str], environ: Mapping[str, str]) -> list[tuple[str, str]]:
    made = []
    for text in given:
        name, equals, value = text.partition("=")
        if not _NAME.fullmatch(name):
            raise UsageError(f"--env {name!r} is no variable's name", hint="write --env NAME=VALUE")
        if not equals and name not in environ:
            continue
        made.append((name, value if equals else environ[name]))
    return made
