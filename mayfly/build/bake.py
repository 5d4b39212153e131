"""`mayfly bake`: a definition that buildx itself reads, and the plan that it resolves to.

buildx reads the files (HCL, JSON, compose; variables, `--set`, matrices, inheritance) and prints
what they amount to (`bake --print`, for which it needs no BuildKit). That plan is checked and
completed, and it is all of the definition that buildx gets to see when it builds: what was checked
is what is built, and nothing has to be overridden twice.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mayfly.build import args as arguments
from mayfly.build.args import BuildArgs, Given, Target
from mayfly.build.flags import BAKE, split
from mayfly.errors import UsageError

Read = Callable[[Sequence[str]], Mapping[str, Any]]
"""Resolves a definition: buildx's words in, the plan out. Raises `UsageError`."""

PRINT_S = 60
"""How long buildx may take to read a definition: it reads files and starts nothing."""

_RUN = frozenset({"allow", "call", "check", "debug", "jobs", "metadata-file", "progress"})
"""Flags that are about the run; all others, and the names of targets, are about the definition."""

_LOOKS = frozenset({"list", "list-targets", "list-variables", "print"})

_GRANTS = frozenset({"cache-from", "cache-to", "output", "secret", "secrets", "ssh"})
"""Keys of `--set` by which the user names a path himself, which is leave to use it."""


def looks(argv: Sequence[str]) -> str:
    """`print` or `list` when the definition is only looked at, else empty.

    Raises `UsageError` as `parse` does.
    """
    flags = {arg.flag for arg in split(argv, BAKE) if arg.flag in _LOOKS and arg.on}
    return "print" if flags == {"print"} else "list" if flags else ""


def parse(argv: Sequence[str], registry: str, read: Read, *, docker: bool = False) -> BuildArgs:
    """What `mayfly bake` is asked for; `registry` and `docker` as in `args.parse`.

    Raises `UsageError` for a wrong flag, for what `read` refuses, and for whatever the plan asks of
    a runner that it must not do.
    """
    given = Given(split(argv, BAKE))
    arguments.refuse(given)
    names = given.values("")
    if names and arguments.is_remote(names[0]):
        raise UsageError(
            f"the definition {names[0]} would have to be fetched first",
            hint="clone it, and run `mayfly bake` in the clone",
        )
    progress, key = arguments.progress(given), arguments.cache_key(given)
    plan = _whole(read(_definition(given)), registry)
    targets = tuple(_target(name, entry) for name, entry in plan["target"].items())
    for target in targets:
        outputs = plan["target"][target.name].get("output", [])
        arguments.check_outputs(target, named=any("name" in o for o in outputs), docker=docker)
    return BuildArgs(
        verb="bake",
        buildx=(*_words(given, _RUN), *_grants(given, plan)),
        targets=targets,
        plan=plan,
        builds=arguments.builds(given),
        progress=progress,
        metadata_file=given.last("metadata-file"),
        size=given.last("mayfly-size"),
        grow=not given.on("mayfly-no-grow"),
        keep_min=arguments.keep_min(given),
        repo=given.last("mayfly-repo"),
        spec=given.last("mayfly-spec"),
        cache_key=key,
    )


def printed(
    program: Callable[[], Path], environ: Mapping[str, str], words: Sequence[str]
) -> Mapping[str, Any]:
    """The plan that buildx resolves in the working directory; `-f -` is our standard input.

    Raises `UsageError` for whatever buildx has against it, and what `program`, which says where
    buildx is, raises.
    """
    plan = json.loads(_buildx(program(), environ, "--print", *words))
    return plan if isinstance(plan, dict) else {}


def listed(program: Path, environ: Mapping[str, str], argv: Sequence[str]) -> str:
    """What buildx says to `--list` and the user's other words. Raises `UsageError`."""
    given = Given(split(argv, BAKE))
    arguments.refuse(given)
    every = {arg.flag for arg in given.args} - {"progress"}
    return _buildx(program, environ, *_words(given, every)).decode(errors="replace")


def _buildx(program: Path, environ: Mapping[str, str], *words: str) -> bytes:
    """What `buildx bake` prints. It makes no builder, and gets none that the user may have."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as aside:
        try:
            done = subprocess.run(
                [str(program), "bake", "--progress=quiet", *words],
                env={**environ, "BUILDX_CONFIG": aside},
                capture_output=True,
                timeout=PRINT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"buildx has not read the bake definition within {PRINT_S} s",
                hint="with `-f -` it has to come on standard input, and to end",
            ) from None
    if done.returncode != 0:
        raise _refused(done.stderr.decode(errors="replace"))
    return done.stdout


def completed(plan: Mapping[str, Any], caches: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The plan as it is built: with the cache entries of each target (`cache-from`, `cache-to`)
    after the user's own, and with an output for a target that has none.
    """
    targets = {}
    for name, entry in plan["target"].items():
        ours = {k: [*entry.get(k, []), *more] for k, more in caches.get(name, {}).items() if more}
        output = entry.get("output") or [{"type": "cacheonly"}]
        targets[name] = {**entry, **ours, "output": output}
    return {**plan, "target": targets}


def _definition(given: Given) -> list[str]:
    """The words that say what the definition is; names last, so that none is taken for a flag."""
    flags = {arg.flag for arg in given.args} - _RUN - _LOOKS - {""}
    return [*_words(given, flags), "--", *given.values("")]


def _words(given: Given, flags: Iterable[str]) -> Iterator[str]:
    """The arguments that are of these flags, as typed, without Mayfly's own.

    A bunch of switches (`-Dh`) stands as one word at its last one.
    """
    for arg in given.args:
        if arg.flag in flags and not arg.flag.startswith("mayfly-"):
            yield from arg.tokens


def _refused(said: str) -> UsageError:
    """What buildx had against the definition, in one line: the last one that begins `ERROR: `."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason was given"]
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return UsageError(
        f"buildx cannot use the bake definition: {(told or lines)[-1]}",
        hint="name its file with -f; `mayfly bake --list targets` shows its targets",
    )


def _whole(plan: Mapping[str, Any], registry: str) -> dict[str, Any]:
    """The plan with `images/…` names made whole. Raises `UsageError` for what is no name."""
    targets = {
        name: {**entry, "tags": [arguments.whole(tag, registry) for tag in entry["tags"]]}
        if entry.get("tags")
        else entry
        for name, entry in plan.get("target", {}).items()
    }
    if not targets:
        raise UsageError(
            "the bake definition has no target to build", hint="`mayfly bake --list targets`"
        )
    return {**plan, "target": targets}


def _target(name: str, entry: Mapping[str, Any]) -> Target:
    """What Mayfly must know of a target of the plan. Raises `UsageError` as `parse` does."""
    for entitlement in ("security.insecure", "network.host"):
        if entitlement in entry.get("entitlements", []):
            raise UsageError(
                f"target {name} asks for {entitlement}, which is refused: runners build "
                "without privileges",
                hint="take it out of the definition",
            )
    outputs, contexts = entry.get("output", []), entry.get("contexts", {})
    tags = tuple(entry.get("tags", []))
    reads = [image for each in entry.get("cache-from", []) for image in arguments.named_in(each)]
    reads += [image for path in contexts.values() for image in arguments.image_context(path)]
    pushed = [output for output in outputs if arguments.pushes(output)]
    written = [*entry.get("cache-to", []), *pushed]
    writes = [image for each in written for image in arguments.named_in(each)]
    context = entry.get("context", ".")
    return Target(
        name=name,
        context=context,
        dockerfile=_dockerfile(context, entry),
        inline=entry.get("dockerfile-inline", ""),
        build_args={key: str(value) for key, value in entry.get("args", {}).items()},
        contexts=tuple(path for path in contexts.values() if arguments.local_context(path)),
        stage=entry.get("target", ""),
        tags=tags,
        reads=tuple(reads),
        writes=(*writes, *(tags if pushed else ())),
        outputs=bool(outputs),
        push=any(arguments.pushes(output) for output in outputs),
        load=any(arguments.loads(output) for output in outputs),
        stdout=any(arguments.streams(output) for output in outputs),
    )


def _dockerfile(context: str, entry: Mapping[str, Any]) -> str | None:
    """In a definition the Dockerfile is beside the context, unless it says `cwd://`."""
    if entry.get("dockerfile-inline"):
        return None
    name = str(entry.get("dockerfile", "Dockerfile"))
    if name.startswith("cwd://"):
        return name.removeprefix("cwd://")
    if name == "Dockerfile" or arguments.is_remote(name) or arguments.is_remote(context):
        return "" if name == "Dockerfile" else name
    return os.path.join(context, name)  # noqa: PTH118 - an absolute name stays as it is


def wanted(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What buildx asks leave for, unless it is below the working directory: the target, the
    entitlement (`fs.read`, `fs.write`; `ssh` has no path), and the path.
    """
    for name, entry in plan["target"].items():
        contexts = [entry.get("context", "."), *entry.get("contexts", {}).values()]
        local = [path for path in contexts if arguments.local_context(path)]
        reads = [*local, *_paths(entry, "cache-from"), *_paths(entry, "secret")]
        for path in [*reads, *_paths(entry, "ssh")]:
            yield name, "fs.read", path.removeprefix("cwd://")
        for path in (*_paths(entry, "output"), *_paths(entry, "cache-to")):
            yield name, "fs.write", path
        if any(not each.get("paths") for each in entry.get("ssh", [])):
            yield name, "ssh", ""


def allowed(words: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The paths that `--allow` among buildx's `words` gives leave for, by entitlement."""
    found: dict[str, list[str]] = {"fs.read": [], "fs.write": [], "ssh": []}
    for text in Given(split(words, BAKE)).values("allow"):
        key, _, path = text.partition("=")
        for each in ("fs.read", "fs.write") if key == "fs" else (key,):
            found.setdefault(each, []).append(path)
    return {key: tuple(paths) for key, paths in found.items()}


def _grants(given: Given, plan: Mapping[str, Any]) -> Iterator[str]:
    """`--allow` for the paths that the user named by `--set`, as buildx itself takes it.

    The plan has them already, so that buildx no longer sees who named them.
    """
    for override in given.values("set"):
        pattern, _, rest = override.partition(".")
        key = rest.partition("=")[0].partition(".")[0].rstrip("+")
        if key not in _GRANTS:
            continue
        for name in fnmatch.filter(plan["target"], pattern):
            for path in _paths(plan["target"][name], key):
                yield f"--allow=fs={path}"


def _paths(entry: Mapping[str, Any], key: str) -> Iterator[str]:
    for each in entry.get("secret" if key == "secrets" else key, []):
        yield from (each[place] for place in ("src", "dest") if each.get(place, "-") != "-")
        yield from each.get("paths", [])
