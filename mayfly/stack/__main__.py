"""`python -m mayfly.stack`: the detached supervisor. `mayfly up --detach` starts it.

The configuration comes as JSON on stdin. Until everything is ready, stdout carries JSON lines
(`progress`, then `ready` or `error`); the whole story goes to `<state>/log/supervisor.log`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime

from mayfly import users
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError
from mayfly.stack import apart, lifecycle
from mayfly.stack.prepare import prepare


def main() -> int:
    """Supervise until SIGTERM. Errors go to whoever started it, and to the log."""
    config = Config.model_validate_json(sys.stdin.read())
    try:
        users.make_folders(config.state)
        log = (config.state / "log" / "supervisor.log").open("a", buffering=1)
    except OSError as error:
        unwritable = lifecycle.unwritable(error)
        print(json.dumps({"error": apart.told(unwritable)}))
        return unwritable.exit_status
    os.dup2(log.fileno(), sys.stderr.fileno())
    starter = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())

    def tell(**message: object) -> None:
        if not starter.closed:
            try:
                print(json.dumps(message), file=starter, flush=True)
            except BrokenPipeError:  # it has gone; the supervisor stays
                os.dup2(log.fileno(), starter.fileno())

    def progress(line: str) -> None:
        with suppress(OSError):  # a full disk ends no program that others need
            print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}", file=log)
        tell(progress=line)

    def ready() -> None:
        tell(ready=True)
        starter.close()

    try:
        asyncio.run(lifecycle.supervised(config, progress, prepare, ready))
    except MayflyError as error:
        print(error, file=log)
        tell(error=apart.told(error))
        return error.exit_status
    except Exception as error:
        traceback.print_exc(file=log)
        last = f"internal: {type(error).__name__}: {error}"
        tell(error=apart.told(InfrastructureError(last, hint=f"see {log.name}")))
        return 70
    return 0


if __name__ == "__main__":
    sys.exit(main())
