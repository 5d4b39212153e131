"""`mayfly golden build|ls`: the disk image that runners start from."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, show

app = typer.Typer(
    help="Golden images: what runners start from. `mayfly golden build` makes today's.",
    rich_markup_mode=None,
)


@app.command("build")
def build(
    force: Annotated[
        bool, typer.Option("--force", help="Make it even if nothing has changed.")
    ] = False,
) -> None:
    """Make today's golden image (as root; a minute or two) from Debian packages and the tools.

    When nothing has changed since today's last one, that one stays.

    \b
    Examples:
        mayfly golden build
        mayfly golden build --force
    """
    from mayfly import config, golden

    made = golden.make(config.load(), show, force=force)
    print(f"{made.name}  {made.digest}")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the golden images on this machine, oldest first; new runners use the last.

    \b
    Examples:
        mayfly golden ls
        mayfly golden ls --json
    """
    from mayfly import config, golden

    images = golden.listing(config.load().state)
    if as_json:
        print_json(
            [
                {
                    "name": image.name,
                    "digest": image.digest,
                    "created_at": image.created_at.isoformat(),
                    "path": str(image.path),
                }
                for image in images
            ]
        )
        return
    print_table(
        ("NAME", "DIGEST", "CREATED"),
        [
            (image.name, image.digest[:19], f"{image.created_at:%Y-%m-%d %H:%M} UTC")
            for image in images
        ],
        "no golden image: make one with `mayfly golden build`",
    )
