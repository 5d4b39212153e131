"""The host's end of the channel to a guest: whatever comes through it, the call ends, and soon."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.errors import InfrastructureError
from mayfly.host.agent import MAX_LINE, MAX_STRAY_LINES, agent
from mayfly.model import MIB


@asynccontextmanager
async def guest(path: Path, says: bytes, *, repeats: bool = False) -> AsyncIterator[None]:
    """A guest that says so, whatever it is asked."""
    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        with suppress(OSError, asyncio.CancelledError):
            writer.write(says)
            while repeats:
                await writer.drain()
                writer.write(says)
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        for task in talking:
            task.cancel()
        server.close()
        path.unlink(missing_ok=True)


HOSTILE = {
    "nothing": (b"", False),
    "bytes without a line's end": (b"x" * 65536, True),
    "lines without end": (b'{"id": 2, "ok": true}\n', True),
    "nonsense": (os.urandom(100) + b"\n", True),
    "deep JSON": (b"[" * (MAX_LINE - 2) + b"\n", True),
    "a line that is too long": (b" " * MAX_LINE + b'{"id": 1, "ok": true}\n', False),
    "a number that is too long": (b'{"id": ' + b"1" * 5000 + b"}\n", True),
    "a refusal": (b'{"id": 1, "ok": false, "error": "\\n\\u001b' + b"e" * 60000 + b'"}\n', False),
    "an answer that is none": (b'{"id": 1, "ok": "true"}\n', False),
    "no object": (b"1\n", True),
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_call_ends_with_one_line_of_error(tmp_path: Path, what: str) -> None:
    says, repeats = HOSTILE[what]
    before = resident_bytes()
    async with guest(tmp_path / "s", says, repeats=repeats), agent(tmp_path / "s") as channel:
        with pytest.raises(InfrastructureError) as caught:
            await asyncio.wait_for(channel.call("usage", timeout_s=0.3), 20)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert resident_bytes() - before < 50 * MIB


async def test_the_answer_is_found_among_others_but_not_among_any_number(tmp_path: Path) -> None:
    answer = json.dumps({"id": 1, "ok": True, "x": 5}).encode() + b"\n"
    for strays, found in ((MAX_STRAY_LINES - 1, True), (MAX_STRAY_LINES, False)):
        says = b"stray\n" * strays + answer
        async with guest(tmp_path / "s", says), agent(tmp_path / "s") as channel:
            if found:
                assert (await channel.call("usage", timeout_s=5))["x"] == 5
            else:
                with pytest.raises(InfrastructureError, match="talked on"):
                    await channel.call("usage", timeout_s=5)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.binary(max_size=200))
async def test_no_bytes_bring_anything_but_that_error(tmp_path: Path, said: bytes) -> None:
    async with guest(tmp_path / "s", said + b"\n"), agent(tmp_path / "s") as channel:
        with pytest.raises(InfrastructureError):
            await channel.call("usage", timeout_s=0.02)
