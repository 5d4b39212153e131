"""What the store of metrics has not got yet, in SQLite: why open leases have their size, and the
records of attempts that have ended. So nothing is lost while that store is away.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mayfly.errors import InfrastructureError

MOST = 100_000
"""Records that wait at most (some 200 MB); then the oldest go."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS decision (lease TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS record (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, runner TEXT NOT NULL UNIQUE, body TEXT NOT NULL
) STRICT;
"""

Waiting = tuple[str, Mapping[str, Any]]
"""A runner's name, and what is to be written of its attempt."""


class Spool:
    """The file at `path`. Every method raises `InfrastructureError` for a fault of it."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the file. One that is damaged is put aside, for it is no build's fault."""
        self._path = path
        with self._faults():
            try:
                self._db = _opened(path)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                    raise
                path.replace(path.with_suffix(".damaged"))
                self._db = _opened(path)

    def close(self) -> None:
        self._db.close()

    def decide(self, lease: str, body: Mapping[str, Any]) -> None:
        """Keep why the lease has its size, until `forget`."""
        with self._faults():
            self._db.execute("REPLACE INTO decision VALUES (?, ?)", (lease, json.dumps(body)))

    def decision(self, lease: str) -> dict[str, Any] | None:
        """What `decide` kept."""
        with self._faults():
            row = self._db.execute("SELECT body FROM decision WHERE lease = ?", (lease,)).fetchone()
        return json.loads(row[0]) if row else None

    def forget(self, lease: str) -> None:
        """The lease's records have the decision."""
        with self._faults():
            self._db.execute("DELETE FROM decision WHERE lease = ?", (lease,))

    def put(self, runner: str, record: Mapping[str, Any]) -> None:
        """Have the record written; fields of one that still waits stay where this has none."""
        with self._faults():
            row = self._db.execute("SELECT body FROM record WHERE runner = ?", (runner,)).fetchone()
            body = json.dumps({**(json.loads(row[0]) if row else {}), **record})
            self._db.execute("REPLACE INTO record (runner, body) VALUES (?, ?)", (runner, body))
            self._db.execute(
                "DELETE FROM record WHERE seq <= (SELECT max(seq) FROM record) - ?", (MOST,)
            )

    def waiting(self, most: int) -> tuple[Waiting, ...]:
        """The records that have waited longest."""
        with self._faults():
            rows = self._db.execute(
                "SELECT runner, body FROM record ORDER BY seq LIMIT ?", (most,)
            ).fetchall()
        return tuple((runner, json.loads(body)) for runner, body in rows)

    def of_build(self, build: str) -> tuple[Waiting, ...]:
        """The records of a build that wait, first attempt first."""
        with self._faults():
            rows = self._db.execute(
                "SELECT runner, body FROM record WHERE runner GLOB ? ORDER BY runner",
                (f"{build}-[0-9]*",),
            ).fetchall()
        return tuple((runner, json.loads(body)) for runner, body in rows)

    def count(self) -> int:
        """How many records wait."""
        with self._faults():
            found: int = self._db.execute("SELECT count(*) FROM record").fetchone()[0]
        return found

    def written(self, records: Sequence[Waiting]) -> None:
        """They are in the store; one that has changed since `waiting` goes on waiting."""
        with self._faults():
            self._db.executemany(
                "DELETE FROM record WHERE runner = ? AND body = ?",
                [(runner, json.dumps(record)) for runner, record in records],
            )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InfrastructureError(f"{self._path}: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_SCHEMA}")
    except BaseException:
        db.close()
        raise
    return db
