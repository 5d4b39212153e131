"""When a build that lost the way to its runner tries again, and when it gives up. Pure.

The runner itself outlives the programs between it and us: an edge that is started again, or a
network that comes back, finds the same VM, where every finished step is CACHED.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOSSES = 5
"""Connections that one runner's build may lose. An edge that dies more often is no passing fault,
and each loss costs the step that was under way."""

STALLS = 2
"""How often in a row BuildKit may fail to begin in its 3 s (`result.BEGIN_S`): of two VMs that wake
on a busy machine at once each may need a second time."""

PATIENCE_S = 60.0
"""Seconds without a connection. An edge is started again after 30 s at most
(`stack.supervise.backoff`), and has then to find its runners."""

PAUSE_S = 1.0
"""Seconds between two tries, in which news of the lease are waited for."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way to one runner so far. `since_s` is the monotonic time at which it was last open, or
    at which we began; `losses` counts connections that broke, `tries` those that did not come
    about since.
    """

    since_s: float
    losses: int = 0
    tries: int = 0

    def broken(self, now_s: float, *, opened: bool) -> Way:
        """After one more connection, which had been `opened` or never was."""
        if opened:
            return Way(now_s, self.losses + 1)
        return replace(self, tries=self.tries + 1)

    def given_up(self, now_s: float) -> bool:
        """Whether it has been lost too often, or for too long."""
        return self.losses > LOSSES or now_s - self.since_s > PATIENCE_S

    @property
    def news(self) -> bool:
        """Whether the last break is worth a line: one for each loss, one when we never got in."""
        return self.tries == 0 or (self.losses == 0 and self.tries == 1)
