"""`scripts/setup`: what it says is there is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parent.parent / "scripts" / "setup"


@pytest.mark.parametrize(("wanted", "there"), [("a b", True), ("b nope", False), ("nope b", False)])
def test_every_program_is_looked_for(tmp_path: Path, wanted: str, there: bool) -> None:
    for name in "ab":
        (tmp_path / name).touch(mode=0o755)
    script = SETUP.read_text()
    start = script.index("have() {")
    function = script[start : script.index("\n}\n", start) + 3]
    done = subprocess.run(
        ["/bin/sh", "-c", f"PATH={tmp_path}; {function}have {wanted}"], check=False
    )
    assert (done.returncode == 0) is there
    assert "command -v" not in script.replace(function, "").replace("command -v dpkg >", "")
