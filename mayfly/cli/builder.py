"""`mayfly builder create|rm|ls`: what plain `docker buildx` builds on, with nothing of ours."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, show

app = typer.Typer(
    help="Builders for docker clients: one runner each while anything is connected.",
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Also its name in buildx.")]


@app.command("create")
def create(
    name: Name,
    repo: Annotated[
        str,
        typer.Option("--repo", metavar="OWNER/NAME", help="Default: as `mayfly build` has it."),
    ] = "",
    size: Annotated[
        str, typer.Option("--size", metavar="SIZE", help="Default: what sizing decides each time.")
    ] = "",
    linger: Annotated[
        float | None,
        typer.Option(
            "--linger",
            metavar="SECONDS",
            min=0,
            max=3600,
            help="How long the runner is kept after the last connection; default: "
            "builders.linger_s.",
        ),
    ] = None,
    socket: Annotated[
        str, typer.Option("--socket", metavar="PATH", help="A name of yours for its socket.")
    ] = "",
    tls: Annotated[
        bool, typer.Option("--tls", help="For another machine: TCP, with a client certificate.")
    ] = False,
    register: Annotated[
        bool,
        typer.Option("--register/--no-register", help="Tell buildx of it, as the user you are."),
    ] = True,
) -> None:
    """Make a builder that plain docker buildx, bake and compose can use.

    It has one runner while anything is connected, and gives it back when nothing has been for
    the linger. A build there may get more memory, but no second attempt on a larger runner.

    Without --tls it is a unix socket on this machine, for you and root. With it, a key, a
    certificate and the farm's CA are put beside Docker's configuration.

    \b
    Examples:
        mayfly builder create mayfly --repo team/app
        docker buildx build --builder mayfly .
        mayfly builder create laptop --repo team/app --size medium --tls
    """
    from mayfly.cli import docker_side
    from mayfly.cli.build import here
    from mayfly.cli.farm import ask

    wanted = docker_side.wanted(
        name,
        repo,
        size,
        linger,
        socket,
        tls=tls,
        register=register,
        environ=os.environ,
        cwd=here(),
    )
    endpoint = ask(lambda farm: docker_side.made(farm, wanted, os.environ))
    if not wanted.buildx:
        print(wanted.by_hand(endpoint))
    show(f"builder {name} of {wanted.repo} is at {endpoint}")
    if wanted.without_dockers:
        show(wanted.without_dockers)
    show(
        "stock buildx offers your whole Docker configuration to what runs there: log in to no more "
        "than these builds need (DOCKER_CONFIG names another configuration)"
    )


@app.command("rm")
def rm(name: Name) -> None:
    """Remove a builder: what is connected is cut, its certificate opens nothing any more.

    buildx here is told too, and the files that `create` made are removed, also where the farm
    knows no such builder any more.

    \b
    Example:
        mayfly builder rm laptop
    """
    from mayfly.cli import docker_side
    from mayfly.cli.farm import ask
    from mayfly.errors import NotFound

    try:
        ask(lambda farm: farm.remove_builder(name))
    except NotFound:
        if not docker_side.forget(name, os.environ):
            raise
    docker_side.forget(name, os.environ)
    show(f"builder {name} is removed")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the builders, and the leases that they have now.

    \b
    Examples:
        mayfly builder ls
        mayfly builder ls --json
    """
    from mayfly.cli.farm import ask

    builders = ask(lambda farm: farm.builders())["builders"]
    if as_json:
        print_json(builders)
        return
    print_table(
        ("BUILDER", "REPO", "SIZE", "LINGER", "STATE", "LEASE", "ADDRESS"),
        [
            (
                one["name"],
                one["repo"],
                one["size"] or "-",
                f"{one['linger_s']:g} s",
                one["state"],
                one["lease"],
                one["address"],
            )
            for one in builders
        ],
        "no builders",
    )
