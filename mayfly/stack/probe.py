"""Does a program serve? One connection, one line of its answer; nothing else of it is read."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from pathlib import Path

from mayfly.stack.services import Probe

TIMEOUT_S = 5


async def answers(probe: Probe) -> bool:
    """Whether it serves now; False for whatever else happens, within `TIMEOUT_S`."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _ask(probe)
    except (OSError, ssl.SSLError, TimeoutError, ValueError):
        return False


async def _ask(probe: Probe) -> bool:
    if isinstance(probe.address, Path):
        reader, writer = await asyncio.open_unix_connection(probe.address)
    else:
        host, _, port = probe.address.rpartition(":")
        context = None
        if probe.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            host.strip("[]"),
            int(port),
            ssl=context,
        )
    try:
        if probe.line:
            writer.write(f"{probe.line}\n".encode())
            return await reader.read(1) != b""
        if not probe.path:
            return True
        writer.write(f"GET {probe.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status = re.match(rb"HTTP/1\.[01] (\d{3}) ", await reader.readline())
        return status is not None and int(status[1]) in probe.statuses
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
