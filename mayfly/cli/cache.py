"""`mayfly cache ls|reset`: the layer caches that builds leave in the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, show

if TYPE_CHECKING:
    from mayfly.registry.caches import Caches

app = typer.Typer(
    help="Layer caches of the repos. `mayfly cache ls` lists them.", rich_markup_mode=None
)
Repo = Annotated[str, typer.Option(help="Only this repo's, as in team/app.")]
Everything = Annotated[bool, typer.Option("--all", help="Those of all repos.")]
_T = TypeVar("_T")
MIB = 1024**2
HINT = "that takes a token made with --trusted, or the admin token"


@app.command("ls")
def ls(repo: Repo = "", as_json: AsJson = False) -> None:
    """List the layer caches, with what each holds.

    Without the admin token, name one of the repos that your token is for.

    \b
    Examples:
        mayfly cache ls
        mayfly cache ls --repo team/app --json
    """
    found = _ask(lambda caches: caches.all(repo))
    if as_json:
        print_json(
            [
                {
                    "repository": one.repository,
                    "repo": one.repo,
                    "zone": one.zone,
                    "key": one.key,
                    "size_bytes": one.size_bytes,
                    "digests": list(one.digests),
                }
                for one in found
            ]
        )
        return
    print_table(
        ("REPO", "KEY", "ZONE", "MIB"),
        [(one.repo, one.key, one.zone, f"{one.size_bytes / MIB:.1f}") for one in found],
        "no layer caches",
    )


@app.command("reset")
def reset(repo: Repo = "", everything: Everything = False, as_json: AsJson = False) -> None:
    """Empty a repo's layer caches: its next build begins without them.

    What is emptied is what builds of your token may write. The bytes are given back by the
    registry's garbage collection.

    \b
    Examples:
        mayfly cache reset --repo team/app
        mayfly cache reset --all
    """
    from mayfly.errors import Denied, UsageError

    if bool(repo) == everything:
        raise UsageError(
            "say whose caches are to be emptied", hint="either --repo OWNER/NAME or --all"
        )

    async def empty(caches: Caches) -> tuple[list[str], list[str]]:
        emptied: list[str] = []
        kept: list[str] = []
        for one in await caches.all(repo):
            try:
                await caches.empty(one)
                emptied.append(one.repository)
            except Denied:
                kept.append(one.repository)
        return emptied, kept

    emptied, kept = _ask(empty)
    if kept and not emptied:
        raise Denied(f"this token may not empty {', '.join(kept)}", hint=HINT)
    if as_json:
        print_json({"emptied": emptied, "kept": kept})
        return
    show(f"emptied {len(emptied)} layer cache{'' if len(emptied) == 1 else 's'}")
    if kept:
        show(f"kept {', '.join(kept)}: {HINT}")


def _ask(question: Callable[[Caches], Awaitable[_T]]) -> _T:
    """What `question` finds out about the caches of the farm that the environment names.

    Raises `UsageError` for a farm whose caches are in somebody else's registry.
    """
    from mayfly import client, config
    from mayfly.errors import UsageError
    from mayfly.registry.caches import caches

    settings = config.load()
    if settings.registry.external:
        raise UsageError(
            f"this farm's layer caches are tags of {settings.caches}",
            hint="delete them there, as its registry has it",
        )

    async def asking() -> _T:
        async with (
            client.from_environment(settings) as farm,
            caches(farm.url, farm.token, farm.tls) as there,
        ):
            return await question(there)

    return asyncio.run(asking())
