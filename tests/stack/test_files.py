"""Files of the state: whole, of the right owner, and never somebody else's by a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mayfly.stack.files import place, read

SERVICE, OTHER = 60904, 60903


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "none") is None


@pytest.mark.parametrize(("owner", "fine"), [(0, True), (SERVICE, True), (OTHER, False)])
def test_a_file_of_roots_or_of_the_expected_user_is_read(
    tmp_path: Path, owner: int, fine: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.chown(path, owner, owner)
    if fine:
        assert read(path, SERVICE) == b"content"
        return
    with pytest.raises(PermissionError, match=f"root or user {SERVICE}"):
        read(path, SERVICE)


def symbolic(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def hard(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


def pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [symbolic, hard, pipe])
def test_what_is_planted_is_not_read_and_what_is_placed_replaces_it(
    tmp_path: Path, plant: object
) -> None:
    assert callable(plant)
    secret, path = tmp_path / "secret", tmp_path / "path"
    secret.write_bytes(b"same")
    plant(path, secret)
    with pytest.raises(OSError, match="path"):
        read(path, SERVICE)
    place(path, b"same", owner=SERVICE)
    assert read(path, SERVICE) == b"same"
    assert (path.stat().st_uid, path.lstat().st_nlink) == (SERVICE, 1)
    assert (secret.read_bytes(), secret.stat().st_uid) == (b"same", 0)
