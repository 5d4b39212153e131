"""`mayfly logs`: what a build said, long after its VM is gone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

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
