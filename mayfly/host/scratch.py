"""Disks as files: the empty scratch file system, and copy-on-write overlays."""

from __future__ import annotations

from pathlib import Path

from mayfly.host.process import run


async def format_scratch(path: Path, *, label: str, disk_bytes: int, filesystem_bytes: int) -> None:
    """A sparse raw disk of `disk_bytes` with an ext4 of `filesystem_bytes` at its start.

    The guest grows the file system to its size's disk; the disk is as large as the largest. The
    file is known to read as zeros, so inode tables are neither written now nor by the guest later.
    """
    with path.open("wb") as file:
        file.truncate(disk_bytes)
    await run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-m", "0"),
        *("-E", "assume_storage_prezeroed=1,nodiscard"),
        *(str(path), f"{filesystem_bytes // 1024}k"),
    )


async def overlay(path: Path, backing: Path, backing_format: str) -> None:
    """A qcow2 at `path` that holds what differs from `backing`."""
    await run(
        *("qemu-img", "create", "-q", "-f", "qcow2"),
        *("-b", str(backing), "-F", backing_format, str(path)),
    )
