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
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="debian, python, node, rust, go.")
    ],
    platform: Annotated[
        list[str],
        typer.Option("--platform", metavar="PLATFORM,…", help="Default: linux/amd64."),
    ] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Make them anew.")] = False,
) -> None:
    """Make base images and push them to images/base/… of Mayfly's registry.

    They carry the site's own certificates where this machine has some, so that a Dockerfile
    needs no word about them, and the addresses of the site's package mirrors. What is there
    already stays. Another platform needs an emulator on this machine (apt-get install
    qemu-user-static) and takes some minutes.

    \b
    Examples:
        mayfly base push debian
        mayfly base push python rust
        mayfly base push debian --platform linux/amd64,linux/arm64

    \b
    and in a Dockerfile:
        FROM registry.mayfly.internal:5000/images/base/python
    """
    from mayfly import base, config

    settings, platforms = config.load(), base.platforms(platform)
    for name in names:
        base.known(name)
    for name in names:
        pushed = base.publish(settings, name, show, platforms=platforms, force=force)
        print(f"{pushed.reference}@{pushed.digest}")
