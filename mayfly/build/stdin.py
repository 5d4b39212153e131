"""Standard input, kept for as long as the build: a second run of buildx needs it once more."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

from mayfly.errors import UsageError

MOST_BYTES = 2 * 1024**3
"""A larger context is better named as a directory, of which only what is used travels."""

CHUNK = 256 * 1024
POLL_S = 0.2  # how long a cancelled build may wait for the thread that waits for input


async def spool(source: int, target: Path, most: int = MOST_BYTES) -> None:
    """Copy the descriptor `source` to its end into the new file `target`, at most `most` bytes.

    Raises `UsageError` for more than that, for a descriptor that cannot be read, and for a folder
    that cannot hold it.
    """
    try:
        await _copy(source, target, most)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"standard input cannot be read into {target.parent}: {why}",
            hint="name the context as a directory, or set TMPDIR to a folder with room",
        ) from None


async def _copy(source: int, target: Path, most: int) -> None:
    size = 0
    with target.open("xb") as out:
        while True:
            # In a thread and for a moment only: not every input can be watched by an event loop.
            ready, _, _ = await asyncio.to_thread(select.select, [source], [], [], POLL_S)
            if not ready:
                continue
            if not (data := os.read(source, CHUNK)):
                return
            size += len(data)
            if size > most:
                raise UsageError(
                    f"standard input is longer than {most >> 20} MiB",
                    hint="name the context as a directory: mayfly build DIRECTORY",
                )
            out.write(data)
