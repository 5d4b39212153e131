"""Digests of what files hold, and when they are read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.host.seal import BLOCK, Seals, Spoiled, content_digest

MIB = 1024 * 1024


def sparse(path: Path) -> Path:
    """64 MiB with two islands of data, one of them at a block's edge."""
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(3 * BLOCK - 5)
        file.write(b"an island")
        file.seek(40 * MIB)
        file.write(os.urandom(BLOCK))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return sparse(tmp_path / "ram")


def test_zeros_written_or_left_out_are_the_same(file: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.write_bytes(file.read_bytes())
    assert full.stat().st_blocks > file.stat().st_blocks
    assert content_digest(full) == content_digest(file)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(40 * MIB + 17)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def into_a_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(63 * MIB)
        file.write(b"\1")


def truncated(path: Path) -> None:
    os.truncate(path, 64 * MIB - 1)


def longer(path: Path) -> None:
    os.truncate(path, 64 * MIB + 1)


def moved(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[BLOCK:] + data[:BLOCK])


def gone(path: Path) -> None:
    path.unlink()


CHANGES = [flip, into_a_hole, truncated, longer, moved, gone]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("known", [True, False], ids=["while it runs", "before it started"])
def test_whatever_changes_is_found(file: Path, change: Callable[[Path], None], known: bool) -> None:
    recorded = {file: content_digest(file)}
    seals = Seals()
    if known:
        seals.check(recorded, content_digest)
        assert seals.unbroken(recorded)
    change(file)
    assert not seals.unbroken(recorded)
    with pytest.raises(Spoiled, match="ram"):
        seals.check(recorded, content_digest)
    assert not seals.unbroken(recorded)


def test_what_only_looks_different_is_read_once_more(file: Path, tmp_path: Path) -> None:
    recorded = {file: content_digest(file)}
    seals = Seals()
    seals.check(recorded, content_digest)
    (tmp_path / "another name").hardlink_to(file)
    os.utime(file, ns=(1, 1))
    assert not seals.unbroken(recorded)
    seals.check(recorded, content_digest)
    assert seals.unbroken(recorded)


def test_another_digest_is_another_file(file: Path) -> None:
    seals = Seals()
    seals.check({file: content_digest(file)}, content_digest)
    assert not seals.unbroken({file: "0" * 64})


def test_an_empty_file_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert content_digest(tmp_path / "empty") != content_digest(sparse(tmp_path / "s"))
