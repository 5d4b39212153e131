"""What is done about a program that runs and does not serve."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mayfly.install import look


def told(folder: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd is told about a program in that state which has hung."""
    file = folder / "told"
    stub = folder / "systemctl"
    stub.write_text(f'#!/bin/sh\necho "$*" >>{file}\n[ "$1" != show ] || echo {state}\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    look._restart("host")
    return file.read_text().splitlines()[1:]


def test_of_a_program_that_hangs_the_main_process_is_killed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VMs are in its unit where hierarchies are v1, and builds go on without it."""
    assert told(tmp_path, "active", monkeypatch) == [
        "kill --kill-whom=main --signal=KILL mayfly-host.service"
    ]


@pytest.mark.parametrize("state", ["inactive", "activating", "deactivating", "failed"])
def test_what_an_operator_stopped_and_what_is_starting_is_left_alone(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(tmp_path, state, monkeypatch) == []


@pytest.mark.skipif(not shutil.which("systemctl"), reason="no systemd is installed")
def test_systemd_knows_the_words() -> None:
    """`--kill-whom` came with systemd 252, which Debian 12 has."""
    done = subprocess.run(["systemctl", "--help"], capture_output=True, text=True, check=False)
    assert "--kill-whom=" in done.stdout
