"""What builds took, in SurrealDB: one record for each attempt, and a repo's history out of them.

The same code with the embedded engine (`surrealkv://` below the state, one process at a time) and
with a server (`ws://`, `http://`). The engine runs on threads of its own, so a query blocks nothing
here; only its import and opening do, and are done on a thread. Every call is bounded in time.

Nothing of a build depends on this store: whoever calls goes on without it, and what is written here
was in `Spool` before.
"""

# ruff: noqa: S608 - statements are put together of constants only

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from mayfly.errors import InfrastructureError, Unreachable
from mayfly.model import MARGIN, History

NEWEST = 30
"""Attempts that make a history, so that one far off is left out by the 95th percentile, and builds
that were nearly all cached do not make it forget the others."""

AGES = (timedelta(days=1), timedelta(days=7), timedelta(days=30), timedelta(days=90))
"""How far back is looked for the newest attempts, the last being the oldest that counts. An index
is read as far as its range goes whatever the limit, so a busy repo's is kept short."""

SATURATED = 0.95
"""Share of its vCPUs from which on an attempt has filled them. It would fill any number (make -j),
so it counts as exactly that many: the margin is taken out here, for sizing to put back."""

TIMES = ("created_at", "ready_at", "ended_at")
"""The points in time of a record."""

OPEN_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 5.0

_SCHEMA = """
DEFINE TABLE IF NOT EXISTS attempt SCHEMALESS;
DEFINE INDEX IF NOT EXISTS attempt_build ON attempt FIELDS build;
DEFINE INDEX IF NOT EXISTS attempt_target ON attempt FIELDS repo, target, counts, ended_at;
DEFINE INDEX IF NOT EXISTS attempt_repo ON attempt FIELDS repo, counts, ended_at;
DEFINE INDEX IF NOT EXISTS attempt_age ON attempt FIELDS ended_at;
"""

_HISTORY = f"""
LET $newest = (
    SELECT ended_at, usage.memory_bytes AS memory, usage.cpu AS cpu, given.cpus AS cpus,
        memory_limit_bytes AS had, (usage.oom_kills > 0 OR outcome = 'oom') AS killed
    FROM attempt WHERE repo = $repo AND OF_TARGET counts = true AND ended_at > $since
    ORDER BY ended_at DESC LIMIT {NEWEST}
);
LET $whole = $newest[WHERE type::is_number(memory) AND type::is_number(cpu)
    AND type::is_number(cpus) AND type::is_number(had)];
LET $full = $whole[WHERE cpu >= cpus * {SATURATED}f];
LET $killed = $whole[WHERE killed].had;
RETURN {{
    builds: count($whole),
    memory_bytes: math::percentile(array::concat($whole[WHERE !killed].memory, $killed), 95),
    cpu: math::percentile(array::concat(
        $whole[WHERE cpu < cpus * {SATURATED}f].cpu, $full.map(|$a| $a.cpus / {MARGIN}f)), 95),
    killed_bytes: math::max(array::concat([0], $killed)),
    saturated: count($full)
}};
"""
_OF_TARGET = _HISTORY.replace("OF_TARGET", "target = $target AND")
_OF_REPO = _HISTORY.replace("OF_TARGET", "")


class MetricsStore:
    """The table `attempt` of one database. Methods raise `InfrastructureError`, and `Unreachable`
    for a store that is not there, which is closed then and can be opened again.
    """

    def __init__(self, url: str, *, username: str = "", password: str = "") -> None:
        """`url` as SurrealDB writes it; user and password are for a server's root or database."""
        self._url = url
        self._login = {"username": username, "password": password} if username else None
        self._db: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the last call found it there."""
        return self._db is not None

    async def open(self) -> None:
        """Connect, and see that table and indexes are there. Nothing when it is open."""
        if self._db is not None:
            return
        async with self._faults(OPEN_TIMEOUT_S):
            db = await asyncio.to_thread(_connection, self._url)
            try:
                await db.connect()
                if self._login:
                    await db.signin(self._login)
                await db.use("mayfly", "mayfly")
                await db.query(_SCHEMA)
            except BaseException:
                await _let_go(db)
                raise
            self._db = db

    async def close(self) -> None:
        """Let go of it, whatever state it is in. Raises nothing."""
        db, self._db = self._db, None
        with suppress(InfrastructureError):
            async with self._faults(CALL_TIMEOUT_S):
                if db is not None:
                    await db.close()

    async def put(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Write each record under its runner's name; fields that are there already are replaced,
        others stay. A record's own `TIMES` are ISO text.
        """
        from surrealdb import RecordID

        rows = [
            {"id": RecordID("attempt", runner), "fields": _written(record) | _times(record)}
            for runner, record in records
        ]
        async with self._faults(CALL_TIMEOUT_S):
            await self._query(
                "FOR $row IN $rows { UPSERT $row.id MERGE $row.fields RETURN NONE }", rows=rows
            )

    async def history(self, repo: str, target: str, now: datetime) -> History | None:
        """The newest attempts of the repo's `target`, or of all its targets when that has none.

        None when there is no attempt younger than the oldest of `AGES` that counts.
        """
        async with self._faults(CALL_TIMEOUT_S):
            for query, of in ((_OF_TARGET, target), (_OF_REPO, None)):
                found: Mapping[str, Any] = {}
                for age in AGES:
                    found = await self._past(query, repo, target, now - age)
                    if found["builds"] >= NEWEST:
                        break
                if found["builds"]:
                    return History(
                        builds=found["builds"],
                        memory_bytes=float(found["memory_bytes"]),
                        cpu=float(found["cpu"]),
                        killed_bytes=int(found["killed_bytes"]),
                        saturated=found["saturated"],
                        target=of,
                    )
        return None

    async def _past(self, query: str, repo: str, target: str, since: datetime) -> Any:
        return (await self._query(query, repo=repo, target=target, since=since))[-1]

    async def attempts(self, build: str) -> list[dict[str, Any]]:
        """The records of a build, first attempt first."""
        async with self._faults(CALL_TIMEOUT_S):
            found = await self._query(
                "SELECT * OMIT id FROM attempt WHERE build = $build ORDER BY attempt", build=build
            )
            return [_read(record) for record in found[0]]

    async def prune(self, before: datetime) -> None:
        """Take away the attempts that ended before then."""
        async with self._faults(CALL_TIMEOUT_S):
            await self._query("DELETE attempt WHERE ended_at < $before RETURN NONE", before=before)

    async def _query(self, text: str, **names: Any) -> list[Any]:
        if self._db is None:
            raise Unreachable("it is not open")
        found: list[Any] = await self._db.query(text, names)
        return found

    @asynccontextmanager
    async def _faults(self, timeout_s: float) -> AsyncIterator[None]:
        """Whatever goes wrong is one error of ours; what cannot be reached is closed, for the
        embedded engine's files are locked as long as it is not.
        """
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except Exception as error:
            why = str(error).strip() or f"no answer in {timeout_s:.0f} s"
            line = f"metrics store {self._url}: {why.splitlines()[0]}"
            if _refused(error):
                raise InfrastructureError(line) from error
            db, self._db = self._db, None
            await _let_go(db)
            raise Unreachable(line) from error


def _connection(url: str) -> Any:
    """Half a second of import, and what the engine reads of its files."""
    from surrealdb import AsyncSurreal

    return AsyncSurreal(url)


async def _let_go(db: Any) -> None:
    """Close a connection, if there is one, in whatever state it is."""
    with suppress(Exception):
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await db.close()


def _refused(error: Exception) -> bool:
    """Whether the store has answered, and would answer the same again."""
    from surrealdb.errors import ServerError

    return isinstance(error, ServerError)


def _written(value: Any) -> Any:
    """As the store keeps it: None as a value instead of as no field."""
    from surrealdb import Null

    if value is None:
        return Null
    if isinstance(value, Mapping):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner) for inner in value]
    return value


def _times(record: Mapping[str, Any]) -> dict[str, datetime]:
    """The record's own points in time as such; what is below it may be named as a client likes."""
    there = {name: record.get(name) for name in TIMES}
    return {name: datetime.fromisoformat(text) for name, text in there.items() if text}


def _read(value: Any) -> Any:
    from surrealdb import Null

    if isinstance(value, Mapping):
        return {key: _read(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_read(inner) for inner in value]
    return None if value is Null else value
