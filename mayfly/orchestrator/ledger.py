"""The leases as this process changes them: on disk first, then everyone who waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mayfly.model import Lease
from mayfly.orchestrator import states
from mayfly.orchestrator.events import Event, Hub
from mayfly.orchestrator.metrics import Metrics
from mayfly.store.leases import LeaseStore


class Ledger:
    """The one way to a lease's row. `changed` is set whenever the plan may have changed."""

    def __init__(
        self,
        store: LeaseStore,
        hub: Hub,
        metrics: Metrics,
        closed: Callable[[Lease], None] = lambda _: None,
    ) -> None:
        """`closed` is told of every lease of which nothing is left but its row."""
        self.get = store.get
        self.open = store.open
        self.recent = store.recent
        self.hub = hub
        self.changed = asyncio.Event()
        self._store = store
        self._metrics = metrics
        self._closed = closed

    def add(self, lease: Lease, *, key: str, body_hash: str) -> Lease:
        """Write a new lease, or find the one its idempotency key made; see `LeaseStore.add`."""
        kept = self._store.add(lease, key=key, body_hash=body_hash)
        if kept is lease:
            self._metrics.asked()
            self.changed.set()
        return kept

    def change(self, lease_id: str, transition: Callable[[Lease], Lease]) -> Lease:
        """Apply a transition of `states.py`; returns the lease as it now is on disk.

        Raises `NotFound`.
        """
        before, after = self._store.change(lease_id, transition)
        if after != before:
            self._metrics.changed(before, after)
            if states.word(before) != states.word(after):
                self.hub.publish(lease_id, Event("state", states.word(after)))
                self.changed.set()
            if states.is_closed(after):
                self.hub.forget(lease_id)
                self._closed(after)
        return after

    def tell(self, lease_id: str, line: str) -> None:
        """One line for the person who waits for this lease."""
        self.hub.publish(lease_id, Event("progress", line))
