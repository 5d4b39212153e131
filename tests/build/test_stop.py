"""The first signal stops the work in good order; the second one ends the process at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mayfly.build.stop import stoppable
from mayfly.errors import InfrastructureError, UsageError

CODE = """
import asyncio, sys
from mayfly.build.stop import signals, stoppable

async def main():
    async with stoppable() as stop, signals(stop, lambda: print("last act", flush=True)):
        try:
            print("working", flush=True)
            await asyncio.sleep(60)
        finally:
            print("tidying", flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_the_second_signal_ends_the_process_at_once(number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "working\n"
        process.send_signal(number)
        assert said.readline() == "tidying\n"
        started_at = time.monotonic()
        process.send_signal(number)
        assert said.readline() == "last act\n"
        assert process.wait(5) == status
    assert time.monotonic() - started_at < 5


async def test_the_first_reason_counts() -> None:
    with pytest.raises(InfrastructureError, match="first"):
        async with stoppable() as stop:
            stop(InfrastructureError("first"))
            stop(UsageError("second"))
            await asyncio.sleep(10)
