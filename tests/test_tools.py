"""What building the programs leaves of older ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from mayfly import tools


def test_programs_that_run_are_seen_whatever_the_way_to_them(tmp_path: Path) -> None:
    older = tmp_path / "real" / "older"
    (older / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "", older / "bin" / "registry")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    process = subprocess.Popen([older / "bin" / "registry", "60"])
    try:
        assert tools._runs(older)
        assert tools._runs(tmp_path / "link" / "older")
        assert not tools._runs(tmp_path / "real" / "old")
    finally:
        process.kill()
        process.wait()
    assert not tools._runs(older)
