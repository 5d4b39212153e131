"""The component's contract: nothing of a runner persists."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.errors import ConfigError
from mayfly.host.component import PATH, runner_disks


def test_the_declared_disks() -> None:
    assert {name: disk.kind for name, disk in runner_disks().items()} == {
        "root": "overlay",
        "scratch": "scratch",
    }


@pytest.mark.parametrize(
    "old, new",
    [
        ("kind = 'scratch, persistent = false", "kind = 'scratch, persistent = true"),
        ("persistent | Ephemeral = false", "persistent | Ephemeral = true"),
        ("kind = 'overlay", "kind = 'volume"),
    ],
)
def test_a_broken_contract_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = PATH.read_text()
    assert old in text
    changed = tmp_path / "runner.ncl"
    changed.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match="contract"):
        runner_disks(changed)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        runner_disks(tmp_path / "nothing.ncl")
