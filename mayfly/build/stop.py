"""Reasons to stop work that is under way: a signal, or a lease that ended elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from mayfly.errors import Cancelled, MayflyError, Terminated


class Stop:
    """Cancels one task for a stated reason; the first reason counts."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.reason: MayflyError | None = None
        self._task = task

    def __call__(self, reason: MayflyError) -> None:
        """Cancel the task, unless a reason was given before."""
        if self.reason is None:
            self.reason = reason
            self._task.cancel()


@asynccontextmanager
async def stoppable() -> AsyncIterator[Stop]:
    """Work that can be stopped: leaves with the reason that was given to `Stop`, if any."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("stoppable() is for use inside a task")
    stop = Stop(task)
    try:
        yield stop
    except asyncio.CancelledError:
        if stop.reason is None:
            raise
        task.uncancel()
        raise stop.reason from None


@asynccontextmanager
async def signals(stop: Stop, last_act: Callable[[], None]) -> AsyncIterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the work; the second one ends the process at once.

    `last_act` runs before that, and must not wait for anything.
    """
    loop = asyncio.get_running_loop()
    errors: dict[signal.Signals, MayflyError] = {
        signal.SIGINT: Cancelled("cancelled"),
        signal.SIGTERM: Terminated("terminated"),
        signal.SIGHUP: Terminated("terminated: the terminal is gone"),
    }

    def received(number: signal.Signals) -> None:
        if stop.reason is not None:
            last_act()
            os._exit(errors[number].exit_status)
        stop(errors[number])

    for number in errors:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in errors:
            loop.remove_signal_handler(number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP do nothing to this process, nor to what the block starts: for
    taking back what was begun. In the main thread only.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, signal.SIG_IGN) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
