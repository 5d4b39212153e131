"""A file to be removed when the disk is full, so that a row can still be written."""

from __future__ import annotations

import os
from pathlib import Path

BYTES = 8 * 1024 * 1024
"""Room for SQLite's log of some thousand changes of rows (4 KiB pages, about two a change)."""


class Ballast:
    """The file at `path`."""

    def __init__(self, path: Path, size_bytes: int = BYTES) -> None:
        self._path = path
        self._bytes = size_bytes

    def hold(self) -> bool:
        """See that it is there and takes its room. False, and nothing left, when there is none."""
        if self._path.exists():
            return True
        partial = self._path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._bytes)
            partial.rename(self._path)
        except OSError:
            partial.unlink(missing_ok=True)
            return False
        return True

    def release(self) -> bool:
        """Give its room away. False when it was not there, or cannot be removed."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
