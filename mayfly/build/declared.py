"""What a build's sources say about it: the repo's build spec, and their languages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mayfly import spec
from mayfly.build import remote
from mayfly.build.args import BuildArgs
from mayfly.languages import known
from mayfly.model import BuildSpec

NONE = "none"
"""What `--mayfly-spec` says for a build without one."""

Declared = tuple[BuildSpec | None, tuple[str, ...]]


def declared(args: BuildArgs, environ: Mapping[str, str], cwd: Path) -> Declared:
    """The build spec that counts, None where there is none, and the languages of the contexts.

    `--mayfly-spec`, else the nearest spec from the context up to the root of its work tree, at the
    commit that is built where the context is in git. What comes from standard input or as an
    archive declares nothing. Raises `SchemaError` for a wrong spec, `UsageError` for a git context
    that cannot be read.
    """
    if args.spec == NONE:
        return None, known(_names(args, cwd))
    if args.spec:
        file = cwd / args.spec
        given = spec.load(file, spec.root_of(file.parent), args.spec)
        return given, known(_names(args, cwd))
    if git := remote.git(args.context):
        with remote.fetched(git, environ) as tree:
            there = spec.load(tree.root / tree.spec, tree.root, tree.spec) if tree.spec else None
            return there, known(tree.names)
    if args.remote or args.context == "-":
        return None, ()
    folder = (cwd / args.context).resolve()
    root = spec.root_of(folder)
    nearest = spec.nearest(folder, root)
    there = spec.load(nearest, root, os.path.relpath(nearest, cwd)) if nearest else None
    return there, known(_names(args, cwd))


def _names(args: BuildArgs, cwd: Path) -> Iterator[str]:
    """The files at the top of each context that is a directory here."""
    for target in args.targets:
        if not target.remote and target.context != "-":
            with os.scandir(cwd / target.context) as entries:
                yield from (entry.name for entry in entries if entry.is_file())
