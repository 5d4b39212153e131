"""The arguments of `mayfly build`, told apart: Mayfly's own, and buildx's. Pure, no files read.

buildx's arguments go through untouched and in order; what Mayfly must know of them (context,
tags, outputs …) is read off by a table of buildx's flags. Two things are changed: an `images/…`
tag gets the registry's address in front, and `--mayfly-*` is taken out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mayfly.errors import UsageError

# The flags of `buildx build` v0.38, hidden ones included; a test compares them with its --help.
VALUED = frozenset(
    {
        "add-host",
        "allow",
        "annotation",
        "attest",
        "build-arg",
        "build-context",
        "builder",
        "cache-from",
        "cache-to",
        "call",
        "cgroup-parent",
        "cpu-period",
        "cpu-quota",
        "cpu-shares",
        "cpuset-cpus",
        "cpuset-mems",
        "file",
        "iidfile",
        "isolation",
        "label",
        "memory",
        "memory-swap",
        "metadata-file",
        "network",
        "no-cache-filter",
        "output",
        "platform",
        "policy",
        "print",
        "progress",
        "provenance",
        "resource",
        "sbom",
        "secret",
        "security-opt",
        "shm-size",
        "ssh",
        "tag",
        "target",
        "timeout",
        "ulimit",
    }
)
SWITCHES = frozenset(
    {
        "check",
        "compress",
        "debug",
        "force-rm",
        "help",
        "load",
        "no-cache",
        "pull",
        "push",
        "quiet",
        "rm",
        "squash",
    }
)
SHORT = {
    "D": "debug",
    "c": "cpu-shares",
    "f": "file",
    "h": "help",
    "m": "memory",
    "o": "output",
    "q": "quiet",
    "t": "tag",
}
OWN = frozenset({"cache-key", "repo", "size"})  # as --mayfly-NAME; each takes a value

PROGRESS = frozenset({"auto", "none", "plain", "quiet", "rawjson", "tty"})
IMAGES = "images/"

_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_HOST = r"(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]+)?"
_REFERENCE = re.compile(rf"(?:{_HOST}/)?{_PATH}(?::[\w][\w.-]{{0,127}})?", re.ASCII)
_CACHE_KEY = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_REMOTE = re.compile(r"(?:https?|git|ssh)://|git@|[^/]+@[^/]+:|github\.com/")


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument as typed: `tokens` joined again are what the user wrote.

    `flag` is the long name without dashes, empty for a positional argument or `--`.
    `value` is what the flag was given (`true` for a bare switch), or the positional itself.
    """

    flag: str
    value: str
    tokens: tuple[str, ...]

    def with_value(self, value: str) -> Arg:
        """The same argument with another value, in the form that the user chose."""
        *front, last = self.tokens
        return Arg(self.flag, value, (*front, last.removesuffix(self.value) + value))

    @property
    def on(self) -> bool:
        """Whether a switch is switched on (`--push=false` is not)."""
        return self.value.lower() not in {"0", "f", "false"}


@dataclass(frozen=True, slots=True)
class BuildArgs:
    """What a build asks for, read off its arguments.

    `buildx` is what goes to buildx: the user's arguments in their order, `images/…` names made
    whole. `context` may be a directory, a URL, or `-`; `dockerfile` is empty for the default
    one, else a path, a URL or `-`. `progress` is empty when the user left it to buildx.
    """

    buildx: tuple[str, ...]
    context: str
    dockerfile: str = ""
    tags: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    push: bool = False
    load: bool = False
    builds: bool = True
    target: str = ""
    progress: str = ""
    metadata_file: str = ""
    size: str = ""
    repo: str = ""
    cache_key: str = ""

    @property
    def remote(self) -> bool:
        """The context is fetched by BuildKit itself: git, or a tarball by HTTP."""
        return bool(_REMOTE.match(self.context))

    @property
    def stdin(self) -> bool:
        """Context or Dockerfile come from standard input."""
        return "-" in (self.context, self.dockerfile)

    @property
    def kept(self) -> bool:
        """The result goes somewhere other than the build cache."""
        return self.push or self.load or bool(self.outputs) or not self.builds


def split(argv: Sequence[str]) -> tuple[Arg, ...]:
    """The arguments one by one, in order, by the rules of pflag (which buildx uses).

    Joining all `tokens` gives `argv` again. Raises `UsageError` for a flag that neither buildx
    nor Mayfly has, and for a flag whose value is missing.
    """
    args: list[Arg] = []
    rest = list(argv)
    while rest:
        typed = rest.pop(0)
        if typed == "--":
            args.append(Arg("", "", (typed,)))
            args.extend(Arg("", word, (word,)) for word in rest)
            break
        if typed.startswith("--"):
            args.append(_long(typed, rest))
        elif typed.startswith("-") and typed != "-":
            args.extend(_short(typed, rest))
        else:
            args.append(Arg("", typed, (typed,)))
    return tuple(args)


def _long(typed: str, rest: list[str]) -> Arg:
    name, equals, value = typed[2:].partition("=")
    own = name.startswith("mayfly-")
    if own and name.removeprefix("mayfly-") not in OWN:
        raise UsageError(
            f"--{name} is no option of mayfly build",
            hint="use one of " + ", ".join(f"--mayfly-{n}" for n in sorted(OWN)),
        )
    if own or name in VALUED:
        if equals:
            return Arg(name, value, (typed,))
        return Arg(name, *_next(typed, rest, typed))
    if name in SWITCHES:
        return Arg(name, value if equals else "true", (typed,))
    raise _unknown(f"--{name}")


def _short(typed: str, rest: list[str]) -> Iterable[Arg]:
    """`-t x`, `-tx`, `-t=x`, and switches in a bunch: `-qt x` (then it stays with the last).

    Only the last letter of a bunch can take a value, so the letters before it are switches.
    """
    letters = typed[1:]
    switches: list[str] = []
    for place, letter in enumerate(letters):
        name = SHORT.get(letter)
        if name is None:
            raise _unknown(f"-{letter}")
        value = letters[place + 1 :]
        if name in VALUED:
            before = [Arg(switch, "true", ()) for switch in switches]
            if value.startswith("="):
                return [*before, Arg(name, value[1:], (typed,))]
            if value:
                return [*before, Arg(name, value, (typed,))]
            return [*before, Arg(name, *_next(f"-{letter}", rest, typed))]
        if value.startswith("="):
            return [*(Arg(s, "true", ()) for s in switches), Arg(name, value[1:], (typed,))]
        switches.append(name)
    *before_last, last = switches
    return [*(Arg(s, "true", ()) for s in before_last), Arg(last, "true", (typed,))]


def _next(shown: str, rest: list[str], typed: str) -> tuple[str, tuple[str, ...]]:
    if not rest:
        raise UsageError(f"{shown} needs a value", hint=f"write {shown} VALUE")
    value = rest.pop(0)
    return value, (typed, value)


def _unknown(shown: str) -> UsageError:
    return UsageError(
        f"unknown flag {shown}", hint="`docker buildx build --help` lists the flags of a build"
    )


def parse(argv: Sequence[str], registry_host: str, *, docker: bool = False) -> BuildArgs:
    """What the arguments ask for. `docker` says whether a Docker daemon is there for `--load`.

    Raises `UsageError` for whatever can be known to be wrong without looking at a file.
    """
    args = split(argv)
    given: dict[str, list[str]] = {}
    for arg in args:
        given.setdefault(arg.flag, []).append(arg.value)

    def last(flag: str) -> str:
        return given.get(flag, [""])[-1]

    def on(flag: str) -> bool:
        return any(a.on for a in args if a.flag == flag)

    context = _context([a.value for a in args if not a.flag and a.tokens != ("--",)])
    _refuse(args)
    outputs = tuple(given.get("output", ()))
    fields = [_fields(output) for output in outputs]
    push = on("push") or any(f.get("type") == "registry" or f.get("push") == "true" for f in fields)
    load = on("load") or any(f.get("type") == "docker" and "dest" not in f for f in fields)
    if load and not docker:
        raise UsageError(
            "--load puts the image into Docker, and no Docker daemon answers here",
            hint="write a file instead: -o type=oci,dest=image.tar",
        )
    full = [a.with_value(_whole(a.value, registry_host)) if a.flag == "tag" else a for a in args]
    tags = tuple(a.value for a in full if a.flag == "tag")
    if push and not tags and not any("name" in f for f in fields):
        raise UsageError("--push needs a name for the image", hint="add -t images/OWNER/NAME:TAG")
    progress = last("progress")
    if progress and progress not in PROGRESS:
        raise UsageError(
            f"--progress {progress!r} is unknown", hint="use " + ", ".join(sorted(PROGRESS))
        )
    cache_key = last("mayfly-cache-key")
    if cache_key and not _CACHE_KEY.fullmatch(cache_key):
        raise UsageError(
            f"--mayfly-cache-key {cache_key!r} cannot be part of an image's name",
            hint="use lower-case letters and digits, with . _ - between them",
        )
    return BuildArgs(
        buildx=tuple(t for a in full if not a.flag.startswith("mayfly-") for t in a.tokens),
        context=context,
        dockerfile=last("file"),
        tags=tags,
        outputs=outputs,
        references=tags + _references(given),
        push=push,
        load=load,
        builds=not (on("check") or last("call") not in {"", "build"} or last("print")),
        target=last("target"),
        progress="quiet" if on("quiet") else progress,
        metadata_file=last("metadata-file"),
        size=last("mayfly-size"),
        repo=last("mayfly-repo"),
        cache_key=cache_key,
    )


def _context(positional: Sequence[str]) -> str:
    if not positional or not positional[0]:
        raise UsageError("the build context is missing", hint="name a directory: mayfly build .")
    if len(positional) > 1:
        raise UsageError(
            f"one build context is wanted, these are {len(positional)}: {' '.join(positional)}",
            hint="put flags' values behind their flags, and one directory at the end",
        )
    return positional[0]


def _refuse(args: Iterable[Arg]) -> None:
    """What buildx could do and a runner must not."""
    for arg in args:
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


def _whole(tag: str, registry_host: str) -> str:
    """A tag as BuildKit must see it: `images/…` is Mayfly's registry, the rest as it is."""
    if not _REFERENCE.fullmatch(tag):
        raise UsageError(
            f"-t {tag!r} is no image name", hint="write it lower-case, as images/OWNER/NAME:TAG"
        )
    return f"{registry_host}/{tag}" if tag.startswith(IMAGES) else tag


def _fields(text: str) -> dict[str, str]:
    """`type=image,"name=a,b"` as a mapping; a bare word is buildx's short form (a path)."""
    row = next(csv.reader([text]), [])
    return {k.strip().lower(): v for k, eq, v in (part.partition("=") for part in row) if eq}


def _references(given: dict[str, list[str]]) -> tuple[str, ...]:
    """Image references that the build names beside its tags: outputs, caches, contexts."""
    found: list[str] = []
    for option in ("cache-from", "cache-to", "output"):
        for text in given.get(option, ()):
            fields = _fields(text)
            found += [fields["ref"]] if "ref" in fields else []
            found += fields["name"].split(",") if "name" in fields else []
            if option != "output" and not fields:
                found.append(text)
    for text in given.get("build-context", ()):
        _, _, path = text.partition("=")
        if path.startswith("docker-image://"):
            found.append(path.removeprefix("docker-image://"))
    return tuple(found)


def host_of(reference: str) -> str:
    """The registry's host in an image reference, as Docker's configuration spells it."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    return "docker.io"


def repository_of(reference: str) -> str:
    """`images/o/r` of `host:5000/images/o/r:tag`."""
    _, _, path = reference.partition("/")
    return path.partition("@")[0].partition(":")[0]


def asks_help(argv: Sequence[str]) -> bool:
    """Whether `--help` or `-h` is among the flags. Never raises: wrong flags are for `parse`."""
    try:
        return any(arg.flag == "help" for arg in split(argv))
    except UsageError:
        return bool({"--help", "-h"} & set(argv))
