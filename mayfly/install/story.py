"""`mayfly install` as a whole: the checks, the code, and then what that code does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError, from_code
from mayfly.install import apply, record, remove
from mayfly.install.places import Places
from mayfly.install.settings import Options
from mayfly.stack.supervise import Progress


def install(
    options: Options, places: Places, environ: Mapping[str, str], progress: Progress
) -> tuple[bool, Config]:
    """Install, or upgrade, or set right; whether anything was changed, and the configuration.

    Raises as `apply.check` and `apply.apply` do; nothing half-made is left then.
    """
    ready = apply.check(options, places, environ)
    first = record.load(places.record) is None
    try:
        folder = apply.place_code(ready, progress)
        changed = _apply(ready, folder, progress)
        return apply.keep_settings(ready) or changed, ready.config
    except (MayflyError, OSError) as error:
        made = record.load(places.record)
        if first and made is not None:
            remove.everything(made, ready.config, places, lambda line: None)
        if isinstance(error, OSError):
            raise InfrastructureError(f"{error.filename}: {error.strerror}") from None
        raise


def _apply(ready: apply.Ready, folder: Path, progress: Progress) -> bool:
    given = {"root": str(ready.places.root), "text": ready.text, "secrets": ready.secrets}
    child = subprocess.Popen(
        [folder / "bin" / "python", "-I", "-m", "mayfly.install"],
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        | {"MAYFLY_CACHE": str(ready.config.cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if child.stdin is None or child.stdout is None:
        raise InfrastructureError("no pipe to the installed code")
    with child.stdin:
        child.stdin.write(json.dumps(given))
    with child.stdout:
        for line in child.stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(message["progress"])
            elif "error" in message:
                child.wait()
                raise from_code(**message["error"])
            else:
                child.wait()
                return bool(message["changed"])
    raise InfrastructureError(f"the installed code ended unexpectedly (exit {child.wait()})")
