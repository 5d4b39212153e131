"""`catalog/components/buildkit_runner.ncl`: what disks a runner has, and that none persists."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import nickel

from mayfly.errors import ConfigError
from mayfly.shipped import shipped

PATH = shipped("catalog/components/buildkit_runner.ncl")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a runner. `kind` is `overlay` (over the golden image) or `scratch`."""

    label: str
    kind: str


@functools.cache
def runner_disks(path: Path = PATH) -> dict[str, Disk]:
    """The declared disks, by name; read once.

    Raises `ConfigError` when the file is not there or breaks its contract, above all when a disk
    is declared persistent.
    """
    try:
        component = json.loads(nickel.run(path.read_text()))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except nickel.NickelException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError([f"{path}: {lines[0] if lines else 'does not evaluate'}"]) from None
    if component["persistent"] is not False:
        raise ConfigError([f"{path}: persistent must be false"])
    return {name: Disk(d["label"], d["kind"]) for name, d in component["disks"].items()}
