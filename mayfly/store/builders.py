"""Builders in SQLite, in a file of their own: a row is on disk before anybody hears of it.

There are few, and they are read whenever a docker client connects, so they are kept in memory as
well. Every fault of the database raises `InfrastructureError`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from mayfly.errors import Conflict, InfrastructureError, NotFound
from mayfly.model import Builder
from mayfly.store import schema

SCHEMA_VERSION = 1
_SCHEMA = "CREATE TABLE builders (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;"


class BuilderStore:
    """The builders of one orchestrator; another process must not write them meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the database at `path`; its directory must exist.

        Raises `Conflict` when another version of Mayfly wrote it.
        """
        self._path = path
        with self._faults():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5)
            try:
                schema.prepare(self._db, path, _SCHEMA, SCHEMA_VERSION)
                rows = self._db.execute("SELECT record FROM builders ORDER BY name")
                self._all = {one.name: one for one in (_builder(row[0]) for row in rows)}
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database; rows need nothing of this to be safe."""
        self._db.close()

    def all(self) -> tuple[Builder, ...]:
        """Every builder, by name."""
        return tuple(self._all[name] for name in sorted(self._all))

    def get(self, name: str) -> Builder:
        """The builder of that name. Raises `NotFound`."""
        try:
            return self._all[name]
        except KeyError:
            raise absent(name) from None

    def add(self, builder: Builder) -> None:
        """Write a new builder. Raises `Conflict` when there is one of its name."""
        if builder.name in self._all:
            raise Conflict(
                f"there is a builder {builder.name!r}",
                hint=f"take another name, or `mayfly builder rm {builder.name}` first",
            )
        with self._faults():
            self._db.execute("INSERT INTO builders VALUES (?, ?)", (builder.name, _text(builder)))
        self._all[builder.name] = builder

    def remove(self, name: str) -> None:
        """Forget a builder. Raises `NotFound`."""
        self.get(name)
        with self._faults():
            self._db.execute("DELETE FROM builders WHERE name = ?", (name,))
        del self._all[name]

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InfrastructureError(f"builder store {self._path}: {error}") from error


def absent(name: str) -> NotFound:
    """What is raised for a builder that there is not, or not for whoever asks."""
    return NotFound(f"there is no builder {name!r}", hint="see `mayfly builder ls`")


def _text(builder: Builder) -> str:
    return json.dumps(asdict(builder), default=datetime.isoformat)


def _builder(text: str) -> Builder:
    fields = json.loads(text)
    for name in ("created_at", "expires_at"):
        fields[name] = datetime.fromisoformat(fields[name]) if fields[name] else None
    return Builder(**fields)
