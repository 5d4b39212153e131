"""The commands, by group. Each module holds one group and imports what it needs when called."""

from __future__ import annotations

import typer

from mayfly.cli import (
    base,
    build,
    builder,
    cache,
    golden,
    install,
    lease,
    machine,
    records,
    run,
    shell,
    sizing,
    spec,
    token,
)

app = typer.Typer(
    name="mayfly",
    help="A build farm on machines you own: each build in a fresh VM.\n\n"
    "First `mayfly up --detach`, then `mayfly build .` beside a Dockerfile; `mayfly doctor` says "
    "what this machine lacks. `mayfly --version` prints the version, `mayfly --debug COMMAND` "
    "shows where an error comes from.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("up")(machine.up)
app.command("down")(machine.down)
app.command("status")(machine.status)
app.command("doctor")(machine.doctor)
app.command("install")(install.install)
app.command("uninstall")(install.uninstall)
app.command("logs")(records.logs)
app.command("why")(sizing.why)
app.command("size")(sizing.size)
app.command("usage")(records.usage)
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)
app.command("shell")(shell.shell)
app.add_typer(lease.app, name="lease")
app.add_typer(token.app, name="token")
app.add_typer(cache.app, name="cache")
app.add_typer(golden.app, name="golden")
app.add_typer(base.app, name="base")
app.add_typer(builder.app, name="builder")
app.add_typer(spec.app, name="spec")


@app.command("build", add_help_option=False)
def _build() -> int:
    """Build an image in a fresh VM: mayfly build ."""
    return build.run("build", ["--help"])  # main.py answers it; this is for the list of commands


@app.command("bake", add_help_option=False)
def _bake() -> int:
    """Build the targets of a definition in a fresh VM: mayfly bake --push"""
    return build.run("bake", ["--help"])
