"""QEMU's monitor: the few commands a template and a clone need, over qemu.qmp."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient, QMPError

from mayfly.errors import InfrastructureError
from mayfly.guest.scratch import SERIAL

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
"""The library logs what it also raises."""


@contextlib.asynccontextmanager
async def monitor(path: Path, *, timeout_s: float = 10) -> AsyncIterator[Monitor]:
    """The monitor at `path`, waited for until QEMU has made it.

    Raises `InfrastructureError` when it does not answer in time, or a command fails inside.
    """
    client = QMPClient("mayfly")
    client.events.event_filter = lambda _: False  # it keeps them all, and nobody reads them
    try:
        async with asyncio.timeout(timeout_s):
            await _connect(client, path)
    except (TimeoutError, QMPError, OSError) as error:
        raise InfrastructureError(f"QEMU's monitor at {path} does not answer: {error}") from None
    try:
        yield Monitor(client)
    except QMPError as error:
        raise InfrastructureError(f"QEMU refused a command: {error}") from None
    finally:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()


async def _connect(client: QMPClient, path: Path) -> None:
    """Connect as soon as QEMU listens: first the socket is not there, then nobody listens on it."""
    while True:
        if path.exists():
            try:
                await client.connect(str(path))
                return
            except ConnectError as error:
                if not isinstance(error.exc, ConnectionRefusedError):
                    raise
        await asyncio.sleep(0.002)


class Monitor:
    """Commands in the order in which a VM's life uses them."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def save(self, state: Path) -> None:
        """Stop the VM and write its device state; RAM is left where it is, in its shared file."""
        await self._client.execute("stop")
        await self._ignore_shared()
        await self._client.execute("migrate", {"uri": f"file:{state}"})
        await self._migrated()

    async def load(self, state: Path) -> None:
        """Read the device state of a template into a VM that was started with `-incoming defer`."""
        await self._ignore_shared()
        await self._client.execute("migrate-incoming", {"uri": f"file:{state}"})
        await self._migrated()

    async def plug_memory(self, size_bytes: int) -> None:
        """Plug one DIMM; nothing for a size of 0."""
        if size_bytes <= 0:
            return
        there: Any = await self._client.execute("query-memory-devices")
        name = f"dimm{len(there)}"
        await self._client.execute(
            "object-add",
            {
                "qom-type": "memory-backend-ram",
                "id": f"{name}-ram",
                "size": size_bytes,
                "reserve": False,
            },
        )
        await self._client.execute(
            "device_add", {"driver": "pc-dimm", "id": name, "memdev": f"{name}-ram"}
        )

    async def plug_disk(self, path: Path, backing: Path, backing_format: str) -> None:
        """Plug the qcow2 at `path` in as the disk with the serial `SERIAL`, into the spare port.

        What it says of its backing file is not believed: it was another VM's.
        """
        unsynced = {"no-flush": True}
        await self._client.execute(
            "blockdev-add",
            {
                "node-name": SERIAL,
                "driver": "qcow2",
                "discard": "unmap",
                "cache": unsynced,
                "file": {"driver": "file", "filename": str(path), "cache": unsynced},
                "backing": {
                    "driver": backing_format,
                    "read-only": True,
                    "file": {"driver": "file", "filename": str(backing), "read-only": True},
                },
            },
        )
        await self._client.execute(
            "device_add",
            {
                "driver": "virtio-blk-pci",
                "id": SERIAL,
                "drive": SERIAL,
                "serial": SERIAL,
                "bus": "spare",
                "write-cache": "on",
            },
        )

    async def memory_bytes(self) -> int:
        """All memory that the VM has, what was plugged in included."""
        answer: Any = await self._client.execute("query-memory-size-summary")
        return int(answer["base-memory"]) + int(answer.get("plugged-memory", 0))

    async def resume(self) -> None:
        """Let the guest run."""
        await self._client.execute("cont")

    async def out_of_disk(self) -> bool:
        """Whether the VM stands still because a write of it found no room (`werror=enospc`, which
        is QEMU's default; any other failed write is an error that the guest sees)."""
        answer: Any = await self._client.execute("query-status")
        return bool(answer.get("status") == "io-error")

    async def quit(self) -> None:
        """End QEMU."""
        with contextlib.suppress(QMPError, EOFError):
            await self._client.execute("quit")

    async def _ignore_shared(self) -> None:
        await self._client.execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
        )

    async def _migrated(self) -> None:
        while True:
            answer: Any = await self._client.execute("query-migrate")
            status = answer.get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                reason = answer.get("error-desc", "no reason given")
                raise InfrastructureError(f"QEMU could not save or load a template: {reason}")
            await asyncio.sleep(0.002)
