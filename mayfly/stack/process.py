"""One program that runs: found again by process id and start time, ended without mistakes.

Signals go through a pidfd, so they reach the process that was looked at or nobody.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from mayfly.pid import ProcessId


class Process:
    """A handle on a running process, child or not. Close it by awaiting `wait` or `stop`."""

    def __init__(self, identity: ProcessId, fd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._fd = fd
        self._child = child
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    def find(cls, identity: ProcessId) -> Process | None:
        """The process of this identity, or None when it has ended."""
        try:
            fd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if not identity.alive():
            os.close(fd)
            return None
        return cls(identity, fd, None)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: IO[bytes],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a child in a session of its own; its output goes to `log`. Raises `OSError`."""
        child = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        fd = os.pidfd_open(child.pid)
        # A child that ended at once is still there as a zombie: its number is not another's.
        return cls(ProcessId.of(child.pid), fd, child)

    async def wait(self) -> str:
        """Until it has ended; how it did, in words (`exit 1`, `signal 9`, `ended`)."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(self._fd, self._on_end)
        await asyncio.shield(self._ended)
        if self._child is None:
            return "ended"
        code = self._child.wait()
        return f"signal {-code}" if code < 0 else f"exit {code}"

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return

    async def stop(self, grace_s: float) -> str:
        """SIGTERM, and SIGKILL when it has not ended `grace_s` later; as `wait`."""
        ended = asyncio.create_task(self.wait())
        self.signal(signal.SIGTERM)
        # Not asyncio.timeout, which in a cancelled task raises the wrong error (Python 3.11.2).
        await asyncio.wait({ended}, timeout=grace_s)
        self.signal(signal.SIGKILL)
        return await ended
