"""Into the runner of a build that runs, or of a failed one that is kept.

A key of this call's own is let in, for as long as the runner exists. It comes to the guest by the
host's channel, so whoever holds the lease, or the farm, decides who gets in.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol

import asyncssh

from mayfly.build import ssh
from mayfly.build.stop import signals, stoppable
from mayfly.build.terminal import writer
from mayfly.errors import Denied
from mayfly.wire import LeaseJson

PAUSE_S = 1.0
"""After which a key is tried once more: the guest's SSH server may be late to take it in."""

SHELL = "exec /bin/sh -s"


class Api(Protocol):
    """What is asked of the orchestrator; `mayfly.client.Client` is one."""

    @property
    def tls(self) -> ssl.SSLContext | None: ...
    async def authorize(self, lease: str, ssh_public_key: str) -> LeaseJson: ...


@asynccontextmanager
async def entered(api: Api, build: str) -> AsyncIterator[ssh.Tunnel]:
    """SSH to the build's runner. Raises `Conflict` when it has none now, and as `ssh.connect`."""
    key = ssh.new_key()
    view = await api.authorize(build, ssh.public_line(key))
    relay = ssh.relay_of(view, api.tls)
    async with AsyncExitStack() as stack:
        try:
            tunnel = await stack.enter_async_context(ssh.connect(relay, key))
        except Denied:
            await asyncio.sleep(PAUSE_S)
            tunnel = await stack.enter_async_context(ssh.connect(relay, key))
        yield tunnel


async def shell(api: Api, build: str, command: str | None, *, terminal: bool) -> int:
    """A shell, or `command`, in the runner: on our terminal, or with our streams; what it ends
    with. Raises as `entered` does, `InfrastructureError` when the runner goes meanwhile, and
    `Cancelled` and `Terminated` for signals: the terminal is as it was then too.
    """
    async with (
        stoppable() as stop,
        signals(stop, lambda: None),
        entered(api, build) as tunnel,
    ):
        if terminal:
            return await tunnel.on_terminal(command)
        out, err = (writer(stream.buffer) for stream in (sys.stdout, sys.stderr))
        try:
            return await tunnel.run(command or SHELL, out, err, stdin=given())
        finally:
            with suppress(OSError):
                os.set_blocking(0, True)  # who shares it with us does not expect less


def given() -> int:
    """Our standard input as a descriptor of its own, or the sign for none."""
    try:
        kind = os.fstat(0).st_mode
    except OSError:
        return asyncssh.DEVNULL
    if stat.S_ISCHR(kind) and not os.isatty(0):  # /dev/null: always readable, which epoll refuses
        return asyncssh.DEVNULL
    return os.dup(0)
