"""What can be shown of templates without starting a VM."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import InfrastructureError
from mayfly.host import template as module
from mayfly.host.agent import agent
from mayfly.host.template import forget_boot_id, ram_offset
from mayfly.model import GIB
from mayfly.pid import ProcessId

BOOT_ID = uuid.UUID("5a1f0a2e-0c3c-4f0e-9d8b-6a1b2c3d4e5f")


def ram(folder: Path) -> Path:
    """16 bytes of boot id between others."""
    file = folder / "ram"
    file.write_bytes(b"before-" * 3 + BOOT_ID.bytes + b"-after")
    return file


def test_a_boot_id_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    file = ram(tmp_path)
    forget_boot_id(file, {"address": 21, "value": str(BOOT_ID)})
    assert file.read_bytes() == b"before-" * 3 + bytes(16) + b"-after"


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"address": 20, "value": str(BOOT_ID)},
        {"address": 21, "value": str(uuid.UUID(int=1))},
        {"address": 1 << 40, "value": str(BOOT_ID)},
        {"address": -1, "value": str(BOOT_ID)},
        {"address": "x", "value": str(BOOT_ID)},
        {"address": 21, "value": "no uuid"},
    ],
)
def test_what_a_guest_tells_wrongly_changes_nothing(tmp_path: Path, told: Any) -> None:
    file = ram(tmp_path)
    before = file.read_bytes()
    with pytest.raises(InfrastructureError, match="boot id"):
        forget_boot_id(file, told)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("address", "ram_bytes", "offset"),
    [
        (GIB, GIB * 2, GIB),
        (5 * GIB // 2, 21 * GIB // 8, 5 * GIB // 2),
        (2 * GIB - 1, 4 * GIB, 2 * GIB - 1),
        (4 * GIB, 4 * GIB, 2 * GIB),
        (4 * GIB + 5, 8 * GIB, 2 * GIB + 5),
    ],
)
def test_memory_above_the_hole_follows_what_is_below(
    address: int, ram_bytes: int, offset: int
) -> None:
    assert ram_offset(address, ram_bytes) == offset


async def test_a_qemu_that_ends_before_it_has_a_console_is_told_as_such(tmp_path: Path) -> None:
    words = ["sh", "-c", f"touch {tmp_path}/qmp.sock; echo no RAM >&2; sleep 0.5"]
    there = await asyncio.start_unix_server(lambda *_: None, tmp_path / "agent.sock")
    with pytest.raises(InfrastructureError, match="QEMU ended: no RAM"):
        async with (
            there,
            module._running(words, tmp_path, 30) as process,
            agent(tmp_path / "agent.sock") as guest,
        ):
            await module._answers(guest, process, tmp_path, 20)


async def test_a_guest_that_hangs_is_not_waited_for_longer_than_it_may_take(tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_text("[ 0.7] rcu: kthread starved\n")
    hung = await asyncio.start_unix_server(lambda *_: None, tmp_path / "agent.sock")
    async with hung, agent(tmp_path / "agent.sock") as guest:
        with pytest.raises(InfrastructureError, match=r"within 1 s.*kthread starved"):
            async with asyncio.timeout(30):
                await module._answers(guest, ProcessId.of(os.getpid()), tmp_path, 1)
