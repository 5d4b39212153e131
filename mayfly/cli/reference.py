"""`docs/reference.md`, written from the commands themselves: `python -m mayfly.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from mayfly.cli import build
from mayfly.cli.app import app
from mayfly.model import OUTCOME_EXIT

HEAD = """\
# Commands, outcomes and exit statuses

Generated from the code by `python -m mayfly.cli.reference`; do not edit.
"""
OUTCOMES = """\
## Outcomes

What `mayfly status` and `mayfly logs` show of a build, and what its client ended with. Only
`infrastructure` is worth trying again as it is. Those without an exit status are seen in status
only: their client was gone.

| outcome | exit status |
| --- | --- |
"""
PLACES = """\
## Environment

| variable | meaning |
| --- | --- |
| `MAYFLY_URL` | the farm to use; default: this machine's own |
| `MAYFLY_TOKEN` | what proves who asks; without `MAYFLY_URL`: the state's admin token (root) |
| `MAYFLY_CA` | PEM file with the CA of a farm that is not on this machine |
| `MAYFLY_CONFIG` | configuration file; default `/etc/mayfly/mayfly.toml` (see configuration.md) |
| `MAYFLY_STATE`, `MAYFLY_CACHE` | where Mayfly keeps what it has, and what can be made again |
| `MAYFLY_TOOLS` | folder with buildx, instead of what `make setup` built |
| `CI_REPO`, `CI_COMMIT_REF`, `CI_PIPELINE_EVENT` | labels of a build, where a CI system sets them |
| `DOCKER_CONFIG`, `DOCKER_AUTH_CONFIG` | logins, exchanged for tokens where a build names a host |
"""


def reference() -> str:
    """The whole document."""
    outcomes = "".join(
        f"| `{outcome}` | {'-' if status is None else status} |\n"
        for outcome, status in OUTCOME_EXIT.items()
    )
    commands = "\n".join(f"### `{name}`\n\n```text\n{text}```\n" for name, text in _commands())
    return f"{HEAD}\n## Commands\n\n{commands}\n{OUTCOMES}{outcomes}\n{PLACES}"


def _commands() -> Iterator[tuple[str, str]]:
    """Every command with its help, groups' commands too, in the order of `mayfly --help`."""
    top: Any = typer.main.get_command(app)
    for name, command in top.commands.items():
        if name in build.HELP:
            yield f"mayfly {name}", build.HELP[name]
        elif hasattr(command, "commands"):
            for child, leaf in command.commands.items():
                yield f"mayfly {name} {child}", _help(leaf, f"mayfly {name} {child}")
        else:
            yield f"mayfly {name}", _help(command, f"mayfly {name}")


def _help(command: Any, name: str) -> str:
    with command.make_context(name, [], resilient_parsing=True) as context:
        context.terminal_width = 95
        return str(command.get_help(context)) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
