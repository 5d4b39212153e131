"""Making a golden image in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from mayfly.config import Config
from mayfly.errors import InfrastructureError


async def make_apart(config: Config, progress: Callable[[str], None]) -> None:
    """Today's golden image, made where it ends at once when whoever wanted it is told to.

    Raises `InfrastructureError` with the last line of the process when it fails.
    """
    making = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "mayfly.golden"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if making.stdin is None or making.stdout is None:
        raise InfrastructureError("no pipe to the process that makes the golden image")
    try:
        making.stdin.write(config.model_dump_json().encode())
        making.stdin.close()
        last = ""
        async for line in making.stdout:
            last = line.decode(errors="replace").strip()
            progress(last)
        if await making.wait() != 0:
            raise InfrastructureError(last or "the golden image could not be made")
    finally:
        if making.returncode is None:
            making.terminate()
            await making.wait()
