"""`mayfly token create|ls|revoke`: what builds ask with that no forge vouches for."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, show
from mayfly.errors import UsageError

app = typer.Typer(
    help="Static tokens, each for builds of some repos. `mayfly token ls` lists them.",
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name, as `mayfly token ls` shows it.")]

_UNITS_S = {"min": 60, "h": 3600, "d": 86400}


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of yours: a-z 0-9 . -")],
    repo: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Repos that it may build: team/app, team/* or group/** (repeat it for more).",
        ),
    ],
    trusted: Annotated[
        bool,
        typer.Option("--trusted", help="Let its builds write the repos' images and trusted cache."),
    ] = False,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it is good, as in 12h or 30d.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept.

    Whoever has it can build those repos with MAYFLY_TOKEN set to it. Its builds are not trusted
    unless you say so: see docs/trust.md.

    \b
    Examples:
        mayfly token create laptop --repo 'team/*'
        mayfly token create release --repo team/app --trusted --expires 30d
    """
    from mayfly.cli.farm import ask

    life_s = lifetime_s(expires)
    made = ask(lambda farm: farm.give_token(name, repo, trusted=trusted, life_s=life_s))
    if as_json:
        print_json(made)
        return
    print(made["token"])
    standing = "trusted" if made["trusted"] else "not trusted"
    until = f" until {made['expires_at']}" if made["expires_at"] else ""
    show(f"token {name}: {standing} builds of {', '.join(made['repos'])}{until}")
    if sys.stdout.isatty():
        show("keep it now: it cannot be shown again")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the tokens that were not revoked, without what opens anything.

    \b
    Example:
        mayfly token ls --json
    """
    from mayfly.cli.farm import ask

    tokens = ask(lambda farm: farm.tokens())
    if as_json:
        print_json(tokens)
        return
    print_table(
        ("TOKEN", "REPOS", "TRUSTED", "CREATED", "EXPIRES"),
        [
            (
                one["name"],
                ",".join(one["repos"]),
                "yes" if one["trusted"] else "no",
                one["created_at"],
                one["expires_at"],
            )
            for one in tokens
        ],
        "no tokens",
    )


@app.command("revoke")
def revoke(name: Name) -> None:
    """Refuse a token from now on. Builds that it has running go on: see `mayfly lease rm`.

    \b
    Example:
        mayfly token revoke laptop
    """
    from mayfly.cli.farm import ask

    ask(lambda farm: farm.revoke_token(name))
    show(f"token {name} is revoked")


def lifetime_s(text: str) -> float | None:
    """Seconds of a time as in `12h` or `30d`; None for an empty one. Raises `UsageError`."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,6})(min|h|d)", text)
    if found is None or not int(found[1]):
        raise UsageError(f"--expires {text!r} is no time", hint="write it as in 30min, 12h or 30d")
    return float(int(found[1]) * _UNITS_S[found[2]])
