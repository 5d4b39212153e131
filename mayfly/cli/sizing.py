"""`mayfly why` and `mayfly size`: which size a build had, or would get, and what it came from."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, seconds, show


def why(
    build: Annotated[str, typer.Argument(metavar="BUILD", help="Id of the build.")],
    as_json: AsJson = False,
) -> None:
    """Say why a build had its size, and what its attempts took.

    \b
    Examples:
        mayfly why kq3xw7ab
        mayfly why kq3xw7ab --json
    """
    from mayfly.cli.farm import ask

    told = ask(lambda farm: farm.why(build))
    if as_json:
        print_json(told)
        return
    print(f"build {told['build']} of {told['repo']}")
    sizing = told["sizing"]
    for line in sizing["lines"] if sizing else ["why it had its size is not known any more"]:
        print(line)
    gib = 1024**3
    if told["attempts"]:
        print()
        print_table(
            ("ATTEMPT", "SIZE", "MEMORY", "NEEDED", "CPU", "OOM KILLS", "OUTCOME", "VM TIME"),
            [
                (
                    one["attempt"],
                    one["size"],
                    f"{one['memory_limit_bytes'] / gib:.1f} GiB",
                    None if one["memory_bytes"] is None else f"{one['memory_bytes'] / gib:.2f} GiB",
                    None if one["cpu"] is None else f"{one['cpu']:.2f}",
                    one["oom_kills"],
                    one["outcome"],
                    seconds(one["vm_s"]),
                )
                for one in told["attempts"]
            ],
            "",
        )
    if told["trouble"]:
        show(f"there may be more: {told['trouble']}")


def size(
    repo: Annotated[
        str, typer.Option(metavar="NAME", help="Default: as `mayfly build .` names it here.")
    ] = "",
    target: Annotated[str, typer.Option(metavar="NAME", help="Target of the Dockerfile.")] = "",
    name: Annotated[str, typer.Option("--size", metavar="NAME", help="As --mayfly-size.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say which size the next build of a repo would get, and why.

    The build spec and the languages are those of the working directory.

    \b
    Examples:
        mayfly size
        mayfly size --repo team/app --target test --json
    """
    from mayfly import languages, spec
    from mayfly.build import repo as repos
    from mayfly.cli.build import here
    from mayfly.cli.farm import ask
    from mayfly.model import LeaseRequest

    folder = here()
    root = spec.root_of(folder)
    file = spec.nearest(folder, root)
    request = LeaseRequest(
        repo=repos.of(repo or os.environ.get("CI_REPO", ""), folder),
        ssh_public_key="",
        size=name,
        target=target,
        languages=languages.found(folder),
        spec=spec.load(file, root) if file else None,
    )
    told = ask(lambda farm: farm.size(request))
    if as_json:
        print_json(told)
        return
    for line in told["lines"]:
        print(line)
