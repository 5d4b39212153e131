"""A program of Mayfly's in a process of its own, and what it tells the command that started it.

JSON goes in on its stdin. JSON lines come out: `progress` as often as there is any, and then its
last word, which is `error` (as `told` makes it) or whatever it has to say.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mayfly.build.stop import undisturbed
from mayfly.errors import InfrastructureError, MayflyError, from_code
from mayfly.stack.supervise import Progress


def hear(
    argv: Sequence[str | Path],
    given: str,
    progress: Progress,
    *,
    name: str,
    env: Mapping[str, str] | None = None,
    stays: bool = False,
    hint: str = "",
) -> Mapping[str, Any]:
    """Start a program in a session of its own, give it `given`, and hear it; its last word.

    It goes on running then when it `stays`, else its end is waited for. Whatever ends the caller
    before that (Ctrl-C) ends it: SIGTERM, and all the time it needs to clean up. A line that is no
    message is progress. `env` are all of its variables; without, it has this process's.

    Raises the error that it tells, and `InfrastructureError` (with `hint`), which calls it `name`,
    where it ends without a last word.
    """
    child = subprocess.Popen(
        argv,
        cwd="/",
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    if child.stdin is None or child.stdout is None:
        raise InfrastructureError(f"no pipe to {name}")
    last: Mapping[str, Any] | None = None
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(given)
        with child.stdout:
            for line in child.stdout:
                message = _message(line)
                if "progress" not in message:
                    last = message
                    break
                progress(message["progress"])
        if last is None or "error" in last or not stays:
            child.wait()
    except BaseException:
        with undisturbed():
            child.terminate()
            child.wait()
        raise
    if last is None:
        raise InfrastructureError(f"{name} ended unexpectedly (exit {child.wait()})", hint=hint)
    if "error" in last:
        raise from_code(**last["error"])
    return last


def told(error: MayflyError) -> dict[str, str]:
    """An error as the program tells it; `hear` raises it again."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _message(line: str) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {"progress": line.rstrip("\n")}
