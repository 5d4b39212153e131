"""`mayfly install` as a whole: the checks, the code, and then what that code does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mayfly.build.stop import undisturbed
from mayfly.config import Config
from mayfly.errors import InfrastructureError, Terminated
from mayfly.install import apply, code, record, remove
from mayfly.install.places import Places
from mayfly.install.settings import Options
from mayfly.stack import apart
from mayfly.stack.supervise import Progress


def install(
    options: Options, places: Places, environ: Mapping[str, str], progress: Progress
) -> tuple[bool, Config]:
    """Install, or upgrade, or set right; whether anything was changed, and the configuration.

    Raises as `apply.check` and `apply.apply` do; nothing half-made is left then, nor after Ctrl-C.
    """
    with record.alone(places.root):
        ready = apply.check(options, places, environ)
        with ended_by_signals():
            return _install(ready, progress), ready.config


def _install(ready: apply.Ready, progress: Progress) -> bool:
    places = ready.places
    first, had_data = record.load(places.record) is None, remove.has_data(ready.config)
    try:
        folder = apply.place_code(ready, progress)
        return _apply(ready, folder, progress)
    except BaseException as error:
        made = record.load(places.record)
        with undisturbed():
            if first and made is not None:
                remove.everything(made, ready.config, places, lambda line: None, keep_data=had_data)
            elif places.command.is_symlink():  # to the version that is installed still
                code.prune(places.code, places.command.readlink().parent.parent)
        if isinstance(error, OSError):
            raise InfrastructureError(f"{error.filename}: {error.strerror}") from None
        raise


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that goes, raise `Terminated` where the work is."""

    def raise_it(number: int, frame: object) -> None:
        raise Terminated("terminated")

    before = {each: signal.signal(each, raise_it) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _apply(ready: apply.Ready, folder: Path, progress: Progress) -> bool:
    given = {"root": str(ready.places.root), "text": ready.text, "secrets": ready.secrets}
    last = apart.hear(
        [folder / "bin" / "python", "-I", "-m", "mayfly.install"],
        json.dumps(given),
        progress,
        name="the installed code",
        env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        | {"MAYFLY_CACHE": str(ready.config.cache)},
    )
    return bool(last["changed"])
