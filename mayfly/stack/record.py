"""What a supervisor writes down, so that others find its programs, also after its death."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mayfly.errors import Conflict
from mayfly.pid import ProcessId
from mayfly.stack.files import place, read


@dataclass(frozen=True, slots=True)
class Kept:
    """One program that was started.

    `restarts` counts how often it died on its own, `stop_s` is how long it may take to end.
    """

    process: ProcessId
    fingerprint: str
    restarts: int = 0
    stop_s: float = 10


@dataclass(frozen=True, slots=True)
class Record:
    """`since` is RFC 3339 UTC. `ready`: every program has served, and preparations are over."""

    supervisor: ProcessId
    since: str
    ready: bool = False
    services: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this runs."""
        return self.supervisor.alive()


def path(run: Path) -> Path:
    """The record's file."""
    return run / "supervisor.json"


def load(run: Path) -> Record | None:
    """The record, of a living supervisor or a dead one; None when there is none to be read."""
    content = read(path(run))
    try:
        data = json.loads(content or b"")
        return Record(
            ProcessId(**data["supervisor"]),
            str(data["since"]),
            bool(data["ready"]),
            {
                name: Kept(**{**kept, "process": ProcessId(**kept["process"])})
                for name, kept in data["services"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def save(run: Path, record: Record) -> None:
    """Write it down. Raises `OSError`."""
    place(path(run), json.dumps(asdict(record), indent=2).encode() + b"\n", mode=0o644)


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Be the one supervisor of this state. Raises `Conflict` when there is another.

    The kernel lets go of it when the process ends, however it ends.
    """
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_running(load(run)) from None
        yield
    finally:
        os.close(descriptor)


def already_running(record: Record | None) -> Conflict:
    """The error for a second `mayfly up`."""
    who = f" (process {record.supervisor.pid}, since {record.since})" if record else ""
    return Conflict(
        f"Mayfly is already running here{who}",
        hint="look with `mayfly status`, stop it with `mayfly down`",
    )
