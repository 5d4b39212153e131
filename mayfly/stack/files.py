"""Files that are whole or not there, with the right owner from their first moment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PUBLIC, PRIVATE = 0o644, 0o600


def read(path: Path) -> bytes | None:
    """What is in `path`, or None when it does not exist. Raises `OSError` for the rest."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def place(path: Path, data: bytes, *, owner: int = 0, mode: int = PRIVATE) -> None:
    """Make `path` hold `data` with this owner (user and group) and mode; untouched when it does.

    Atomic and durable: whoever reads meanwhile sees the old file or the new one, and a crash
    leaves one of them. Raises `OSError`.
    """
    if read(path) == data:
        status = path.lstat()
        if (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, owner, mode):
            return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(file.fileno(), owner, owner)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
