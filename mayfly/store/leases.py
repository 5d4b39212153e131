"""Leases in SQLite: a row is on disk before anything is done about it.

WAL with `synchronous=FULL`: a commit returns after fsync (0.2 ms measured), so that a lease
survives power loss. Calls are made directly on the event loop's thread: one writer, no executor
hop, and nothing else of this process can come between the reading and the writing of a row.
The open leases are kept in memory as well, since the plan is made of all of them at every event.

Every fault of the database (disk full, a damaged file) raises `InfrastructureError`. When the disk
is full no lease is added any more, but those that are there can still be changed, and so ended:
`Ballast` keeps the room for it.
"""

# ruff: noqa: S608 - statements are put together of constants only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from mayfly.errors import Conflict, InfrastructureError, NotFound
from mayfly.model import (
    Attempt,
    BuildSpec,
    Desired,
    Lease,
    LeaseRequest,
    Observed,
    Operation,
    Outcome,
    Size,
    Terms,
    Usage,
)
from mayfly.store import schema
from mayfly.store.ballast import Ballast

SCHEMA_VERSION = 4

_CLOSED = "desired = 'ended' AND observed = 'absent' AND operation = 'none'"

_SCHEMA = f"""
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES ({SCHEMA_VERSION});
CREATE TABLE leases (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    size TEXT NOT NULL,
    desired TEXT NOT NULL,
    observed TEXT NOT NULL,
    operation TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    budget_s REAL NOT NULL,
    ready_at TEXT,
    deadline TEXT,
    ended_at TEXT,
    outcome TEXT,
    reason TEXT NOT NULL,
    digest TEXT NOT NULL,
    images TEXT NOT NULL,
    ssh_host_key TEXT NOT NULL,
    timings_s TEXT NOT NULL,
    trusted INTEGER NOT NULL,
    grown_bytes INTEGER NOT NULL,
    usage TEXT,
    earlier TEXT NOT NULL,
    terms TEXT NOT NULL,
    kept_until TEXT
) STRICT;
CREATE INDEX leases_open ON leases (seq) WHERE NOT ({_CLOSED});
CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    body_hash TEXT NOT NULL,
    lease TEXT NOT NULL REFERENCES leases (id)
) STRICT;
"""

_FROM_1 = """
ALTER TABLE leases ADD COLUMN trusted INTEGER NOT NULL DEFAULT 1;
ALTER TABLE leases ADD COLUMN grown_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN usage TEXT;
ALTER TABLE leases ADD COLUMN earlier TEXT NOT NULL DEFAULT '[]';
"""
_FROM_2 = "ALTER TABLE leases ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';"
_FROM_3 = "ALTER TABLE leases ADD COLUMN kept_until TEXT;"
_STEPS = {1: _FROM_1, 2: _FROM_2, 3: _FROM_3}
"""What makes a file of a version one of the next. Runners that live are leased as before; what a
file of version 2 has, the administrator asked for."""

_COLUMNS = (
    "id, request, size, desired, observed, operation, attempt, created_at, expires_at, budget_s,"
    " ready_at, deadline, ended_at, outcome, reason, digest, images, ssh_host_key, timings_s,"
    " trusted, grown_bytes, usage, earlier, terms, kept_until"
)
_NAMES = _COLUMNS.replace(" ", "").split(",")
_INSERT = f"INSERT INTO leases ({_COLUMNS}) VALUES ({', '.join(f':{n}' for n in _NAMES)})"
_UPDATE = f"UPDATE leases SET {', '.join(f'{n} = :{n}' for n in _NAMES[1:])} WHERE id = :id"
_SELECT = f"SELECT {_COLUMNS} FROM leases"


class LeaseStore:
    """The lease rows of one orchestrator; another process must not write them meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the database at `path`; its directory must exist.

        Raises `Conflict` when another version of Mayfly wrote it.
        """
        self._path = path
        self._ballast = Ballast(path.with_suffix(".ballast"))
        self._ballast.hold()
        with self._faults():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5)
            self._db.row_factory = sqlite3.Row
            try:
                self._db.executescript(
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                )
                self._prepare()
                self._open = {lease.id: lease for lease in self._load_open()}
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database; rows need nothing of this to be safe."""
        self._db.close()

    def add(self, lease: Lease, *, key: str = "", body_hash: str = "") -> Lease:
        """Write a new lease and return it.

        A non-empty `key` that was used before returns the lease made then, and writes nothing.
        Raises `Conflict` when it was used with another `body_hash`, `InfrastructureError` when the
        disk is full.
        """
        if not self._ballast.hold():
            raise InfrastructureError(
                f"lease store {self._path}: the disk is full", hint="make room there"
            )
        with self._transaction():
            if key:
                used = self._db.execute(
                    "SELECT body_hash, lease FROM idempotency WHERE key = ?", (key,)
                ).fetchone()
                if used and used["body_hash"] != body_hash:
                    raise Conflict(
                        "this Idempotency-Key was used with another request",
                        hint="use a new key for a new lease",
                    )
                if used:
                    return self._read(used["lease"])
            self._db.execute(_INSERT, _row(lease))
            if key:
                self._db.execute(
                    "INSERT INTO idempotency VALUES (?, ?, ?)", (key, body_hash, lease.id)
                )
        self._remember(lease)
        return lease

    def get(self, lease_id: str) -> Lease:
        """The lease of that id. Raises `NotFound`."""
        with self._faults():
            return self._read(lease_id)

    def change(self, lease_id: str, transition: Callable[[Lease], Lease]) -> tuple[Lease, Lease]:
        """Apply `transition` to the row; returns it as it was and as it now is, on disk.

        Nothing is written when they are equal. Raises `NotFound`.
        """
        try:
            return self._change(lease_id, transition)
        except InfrastructureError as error:
            if not _full(error.__cause__) or not self._ballast.release():
                raise
        return self._change(lease_id, transition)

    def _change(self, lease_id: str, transition: Callable[[Lease], Lease]) -> tuple[Lease, Lease]:
        with self._transaction():
            before = self._read(lease_id)
            after = transition(before)
            if after != before:
                self._db.execute(_UPDATE, _row(after))
        self._remember(after)
        return before, after

    def open(self) -> tuple[Lease, ...]:
        """Every lease that is not closed (no outcome yet, or a runner left), oldest first."""
        return tuple(self._open.values())

    def recent(self, limit: int) -> tuple[Lease, ...]:
        """The youngest `limit` leases, open or closed, youngest first."""
        with self._faults():
            rows = self._db.execute(f"{_SELECT} ORDER BY seq DESC LIMIT ?", (limit,))
            return tuple(_lease(row) for row in rows)

    def _load_open(self) -> Iterator[Lease]:
        rows = self._db.execute(f"{_SELECT} WHERE NOT ({_CLOSED}) ORDER BY seq")
        return (_lease(row) for row in rows)

    def _remember(self, lease: Lease) -> None:
        triple = (lease.desired, lease.observed, lease.operation)
        if triple == (Desired.ENDED, Observed.ABSENT, Operation.NONE):
            self._open.pop(lease.id, None)
        else:
            self._open[lease.id] = lease

    def _read(self, lease_id: str) -> Lease:
        row = self._db.execute(f"{_SELECT} WHERE id = ?", (lease_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no lease {lease_id!r}", hint="see `mayfly lease ls`")
        return _lease(row)

    def _prepare(self) -> None:
        names = {row["name"] for row in self._db.execute("SELECT name FROM sqlite_master")}
        if not names:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            return
        found = 0
        if "schema_version" in names:
            found = self._db.execute("SELECT version FROM schema_version").fetchone()["version"]
        while found in _STEPS:
            written = f"UPDATE schema_version SET version = {found + 1};"
            self._db.executescript(f"BEGIN IMMEDIATE; {_STEPS[found]} {written} COMMIT;")
            found += 1
        schema.require(self._path, found, SCHEMA_VERSION)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InfrastructureError(f"lease store {self._path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _full(error: BaseException | None) -> bool:
    """Whether SQLite found no room; for its log's index (shm) it only says that I/O failed."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _row(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "request": json.dumps(asdict(lease.request)),
        "size": json.dumps(asdict(lease.size)),
        "desired": lease.desired,
        "observed": lease.observed,
        "operation": lease.operation,
        "attempt": lease.attempt,
        "created_at": lease.created_at.isoformat(),
        "expires_at": lease.expires_at.isoformat(),
        "budget_s": lease.budget_s,
        "ready_at": lease.ready_at and lease.ready_at.isoformat(),
        "deadline": lease.deadline and lease.deadline.isoformat(),
        "ended_at": lease.ended_at and lease.ended_at.isoformat(),
        "outcome": lease.outcome,
        "reason": lease.reason,
        "digest": lease.digest,
        "images": json.dumps(lease.images),
        "ssh_host_key": lease.ssh_host_key,
        "timings_s": json.dumps(dict(lease.timings_s)),
        "trusted": int(lease.trusted),
        "grown_bytes": lease.grown_bytes,
        "usage": json.dumps(asdict(lease.usage)) if lease.usage else None,
        "earlier": json.dumps([asdict(attempt) for attempt in lease.earlier], default=_text),
        "terms": json.dumps(asdict(lease.terms)),
        "kept_until": lease.kept_until and lease.kept_until.isoformat(),
    }


def _lease(row: sqlite3.Row) -> Lease:
    request = json.loads(row["request"])
    request["languages"] = tuple(request["languages"])
    request["pushes"] = tuple(request.get("pushes", ()))
    if (spec := request.get("spec")) is not None:
        request["spec"] = BuildSpec(**spec | {"cache_keys": tuple(spec["cache_keys"])})
    return Lease(
        id=row["id"],
        request=LeaseRequest(**request),
        size=Size(**json.loads(row["size"])),
        desired=Desired(row["desired"]),
        observed=Observed(row["observed"]),
        operation=Operation(row["operation"]),
        attempt=row["attempt"],
        created_at=datetime.fromisoformat(row["created_at"]),
        expires_at=datetime.fromisoformat(row["expires_at"]),
        budget_s=row["budget_s"],
        ready_at=_time(row["ready_at"]),
        deadline=_time(row["deadline"]),
        ended_at=_time(row["ended_at"]),
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        reason=row["reason"],
        digest=row["digest"],
        images=tuple(json.loads(row["images"])),
        ssh_host_key=row["ssh_host_key"],
        timings_s=json.loads(row["timings_s"]),
        trusted=bool(row["trusted"]),
        grown_bytes=row["grown_bytes"],
        usage=Usage(**json.loads(row["usage"])) if row["usage"] else None,
        earlier=tuple(_attempt(attempt) for attempt in json.loads(row["earlier"])),
        terms=Terms(**json.loads(row["terms"])),
        kept_until=_time(row["kept_until"]),
    )


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} is not kept in a row")


def _attempt(data: dict[str, Any]) -> Attempt:
    return Attempt(
        **data
        | {
            "size": Size(**data["size"]),
            "outcome": Outcome(data["outcome"]),
            "ended_at": datetime.fromisoformat(data["ended_at"]),
            "usage": Usage(**data["usage"]) if data["usage"] else None,
        }
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
