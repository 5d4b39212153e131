"""What trust has to remember, in SQLite: given tokens, signatures that were used, commits seen.

Of a token only its hash is kept. Every list is bounded: signatures go when their date alone refuses
them, commits by age and number. Every fault of the database raises `InfrastructureError`, so that
what cannot be remembered is not believed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mayfly.errors import Conflict, InfrastructureError, NotFound
from mayfly.store import schema

SCHEMA_VERSION = 1

MOST_SIGNATURES = 10_000
"""Verified requests within the clock skew; a server that sends more than that is refused."""

MOST_COMMITS = 100_000
COMMITS_KEPT = timedelta(days=400)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    repos TEXT NOT NULL,
    trusted INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    PRIMARY KEY (kind, name)
) STRICT;
CREATE TABLE IF NOT EXISTS signatures (id TEXT PRIMARY KEY, until REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS signatures_until ON signatures (until);
CREATE TABLE IF NOT EXISTS commits (
    repo TEXT NOT NULL, sha TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (repo, sha)
) STRICT;
CREATE INDEX IF NOT EXISTS commits_at ON commits (at);
"""


@dataclass(frozen=True, slots=True)
class Given:
    """A token, or with another `kind` a certificate, that an operator gave to somebody.

    `sha256` is the hash by which it is known again, in hex; `repos` are patterns.
    """

    name: str
    sha256: str
    repos: tuple[str, ...]
    trusted: bool
    created_at: datetime
    expires_at: datetime | None = None
    kind: str = "token"


class TrustStore:
    """The file of one orchestrator; another process must not write it meanwhile."""

    def __init__(self, path: Path | str) -> None:
        """Open, or make, the database at `path`; its directory must exist.

        Raises `Conflict` when another version of Mayfly wrote it.
        """
        self._path = path
        with self._faults():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5)
            self._db.row_factory = sqlite3.Row
            try:
                schema.prepare(self._db, path, _SCHEMA, SCHEMA_VERSION)
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database; rows need nothing of this to be safe."""
        self._db.close()

    def give(self, one: Given) -> None:
        """Keep a new token. Raises `Conflict` when there is one of that kind and name."""
        until = one.expires_at.isoformat() if one.expires_at else None
        with self._faults():
            try:
                self._db.execute(
                    "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        one.kind,
                        one.name,
                        one.sha256,
                        json.dumps(one.repos),
                        int(one.trusted),
                        one.created_at.isoformat(),
                        until,
                    ),
                )
            except sqlite3.IntegrityError:
                raise Conflict(
                    f"there is a {one.kind} {one.name!r} already", hint="choose another name"
                ) from None

    def given(self, kind: str = "token") -> tuple[Given, ...]:
        """All of a kind, by name."""
        with self._faults():
            rows = self._db.execute("SELECT * FROM tokens WHERE kind = ? ORDER BY name", (kind,))
            return tuple(_given(row) for row in rows)

    def known(self, sha256: str, kind: str = "token") -> Given | None:
        """The one with that hash; None when there is none, or not any more."""
        with self._faults():
            found = self._db.execute(
                "SELECT * FROM tokens WHERE kind = ? AND sha256 = ?", (kind, sha256)
            ).fetchone()
        return _given(found) if found else None

    def take_back(self, name: str, kind: str = "token") -> None:
        """Forget a token, which is refused from then on. Raises `NotFound`."""
        with self._faults():
            gone = self._db.execute("DELETE FROM tokens WHERE kind = ? AND name = ?", (kind, name))
        if not gone.rowcount:
            raise NotFound(f"there is no {kind} {name!r}", hint=f"see `mayfly {kind} ls`")

    def first_time(self, signature: str, until: datetime, now: datetime) -> bool:
        """Whether this signature was not used before; it counts as used from now on.

        It is remembered until `until`, when its date must refuse it. Raises
        `InfrastructureError` when there are too many to remember another one.
        """
        with self._faults():
            self._db.execute("DELETE FROM signatures WHERE until < ?", (now.timestamp(),))
            (count,) = self._db.execute("SELECT count(*) FROM signatures").fetchone()
            if count >= MOST_SIGNATURES:
                raise InfrastructureError(f"{count} signed requests are remembered already")
            new = self._db.execute(
                "INSERT OR IGNORE INTO signatures VALUES (?, ?)", (signature, until.timestamp())
            )
        return new.rowcount == 1

    def see(self, repo: str, commit: str, now: datetime) -> None:
        """The commit was seen on a trusted branch of the repo."""
        oldest = (now - COMMITS_KEPT).timestamp()
        with self._faults():
            self._db.execute(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", (repo, commit, now.timestamp())
            )
            self._db.execute("DELETE FROM commits WHERE at < ?", (oldest,))
            self._db.execute(
                "DELETE FROM commits WHERE rowid IN"
                " (SELECT rowid FROM commits ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (MOST_COMMITS,),
            )

    def seen(self, repo: str, commit: str) -> bool:
        """Whether the commit was seen on a trusted branch of the repo."""
        with self._faults():
            found = self._db.execute(
                "SELECT 1 FROM commits WHERE repo = ? AND sha = ?", (repo, commit)
            )
            return found.fetchone() is not None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InfrastructureError(f"trust store {self._path}: {error}") from error


def _given(row: sqlite3.Row) -> Given:
    until = row["expires_at"]
    return Given(
        name=row["name"],
        sha256=row["sha256"],
        repos=tuple(json.loads(row["repos"])),
        trusted=bool(row["trusted"]),
        created_at=datetime.fromisoformat(row["created_at"]).astimezone(UTC),
        expires_at=datetime.fromisoformat(until).astimezone(UTC) if until else None,
        kind=row["kind"],
    )
