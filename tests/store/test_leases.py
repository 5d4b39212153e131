"""Rows that survive: round trips, idempotency, refused versions, faults of the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mayfly.errors import Conflict, InfrastructureError, NotFound
from mayfly.model import Attempt, Desired, LeaseRequest, Observed, Operation, Outcome, Usage
from mayfly.orchestrator import states
from mayfly.store.leases import LeaseStore
from tests.orchestrator.leases import KEY, NOW, T1, lease


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LeaseStore]:
    store = LeaseStore(tmp_path / "db")
    yield store
    store.close()


FULL = replace(
    lease("full", (Desired.ENDED, Observed.READY, Operation.DESTROYING)),
    request=LeaseRequest("o/r", KEY, "t2", "refs/heads/x", "push", "app", ("rust", "go")),
    attempt=2,
    ready_at=NOW,
    deadline=NOW + timedelta(hours=1),
    ended_at=NOW + timedelta(microseconds=1),
    outcome=Outcome.NOT_PUBLISHED,
    reason="because",
    digest="sha256:" + "0" * 64,
    images=("images/o/r:1", "images/o/r:2"),
    ssh_host_key="ssh-ed25519 AAAA",
    timings_s={"queue": 0.25, "ready": 1.5},
    earlier=(
        Attempt(T1, Outcome.OOM, "killed", NOW, grown_bytes=1, usage=Usage(1, 2, 0.5, 3, 1, 4)),
        Attempt(T1, Outcome.OOM, "", NOW, timings_s={"ready": 1.5}),
    ),
)


@pytest.mark.parametrize("row", [lease(), FULL], ids=["new", "full"])
def test_a_lease_is_read_as_it_was_written(tmp_path: Path, row: object) -> None:
    store = LeaseStore(tmp_path / "db")
    store.add(row)  # type: ignore[arg-type]
    store.close()
    again = LeaseStore(tmp_path / "db")
    assert again.get(row.id) == row  # type: ignore[attr-defined]
    again.close()


def test_every_column_is_updated(store: LeaseStore) -> None:
    store.add(lease("full"))
    before, after = store.change("full", lambda _: FULL)
    assert (before, after) == (lease("full"), FULL)
    assert store.get("full") == FULL


def test_a_commit_is_on_disk_when_it_returns(store: LeaseStore) -> None:
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_unknown_leases_are_not_found(store: LeaseStore) -> None:
    with pytest.raises(NotFound, match="no lease 'nope'"):
        store.get("nope")
    with pytest.raises(NotFound):
        store.change("nope", states.closed)


def test_a_transition_that_raises_changes_nothing(store: LeaseStore) -> None:
    store.add(lease())
    with pytest.raises(ZeroDivisionError):
        store.change("aaaa", lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    assert store.get("aaaa") == lease()
    store.add(lease("bbbb"))


def test_open_leases_come_oldest_first_without_the_closed(store: LeaseStore) -> None:
    for name in ("c", "b", "a"):
        store.add(lease(name))
    closed = states.ended(lease("b"), Outcome.FAILED, "", NOW)
    store.change("b", lambda _: closed)
    assert [row.id for row in store.open()] == ["c", "a"]
    assert [row.id for row in store.recent(2)] == ["a", "b"]


def test_open_leases_are_found_by_their_index(store: LeaseStore) -> None:
    from mayfly.store import leases

    plan = store._db.execute(
        f"EXPLAIN QUERY PLAN {leases._SELECT} WHERE NOT ({leases._CLOSED}) ORDER BY seq"
    ).fetchall()
    assert "leases_open" in plan[0]["detail"]


def test_the_same_key_and_body_is_the_same_lease(store: LeaseStore) -> None:
    first = store.add(lease("first"), key="k", body_hash="h")
    assert store.add(lease("second"), key="k", body_hash="h") == first
    assert [row.id for row in store.open()] == ["first"]
    with pytest.raises(Conflict, match="Idempotency-Key"):
        store.add(lease("third"), key="k", body_hash="other")
    assert store.add(lease("fourth"), key="", body_hash="h").id == "fourth"


def test_another_schema_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    LeaseStore(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("UPDATE schema_version SET version = 7")
    db.close()
    with pytest.raises(Conflict, match="schema version 7, this Mayfly speaks 3 - use the version"):
        LeaseStore(tmp_path / "db")


_ADDED = {1: ("trusted", "grown_bytes", "usage", "earlier", "terms"), 2: ("terms",)}
"""By the version of a file: the columns that later ones have more."""


@pytest.mark.parametrize("version", _ADDED)
def test_a_file_of_an_earlier_version_is_taken_over(tmp_path: Path, version: int) -> None:
    store = LeaseStore(tmp_path / "db")
    kept = store.add(lease("kept"), key="", body_hash="h")
    store.close()
    with sqlite3.connect(tmp_path / "db") as db:
        for column in _ADDED[version]:
            db.execute(f"ALTER TABLE leases DROP COLUMN {column}")
        db.execute("UPDATE schema_version SET version = ?", (version,))
    db.close()
    for _ in range(2):  # and again, as what it is then
        store = LeaseStore(tmp_path / "db")
        assert store.get("kept") == kept
        store.close()


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(Conflict, match="schema version none"):
        LeaseStore(tmp_path / "db")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database" * 100)
    with pytest.raises(InfrastructureError, match="file is not a database"):
        LeaseStore(tmp_path / "db")


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="unable to open"):
        LeaseStore(tmp_path / "nowhere" / "db")
