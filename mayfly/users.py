"""Whom each program runs as, and whose each folder of the state is.

Numbers without a passwd entry: nothing to create, nothing left behind. Every program's group has
the number of its user and it is in no other; where two programs meet at a socket, the folder
around it belongs to the one that listens and to the group of the one that connects, with the
set-group-id bit, so that the socket gets that group too.

Root reads and writes only in folders of its own; a file in one may belong to the program that
needs it. In the other folders root makes nothing and trusts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
ORCHESTRATOR = 60901
EDGE = 60902
REGISTRY = 60903
S3 = 60904
BUILDERS = 60905
IDS = (ORCHESTRATOR, EDGE, REGISTRY, S3, BUILDERS)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the state, by its path below it."""

    path: str
    owner: int
    group: int
    mode: int


FOLDERS = (
    Folder("", ROOT, ROOT, 0o711),
    Folder("ca", ROOT, ROOT, 0o755),
    Folder("keys", ROOT, ROOT, 0o755),
    Folder("log", ROOT, ROOT, 0o700),
    Folder("orchestrator", ORCHESTRATOR, ORCHESTRATOR, 0o700),
    Folder("registry", ROOT, ROOT, 0o711),
    Folder("s3", ROOT, ROOT, 0o711),
    Folder("s3/data", S3, S3, 0o700),
    Folder("trust", ROOT, ROOT, 0o755),
    Folder("run", ROOT, ROOT, 0o711),
    Folder("run/builders", BUILDERS, BUILDERS, 0o711),
    Folder("run/api", ORCHESTRATOR, EDGE, 0o2750),
    Folder("run/edge", EDGE, ORCHESTRATOR, 0o2750),
    Folder("run/registry", REGISTRY, EDGE, 0o2750),
)
"""Parents first."""


@contextmanager
def readable() -> Iterator[None]:
    """What is made meanwhile may be read by everybody: the programs with users of their own, and
    whoever is in an image. Without, it would go by the umask(2) of whoever started us.
    """
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def make_folders(state: Path) -> None:
    """Make every folder of the table below `state`, or set its owner and mode right. Idempotent.

    Parents of `state` are made when missing, and it may be a symbolic link; below it none is
    followed. Raises `OSError`, `NotADirectoryError` for such a link among it.
    """
    state.mkdir(parents=True, exist_ok=True)
    state = state.resolve()
    for folder in FOLDERS:
        path = state / folder.path
        path.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(descriptor, folder.owner, folder.group)
            os.fchmod(descriptor, folder.mode)
        finally:
            os.close(descriptor)
