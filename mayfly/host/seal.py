"""Files that must stay as they were made: found out when they did not, before a clone uses them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

BLOCK = 64 * 1024
_ZEROS = bytes(BLOCK)

Look = tuple[int, int, int, int, int]


class Spoiled(Exception):
    """A file is not what it was made to be, or is gone; the text says which and how."""


def content_digest(path: Path) -> str:
    """SHA-256 over a file's length and its blocks that are not all zeros, with their places.

    What a sparse file does not hold is not read, and whether zeros are written or left out makes no
    difference. Raises `OSError`.
    """
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        length = os.fstat(descriptor).st_size
        found.update(b"%d" % length)
        at = 0
        while (at := _next_data(descriptor, at)) < length:
            at -= at % BLOCK
            block = os.pread(descriptor, BLOCK, at)
            if block != _ZEROS[: len(block)]:
                found.update(b"@%d:" % at)
                found.update(block)
            at += BLOCK
    return found.hexdigest()


def _next_data(descriptor: int, at: int) -> int:
    """Where data begins from `at` on; far away when there is none any more (lseek(2))."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return 1 << 62
        raise


def look(path: Path) -> Look:
    """What changes whenever a file does, and costs a stat. Raises `OSError`."""
    there = path.stat()
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns


class Seals:
    """The files that this process has read whole and found as they were made.

    A file that has not been read here, or looks different since, is read again; one that still
    looks the same is not: that takes some microseconds, at every clone.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, Look]] = {}

    def unbroken(self, recorded: Mapping[Path, str]) -> bool:
        """Whether every file is known to have the digest recorded for it, and looks so still."""
        try:
            return all(
                self._seen.get(path) == (digest, look(path)) for path, digest in recorded.items()
            )
        except OSError:
            return False

    def check(self, recorded: Mapping[Path, str], digest: Callable[[Path], str]) -> None:
        """Read every file whole and remember its look.

        Raises `Spoiled` for the first whose `digest` is not the one recorded for it. To be run in
        a thread: it reads some hundred megabytes.
        """
        for path, wanted in recorded.items():
            self._seen.pop(path, None)
            try:
                before = look(path)
                found = digest(path)
            except OSError as error:
                raise Spoiled(f"{path.name} cannot be read: {error.strerror}") from None
            if found != wanted:
                raise Spoiled(f"{path.name} has changed since it was made")
            self._seen[path] = (wanted, before)
