"""QEMU's monitor as a socket of the test's own."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError
from mayfly.host.monitor import monitor

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greet, and answer every command with nothing."""
    writer.write(json.dumps(GREETING).encode() + b"\n")
    while asked := await reader.read(65536):  # one command a piece, without a line's end
        answer = {"return": {}, **{k: v for k, v in json.loads(asked).items() if k == "id"}}
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()


async def test_a_socket_on_which_nobody_listens_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))

        async def listen() -> asyncio.Server:
            await asyncio.sleep(0.05)
            return await asyncio.start_unix_server(serve, sock=bound)

        listening = asyncio.create_task(listen())
        async with monitor(path) as qemu:
            await qemu.resume()
        (await listening).close()


async def test_a_monitor_that_never_comes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="does not answer"):
        async with monitor(tmp_path / "qmp.sock", timeout_s=0.05):
            pass
