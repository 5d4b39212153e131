"""A root folder as a disk: one ext4 file system, no journal since a runner's disk dies with it."""

from __future__ import annotations

import os
from pathlib import Path

from mayfly.debian.process import run
from mayfly.golden.recipe import Disk

MIB = 1024 * 1024
BLOCK = 4096


def content_bytes(root: Path) -> int:
    """What the files of `root` take on a file system with 4 KiB blocks and 256-byte inodes."""
    total = 0
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            size = os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
            total += -(-size // BLOCK) * BLOCK + 256
    return total


def disk_bytes(content: int, slack_mib: int) -> int:
    """Size of the disk for `content` bytes: tables and slack added, whole 16 MiB."""
    step = 16 * MIB
    return -(-(content + content // 16 + slack_mib * MIB) // step) * step


def make_disk(root: Path, disk: Path, spec: Disk, epoch: int) -> None:
    """Write `root` into the new file `disk`. Raises `InfrastructureError` (a full disk too)."""
    size = disk_bytes(content_bytes(root), spec.slack_mib)
    run(
        ["mke2fs", "-q", "-t", "ext4", "-d", root, "-L", spec.label, "-U", spec.uuid,
         "-m", "0", "-b", str(BLOCK), "-I", "256",
         "-O", "^has_journal,^resize_inode", "-E",
         f"hash_seed={spec.uuid},lazy_itable_init=0,root_owner=0:0",
         disk, f"{size // 1024}k"],
        what="making the disk",
        env={"SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch)},
    )  # fmt: skip
