"""How the tools that make images are run."""

from __future__ import annotations

from pathlib import Path

from mayfly.debian.bootstrap import own_mounts


def test_a_chroot_keeps_its_propagation(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        "24 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n25 24 0:5 / /proc rw - proc p rw\n"
    )
    assert "private" in own_mounts(info)
    info.write_text("25 24 0:5 / /proc rw - proc proc rw\n")
    assert "unchanged" in own_mounts(info)
