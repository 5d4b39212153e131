"""The arguments of `mayfly build` and `mayfly bake`: Mayfly's own told from buildx's. Pure.

buildx's arguments go through untouched and in order; what Mayfly must know of them (contexts,
tags, outputs …) is read off. Two things are changed: an `images/…` tag gets the registry's address
in front, and `--mayfly-*` is taken out. `BuildArgs` is what both verbs amount to: `build` has one
target, without a name; `bake` (`bake.py`) those of its definition.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mayfly.build.flags import BUILD, Arg, split
from mayfly.errors import UsageError
from mayfly.registry.reference import image

PROGRESS = frozenset({"auto", "none", "plain", "quiet", "rawjson", "tty"})

KEEP_MIN, MOST_KEEP_MIN = 30.0, 10_000.0
"""Minutes for which the runner of a failed build is kept unless the flag says, and at most; the
farm's own limit, which is shorter, is the orchestrator's to know."""

_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_HOST = r"(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]+)?"
_REFERENCE = re.compile(rf"(?:{_HOST}/)?{_PATH}(?::[\w][\w.-]{{0,127}})?", re.ASCII)
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
"""Build arguments that every step has in its environment, in both spellings, undeclared."""

_CACHE_KEY = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_REMOTE = re.compile(r"(?:https?|git|ssh)://|git@|[^/]+@[^/]+:|github\.com/")


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to build, read off the arguments of `build` or off the plan of `bake`.

    `context` may be a directory, a URL, or `-`; so may `dockerfile` (a path is relative to the
    working directory), which is empty for the usual one beside the context, and None where the
    definition holds the text itself. `contexts` are directories that go by other names in it.
    `inline` is that text. `stage` is the Dockerfile's stage. `reads` and `writes` are the images
    that are named beside the Dockerfile and are pulled or pushed: contexts, caches, outputs, and
    the tags where they are pushed.
    """

    name: str = ""
    context: str = "."
    dockerfile: str | None = ""
    inline: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()
    stage: str = ""
    tags: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    outputs: bool = False
    push: bool = False
    load: bool = False
    stdout: bool = False

    @property
    def remote(self) -> bool:
        """The context is fetched by BuildKit itself: git, or a tarball by HTTP."""
        return is_remote(self.context)


@dataclass(frozen=True, slots=True)
class BuildArgs:
    """What is asked for. `verb` is buildx's; `targets` are in the order in which they are named.

    `buildx` is what goes to buildx: for `build` the user's arguments in their order, `images/…`
    names made whole, less `proxies`, which stand for what the environment has; for `bake` those
    that are about the run, while all that is about targets is in `plan`, a definition that is
    resolved. `progress` is empty when the user left it to buildx.
    """

    verb: str
    buildx: tuple[str, ...]
    targets: tuple[Target, ...]
    plan: Mapping[str, Any] | None = None
    builds: bool = True
    progress: str = ""
    metadata_file: str = ""
    iidfile: str = ""
    size: str = ""
    grow: bool = True
    keep_min: float = 0
    repo: str = ""
    spec: str = ""
    cache_key: str = ""
    proxies: tuple[str, ...] = ()

    @property
    def context(self) -> str:
        """Where the sources are that name the repo; `bake` is about the working directory."""
        return self.targets[0].context if self.verb == "build" else "."

    @property
    def dockerfile(self) -> str:
        """The one Dockerfile of `build`; empty for the usual one, and for `bake`."""
        return (self.targets[0].dockerfile or "") if self.verb == "build" else ""

    @property
    def target(self) -> str:
        """What is built, in a word or two: the stage, or the names of bake's targets."""
        return self.targets[0].stage if self.verb == "build" else ",".join(self.names)[:255]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tag for target in self.targets for tag in target.tags)

    @property
    def pushed(self) -> tuple[str, ...]:
        """The tags that are pushed."""
        return tuple(tag for target in self.targets if target.push for tag in target.tags)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for target in self.targets for name in target.reads)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(name for target in self.targets for name in target.writes)

    @property
    def push(self) -> bool:
        return any(target.push for target in self.targets)

    @property
    def remote(self) -> bool:
        """The sources are fetched by BuildKit itself: git, or a tarball by HTTP."""
        return is_remote(self.context)

    @property
    def stdin(self) -> bool:
        """Context or Dockerfile come from standard input."""
        return "-" in (self.context, self.dockerfile)

    @property
    def stdout(self) -> bool:
        """The result is written to standard output, as it comes."""
        return any(target.stdout for target in self.targets)

    @property
    def kept(self) -> bool:
        """Every result goes somewhere other than the build cache."""
        return not self.builds or all(target.outputs for target in self.targets)


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments by flag (long names; positional ones under the empty name)."""

    args: tuple[Arg, ...]

    def values(self, flag: str) -> tuple[str, ...]:
        """Every value of the flag, in order."""
        return tuple(a.value for a in self.args if a.flag == flag and a.tokens != ("--",))

    def last(self, flag: str) -> str:
        """The value that counts where only one can; empty when the flag is not there."""
        return next(reversed(self.values(flag)), "")

    def on(self, flag: str) -> bool:
        """Whether a switch is switched on: of several the last counts, as for buildx."""
        return next((a.on for a in reversed(self.args) if a.flag == flag), False)


def parse(
    argv: Sequence[str],
    registry: str,
    environ: Mapping[str, str] = MappingProxyType({}),
    *,
    docker: bool = False,
) -> BuildArgs:
    """What `mayfly build` is asked for. `docker`: a Docker daemon is there for `--load`.
    `registry` is where `images/…` is, as `reference.image` takes it; `environ` has the values of
    build arguments that are given by name alone.

    Raises `UsageError` for whatever can be known to be wrong without looking at a file.
    """
    args = split(argv, BUILD)
    full = [a.with_value(whole(a.value, registry)) if a.flag == "tag" else a for a in args]
    proxies = [a for a in full if a.flag == "build-arg" and a.value.lower() in PROXIES]
    given = Given(tuple(full))
    context = _context(given.values(""))
    refuse(given)
    outputs = given.values("output")
    fields = [parse_fields(output) for output in outputs]
    target = Target(
        context=context,
        dockerfile=given.last("file"),
        build_args=dict(_build_args(given.values("build-arg"), environ)),
        contexts=tuple(_local_contexts(given.values("build-context"))),
        stage=given.last("target"),
        tags=given.values("tag"),
        reads=tuple(_reads(given)),
        writes=tuple(_writes(given, fields)),
        outputs=bool(outputs) or given.on("push") or given.on("load"),
        push=given.on("push") or any(pushes(f) for f in fields),
        load=given.on("load") or any(loads(f) for f in fields),
        stdout="-" in outputs or any(streams(f) for f in fields),
    )
    check_outputs(target, named=any("name" in f for f in fields), docker=docker)
    return BuildArgs(
        verb="build",
        buildx=tuple(
            token
            for a in full
            if not a.flag.startswith("mayfly-") and a not in proxies
            for token in a.tokens
        ),
        targets=(target,),
        builds=builds(given) and not given.last("print"),
        progress=progress(given),
        metadata_file=given.last("metadata-file"),
        iidfile=given.last("iidfile"),
        size=given.last("mayfly-size"),
        grow=not given.on("mayfly-no-grow"),
        keep_min=keep_min(given),
        repo=given.last("mayfly-repo"),
        spec=given.last("mayfly-spec"),
        cache_key=cache_key(given),
        proxies=tuple(a.value for a in proxies),
    )


def _build_args(texts: Iterable[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values; as for buildx, a name alone that is not in `environ` is none."""
    for text in texts:
        name, equals, value = text.partition("=")
        if equals or name in environ:
            yield name, value if equals else environ[name]


def builds(given: Given) -> bool:
    """Whether anything is built, and not only looked at (`--check`, `--call`)."""
    return not given.on("check") and given.last("call") in {"", "build"}


def progress(given: Given) -> str:
    """`--progress`, or what `--quiet` amounts to. Raises `UsageError` for what there is not."""
    asked = given.last("progress")
    if asked and asked not in PROGRESS:
        raise UsageError(
            f"--progress {asked!r} is unknown", hint="use " + ", ".join(sorted(PROGRESS))
        )
    return "quiet" if given.on("quiet") else asked


def cache_key(given: Given) -> str:
    """`--mayfly-cache-key`. Raises `UsageError` when it cannot be part of an image's name."""
    key = given.last("mayfly-cache-key")
    if key and not _CACHE_KEY.fullmatch(key):
        raise UsageError(
            f"--mayfly-cache-key {key!r} cannot be part of an image's name",
            hint="use lower-case letters and digits, with . _ - between them",
        )
    return key


def keep_min(given: Given) -> float:
    """`--mayfly-keep-on-failure[=MINUTES]` in minutes; 0 without it. Raises `UsageError`."""
    value = given.last("mayfly-keep-on-failure")
    if not value or not given.on("mayfly-keep-on-failure"):
        return 0
    if value == "true":
        return KEEP_MIN
    try:
        minutes = float(value)
    except ValueError:
        minutes = 0
    if not 0 < minutes <= MOST_KEEP_MIN:
        raise UsageError(
            f"--mayfly-keep-on-failure={value}: not a number of minutes",
            hint="write it as --mayfly-keep-on-failure=20",
        )
    return minutes


def check_outputs(target: Target, *, named: bool, docker: bool) -> None:
    """Raises `UsageError` for a result that cannot go where it should.

    `named`: an output names its image itself. `docker`: a Docker daemon is there.
    """
    of = f"target {target.name}: " if target.name else ""
    if target.load and not docker:
        raise UsageError(
            f"{of}--load puts the image into Docker, and no Docker daemon answers here",
            hint="write a file instead: -o type=oci,dest=image.tar"
            if not target.name
            else f"write a file instead: --set {target.name}.output=type=oci,dest=image.tar",
        )
    if target.push and not target.tags and not named:
        raise UsageError(
            f"{of}--push needs a name for the image",
            hint="give it tags in the definition: images/OWNER/NAME:TAG"
            if target.name
            else "add -t images/OWNER/NAME:TAG",
        )


def pushes(output: Mapping[str, str]) -> bool:
    """Whether an output (its fields) goes to a registry."""
    return output.get("type") == "registry" or output.get("push") == "true"


def loads(output: Mapping[str, str]) -> bool:
    """Whether an output (its fields) goes into Docker."""
    return output.get("type") == "docker" and "dest" not in output


def is_remote(context: str) -> bool:
    """Whether BuildKit itself fetches the context: git, or a tarball by HTTP."""
    return bool(_REMOTE.match(context))


def _context(positional: Sequence[str]) -> str:
    if not positional or not positional[0]:
        raise UsageError("the build context is missing", hint="name a directory: mayfly build .")
    if len(positional) > 1:
        raise UsageError(
            f"one build context is wanted, these are {len(positional)}: {' '.join(positional)}",
            hint="put flags' values behind their flags, and one directory at the end",
        )
    return positional[0]


def refuse(given: Given) -> None:
    """Raises `UsageError` for what buildx could do and a runner must not."""
    for arg in given.args:
        if arg.flag == "builder":
            raise UsageError(
                "--builder cannot be chosen: Mayfly makes a fresh one for each build",
                hint="leave it out",
            )
        for entitlement in ("security.insecure", "network.host"):
            if arg.flag == "allow" and arg.value.split("=")[0] == entitlement:
                raise UsageError(
                    f"--allow {entitlement} is refused: runners build without privileges",
                    hint="leave it out",
                )
        if arg.flag == "network" and arg.value == "host":
            raise UsageError(
                "--network host is refused: runners build without privileges", hint="leave it out"
            )


def whole(tag: str, registry: str) -> str:
    """A tag as BuildKit must see it: `images/…` is the farm's registry, the rest as it is."""
    if not _REFERENCE.fullmatch(tag):
        raise UsageError(
            f"-t {tag!r} is no image name", hint="write it lower-case, as images/OWNER/NAME:TAG"
        )
    return image(registry, tag)


def parse_fields(text: str) -> dict[str, str]:
    """`type=image,"name=a,b"` as a mapping; a bare word is buildx's short form (a path).

    Raises `UsageError` for what is no line of CSV.
    """
    try:
        row = next(csv.reader([text]), [])
    except csv.Error as error:
        raise UsageError(f"{text!r} is no list of key=value: {error}") from None
    return {k.strip().lower(): v for k, eq, v in (part.partition("=") for part in row) if eq}


def streams(output: Mapping[str, str]) -> bool:
    """Whether an output (its fields) goes to standard output, as buildx has it."""
    usual = "-" if output.get("type") in {"tar", "oci"} else ""
    return output.get("dest", usual) == "-"


def _reads(given: Given) -> Iterator[str]:
    """The images that are named to be pulled: contexts and imported caches."""
    for text in given.values("cache-from"):
        yield from named_in(parse_fields(text)) or _bare(text)
    for text in given.values("build-context"):
        yield from image_context(text.partition("=")[2])


def _writes(given: Given, outputs: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """The images that are named to be pushed: tags, outputs and exported caches."""
    for text in given.values("cache-to"):
        yield from named_in(parse_fields(text)) or _bare(text)
    pushed = given.on("push")
    for fields in outputs:
        if pushed or pushes(fields):
            yield from named_in(fields)
    if pushed or any(pushes(fields) for fields in outputs):
        yield from given.values("tag")


def _bare(text: str) -> list[str]:
    """A cache that is given as an image's name alone."""
    return [] if parse_fields(text) else [text]


def named_in(fields: Mapping[str, str]) -> list[str]:
    """The images that an output or a cache names in its fields."""
    found = [fields["ref"]] if "ref" in fields else []
    return found + (fields["name"].split(",") if "name" in fields else [])


def image_context(path: str) -> list[str]:
    """The image that a named context is, if it is one."""
    image = path.removeprefix("docker-image://")
    return [image] if image != path else []


def local_context(path: str) -> bool:
    """Whether a named context is a directory of this machine."""
    return not (is_remote(path) or re.match(r"(?:docker-image|oci-layout|target):", path))


def _local_contexts(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        _, equals, path = text.partition("=")
        if equals and local_context(path):
            yield path
