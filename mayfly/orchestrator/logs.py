"""The builds' logs: one file each, appended by the build's client, kept after the lease."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import Conflict
from mayfly.model import MIB

LIMIT_BYTES = 64 * MIB
_CUT = b"\n[mayfly: the log is cut here: it is larger than %d MiB]\n"
_PIECE_BYTES = 256 * 1024


class Logs:
    """Log files by lease id in one directory. The caller knows that the id is a lease's."""

    def __init__(self, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, lease_id: str, offset: int, data: bytes) -> int:
        """Write `data` at `offset` and return where the next append begins.

        Bytes that are there already are skipped, so sending again is harmless. Raises `Conflict`
        when bytes between the log's end and `offset` are missing. A log that reaches the limit is
        ended by one line that says so, and takes no more, without an error.
        """
        path = self._path(lease_id)
        size = path.stat().st_size if path.exists() else 0
        if size >= self._limit:
            return offset + len(data)
        if offset > size:
            raise Conflict(
                f"the log has {size} bytes, so none can be added at {offset}",
                hint="send again from there",
            )
        fresh = data[size - offset :]
        if size + len(fresh) >= self._limit:
            fresh = fresh[: self._limit - size] + _CUT % (self._limit // MIB)
        if fresh:
            with path.open("ab") as file:
                file.write(fresh)
        return max(size, offset + len(data))

    def read(self, lease_id: str, offset: int = 0) -> Iterator[bytes]:
        """The log from `offset` on, in pieces; nothing when there is none yet."""
        path = self._path(lease_id)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(offset)
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def _path(self, lease_id: str) -> Path:
        return self._directory / f"{lease_id}.log"
