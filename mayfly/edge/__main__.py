"""`python -m mayfly.edge`: serve until SIGTERM. Started by `mayfly up`, or by a unit.

The public socket is the one that `MAYFLY_EDGE_FD` numbers, opened by whoever started this, or one
of its own at `server.listen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from mayfly.config import Config, load
from mayfly.edge.app import Edge, serving, tls_context
from mayfly.errors import InfrastructureError, MachineUnfit, MayflyError
from mayfly.vm.client import DialClient

RENEWED_S = 3600
"""How often to look whether the certificate has been renewed."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Of the listening socket; connections inherit it. A client that vanished is noticed in a minute,
without a word in the stream that a slow runner could hold up."""


async def serve(config: Config) -> None:
    """Serve until cancelled. Raises `OSError`, `ValueError` and `MayflyError` at the start."""
    folder = config.state / "ca"
    inner = tls_context(folder)
    contexts = {"edge": inner}
    if config.server.certificate:
        contexts["public"] = tls_context(folder, "public")
    outer = contexts.get("public", inner)
    public = _public_socket(config)
    admin = config.run / "edge" / "edge.sock"
    admin.unlink(missing_ok=True)
    dialer = DialClient(config.run / "dial.sock")
    # The public address last: who sees it answer finds all of the edge there.
    async with (
        Edge(config, dialer, inner) as edge,
        serving(edge.admin(), lambda runner: web.UnixSite(runner, str(admin))),
        serving(edge.public(), lambda runner: web.SockSite(runner, public, ssl_context=outer)),
        asyncio.TaskGroup() as tasks,
    ):
        admin.chmod(0o660)
        tasks.create_task(edge.runners.attach_all())
        tasks.create_task(_renew(contexts, folder))


def _public_socket(config: Config) -> socket.socket:
    number = os.environ.get("MAYFLY_EDGE_FD")
    if number is not None:
        opened = socket.socket(fileno=int(number))
    else:
        host, _, port = config.server.listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        opened = socket.socket(family)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise MachineUnfit(
                f"cannot listen at {config.server.listen}: {error.strerror}",
                hint="end what uses the port, or set server.listen",
            ) from None
    for level, option, value in KEEPALIVE:
        opened.setsockopt(level, option, value)
    opened.setblocking(False)
    return opened


async def _renew(contexts: Mapping[str, ssl.SSLContext], folder: Path) -> None:
    """Serve new connections with the certificates that are there now."""
    while True:
        await asyncio.sleep(RENEWED_S)
        for name, tls in contexts.items():
            with contextlib.suppress(OSError):
                tls.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")


async def _run(config: Config) -> None:
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serve(config)


def main() -> int:
    """One line on stderr and the error's exit status when it cannot serve."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        asyncio.run(_run(load()))
    except (OSError, ValueError) as error:
        print(f"mayfly-edge: {error}", file=sys.stderr)
        return InfrastructureError.exit_status
    except MayflyError as error:
        print(f"mayfly-edge: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
