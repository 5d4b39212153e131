"""What `mayfly up` makes once every program serves: all that the first build would wait for."""

from __future__ import annotations

import asyncio
import sys

from mayfly import golden, vm
from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.vm.provider import Progress


async def prepare(config: Config, progress: Progress) -> None:
    """A golden image, when there is none, and the provider's own preparations (a template).

    Returns at once when all of it is there. Raises what `golden.make` and `Provider.prepare` do.
    """
    provider = vm.provider(config)
    if provider.golden and golden.newest(config.state) is None:
        await _make_golden_image(config, progress)
    await provider.prepare(progress)


async def _make_golden_image(config: Config, progress: Progress) -> None:
    """In a process of its own, so that it ends at once when the supervisor is told to."""
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
