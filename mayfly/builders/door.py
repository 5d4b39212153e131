"""Where docker clients come in: a unix socket for each builder, one TLS address for the others.

Who is at a socket is told by the kernel (the builder's user, and root); who is at the TLS address,
by the client certificate, whose fingerprint names the builder.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from mayfly.builders.relay import CHUNK, Client
from mayfly.builders.session import Session
from mayfly.errors import InfrastructureError

log = structlog.get_logger("builders")

HANDSHAKE_S = 10.0
ROOT = 0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class SocketDoor:
    """The socket of one builder. What an earlier program left at its path is replaced."""

    def __init__(self, session: Session, path: Path) -> None:
        self.path = path
        self._session = session
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises `InfrastructureError` when the path cannot be a socket's."""
        try:
            self.path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=CHUNK)
            self.path.chmod(0o666)
        except OSError as error:
            raise InfrastructureError(f"cannot listen at {self.path}: {error}") from None

    def close(self) -> None:
        """Nobody gets in any more; what is connected is the session's."""
        if self._server is not None:
            self._server.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _peer(writer.get_extra_info("socket"))
        builder = self._session.builder
        if uid not in (ROOT, builder["uid"]):
            log.warning("refused: not its user", builder=builder["name"], uid=uid)
            writer.close()
            return
        await self._session.serve(Client(reader, writer))


class TlsDoor:
    """The address of all builders with a certificate. `sessions` are looked up by fingerprint."""

    def __init__(self, listen: str, folder: Path, sessions: Mapping[str, Session]) -> None:
        """`folder` has `builders.crt` and `builders.key`."""
        self._listen = listen
        self._folder = folder
        self._sessions = sessions
        self._authority = ""
        self._tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._trouble = ""

    async def open(self, authority: str) -> None:
        """Listen, for clients whose certificate `authority` (PEM) has signed; again does no harm,
        takes a renewed certificate, and tries again what failed, which is logged once.
        """
        try:
            if self._tls is None or authority != self._authority:
                self.close()
                self._tls, self._authority = _context(authority), authority
            self._tls.load_cert_chain(self._folder / "builders.crt", self._folder / "builders.key")
            if self._server is None:
                host, _, port = self._listen.rpartition(":")
                self._server = await asyncio.start_server(
                    self._serve,
                    host.strip("[]"),
                    int(port),
                    limit=CHUNK,
                    ssl=self._tls,
                    ssl_handshake_timeout=HANDSHAKE_S,
                )
                log.info("builders are served by TLS", address=self._listen)
            self._trouble = ""
        except (OSError, ValueError) as error:  # ssl's errors are OSErrors
            if str(error) != self._trouble:
                log.error("builders are not served by TLS", address=self._listen, reason=str(error))
            self._trouble = str(error)

    def close(self) -> None:
        """Nobody gets in any more; what is connected is the sessions'."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        fingerprint = hashlib.sha256(certificate or b"").hexdigest()
        session = self._sessions.get(fingerprint)
        if session is None:
            peer = writer.get_extra_info("peername")
            log.warning("refused: no builder has it", certificate=fingerprint, client=peer)
            writer.close()
            return
        await session.serve(Client(reader, writer))


def _context(authority: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority)
    context.set_alpn_protocols(["h2"])
    return context


def _peer(opened: socket.socket) -> int:
    """The user id of the process at the other end of a unix socket."""
    form = "3i"
    told = opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    return int(struct.unpack(form, told)[1]) & 0xFFFFFFFF
