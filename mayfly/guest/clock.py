"""Time in the guest: what took how long, and waiting with an end."""

from __future__ import annotations

import time

POLL_S = 0.02


class Took:
    """Seconds of each named step, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step], self._last = round(now - self._last, 4), now


def pause(until: float, otherwise: str) -> None:
    """Wait a moment before looking again. Raises OSError, which says `otherwise`, when the
    monotonic time is past `until`.
    """
    if time.monotonic() > until:
        raise OSError(otherwise)
    time.sleep(POLL_S)
