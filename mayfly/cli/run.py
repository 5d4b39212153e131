"""`mayfly run`: a command in a fresh runner; `mayfly/run/` does the work."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from mayfly.cli.build import here, kept
from mayfly.cli.output import complain, show

Command = Annotated[list[str], typer.Argument(metavar="COMMAND…", help="What to run, behind --.")]
Size = Annotated[str, typer.Option(help="Size of the VM; default: as for a build.")]
Image = Annotated[
    str,
    typer.Option(
        help="Image to run it in, as in images/base/rust; `none`: the VM's own system. Default: "
        "the base image for the language of the directory, else none."
    ),
]
Artifact = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="File or folder to bring back; * and ? may be in it."),
]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="A variable.")
]
Repo = Annotated[str, typer.Option(help="Repo that it belongs to; default: as for a build.")]
Spec = Annotated[str, typer.Option(metavar="PATH", help="Build spec to use, or `none`.")]
Keep = Annotated[
    bool, typer.Option("--keep-on-failure", help="Leave the VM there for `mayfly shell`, 30 min.")
]
ResultFile = Annotated[
    str, typer.Option(metavar="FILE", help="Write how it ended, as JSON, to this file.")
]


def run(
    command: Command,
    size: Size = "",
    image: Image = "",
    artifact: Artifact = None,
    env: Env = None,
    repo: Repo = "",
    spec: Spec = "",
    keep: Keep = False,
    result: ResultFile = "",
) -> int:
    """Run a command in a fresh VM, with the current directory in it: mayfly run -- cargo test

    Its output is passed on as it comes, stdout and stderr apart, and its exit status is ours. It
    has no standard input. What it changes stays there, but for the --artifact files, which come
    back also when it fails. What .dockerignore names, or else git ignores, does not travel.

    A status of Mayfly's own (20: infrastructure, …) comes with a line `mayfly: …` on stderr, and
    `command_status` in --result is null then.

    \b
    Examples:
        mayfly run -- cargo test
        mayfly run --artifact 'reports/*.xml' -- pytest --junit-xml reports/unit.xml
        mayfly run --image none -- python3 script.py
        mayfly run --size medium --env CI=1 -- make check
    """
    from mayfly import client, config
    from mayfly.run import request, story

    if result:
        story.forget_result(Path(result))
    settings = config.load()
    options = request.Options(
        size=size,
        repo=repo,
        image=image,
        spec=spec,
        artifacts=artifact or (),
        env=env or (),
        keep=keep,
        result=result,
    )
    wanted = request.prepare(command, options, settings, os.environ, here())

    async def go() -> story.Ended:
        async with client.from_environment(settings) as api:
            return await story.run(wanted, api, settings, os.environ, show)

    ended = asyncio.run(go())
    if result:
        story.write_result(Path(result), ended)
    if ended.result.kept_until:
        show(kept(ended.result))
    if ended.result.error is not None:
        complain(ended.result.error)
    elif ended.status is None and any(one.startswith(wanted.image) for one in ended.unread):
        show(f"{wanted.image} is not there - `mayfly base push` makes base images")
    return ended.exit_status
