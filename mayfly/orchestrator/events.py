"""Who waits for what: one in-process hub that carries news of leases to whoever listens.

News is a hint, never the truth: a listener that missed some reads the row again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

KEPT_LINES = 100
"""Progress lines kept for a lease, for whoever starts to listen late."""

_QUEUED = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """`state`: `text` is the lease's new state. `progress`: one line that a person reads."""

    kind: Literal["state", "progress"]
    text: str


class Hub:
    """Publishes events by lease id; nothing is kept of a lease after `forget`."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Queue[Event]]] = {}
        self._lines: dict[str, deque[str]] = {}

    def publish(self, lease_id: str, event: Event) -> None:
        """Tell everyone who listens. A listener that does not keep up misses the oldest."""
        if event.kind == "progress":
            self._lines.setdefault(lease_id, deque(maxlen=KEPT_LINES)).append(event.text)
        for queue in self._listeners.get(lease_id, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def lines(self, lease_id: str) -> tuple[str, ...]:
        """The progress lines so far, oldest first."""
        return tuple(self._lines.get(lease_id, ()))

    def forget(self, lease_id: str) -> None:
        """Drop the lines of a lease that nothing more will happen to."""
        self._lines.pop(lease_id, None)

    @contextmanager
    def listen(self, lease_id: str) -> Iterator[asyncio.Queue[Event]]:
        """A queue of what is published from now on."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUED)
        self._listeners.setdefault(lease_id, set()).add(queue)
        try:
            yield queue
        finally:
            self._listeners[lease_id].discard(queue)
            if not self._listeners[lease_id]:
                del self._listeners[lease_id]
