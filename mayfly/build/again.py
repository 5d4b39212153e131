"""The same build once more, where a runner may have done a part of it already. Pure.

`--no-cache` asks that nothing from before this build is used. On a runner that goes on with this
build's own steps buildx would throw those away too: so the flag goes, and with it every import, and
what the runner has (only this build's) is what is CACHED. A runner that begins from nothing has
nothing, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from mayfly.build.args import BuildArgs
from mayfly.build.flags import BUILD, split

if TYPE_CHECKING:  # it loads what asks registries
    from mayfly.build.cache import Cache

NO_CACHE = "no-cache"
IMPORTS = "cache-from"

Caches: TypeAlias = "Mapping[str, Cache]"


def again(args: BuildArgs, caches: Caches) -> tuple[BuildArgs, Caches]:
    """The arguments and layer caches of a later connection or attempt; the same without the flag.

    `--no-cache-filter` stays: its stages are built anew each time.
    """
    later = _plan(args, args.plan) if args.plan is not None else _words(args)
    if later == args:
        return args, caches
    return later, {name: replace(each, warm=False, beside=()) for name, each in caches.items()}


def _words(args: BuildArgs) -> BuildArgs:
    given = split(args.buildx, BUILD)
    if [arg.on for arg in given if arg.flag == NO_CACHE][-1:] != [True]:
        return args
    kept = (arg.tokens for arg in given if arg.flag not in (NO_CACHE, IMPORTS))
    return replace(args, buildx=tuple(token for tokens in kept for token in tokens))


def _plan(args: BuildArgs, plan: Mapping[str, Any]) -> BuildArgs:
    targets = {
        name: {key: value for key, value in entry.items() if key not in (NO_CACHE, IMPORTS)}
        if entry.get(NO_CACHE)
        else entry
        for name, entry in plan["target"].items()
    }
    return replace(args, plan={**plan, "target": targets})
