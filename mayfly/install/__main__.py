"""`python -m mayfly.install`: the half of `mayfly install` that the installed code does.

What it needs comes as JSON on stdin; JSON lines go out (`progress`, then `changed` or `error`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path

from mayfly.build.stop import signals, stoppable
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError
from mayfly.install import apply, settings
from mayfly.install.places import Places
from mayfly.install.story import ended_by_signals
from mayfly.stack.apart import told
from mayfly.stack.prepare import prepare
from mayfly.stack.supervise import Progress


def main() -> int:
    """The exit status is the error's."""

    def tell(**message: object) -> None:
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:  # who started this has gone; what was begun is brought to an end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def progress(line: str) -> None:
        tell(progress=line)

    try:
        given = json.load(sys.stdin)
        places = Places(Path(given["root"]))
        config = settings.load(given["text"], given["secrets"], places.config)
        ready = apply.Ready(places, given["text"], given["secrets"], config)
        with ended_by_signals():
            changed = apply.apply(ready, progress)
        if places.real:
            asyncio.run(_prepare(config, progress))
        tell(changed=changed)
    except MayflyError as error:
        tell(error=told(error))
        return error.exit_status
    except OSError as error:
        tell(error=told(InfrastructureError(f"{error.filename}: {error.strerror}")))
        return InfrastructureError.exit_status
    except Exception as error:
        traceback.print_exc()
        tell(error=told(InfrastructureError(f"internal: {type(error).__name__}: {error}")))
        return MayflyError.exit_status
    return 0


async def _prepare(config: Config, progress: Progress) -> None:
    async with stoppable() as stop, signals(stop, lambda: None):
        await prepare(config, progress)


if __name__ == "__main__":
    sys.exit(main())
