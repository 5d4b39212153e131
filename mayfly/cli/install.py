"""`mayfly install` and `uninstall`: Mayfly as a part of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mayfly.cli.output import show

Root = Annotated[
    Path,
    typer.Option(
        "--root",
        help="Write below this folder instead of /, and tell systemd nothing: to try it out.",
    ),
]


def install(
    listen: Annotated[
        str, typer.Option(help="ADDRESS:PORT to listen at (default 127.0.0.1:5000).")
    ] = "",
    name: Annotated[
        str, typer.Option(help="Host name that clients and runners use for this server.")
    ] = "",
    tls_cert: Annotated[
        str, typer.Option("--tls-cert", help="PEM file with a certificate of yours and its chain.")
    ] = "",
    tls_key: Annotated[str, typer.Option("--tls-key", help="PEM file with its key.")] = "",
    public_port: Annotated[
        int,
        typer.Option(
            "--public-port",
            help="Port of a reverse proxy that passes on to --listen, as in 443.",
        ),
    ] = 0,
    registry: Annotated[
        str,
        typer.Option(help="`embedded`, or somebody else's for images, as in ghcr.io/acme."),
    ] = "",
    s3: Annotated[
        str,
        typer.Option(
            help="`embedded`, or URL of an S3 service; its keys in MAYFLY_S3__ACCESS_KEY and "
            "MAYFLY_S3__SECRET_KEY."
        ),
    ] = "",
    root: Root = Path("/"),
) -> None:
    """Install Mayfly on this server, or upgrade it, as units of systemd (as root).

    Settings are in /etc/mayfly/mayfly.toml; after a change there run it again. A second time
    it changes nothing. From a newer Mayfly it upgrades: builds that run go on. At the end it
    prints the lines to paste into Woodpecker and into a pipeline.

    \b
    Examples:
        mayfly install
        mayfly install --listen 0.0.0.0:443 --name builds.example.org \\
            --tls-cert fullchain.pem --tls-key privkey.pem
    """
    import os

    from mayfly.install import lines
    from mayfly.install.places import Places
    from mayfly.install.settings import Options
    from mayfly.install.story import install as story

    options = Options(listen, name, public_port, tls_cert, tls_key, registry, s3)
    places = Places(root.absolute())
    changed, config = story(options, places, os.environ, show)
    print("installed" if changed else "nothing changed")
    print()
    print(lines.to_paste(config, places), end="")


def uninstall(
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Leave images, caches, keys and logs of builds.")
    ] = False,
    root: Root = Path("/"),
) -> None:
    """Take away all that `mayfly install` has made; running builds are ended.

    \b
    Examples:
        mayfly uninstall
        mayfly uninstall --keep-data
    """
    from mayfly.install.places import Places
    from mayfly.install.remove import uninstall as remove

    there = remove(Places(root.absolute()), keep_data, show)
    print("uninstalled" if there else "nothing is installed")
