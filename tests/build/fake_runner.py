"""A runner without a VM: a real SSH server behind a WebSocket on loopback, as the edge shows it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
from aiohttp import web

from mayfly.build import ssh
from mayfly.build.pair import Pair

LEASE = "kwbuildx"
TOKEN = "runner-token"


@dataclass
class FakeRunner:
    url: str
    host_key: str
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    registry: int = 404  # what the registry answers to every question
    absent: int = 0  # so many connections are refused, as by an edge that has just started
    commands: list[str] = field(default_factory=list)
    terminals: list[tuple[int, int]] = field(default_factory=list)

    def relay(self, **changes: str) -> ssh.Relay:
        here = ssh.Relay(url=self.url, lease=LEASE, token=TOKEN, host_key=self.host_key)
        return replace(here, **changes)  # type: ignore[arg-type]

    async def cut(self) -> None:
        for connection in self.connections:
            connection.abort()


def pair_of(key: asyncssh.SSHKey) -> Pair:
    """A key as the pair that a build makes."""
    return Pair(key.export_private_key(), ssh.public_line(key))


class _Server(asyncssh.SSHServer):
    def __init__(self, runner: FakeRunner, buildkit: Path, allowed: str) -> None:
        self._runner, self._buildkit, self._allowed = runner, buildkit, allowed

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._runner.connections.append(conn)
        self._conn = conn

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == ssh.USER and ssh.public_line(key).split()[1] == self._allowed

    def unix_connection_requested(self, dest_path: str) -> Any:
        if dest_path != ssh.BUILDKIT_SOCKET:
            return False
        return self._conn.forward_unix_connection(str(self._buildkit))


@asynccontextmanager
async def fake_runner(
    authorized_key: str, buildkit: Path, alter: Callable[[bytes], bytes] = lambda data: data
) -> AsyncIterator[FakeRunner]:
    """Serves `buildkit` (a unix socket's path) as the runner's buildkitd.sock."""
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    runner = FakeRunner("", ssh.public_line(host_key))
    allowed = authorized_key.split()[1]
    running: list[asyncio.subprocess.Process] = []

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        """As tools/runner-sshd: the command with a shell, its streams apart."""
        runner.commands.append(process.command or "")
        if process.term_type:
            runner.terminals.append(process.term_size[:2])
        ran = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", process.command or "cat"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        running.append(ran)
        await process.redirect(ran.stdin, ran.stdout, ran.stderr)
        status = await ran.wait()
        # What it said is all sent before its status is, as runner-sshd has it.
        await process.stdout.drain()
        await process.stderr.drain()
        process.exit(status)
        await process.wait_closed()

    sshd = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _Server(runner, buildkit, allowed),
        server_host_keys=[host_key],
        process_factory=command,
        encoding=None,
        line_editor=False,
    )
    port = sshd.sockets[0].getsockname()[1]

    async def relay(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPForbidden
        if runner.absent:
            runner.absent -= 1
            raise web.HTTPNotFound
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        runner.sockets.append(socket)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(data)
            await socket.close()

        task = asyncio.create_task(back())
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                writer.write(alter(message.data))
                await writer.drain()
        writer.close()
        task.cancel()
        return socket

    app = web.Application()

    async def registry(request: web.Request) -> web.StreamResponse:
        return web.Response(status=runner.registry)

    app.router.add_get("/v1/leases/{lease}/ssh", relay)
    app.router.add_get("/v2/{path:.*}", registry)
    site_runner = web.AppRunner(app)
    await site_runner.setup()
    site = web.TCPSite(site_runner, "127.0.0.1", 0)
    await site.start()
    runner.url = f"ws://127.0.0.1:{site_runner.addresses[0][1]}"
    try:
        yield runner
    finally:
        for left in running:
            if left.returncode is None:
                os.killpg(left.pid, signal.SIGKILL)
        await runner.cut()
        await site_runner.cleanup()
        sshd.close()
