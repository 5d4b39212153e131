"""Which version of a database this Mayfly reads and writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mayfly.errors import Conflict


def prepare(db: sqlite3.Connection, path: Path | str, tables: str, version: int) -> None:
    """Make the tables of a new database, durable from then on; look at the version of another.

    A database without a version is a new one, or from before its kind had any: `tables` leaves what
    is there. Raises `Conflict` for another version, and sqlite3's errors.
    """
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found:
        require(path, found, version)
    else:
        db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {version}; COMMIT;")


def require(path: Path | str, found: int, version: int) -> None:
    """Raises `Conflict` unless the version that was found is the one; 0: none was."""
    if found != version:
        raise Conflict(
            f"{path} has schema version {found or 'none'}, this Mayfly speaks {version}",
            hint="use the version that wrote it, or move the file away",
        )
