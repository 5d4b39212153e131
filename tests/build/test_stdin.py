"""Standard input is kept whole, whatever it is, or refused with a reason."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mayfly.build.stdin import spool
from mayfly.errors import UsageError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "stdin"


async def test_a_pipe_that_is_written_slowly(target: Path) -> None:
    read, write = os.pipe()
    copying = asyncio.create_task(spool(read, target))
    for _ in range(3):
        await asyncio.sleep(0.1)
        os.write(write, b"abc")
    assert not copying.done()
    os.close(write)
    await copying
    os.close(read)
    assert target.read_bytes() == b"abc" * 3


async def test_a_file_of_just_the_bound_and_a_larger_one(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1_000_000))
    with source.open("rb") as opened:
        await spool(opened.fileno(), target, most=1_000_000)
    assert target.stat().st_size == 1_000_000
    with source.open("rb") as opened, pytest.raises(UsageError, match="longer than 0 MiB - name"):
        await spool(opened.fileno(), tmp_path / "other", most=999_999)


async def test_what_cannot_be_read_or_kept_is_a_fault_of_one_line(target: Path) -> None:
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(UsageError, match=r"cannot be read into .*No such file"):
        await spool(read, target.parent / "absent" / "x")
    os.close(read)
    with pytest.raises(UsageError, match="standard input cannot be read"):
        await spool(read, target)


async def test_waiting_for_input_can_be_cancelled(target: Path) -> None:
    read, write = os.pipe()
    copying = asyncio.create_task(spool(read, target))
    await asyncio.sleep(0.1)
    copying.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await copying
    os.close(read)
    os.close(write)
