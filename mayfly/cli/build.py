"""`mayfly build`: buildx's arguments in, an exit status out; `mayfly/flow.py` does the work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.cli.output import complain, seconds, show

if TYPE_CHECKING:
    from mayfly.build.result import Result
    from mayfly.flow import Request

HELP = """\
Usage: mayfly build [ARGS…] CONTEXT

Build an image in a fresh VM of its own. ARGS are those of `docker buildx build`, all of
them; they go to buildx untouched. The VM is destroyed when the build ends.

Examples:
    mayfly build .                                  try whether it builds
    mayfly build -t images/team/app:1 --push .      push to Mayfly's registry
    mayfly build -o type=oci,dest=app.tar .         write the image to a file
    mayfly build --mayfly-size medium --target test -o out .

  -t images/…              the name stands in Mayfly's registry; other names are left alone
  --mayfly-size NAME       size of the VM (`mayfly status` lists them); default: the smallest
  --mayfly-repo NAME       repo that images and cache belong to; default: CI_REPO, the path of
                           git's origin, or the directory's name
  --mayfly-cache-key NAME  layer cache of the repo to use; default: the --target

Not possible here: --builder, --allow security.insecure, --allow network.host; --load needs
a Docker daemon. Ctrl-C ends the build and its VM.

Exit status: 0 succeeded, 1 the build failed, 2 wrong use, 8 no room for too long, 9 built but
not pushed, 10 denied, 20 infrastructure (try again), 130 Ctrl-C. `docs/reference.md` has all.

All other flags: docker buildx build --help
"""


def run(argv: Sequence[str]) -> int:
    """Build as the arguments say; return the exit status of the outcome.

    Raises the `MayflyError` of whatever kept the build from having an outcome.
    """
    from mayfly.build.args import asks_help

    if asks_help(argv):
        print(HELP, end="")
        return 0

    from mayfly import client, config, flow

    settings = config.load()
    request = flow.prepare(argv, settings, os.environ, Path.cwd())
    if not request.args.kept:
        show("warning: the result stays in the build cache - add --push or -o to take it out")

    async def build() -> Result:
        async with client.from_environment(settings) as api:
            return await flow.build(request, api, settings, show)

    result = asyncio.run(build())
    if result.error is not None:
        complain(result.error)
    elif result.exit_status == 0:
        show(_summary(result, request))
    return result.exit_status


def _summary(result: Result, request: Request) -> str:
    times = result.last.timings_s
    parts = [f"build {result.build} succeeded in {seconds(sum(times.values()))}"]
    if request.args.push:
        parts += [f"pushed {tag}" for tag in request.args.tags]
    if result.last.digest:
        parts.append(result.last.digest)
    return ", ".join(parts)
