"""`mayfly base push`: images to say FROM where no other registry can be reached."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.output import show

app = typer.Typer(
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Base images, made from Debian packages, to say FROM."""


@app.command("push")
def push(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="debian, python, or both.")],
    force: Annotated[bool, typer.Option("--force", help="Make them anew.")] = False,
) -> None:
    """Make base images and push them to images/base/… of Mayfly's registry.

    They carry the site's own certificates where this machine has some, so that a Dockerfile
    needs no word about them. What is there already stays.

    \b
    Examples:
        mayfly base push debian
        mayfly base push debian python

    \b
    and in a Dockerfile:
        FROM registry.mayfly.internal:5000/images/base/python
    """
    from mayfly import base, config
    from mayfly.errors import UsageError

    settings = config.load()
    if unknown := [name for name in names if name not in base.KINDS]:
        raise UsageError(
            f"no base image is called {unknown[0]!r}", hint=f"use {' or '.join(base.KINDS)}"
        )
    for name in names:
        pushed = base.publish(settings, name, show, force=force)
        print(f"{pushed.reference}@{pushed.digest}")
