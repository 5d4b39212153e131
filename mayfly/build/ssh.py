"""SSH to a runner through the edge's relay, and BuildKit's socket brought here over it.

    asyncssh <-> socket pair <-> WebSocket -- edge --> the runner's sshd

The host key is pinned to the one that the lease names, so neither the edge nor the network has
to be trusted; nothing of the user's own SSH configuration, keys or agent is used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh

from mayfly.build.keyboard import Terminal
from mayfly.build.pair import Pair
from mayfly.errors import Denied, InfrastructureError, Unreachable
from mayfly.wire import LeaseJson

Key = asyncssh.SSHKey
USER = "build"
BUILDKIT_SOCKET = "/run/buildkit/buildkitd.sock"
# In the order of preference. Measured into a TCG guest that is offered AES and SHA instructions: a
# context of 60 MB in 6.2 s (ctr + hmac-sha2-256-etm), 7.2 s (gcm), 7.2 s (chacha20), 7.9 s (ctr +
# umac-64); connected and logged in after 0.27 s whatever the key exchange.
CIPHERS = ("aes128-ctr", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com")
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org")
HANDSHAKE_S = 30.0
# A connection that is silent is given up after 30 to 35 s. Sooner would take a guest for lost whose
# sshd waits for a CPU that its build and its neighbours keep busy, and a false loss costs a step;
# later would be longer than the orchestrator waits for a client (`lease.grace_s`). Whatever arrives
# counts as a sign of life, so a long transfer is never cut.
KEEPALIVE_S = 5.0
KEEPALIVES_LOST = 6
_PROBE_S = 5.0
_CHUNK = 256 * 1024

Take = Callable[[bytes], object]
"""Takes the next bytes of a stream."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Where a lease's runner is reached, and what proves that we may.

    `url` is the edge's (`wss://…`), `token` the runner token, `host_key` an OpenSSH public key
    line, `tls` what the edge's certificate is checked against (None for `ws://`).
    """

    url: str
    lease: str
    token: str
    host_key: str
    tls: ssl.SSLContext | None = None


def relay_of(view: LeaseJson, tls: ssl.SSLContext | None) -> Relay:
    """The way to a ready lease's runner. Raises `InfrastructureError` when it is not ready."""
    runner = view["runner"]
    if runner is None:
        raise InfrastructureError(f"lease {view['id']} has no runner", hint="build again")
    return Relay(view["relay_url"], view["id"], runner["token"], runner["ssh_host_key"], tls)


class Tunnel:
    """An open SSH connection to one runner. `lost` is set when it has ended, however it did."""

    def __init__(self, connection: asyncssh.SSHClientConnection, lost: asyncio.Event) -> None:
        self._connection = connection
        self.lost = lost

    async def forward(self, here: Path, there: str = BUILDKIT_SOCKET) -> None:
        """Serve the runner's unix socket `there` as the unix socket `here`, until we close.

        A socket of an earlier attempt is replaced; whoever may enter its directory may use it.
        Raises `InfrastructureError` when the connection is gone.
        """
        here.unlink(missing_ok=True)
        try:
            await self._connection.forward_local_path(str(here), there)
        except (OSError, asyncssh.Error) as error:
            raise InfrastructureError(f"cannot forward BuildKit's socket: {error}") from None

    async def open(
        self, there: str = BUILDKIT_SOCKET
    ) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        """One connection to the runner's unix socket `there`.

        Raises `InfrastructureError` when the way is gone, or nothing listens there.
        """
        try:
            return await self._connection.open_unix_connection(there)
        except (OSError, asyncssh.Error) as error:
            raise InfrastructureError(f"no way to the runner's {there}: {_said(error)}") from None

    async def alive(self, there: str = BUILDKIT_SOCKET) -> bool:
        """Whether the runner still answers and something listens on `there` (at most 5 s)."""
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await self._connection.open_unix_connection(there)
        except (OSError, asyncssh.Error, TimeoutError):
            return False
        writer.close()
        return True

    async def run(
        self, command: str, out: Take, err: Take, *, stdin: int = asyncssh.DEVNULL
    ) -> int:
        """Run a shell command as the runner's user to its end; its exit status (of one that a
        signal killed 128 and the signal, as in a shell).

        Its streams go to `out` and `err`, apart; its input is the descriptor `stdin`, which is
        closed then. When this is cancelled the command is killed. Raises `InfrastructureError` when
        the connection is lost before it has ended.
        """
        process = await self._process(command, stdin=stdin)
        try:
            await asyncio.gather(
                _copied(process.stdout, out), _copied(process.stderr, err), process.wait_closed()
            )
        finally:
            process.close()
        return _status(process)

    async def on_terminal(self, command: str | None) -> int:
        """A shell, or `command`, on a terminal there that is ours: raw, and of its size, now and
        when that changes; the exit status, as `run` has it. Ours is as it was afterwards.

        Raises `InfrastructureError` when the connection is lost before it has ended.
        """
        with Terminal(sys.stdin.fileno()) as ours:
            process = await self._process(
                command, term_type=os.environ.get("TERM") or "xterm", term_size=ours.size()
            )
            try:
                with ours.typed(process.stdin.write, process.change_terminal_size):
                    await asyncio.gather(_copied(process.stdout, ours.show), process.wait_closed())
            finally:
                process.close()
            return _status(process)

    async def _process(self, command: str | None, **more: Any) -> asyncssh.SSHClientProcess[bytes]:
        try:
            return await self._connection.create_process(command, encoding=None, **more)
        except (OSError, asyncssh.Error) as error:
            raise InfrastructureError(
                f"the runner runs no command: {_said(error)}", hint="try again"
            ) from None


async def _copied(stream: asyncssh.SSHReader[bytes], take: Take) -> None:
    """Until the stream ends, or its connection does."""
    with suppress(asyncssh.Error, OSError):
        while data := await stream.read(_CHUNK):
            take(data)


def _status(process: asyncssh.SSHClientProcess[bytes]) -> int:
    status = process.exit_status
    if status is None:
        raise InfrastructureError(
            "the connection to the runner was lost", hint="see `mayfly lease ls`, and try again"
        )
    return status


def new_key() -> Key:
    """A key pair for one build; it never touches a disk."""
    return asyncssh.generate_private_key("ssh-ed25519", comment="mayfly build")


def loaded(pair: Pair) -> Key:
    """The key of a pair that was made elsewhere."""
    return asyncssh.import_private_key(pair.private)


def public_line(key: Key) -> str:
    """The public half as an OpenSSH line, without a newline."""
    return key.export_public_key().decode().strip()


class _Client(asyncssh.SSHClient):
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@asynccontextmanager
async def connect(relay: Relay, key: Key) -> AsyncIterator[Tunnel]:
    """An SSH connection to the relay's runner, closed on the way out.

    Raises `Denied` when the edge refuses the token, the runner refuses the key, or the runner
    shows another host key than the pinned one (nothing has been sent to it then);
    `InfrastructureError` when the runner or the way to it is gone or silent for 30 s.
    """
    client = _Client()
    async with _socket(relay) as sock:
        try:
            connection = await asyncssh.connect(
                relay.lease,
                sock=sock,
                client_factory=lambda: client,
                config=None,
                username=USER,
                known_hosts=([asyncssh.import_public_key(relay.host_key)], [], []),
                x509_trusted_certs=None,
                client_keys=[key],
                agent_path=None,
                preferred_auth="publickey",
                encryption_algs=CIPHERS,
                mac_algs=MACS,
                kex_algs=KEX,
                compression_algs=("none",),
                login_timeout=HANDSHAKE_S,
                connect_timeout=HANDSHAKE_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVES_LOST,
            )
        except asyncssh.HostKeyNotVerifiable:
            raise Denied(
                f"the runner of {relay.lease} shows another host key than its lease names",
                hint="nothing was sent to it; if it happens again, look at what stands between",
            ) from None
        except asyncssh.PermissionDenied:
            raise Denied(
                f"the runner of {relay.lease} refuses this build's key",
                hint="it lets in its lease's key, and 15 more: one for each `mayfly shell`",
            ) from None
        except (OSError, asyncssh.Error, asyncssh.KeyImportError, TimeoutError) as error:
            raise InfrastructureError(
                f"no SSH to the runner of {relay.lease}: {_said(error)}",
                hint="try again",
            ) from None
        try:
            yield Tunnel(connection, client.lost)
        finally:
            connection.abort()


@asynccontextmanager
async def _socket(relay: Relay) -> AsyncIterator[socket.socket]:
    """A connected socket whose other end is the relay's WebSocket."""
    url = f"{relay.url.rstrip('/')}/v1/leases/{relay.lease}/ssh"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                web = await session.ws_connect(
                    url,
                    headers={"Authorization": f"Bearer {relay.token}"},
                    ssl=relay.tls or True,
                    max_msg_size=0,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise Denied(
                    f"the edge refuses this lease's token (HTTP {error.status})",
                    hint="the lease may have ended: see `mayfly lease show " + relay.lease + "`",
                ) from None
            raise InfrastructureError(
                f"the edge has no way to the runner of {relay.lease} (HTTP {error.status})",
                hint="try again",
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(
                f"the edge does not answer at {relay.url}: {_said(error)}",
                hint="see `mayfly status`",
            ) from None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        pumps = [asyncio.create_task(_out(ours, web)), asyncio.create_task(_in(web, ours))]
        try:
            yield theirs
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            ours.close()
            theirs.close()
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.wait_for(web.close(), 1)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _out(ours: socket.socket, web: aiohttp.ClientWebSocketResponse) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(ours, _CHUNK):
        await web.send_bytes(data)
    await web.close()


async def _in(web: aiohttp.ClientWebSocketResponse, ours: socket.socket) -> None:
    """Until the relay closes; then SSH sees the end of its socket, as with TCP."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        async for message in web:
            if message.type is aiohttp.WSMsgType.BINARY:
                await loop.sock_sendall(ours, message.data)
        ours.shutdown(socket.SHUT_RDWR)
