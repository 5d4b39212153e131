"""`mayfly logs` and `mayfly usage`: what a build said and used, long after its VM is gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mayfly.cli.machine import AsJson

if TYPE_CHECKING:
    from mayfly.client import Client

POLL_S = 1.0


def logs(
    build: Annotated[str, typer.Argument(metavar="BUILD", help="Id of the build.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the build has ended.")
    ] = False,
) -> None:
    """Print the whole log of a build, running or ended.

    \b
    Examples:
        mayfly logs kq3xw7ab
        mayfly logs --follow kq3xw7ab
    """
    from mayfly.cli.farm import ask

    ask(lambda farm: _copy(farm, build, follow))


async def _copy(farm: Client, build: str, follow: bool) -> None:
    import asyncio

    offset = 0
    while True:
        ended = (await farm.build(build))["ended_at"] is not None
        async for piece in farm.log(build, offset):
            offset += len(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if ended or not follow:
            return
        await asyncio.sleep(POLL_S)


def usage(
    build: Annotated[str, typer.Argument(metavar="BUILD", help="Id of the build.")],
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw it into FILE as well.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a build used, as its VM saw it: over time, and step by step.

    Memory is what the build needs, page cache apart. Steps that ran together share what was used.

    \b
    Examples:
        mayfly usage kq3xw7ab
        mayfly usage kq3xw7ab --svg usage.svg
        mayfly usage kq3xw7ab --json
    """
    from mayfly.cli import picture
    from mayfly.cli.farm import ask
    from mayfly.cli.output import print_json, print_table
    from mayfly.errors import UsageError

    used = ask(lambda farm: farm.usage(build))
    if svg is not None:
        try:
            svg.write_text(picture.svg(used))
        except OSError as error:
            raise UsageError(f"--svg {svg} cannot be written: {error.strerror}") from None
    if as_json:
        print_json(used)
        return
    for line in picture.lines(used):
        print(line)
    print()
    print_table(picture.COLUMNS, picture.rows(used), "BuildKit's steps are not known")
