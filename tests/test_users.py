"""The folders of the state: whose they are, and that no link in them is followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mayfly import users

ROOTS = ("", "ca", "keys", "log", "registry", "s3", "trust", "run")
"""Folders in which root reads and writes."""


def test_where_root_writes_nobody_else_can(tmp_path: Path) -> None:
    users.make_folders(tmp_path / "state")
    for name in ROOTS:
        status = (tmp_path / "state" / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o022) == (0, 0, 0), name
    data = (tmp_path / "state" / "s3" / "data").stat()
    assert (data.st_uid, data.st_mode & 0o7777) == (users.S3, 0o700)


def test_a_folder_that_a_service_owned_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    os.chown(tmp_path / "s3", users.S3, users.S3)
    users.make_folders(tmp_path)
    assert (tmp_path / "s3").stat().st_uid == 0


@pytest.mark.parametrize("planted", ["s3/data", "run/api", "orchestrator"])
def test_a_planted_link_gives_nothing_away(tmp_path: Path, planted: str) -> None:
    victim, link = tmp_path / "victim", tmp_path / "state" / planted
    victim.mkdir(mode=0o700)
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(NotADirectoryError):
        users.make_folders(tmp_path / "state")
    status = victim.stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o700)


def test_the_state_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "large-disk")
    users.make_folders(tmp_path / "state")
    assert (tmp_path / "large-disk" / "s3" / "data").stat().st_uid == users.S3
