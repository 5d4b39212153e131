"""`mayfly shell`: into the runner of a build."""

from __future__ import annotations

import asyncio
import shlex
import sys
from typing import Annotated

import typer

Build = Annotated[
    str, typer.Argument(metavar="BUILD", help="Id of a build that runs, or of a kept one.")
]
Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="[COMMAND]…", help="What to run there; default: a shell."),
]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Give COMMAND a terminal.")]


def shell(build: Build, command: Command = None, tty: Tty = False) -> int:
    """Open a shell in a build's runner, or run a command there: mayfly shell BUILD

    The build runs, or has failed and is kept (`mayfly build --mayfly-keep-on-failure`); `mayfly
    lease rm BUILD` ends that. One is the user that BuildKit runs as, beside it; `step` there goes
    into what the running step sees. Ends with the command's own exit status.

    \b
    Examples:
        mayfly shell kq3xw7ab
        mayfly shell kq3xw7ab -- df -h /scratch
        mayfly shell kq3xw7ab -- step cat /etc/os-release
        mayfly shell -t kq3xw7ab -- step
    """
    from mayfly import client, config
    from mayfly.build import shell as step

    words = shlex.join(command) if command else None
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and (tty or not command)

    async def enter() -> int:
        async with client.from_environment(config.load()) as farm:
            return await step.shell(farm, build, words, terminal=terminal)

    return asyncio.run(enter())
