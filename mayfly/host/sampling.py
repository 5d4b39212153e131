"""Which runners are sampled: each that is ready, from then on until it ends."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from mayfly.errors import InfrastructureError
from mayfly.host.agent import Channel
from mayfly.host.deadline import boottime
from mayfly.host.record import Record
from mayfly.host.watch import Watch
from mayfly.model import Load
from mayfly.usage import Evidence

AUTHORIZE_S = 5
"""Seconds in which a guest is to have told its SSH server a key."""


class Sampling:
    """The samplers of this machine's runners, by name; a runner that has none is no error."""

    def __init__(self, memory_limit_bytes: int) -> None:
        """`memory_limit_bytes` is more than any guest can have."""
        self._limit_bytes = memory_limit_bytes
        self._running: dict[str, tuple[Watch, asyncio.Task[None]]] = {}

    def start(self, record: Record, directory: Path) -> None:
        """Take samples of the runner from now on. `directory` is the runner's."""
        watch = Watch(
            record.name,
            Channel(directory / "qemu/agent.sock"),
            directory,
            cpus=record.cpus,
            memory_limit_bytes=self._limit_bytes,
            age_s=lambda: max(0.0, boottime() - record.ready_at_s),
        )
        self._running[record.name] = watch, asyncio.create_task(watch.run())

    def pause(self, runner: str) -> Channel:
        """Take no more samples; returns the channel, for who has the agent do something else.

        Raises `InfrastructureError` when the runner is not sampled.
        """
        if runner not in self._running:
            raise InfrastructureError(f"runner {runner} is not there")
        watch, task = self._running[runner]
        task.cancel()
        return watch.channel

    async def authorize(self, runner: str, public_key: str) -> None:
        """Have the runner's agent let one more SSH key in, by the channel that samples come by.

        Raises `InfrastructureError` when the runner is not sampled, or its agent refuses.
        """
        if runner not in self._running:
            raise InfrastructureError(f"runner {runner} is not there")
        channel = self._running[runner][0].channel
        await channel.call("authorize", {"authorized_key": public_key}, timeout_s=AUTHORIZE_S)

    async def stop(self, runner: str) -> None:
        """Take no more samples and let the agent go; what was seen is kept until `forget`."""
        if runner in self._running:
            await self.pause(runner).close()

    def forget(self, runner: str) -> None:
        """Give up what was seen."""
        self._running.pop(runner, None)

    def load(self, runner: str) -> Load | None:
        """How the runner was when it was last looked at."""
        return self._running[runner][0].load if runner in self._running else None

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """What the runner has used, this moment included; None when there is no such runner.

        `final`: BuildKit's own record of the steps as well, which takes some seconds.
        """
        if runner not in self._running:
            return None
        watch, task = self._running[runner]
        if not task.done():
            if final:
                await watch.finish()
            else:
                with contextlib.suppress(InfrastructureError):
                    await watch.look()
        return watch.evidence
