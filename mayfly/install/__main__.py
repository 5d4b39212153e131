"""`python -m mayfly.install`: the half of `mayfly install` that the installed code does.

What it needs comes as JSON on stdin; JSON lines go out (`progress`, then `changed` or `error`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path

from mayfly.errors import InfrastructureError, MayflyError
from mayfly.install import apply, settings
from mayfly.install.places import Places
from mayfly.stack.lifecycle import fail
from mayfly.stack.prepare import prepare


def main() -> int:
    """The exit status is the error's."""

    def tell(**message: object) -> None:
        print(json.dumps(message), flush=True)

    def progress(line: str) -> None:
        tell(progress=line)

    try:
        given = json.load(sys.stdin)
        places = Places(Path(given["root"]))
        config = settings.load(given["text"], given["secrets"], places.config)
        ready = apply.Ready(places, given["text"], given["secrets"], config)
        changed = apply.apply(ready, progress)
        if places.real:
            asyncio.run(prepare(config, progress))
        tell(changed=changed)
    except MayflyError as error:
        tell(error=fail(error))
        return error.exit_status
    except OSError as error:
        tell(error=fail(InfrastructureError(f"{error.filename}: {error.strerror}")))
        return InfrastructureError.exit_status
    except Exception as error:
        traceback.print_exc()
        tell(error=fail(InfrastructureError(f"internal: {type(error).__name__}: {error}")))
        return MayflyError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
