"""`mayfly build` and `bake`: buildx's arguments in, an exit status out; `flow.py` does the work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.cli.output import complain, print_json, seconds, show

if TYPE_CHECKING:
    from mayfly.build.result import Result
    from mayfly.config import Config
    from mayfly.flow import Request

OWN = """\
  --mayfly-size NAME       size of the VM (`mayfly status` lists them); default: what its spec, its
                           past or its language asks for (`mayfly size` says which, and why)
  --mayfly-no-grow         give the VM no more memory than its size has while it runs
  --mayfly-keep-on-failure[=MINUTES]
                           leave the VM of a failed build there for a while (30 min), for
                           `mayfly shell`
  --mayfly-repo NAME       repo that images and cache belong to; default: CI_REPO, the path of
                           git's origin, or the directory's name
  --mayfly-spec PATH       build spec to use, or `none`; default: the nearest .build-spec.ncl from
                           the context up to the work tree's root
"""
REST = """\
Not possible here: --builder, --allow security.insecure, --allow network.host; --load needs
a Docker daemon. Ctrl-C ends the build and its VM.

Exit status: 0 succeeded, 1 the build failed, 2 wrong use, 3 wrong build spec, 4 no size fits,
5 out of memory, 6 disk full, 7 time budget used up, 8 no room for too long, 9 built but not
pushed, 10 denied, 20 infrastructure (try again), 130 Ctrl-C.
`docs/reference.md` has all.
"""
HELP = {
    "build": f"""\
Usage: mayfly build [ARGS…] CONTEXT

Build an image in a fresh VM of its own. ARGS are those of `docker buildx build`, all of
them; they go to buildx untouched. The VM is destroyed when the build ends.

Examples:
    mayfly build .                                  try whether it builds
    mayfly build -t images/team/app:1 --push .      push to Mayfly's registry
    mayfly build -o type=oci,dest=app.tar .         write the image to a file
    mayfly build --mayfly-size medium --target test -o out .

  -t images/…              the name stands in Mayfly's registry; other names are left alone
{OWN}  --mayfly-cache-key NAME  layer cache of the repo to use; default: the --target. It has
                           what its last build had: give each Dockerfile its own

{REST}
All other flags: docker buildx build --help
""",
    "bake": f"""\
Usage: mayfly bake [ARGS…] [TARGET…]

Build the targets of a definition (docker-bake.hcl or .json, a compose file) together in one
fresh VM. ARGS are those of `docker buildx bake`, all of them; buildx reads the definition.

Examples:
    mayfly bake --print                             what the definition amounts to; no VM
    mayfly bake                                     try whether the default group builds
    mayfly bake --push app worker                   push two targets to where their tags say
    mayfly bake -f compose.yaml --set '*.platform=linux/arm64' --push

  tags = ["images/…"]      the name stands in Mayfly's registry; other names are left alone
{OWN}  --mayfly-cache-key NAME  put in front of the names of the targets' layer caches, which are
                           the targets' own names

{REST}
A definition that is fetched (a URL as first argument) is refused: run it in a clone.
All other flags: docker buildx bake --help
""",
}


def run(verb: str, argv: Sequence[str]) -> int:
    """Build (`verb` is `build` or `bake`) as the arguments say; the exit status of the outcome.

    Raises the `MayflyError` of whatever kept the build from having an outcome.
    """
    from mayfly.build.flags import BAKE, BUILD, asks_help

    if asks_help(argv, BAKE if verb == "bake" else BUILD):
        print(HELP[verb], end="")
        return 0

    from mayfly import client, config, flow

    settings = config.load()
    directory = here()
    if verb == "bake" and _looked_at(argv, settings):
        return 0
    request = flow.prepare(argv, settings, os.environ, directory, verb=verb)
    if warning := _stays(request):
        show(warning)

    async def build() -> Result:
        async with client.from_environment(settings) as api:
            return await flow.build(request, api, settings, show)

    result = asyncio.run(build())
    if result.kept_until:
        show(kept(result))
    if result.error is not None:
        complain(result.error)
    elif result.exit_status == 0:
        show(_summary(result, request))
        if result.reason:
            show(f"warning: {result.reason}")
    return result.exit_status


def here() -> Path:
    """The working directory. Raises `UsageError` when somebody has removed it."""
    try:
        return Path.cwd()
    except OSError:
        from mayfly.errors import UsageError

        raise UsageError("the current directory is gone", hint="cd to one that is there") from None


def kept(result: Result) -> str:
    """What to say of a runner that stays."""
    return (
        f"the runner stays until {result.kept_until}: look into it with `mayfly shell "
        f"{result.build}`, end it with `mayfly lease rm {result.build}`"
    )


def _looked_at(argv: Sequence[str], settings: Config) -> bool:
    """Answer `bake --print` and `--list`, which need neither a VM nor a farm."""
    from mayfly import flow
    from mayfly.build import bake

    match bake.looks(argv):
        case "print":
            print_json(flow.definition(argv, settings, os.environ).plan)
        case "list":
            print(bake.listed(flow.buildx_of(settings), os.environ, argv), end="")
        case _:
            return False
    return True


def _stays(request: Request) -> str:
    """The one line of warning about results that nobody will have; empty when there are none."""
    if request.args.kept:
        return ""
    if request.args.verb == "build":
        return "warning: the result stays in the build cache - add --push or -o to take it out"
    names = ", ".join(target.name for target in request.args.targets if not target.outputs)
    return f"warning: {names}: stays in the build cache - add --push or an output to take it out"


def _summary(result: Result, request: Request) -> str:
    times = result.last.timings_s
    parts = [f"build {result.build} succeeded in {seconds(sum(times.values()))}"]
    parts += [f"pushed {tag}" for tag in request.args.pushed]
    if result.last.digest:
        parts.append(result.last.digest)
    return ", ".join(parts)
