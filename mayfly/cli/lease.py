"""`mayfly lease ls|show|rm`: the runners that are promised to somebody now."""

from __future__ import annotations

from typing import Annotated

import typer

from mayfly.cli.machine import AsJson
from mayfly.cli.output import print_json, print_table, seconds, show
from mayfly.model import Outcome

app = typer.Typer(
    help="Leases: one promised runner each. `mayfly lease ls` lists them.",
    rich_markup_mode=None,
)
LeaseId = Annotated[str, typer.Argument(metavar="LEASE", help="Id, as `mayfly lease ls` shows it.")]


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the leases that have not ended.

    \b
    Examples:
        mayfly lease ls
        mayfly lease ls --json
    """
    from mayfly.cli.farm import ask

    leases = ask(lambda farm: farm.leases())
    if as_json:
        print_json(leases)
        return
    print_table(
        ("LEASE", "REPO", "STATE", "SIZE", "ATTEMPT", "CREATED", "EXPIRES"),
        [
            (
                one["id"],
                one["repo"],
                one["state"],
                one["size"]["name"],
                one["attempt"],
                one["created_at"],
                one["expires_at"],
            )
            for one in leases
        ],
        "no leases",
    )


@app.command("show")
def show_one(lease: LeaseId, as_json: AsJson = False) -> None:
    """Show one lease: its state, size, times and how it ended.

    \b
    Examples:
        mayfly lease show kq3xw7ab
        mayfly lease show kq3xw7ab --json
    """
    from mayfly.cli.farm import ask

    one = ask(lambda farm: farm.lease(lease))
    if as_json:
        print_json(one)
        return
    size, gib = one["size"], 1024**3
    facts = {
        "lease": one["id"],
        "repo": one["repo"],
        "state": one["state"],
        "size": f"{size['name']}: {size['cpus']} vCPU, {size['memory_bytes'] // gib} GiB memory, "
        f"{size['disk_bytes'] // gib} GiB disk",
        "attempt": one["attempt"],
        "asked by": one["terms"]["principal"],
        "trusted": f"{'yes' if one['terms']['trusted'] else 'no'}: {one['terms']['why']}",
        "created": one["created_at"],
        "ready": one["ready_at"],
        "expires": one["expires_at"],
        "deadline": one["deadline"],
        "ended": one["ended_at"],
        "outcome": one["outcome"],
        "reason": one["reason"] or None,
    }
    facts |= {f"{name} time": seconds(value) for name, value in one["timings_s"].items()}
    for name, fact in facts.items():
        if fact is not None:
            print(f"{name:14}{fact}")


@app.command("rm")
def rm(lease: LeaseId) -> None:
    """End a lease: its build is cancelled and its runner destroyed.

    A lease that has ended already is left as it is.

    \b
    Example:
        mayfly lease rm kq3xw7ab
    """
    from mayfly.cli.farm import ask

    ask(lambda farm: farm.end(lease, Outcome.CANCELLED))
    show(f"lease {lease} is ended, its runner on its way out")
